"""Pictures of quantizers: rows of images, the page that compares runs, and `save`.

The single plots that they are made of are in `panels.py` and can be imported from here. matplotlib is
imported by the functions, not by this module.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from straightvq.diagnostics import panels
from straightvq.diagnostics.panels import codebook_scatter, usage_histogram, usage_over_time
from straightvq.errors import InvalidValueError
from straightvq.io import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Arm",
    "codebook_scatter",
    "comparison",
    "reconstruction_grid",
    "save",
    "usage_histogram",
    "usage_over_time",
]


def save(figure: "Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure so that `path` holds either the whole picture or what was there before.

    The picture is written under another name in the same folder and renamed. Missing folders are made.

    Args:
        figure: what to write.
        path: where; the suffix chooses the format (.png, .pdf, .svg).

    Returns:
        The path.

    Raises:
        ValueError: if `path` has no suffix or one that matplotlib cannot write.
    """
    path = Path(path)
    suffix = path.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InvalidValueError(f"`save`: `path` must end in one of {', '.join(sorted(known))}. Got {str(path)!r}.")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=suffix, facecolor="white")
    return path


def pixels(figure: "Figure") -> np.ndarray:
    """The figure as an image, UInt8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@dataclass(frozen=True)
class Arm:
    """One run in a comparison.

    Args:
        name: what the pictures call it; a few words.
        reconstructions: of the images that all arms share, float in [0, 1] or uint8.
        usage_steps: training steps at which usage was measured.
        usage_values: the usage there, a fraction in [0, 1].
        z: embeddings of a test sample.
        codes: effective codes at the end.
        counts: assignments of the test set to each code.
        test_mse: mean squared error per element on the test set, for images in [0, 1].
        psnr: peak signal-to-noise ratio on the test set, in dB.
        codes_used: number of codes assigned at least once on the test set.
        perplexity: of the test set's assignments, in codes.

    Shape:
        reconstructions: Float (n, channels, height, width).
        z: Float (*batch, dim).
        codes: Float (k, dim).
        counts: Int (k,).
    """

    name: str
    reconstructions: Tensor
    usage_steps: Sequence[float]
    usage_values: Sequence[float]
    z: Tensor
    codes: Tensor
    counts: Tensor
    test_mse: float
    psnr: float
    codes_used: int
    perplexity: float


def comparison(originals: Tensor, arms: Sequence[Arm], *, title: str | None = None, max_images: int = 10) -> "Figure":
    """One page: originals and reconstructions, usage over training, and every arm's codebook.

    An arm keeps its colour in all panels. At most six arms, of which the first three look best.

    Args:
        originals: images in [0, 1].
        arms: the runs, baseline first.
        title: headline; by default how many codes each arm uses.
        max_images: at most this many columns of images.

    Shape:
        originals: Float or UInt8 (n, channels, height, width), 1 or 3 channels.

    Returns:
        A figure 1600 pixels wide at its own resolution.

    Raises:
        ValueError: if there is no arm, more than six, two of one name, or shapes do not fit.
    """
    names = [arm.name for arm in arms]
    if not 1 <= len(arms) <= len(panels.PALETTE) or len(set(names)) < len(names):
        raise InvalidValueError(
            f"`comparison`: `arms` must be 1 to {len(panels.PALETTE)} runs with different names. Got {names}."
        )
    colors = panels.PALETTE[: len(arms)]
    rows = [(_label(arm), arm.reconstructions) for arm in arms]
    strips = _image_strips("comparison", originals, rows, max_images)
    width, head = 16.0, 0.95  # inches
    images = _strips_height(strips, width)
    plots = _panel_rows(len(arms))[0] * _PANEL_HEIGHT
    figure = panels.new_figure(width, head + images + plots)
    panels.headline(figure, title or _headline(arms))
    _draw_strips(figure, strips, head, [panels.INK, *colors])
    _draw_panels(figure, arms, colors)
    return figure


def reconstruction_grid(
    originals: Tensor, *rows: tuple[str, Tensor], max_images: int = 12, title: str | None = None
) -> "Figure":
    """Originals in the first row, under each what became of it.

    Args:
        originals: images, float in [0, 1] (values outside are clipped) or uint8.
        rows: a title and the images for each further row, in the same order.
        max_images: at most this many columns, from the front.
        title: headline of the figure.

    Shape:
        originals and every row's images: Float or UInt8 (n, channels, height, width), 1 or 3 channels.

    Raises:
        ValueError: if there is no image or the shapes differ.
    """
    strips = _image_strips("reconstruction_grid", originals, rows, max_images)
    top = 0.7 if title else 0.2
    figure = panels.new_figure(16.0, top + _strips_height(strips, 16.0) + 0.2)
    if title:
        panels.headline(figure, title)
    _draw_strips(figure, strips, top, [panels.INK] * len(strips))
    return figure


def _draw_panels(figure: "Figure", arms: Sequence[Arm], colors: Sequence[str]) -> None:
    """Usage over training and one scatter per arm, row by row from the lower edge."""
    page_width, page_height = figure.get_size_inches()
    rows, columns = _panel_rows(len(arms))
    left, right, between, below, above = 1.0, 0.35, 0.95, 0.75, 1.35  # inches
    width = (page_width - left - right - (columns - 1) * between) / columns
    height = _PANEL_HEIGHT - below - above
    axes = []
    for panel in range(len(arms) + 1):
        row, column = divmod(panel, columns)
        x = left + column * (width + between)
        y = (rows - 1 - row) * _PANEL_HEIGHT + below
        axes.append(figure.add_axes((x / page_width, y / page_height, width / page_width, height / page_height)))
    series = {arm.name: (arm.usage_steps, arm.usage_values) for arm in arms}
    usage_over_time(axes[0], series, colors=colors, title="Codes in use during training")
    for ax, arm, color in zip(axes[1:], arms, colors, strict=True):
        title = panels.clip(f"Codebook of {arm.name}", int(width / panels.BOLD_LETTER_WIDTH))
        codebook_scatter(ax, arm.z, arm.codes, arm.counts, color=color, title=title)


_PANEL_HEIGHT = 5.35  # inches, with labels and title


def _panel_rows(arms: int) -> tuple[int, int]:
    """Rows and columns of one panel more than there are arms, never more than three wide."""
    count = arms + 1
    columns = 2 if count == 4 else min(count, 3)
    return -(-count // columns), columns


def _label(arm: Arm) -> str:
    return "\n".join(
        (
            arm.name,
            f"test MSE {arm.test_mse:.4g}, {arm.psnr:.1f} dB",
            f"{arm.codes_used:,} of {len(arm.codes):,} codes used",
            f"perplexity {arm.perplexity:,.1f}",
        )
    )


def _headline(arms: Sequence[Arm]) -> str:
    parts = [f"{panels.clip(arm.name, _LABEL_LETTERS)} uses {arm.codes_used:,}" for arm in arms[:3]]
    first = f"{parts[0]} of {len(arms[0].codes):,} codes"
    return ", ".join([first, *parts[1:]])


def _image_strips(
    owner: str, originals: Tensor, rows: Sequence[tuple[str, Tensor]], max_images: int
) -> list[tuple[str, np.ndarray]]:
    """Check the images and lay each row out as `(label, (n, height, width, channels))` in [0, 1]."""
    if originals.ndim != 4 or not len(originals) or originals.shape[1] not in (1, 3):
        raise InvalidValueError(
            f"`{owner}`: `originals` must have the shape (n, channels, height, width) with n >= 1 and 1 or 3 channels. "
            f"Got {tuple(originals.shape)}."
        )
    for name, images in rows:
        if images.shape != originals.shape:
            raise InvalidValueError(
                f"`{owner}`: the images of {name!r} must have the shape of `originals`, {tuple(originals.shape)}. "
                f"Got {tuple(images.shape)}."
            )
    strips = []
    for name, images in (("original", originals), *rows):
        shown = images[:max_images].detach().cpu()
        scaled = shown.float() / 255 if shown.dtype == torch.uint8 else shown.float().clamp(0, 1)
        strips.append((name, scaled.permute(0, 2, 3, 1).numpy()))
    return strips


_STRIP_LEFT, _STRIP_RIGHT, _STRIP_GAP = 2.9, 0.35, 0.08  # inches
# What fits left of the images.
_LABEL_LETTERS = 18


def _strips_height(strips: Sequence[tuple[str, np.ndarray]], width: float) -> float:
    """Height in inches of all strips in a figure of that width."""
    return len(strips) * (_cell(strips[0][1], width)[1] + _STRIP_GAP) - _STRIP_GAP


def _cell(images: np.ndarray, width: float) -> tuple[float, float]:
    """Width and height in inches of one image of a strip."""
    n, height, wide = images.shape[:3]
    cell_width = (width - _STRIP_LEFT - _STRIP_RIGHT - (n - 1) * _STRIP_GAP) / n
    # Few images would otherwise fill the page.
    cell_height = min(cell_width * height / wide, 1.9)
    return cell_height * wide / height, cell_height


def _draw_strips(figure: "Figure", strips: Sequence[tuple[str, np.ndarray]], top: float, colors: Sequence[str]) -> None:
    """Draw rows of images from `top` inches below the upper edge, each labelled on the left.

    The first line of a label stands out in the row's colour.
    """
    width, height = figure.get_size_inches()
    for row, ((label, images), color) in enumerate(zip(strips, colors, strict=True)):
        cell_width, cell_height = _cell(images, width)
        bottom = height - top - (row + 1) * cell_height - row * _STRIP_GAP
        for column, image in enumerate(images):
            left = _STRIP_LEFT + column * (cell_width + _STRIP_GAP)
            ax = figure.add_axes(
                (left / width, bottom / height, cell_width / width, cell_height / height),
                xticks=[],
                yticks=[],
            )
            ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
        first, *others = label.split("\n")
        middle = bottom + cell_height / 2
        # Points to inches: the block of text is centred on the row.
        line = panels.TEXT_SIZE * 1.45 / 72
        for number, text in enumerate((first, *others)):
            figure.text(
                0.45 / width,
                (middle + (len(others) / 2 - number) * line) / height,
                panels.clip(text, _LABEL_LETTERS) if number == 0 else text,
                fontsize=panels.TITLE_SIZE if number == 0 else panels.TEXT_SIZE,
                fontweight="bold" if number == 0 else "normal",
                color=color if number == 0 else panels.FAINT_INK,
                va="center",
                parse_math=False,
            )
