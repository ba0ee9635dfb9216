"""The style of all pictures, and how panels are laid out on a page.

A panel is drawn into axes that are given, fills a figure, or makes one. All use matplotlib's object interface: no
pyplot, no global state, no display. matplotlib is imported by the functions, not by the modules.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

    Target = Axes | Figure | None  # axes to draw into, a figure to fill, or None for a new figure

Floats = NDArray[np.float64]

# Okabe and Ito's colours, which stay apart for colour-blind readers, in the order of use.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT_INK, RULE, POINT = "#222222", "#6B6B6B", "#D9D9D9", "#B4BAC2"
PIXELS_PER_INCH = 100
TEXT_SIZE, TITLE_SIZE, HEADLINE_SIZE = 12.0, 14.0, 20.0
# Of one letter in inches, rounded up: enough to keep text inside its panel.
LETTER_WIDTH, BOLD_LETTER_WIDTH, HEADLINE_LETTER_WIDTH = 0.105, 0.135, 0.195


def new_figure(width: float, height: float, title: str | None = None) -> "Figure":
    """Return a white figure of that size in inches, empty but for a headline if there is a title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=PIXELS_PER_INCH, facecolor="white")
    if title:
        headline(figure, title)
    return figure


def headline(figure: "Figure", text: str) -> None:
    """Write the title line of a whole figure."""
    width, height = figure.get_size_inches()
    text = clip(text, int((width - 0.8) / HEADLINE_LETTER_WIDTH))
    style: dict[str, Any] = {"fontsize": HEADLINE_SIZE, "fontweight": "bold", "color": INK, "va": "center"}
    figure.text(0.45 / width, 1 - 0.42 / height, text, parse_math=False, **style)


def prepare(target: "Target") -> "Axes":
    """Find or make the axes of a panel and give them the house style."""
    from matplotlib.axes import Axes

    if target is None:
        target = new_figure(7.2, 5.0)
    ax = target if isinstance(target, Axes) else target.add_axes((0.12, 0.14, 0.84, 0.66))
    ax.set_facecolor("white")
    ax.set_axisbelow(True)
    ax.grid(color=RULE, linewidth=0.6)
    ax.tick_params(labelsize=TEXT_SIZE - 1, colors=FAINT_INK, length=0, labelcolor=INK)
    ax.tick_params(which="minor", length=0)
    ax.xaxis.label.set(fontsize=TEXT_SIZE, color=INK)
    ax.yaxis.label.set(fontsize=TEXT_SIZE, color=INK)
    ax.spines[:].set_color(RULE)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def grid(
    figure: "Figure",
    count: int,
    columns: int,
    *,
    top: float = 0.0,
    above: float,
    below: float,
    left: float = 1.0,
    between: float = 1.0,
) -> list["Axes"]:
    """Axes for ``count`` panels in rows of ``columns``, in all of the page but its ``top``; lengths in inches.

    Each plot leaves ``above`` and ``below`` free in its row for title, legend and labels, ``left`` before the first of
    a row, ``between`` from one to the next.
    """
    page_width, page_height = figure.get_size_inches()
    rows = -(-count // columns)
    row_height = (page_height - top) / rows
    width = (page_width - left - 0.35 - (columns - 1) * between) / columns
    axes = []
    for number in range(count):
        row, column = divmod(number, columns)
        x, y = left + column * (width + between), (rows - 1 - row) * row_height + below
        height = row_height - above - below
        axes.append(figure.add_axes((x / page_width, y / page_height, width / page_width, height / page_height)))
    return [prepare(ax) for ax in axes]


def draw_clouds(
    ax: "Axes",
    embeddings: Floats,
    unused: Floats,
    used: Floats,
    *,
    names: tuple[str, str, str] = ("embedding", "unused", "used"),
    colors: tuple[str, str],
    area: Floats | float = 34.0,
) -> "dict[str, Artist]":
    """Draw embeddings as light dots, unused codes as crosses and used ones as discs of that area; all Float (n, 2)."""
    size = 7 if len(embeddings) > 500 else 14
    dots = ax.scatter(embeddings[:, 0], embeddings[:, 1], s=size, color=POINT, alpha=0.6, linewidths=0, rasterized=True)
    crosses = ax.scatter(unused[:, 0], unused[:, 1], s=26, color=colors[0], alpha=0.7, marker="x", linewidths=0.9)
    discs = ax.scatter(used[:, 0], used[:, 1], s=area, color=colors[1], alpha=0.87, edgecolors="white", linewidths=0.7)
    handles: dict[str, Artist] = dict(zip(names, (dots, crosses, discs), strict=True))
    for name, handle in handles.items():
        handle.set_label(name)
    return handles


def level(ax: "Axes", height: float) -> "Artist":
    """Draw a dashed line at a height worth knowing."""
    return ax.axhline(height, color=FAINT_INK, linewidth=1.1, linestyle=(0, (5, 4)))


def figure_of(ax: "Axes") -> "Figure":
    """The whole figure, also of axes in a subfigure."""
    return cast("Figure", ax.get_figure(root=True))


def clip(text: str, length: int) -> str:
    """Shorten a text to that many letters, the last of them an ellipsis."""
    return text if len(text) <= length else text[: max(length - 1, 1)].rstrip() + "…"


def lighten(color: str, amount: float) -> str:
    """Mix a colour with white: 0 leaves it, 1 is white."""
    from matplotlib.colors import to_hex, to_rgb

    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount) + amount))


def finish(ax: "Axes", handles: "Mapping[str, Artist]", title: str | None) -> None:
    """Write title and legend above the plot, where they can cover nothing."""
    from matplotlib.collections import PathCollection

    names = list(handles)
    letters = int(ax.get_window_extent().width / figure_of(ax).dpi / LETTER_WIDTH)
    # Names that do not fit side by side are stacked, many of them in two columns.
    columns = 1 if len(names) <= 3 else 2
    if sum(len(name) + 4 for name in names) <= letters:
        columns = max(len(names), 1)
    else:
        names = [clip(name, letters // columns - 4) for name in names]
    # matplotlib leaves out what starts with an underscore.
    names = [" " * name.startswith("_") + name for name in names]
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": TEXT_SIZE, "labelcolor": INK}
    look |= {"labelspacing": 0.3, "handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.2, "borderpad": 0.2}
    legend = ax.legend(list(handles.values()), names, loc="lower left", bbox_to_anchor=(-0.01, 1.0), **look)
    for text in legend.get_texts():
        text.set_parse_math(False)
    for handle in legend.legend_handles:
        # Discs are drawn at every size; the legend shows one.
        if isinstance(handle, PathCollection):
            handle.set(sizes=[45], alpha=1)
    if title:
        pad = 14 + 1.5 * TEXT_SIZE * -(-len(names) // columns)
        style: dict[str, Any] = {"fontsize": TITLE_SIZE, "fontweight": "bold", "color": INK, "parse_math": False}
        ax.set_title(title, loc="left", pad=pad, **style)


def note(ax: "Axes", text: str) -> None:
    """Write a remark into the upper right corner."""
    box = {"facecolor": "white", "edgecolor": RULE, "boxstyle": "round,pad=0.35", "alpha": 0.92}
    at: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    ax.text(0.98, 0.97, text, fontsize=TEXT_SIZE - 1, color=INK, bbox=box, **at)
