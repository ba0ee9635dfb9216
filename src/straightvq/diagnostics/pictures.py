"""Pictures of images: rows of reconstructions, the page that compares runs; and `save`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from straightvq.diagnostics import panels
from straightvq.diagnostics.codebooks import codebook_scatter
from straightvq.diagnostics.curves import usage_over_time
from straightvq.diagnostics.functional.vectors import shape_error
from straightvq.errors import InvalidValueError
from straightvq.io import replacing

PAGE_WIDTH, PANEL_HEIGHT = 16.0, 5.35  # inches, with labels and title
LABEL_LETTERS = 18  # that fit left of the images


def save(figure: "panels.Figure", path: str | os.PathLike[str]) -> Path:
    """Write a figure to `path`, whole or not at all, and return the path. Makes missing folders.

    The suffix chooses the format (.png, .pdf, .svg).

    Raises: ValueError if `path` has no suffix or one that matplotlib cannot write.
    """
    path = Path(path)
    suffix = path.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InvalidValueError(f"`save`: `path` must end in one of {', '.join(sorted(known))}. Got {str(path)!r}.")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format=suffix, facecolor="white")
    return path


def pixels(figure: "panels.Figure") -> np.ndarray:
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
        reconstructions: of the images that all arms share, as `reconstruction_grid` takes them.
        usage_steps, usage_values: training steps and the usage there, a fraction in [0, 1].
        z: embeddings of a test sample, Float (*batch, dim).
        codes: effective codes at the end, Float (k, dim).
        counts: assignments of the test set to each code, Int (k,).
        test_mse: mean squared error per element on the test set, for images in [0, 1].
        psnr: peak signal-to-noise ratio on the test set, in dB.
        codes_used: number of codes assigned at least once on the test set.
        perplexity: of the test set's assignments, in codes.
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


def comparison(
    originals: Tensor, arms: Sequence[Arm], *, title: str | None = None, max_images: int = 10
) -> "panels.Figure":
    """One page: originals and reconstructions, usage over training, and every arm's codebook.

    An arm keeps its colour in all panels. The page is 1600 pixels wide.

    Args:
        originals: images, as `reconstruction_grid` takes them.
        arms: one to six runs, baseline first; up to three look best.
        title: headline; by default how many codes each arm uses.
        max_images: most columns of images.

    Raises: ValueError if there is no arm, more than six, two of one name, or shapes do not fit.
    """
    names = [arm.name for arm in arms]
    if not 1 <= len(arms) <= len(panels.PALETTE) or len(set(names)) < len(names):
        raise InvalidValueError(
            f"`comparison`: `arms` must be 1 to {len(panels.PALETTE)} runs with different names. Got {names}."
        )
    colors = panels.PALETTE[: len(arms)]
    strips = _Strips("comparison", originals, [(_label(arm), arm.reconstructions) for arm in arms], max_images)
    # One panel more than there are arms, never more than three in a row.
    count = len(arms) + 1
    columns = 2 if count == 4 else min(count, 3)
    top = 0.95 + strips.height
    if not title:
        first, *others = (f"{panels.clip(arm.name, LABEL_LETTERS)} uses {arm.codes_used:,}" for arm in arms[:3])
        title = ", ".join([f"{first} of {len(arms[0].codes):,} codes", *others])
    figure = panels.new_figure(PAGE_WIDTH, top + -(-count // columns) * PANEL_HEIGHT, title)
    strips.draw(figure, 0.95, [panels.INK, *colors])
    usage, *scatters = panels.grid(figure, count, columns, top=top, above=1.35, below=0.75, between=0.95)
    series = {arm.name: (arm.usage_steps, arm.usage_values) for arm in arms}
    usage_over_time(usage, series, colors=colors, title="Codes in use during training")
    letters = int(usage.get_position().width * PAGE_WIDTH / panels.BOLD_LETTER_WIDTH)
    for ax, arm, color in zip(scatters, arms, colors, strict=True):
        name = panels.clip(f"Codebook of {arm.name}", letters)
        codebook_scatter(ax, arm.z, arm.codes, arm.counts, color=color, title=name)
    return figure


def _label(arm: Arm) -> str:
    used = f"{arm.codes_used:,} of {len(arm.codes):,} codes used"
    return f"{arm.name}\ntest MSE {arm.test_mse:.4g}, {arm.psnr:.1f} dB\n{used}\nperplexity {arm.perplexity:,.1f}"


def reconstruction_grid(
    originals: Tensor, *rows: tuple[str, Tensor], max_images: int = 12, title: str | None = None
) -> "panels.Figure":
    """Originals in the first row, under each what became of it.

    Args:
        originals: images (n, 1 or 3, height, width), Float in [0, 1] (values outside are clipped) or UInt8.
        rows: a title and such images for each further row, in the same order.
        max_images: most columns, from the front.

    Raises: ValueError if there is no image or the shapes differ.
    """
    strips = _Strips("reconstruction_grid", originals, rows, max_images)
    top = 0.7 if title else 0.2
    figure = panels.new_figure(PAGE_WIDTH, top + strips.height + 0.2, title)
    strips.draw(figure, top, [panels.INK] * (len(rows) + 1))
    return figure


class _Strips:
    """Rows of at most ``most`` images across the page, each labelled on the left; lengths in inches."""

    left, right, gap = 2.9, 0.35, 0.08

    def __init__(self, owner: str, originals: Tensor, rows: Sequence[tuple[str, Tensor]], most: int) -> None:
        if originals.ndim != 4 or not len(originals) or originals.shape[1] not in (1, 3):
            rule = "`originals` must have the shape (n, channels, height, width) with n >= 1 and 1 or 3 channels"
            raise shape_error(owner, rule, originals)
        for name, images in rows:
            if images.shape != originals.shape:
                rule = f"the images of {name!r} must have the shape of `originals`, {tuple(originals.shape)}"
                raise shape_error(owner, rule, images)
        self.rows = [(name, _drawable(images[:most])) for name, images in (("original", originals), *rows)]
        number, height, width = self.rows[0][1].shape[:3]
        cell_width = (PAGE_WIDTH - self.left - self.right - (number - 1) * self.gap) / number
        # Few images would otherwise fill the page.
        self.cell_height = min(cell_width * height / width, 1.9)
        self.cell_width = self.cell_height * width / height
        self.height = len(self.rows) * (self.cell_height + self.gap) - self.gap

    def draw(self, figure: "panels.Figure", top: float, colors: Sequence[str]) -> None:
        """Draw the rows from ``top`` below the upper edge, each with its label in the colour of its row."""
        page_height = figure.get_size_inches()[1]
        ax = figure.add_axes((0, (page_height - top - self.height) / page_height, 1, self.height / page_height))
        ax.set(xlim=(0, PAGE_WIDTH), ylim=(self.height, 0))
        ax.set_axis_off()
        for row, ((label, images), color) in enumerate(zip(self.rows, colors, strict=True)):
            y = row * (self.cell_height + self.gap)
            for column, image in enumerate(images):
                x = self.left + column * (self.cell_width + self.gap)
                place = (x, x + self.cell_width, y + self.cell_height, y)
                ax.imshow(image, extent=place, aspect="auto", cmap="gray", vmin=0, vmax=1)
            _write_label(ax, label, y + self.cell_height / 2, color)


def _drawable(images: Tensor) -> np.ndarray:
    """Images (n, channels, height, width) as (n, height, width, channels) in [0, 1]."""
    scale = 255 if images.dtype == torch.uint8 else 1
    return (images.detach().cpu().float() / scale).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _write_label(ax: "panels.Axes", label: str, middle: float, color: str) -> None:
    """Lines of text around a height, the first of them large and in the colour."""
    first, *others = label.split("\n")
    line = panels.TEXT_SIZE * 1.45 / 72  # points to inches
    style: dict[str, Any] = {"size": panels.TITLE_SIZE, "weight": "bold", "color": color}
    for number, text in enumerate((panels.clip(first, LABEL_LETTERS), *others)):
        y = middle + (number - len(others) / 2) * line
        ax.text(0.45, y, text, va="center", parse_math=False, **style)
        style = {"size": panels.TEXT_SIZE, "color": panels.FAINT_INK}
