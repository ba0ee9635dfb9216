"""Single plots of a codebook, and the style of all pictures.

Every panel draws into axes that it is given, or fills a figure, or makes one. All use matplotlib's object
interface: no pyplot, no global state, no display. matplotlib is imported by the functions, not by this
module.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from straightvq.diagnostics import functional
from straightvq.errors import InvalidValueError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers, in the order of use.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#222222"
FAINT_INK = "#6B6B6B"
RULE = "#D9D9D9"
POINT = "#B4BAC2"

TEXT_SIZE = 12.0
TITLE_SIZE = 14.0
HEADLINE_SIZE = 20.0
PIXELS_PER_INCH = 100

# Of one letter in inches, rounded up: enough to keep text inside its panel.
LETTER_WIDTH = 0.105
BOLD_LETTER_WIDTH = 0.135
HEADLINE_LETTER_WIDTH = 0.195

# Above this many, more dots only make a scatter plot heavier.
MAX_POINTS = 4000


def codebook_scatter(
    target: "Axes | Figure | None",
    z: Tensor,
    codes: Tensor,
    counts: Tensor,
    *,
    color: str = PALETTE[1],
    title: str | None = None,
) -> "Figure":
    """Embeddings and codes on the first two principal components of the embeddings.

    Embeddings are light dots, used codes discs whose area grows with their share of the counts, unused codes
    crosses. The view is set by the embeddings; codes far outside it are counted in a note instead of
    squashing the picture. For dim 1 the vertical axis only spreads the dots.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        z: embeddings; of more than a few thousand an even selection is drawn.
        codes: effective codes.
        counts: how often each code was assigned, for example to these embeddings.
        color: colour of the codes.
        title: headline of the panel.

    Shape:
        z: Float (*batch, dim).
        codes: Float (k, dim).
        counts: Int (k,).

    Raises:
        ValueError: if shapes do not fit or there is no embedding.
    """
    if z.ndim == 0 or codes.ndim != 2 or z.shape[-1] != codes.shape[1] or counts.shape != codes.shape[:1]:
        raise InvalidValueError(
            "`codebook_scatter`: `z`, `codes` and `counts` must have the shapes (*batch, dim), (k, dim) "
            f"and (k,). Got {tuple(z.shape)}, {tuple(codes.shape)} and {tuple(counts.shape)}."
        )
    ax = prepare(target)
    z, codes, share = z.detach().cpu(), codes.detach().cpu(), _shares(counts)
    points, places, variance = _project(z.reshape(-1, z.shape[-1]), codes)
    low, high = _view(points, places)
    used = share > 0
    inside = np.all((places >= low) & (places <= high), axis=1)

    step = -(-len(points) // MAX_POINTS)
    dots, crosses, discs = points[::step], places[~used & inside], places[used & inside]
    size = 7 if len(points) > 500 else 14
    embedding = ax.scatter(
        dots[:, 0], dots[:, 1], s=size, c=POINT, linewidths=0, alpha=0.55, rasterized=True, label="embedding"
    )
    # Area follows the share; the floor keeps a code that is rarely used visible.
    area = 16 + 260 * np.sqrt(share[used & inside])
    unused = ax.scatter(
        crosses[:, 0],
        crosses[:, 1],
        s=26,
        c=color,
        marker="x",
        linewidths=0.9,
        alpha=0.55,
        label="unused",
    )
    in_use = ax.scatter(
        discs[:, 0],
        discs[:, 1],
        s=area,
        c=color,
        alpha=0.85,
        edgecolors="white",
        linewidths=0.7,
        label="used",
    )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    _name_components(ax, variance)
    finish(ax, {"used": in_use, "unused": unused, "embedding": embedding}, title)
    if not inside.all():
        note(ax, _outside_text(inside, used))
    return _figure(ax)


def _shares(counts: Tensor) -> np.ndarray:
    counts = counts.detach().cpu().double()
    return (counts / counts.sum().clamp(min=1)).numpy()


def _project(z: Tensor, codes: Tensor) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Two coordinates for embeddings and codes, and the share of variance of each component that is one."""
    components = min(2, z.shape[1])
    mean, basis = functional.principal_plane(z, components)
    total = float(functional.moments(z)[1].sum())
    points, places = ((x.to(mean.dtype) - mean) @ basis for x in (z, codes))
    variance = [float(v) / total if total > 0 else 0.0 for v in functional.moments(points)[1]]
    if components == 2:
        return points.numpy(), places.numpy(), variance
    # A line has no second axis. Multiples of the golden ratio spread the dots evenly and the same way each
    # time.
    spread = (np.arange(len(points)) * 0.6180339887 % 1 - 0.5) * 0.8
    along, codes_along = (points + mean @ basis).numpy(), (places + mean @ basis).numpy()
    return np.column_stack([along, spread]), np.column_stack([codes_along, np.zeros(len(places))]), variance


def _view(points: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the view: most embeddings with a wide margin, in which a code that is merely off can
    show."""
    low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    half, centre = (high - low) / 2, (high + low) / 2
    # Equal embeddings span nothing: the codes set the scale then, or failing that the unit.
    flat = half <= 1e-6 * np.maximum(np.abs(centre), half.max())
    reach = np.quantile(np.abs(places - centre), 0.9, axis=0)
    half = np.where(flat, np.where(reach > 0, reach, 1.0), half) * 1.4
    return centre - half, centre + half


def _name_components(ax: "Axes", variance: list[float]) -> None:
    if len(variance) == 1:
        ax.set_xlabel("the only channel")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        return
    # Equal embeddings have no variance to share out.
    shares = [f" ({share:.0%} of variance)" if sum(variance) > 0 else "" for share in variance]
    ax.set_xlabel(f"component 1{shares[0]}")
    ax.set_ylabel(f"component 2{shares[1]}")


def _outside_text(inside: np.ndarray, used: np.ndarray) -> str:
    outside = int((~inside).sum())
    in_use = int((~inside & used).sum())
    noun = "code" if outside == 1 else "codes"
    return f"{outside:,} {noun} outside the view, {in_use or 'none'} in use"


def usage_histogram(
    target: "Axes | Figure | None",
    counts: Tensor,
    *,
    color: str = PALETTE[1],
    title: str | None = None,
) -> "Figure":
    """Code frequencies from the most to the least used, on a logarithmic axis.

    The dashed line is the frequency 1/k that all codes would have in a perfectly even codebook.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        counts: how often each code was assigned.
        color: colour of the curve.
        title: headline of the panel.

    Shape:
        counts: Int (k,).

    Raises:
        ValueError: if `counts` is not a vector of at least one code.
    """
    if counts.ndim != 1 or not len(counts):
        raise InvalidValueError(
            f"`usage_histogram`: `counts` must have the shape (k,) with k >= 1. Got {tuple(counts.shape)}."
        )
    ax = prepare(target)
    share = np.sort(_shares(counts))[::-1]
    k, used = len(share), int((share > 0).sum())
    even = 1 / k
    floor = min(even, share[used - 1] if used else even) / 3
    edges = np.arange(used + 1)
    ax.stairs(share[:used], edges, baseline=floor, fill=True, color=color, alpha=0.3)
    ax.stairs(share[:used], edges, baseline=None, color=color, linewidth=1.8)
    alike = ax.axhline(even, color=FAINT_INK, linewidth=1.1, linestyle=(0, (5, 4)))
    ax.set(yscale="log", xlim=(0, k), ylim=(floor, max(share[0], even) * 2))
    ax.set_xlabel("codes, most used first")
    ax.set_ylabel("share of all vectors")
    finish(ax, {"all codes alike": alike}, title)
    codes_in_use = float(functional.perplexity(counts))
    note(ax, f"{used:,} of {k:,} codes used, perplexity {codes_in_use:,.1f}")
    return _figure(ax)


def usage_over_time(
    target: "Axes | Figure | None",
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    colors: Sequence[str] = PALETTE,
    title: str | None = None,
) -> "Figure":
    """Codebook usage in the course of training, one line per name.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        series: for each name the training steps and the usage there, a fraction in [0, 1].
        colors: one per name, in order.
        title: headline of the panel.

    Raises:
        ValueError: if steps and values differ in number or `colors` are too few.
    """
    if len(colors) < len(series):
        raise InvalidValueError(f"`usage_over_time`: `colors` must be at least {len(series)}. Got {len(colors)}.")
    ax = prepare(target)
    lines: dict[str, Artist] = {}
    for (name, (steps, values)), color in zip(series.items(), colors, strict=False):
        if len(steps) != len(values):
            raise InvalidValueError(
                f"`usage_over_time`: {name!r} must have as many steps as values. Got {len(steps)} and {len(values)}."
            )
        percent = 100 * np.asarray(values, dtype=float)
        # A dot at each end shows a single measurement, and where a shorter run stopped.
        (lines[name],) = ax.plot(
            steps,
            percent,
            color=color,
            linewidth=2.4,
            marker="o",
            markevery=[0, -1],
            markersize=5,
        )
    ax.set(ylim=(-2, 104), yticks=[0, 25, 50, 75, 100])
    ax.set_xlabel("training step")
    ax.set_ylabel("codes used (%)")
    finish(ax, lines, title)
    return _figure(ax)


# -- style -------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty white figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, facecolor="white")


def headline(figure: "Figure", text: str) -> None:
    """Write the title line of a whole figure."""
    width, height = figure.get_size_inches()
    figure.text(
        0.45 / width,
        1 - 0.42 / height,
        clip(text, int((width - 0.8) / HEADLINE_LETTER_WIDTH)),
        fontsize=HEADLINE_SIZE,
        fontweight="bold",
        color=INK,
        va="center",
        parse_math=False,
    )


def prepare(target: "Axes | Figure | None") -> "Axes":
    """Find or make the axes of a panel and give them the house style."""
    from matplotlib.axes import Axes

    if target is None:
        target = new_figure(7.2, 5.0)
    if isinstance(target, Axes):
        ax = target
    else:
        ax = target.add_axes((0.12, 0.14, 0.84, 0.66))
    ax.set_facecolor("white")
    ax.set_axisbelow(True)
    ax.grid(color=RULE, linewidth=0.6)
    ax.tick_params(labelsize=TEXT_SIZE - 1, colors=FAINT_INK, length=0, labelcolor=INK)
    ax.tick_params(which="minor", length=0)
    ax.xaxis.label.set(fontsize=TEXT_SIZE, color=INK)
    ax.yaxis.label.set(fontsize=TEXT_SIZE, color=INK)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    return ax


def clip(text: str, length: int) -> str:
    """Shorten a text to that many letters.

    Example:
        >>> clip("straight-through", 9)
        'straight…'
    """
    return text if len(text) <= length else text[: max(length - 1, 1)].rstrip() + "…"


def lighten(color: str, amount: float) -> str:
    """Mix a colour with white: 0 leaves it, 1 is white.

    Example:
        >>> lighten("#0072B2", 0.5)
        '#80b8d8'
    """
    from matplotlib.colors import to_hex, to_rgb

    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount) + amount))


def _figure(ax: "Axes") -> "Figure":
    """Return the whole figure, also of axes in a subfigure."""
    from matplotlib.figure import Figure

    return ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure


def finish(ax: "Axes", handles: "Mapping[str, Artist]", title: str | None) -> None:
    """Write title and legend above the plot, where they can cover nothing."""
    from matplotlib.collections import PathCollection

    names = list(handles)
    letters = int(ax.get_window_extent().width / _figure(ax).dpi / LETTER_WIDTH)
    # Names that do not fit side by side are stacked, many of them in two columns.
    one_line = sum(len(name) + 4 for name in names) <= letters
    columns = max(len(names), 1) if one_line else 1 if len(names) <= 3 else 2
    legend = ax.legend(
        list(handles.values()),
        # matplotlib leaves out what starts with an underscore.
        [" " * name.startswith("_") + (name if one_line else clip(name, letters // columns - 4)) for name in names],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=TEXT_SIZE,
        labelcolor=INK,
        labelspacing=0.3,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.2,
        borderpad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    for handle in legend.legend_handles:
        # Discs are drawn at every size; the legend shows one.
        if isinstance(handle, PathCollection):
            handle.set(sizes=[45], alpha=1)
    if title:
        lines = -(-len(names) // columns)
        ax.set_title(
            title,
            loc="left",
            pad=14 + 1.5 * TEXT_SIZE * lines,
            fontsize=TITLE_SIZE,
            fontweight="bold",
            color=INK,
            parse_math=False,
        )


def note(ax: "Axes", text: str) -> None:
    """Write a remark into the upper right corner."""
    box = {"facecolor": "white", "edgecolor": RULE, "boxstyle": "round,pad=0.35", "alpha": 0.92}
    ax.text(
        0.98,
        0.97,
        text,
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=TEXT_SIZE - 1,
        color=INK,
        bbox=box,
    )
