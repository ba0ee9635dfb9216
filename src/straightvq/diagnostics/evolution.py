"""Pictures of a quantizer in the course of training: where embeddings and codes went, and what was measured.

They share the style of `panels.py`. matplotlib and scikit-learn are imported by the functions, not by this module.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from straightvq.diagnostics import functional, panels
from straightvq.errors import InvalidValueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CurvePanel", "Snapshot", "curves_over_time", "divergence_over_time", "joint_tsne", "tsne_map"]

Floats = NDArray[np.float64]

# The three distributions, each in its colour throughout.
P_COLOR, C_COLOR, Q_COLOR = "#5B6470", panels.PALETTE[1], panels.PALETTE[0]
_BINS = 400
# Of the view: narrow enough to keep two clouds apart, wide enough to make one of a few codes.
_BANDWIDTH = 1 / 60


@dataclass(frozen=True)
class Snapshot:
    """A quantizer at one moment of training, in the codebook's space.

    Args:
        step: training steps done.
        z: embeddings of a fixed set of inputs, the distribution P.
        codes: effective codes, the distribution C.
        counts: how often each code was assigned to inputs of that set; the codes with a count are Q.

    Shape:
        z: Float (n, dim), n >= 1.
        codes: Float (k, dim).
        counts: Int (k,).

    Raises:
        ValueError: if shapes do not fit or there is no embedding.

    Example:
        >>> Snapshot(100, torch.randn(9, 2), torch.zeros(4, 2), torch.tensor([9, 0, 0, 0])).assigned.shape
        torch.Size([1, 2])
    """

    step: int
    z: Tensor
    codes: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        z, codes, counts = self.z, self.codes, self.counts
        fits = z.ndim == codes.ndim == 2 and z.shape[1:] == codes.shape[1:] and counts.shape == codes.shape[:1]
        if not fits or not z.numel():
            raise InvalidValueError(
                "`Snapshot`: `z`, `codes` and `counts` must have the shapes (n, dim), (k, dim) and (k,) with n >= 1. "
                f"Got {tuple(z.shape)}, {tuple(codes.shape)} and {tuple(counts.shape)}."
            )

    @property
    def assigned(self) -> Tensor:
        """The codes that were assigned, Float (used, dim)."""
        return self.codes[self.counts > 0]


# -- distributions along a line ------------------------------------------------------------------------------


def divergence_over_time(snapshots: Sequence[Snapshot], *, title: str | None = None) -> "Figure":
    """Densities of embeddings, whole codebook and assigned codes along one line, in the course of training.

    The line is the first principal component of the last snapshot's embeddings, so that all curves share an axis.
    One panel for each distribution, one curve for each snapshot, from the first (light, at the back) to the last
    (dark, in front), each scaled to the same height. The shaded band is where nine tenths of the last embeddings
    lie. Codes far outside the view are left out, and counted in a note.

    Args:
        snapshots: at least one, in the order of training, all of one width.
        title: headline of the figure.

    Raises:
        ValueError: if there is no snapshot or their widths differ.

    Source:
        The paper's divergence figure: with plain VQ the codebook stays behind as a separate cloud, of which a few
        codes are assigned; with affine codes the three distributions lie on one another.
    """
    _check_snapshots("divergence_over_time", snapshots)
    last = snapshots[-1]
    mean, basis = functional.principal_plane(last.z, 1)
    embeddings, codes, assigned = (
        [((x.to(mean.dtype) - mean) @ basis).flatten().cpu().double().numpy() for x in sets]
        for sets in ([s.z for s in snapshots], [s.codes for s in snapshots], [s.assigned for s in snapshots])
    )
    low, high = _reach(embeddings, codes)
    figure = panels.new_figure(16.0, 3.1 + 0.42 * len(snapshots))
    if title:
        panels.headline(figure, title)
    band = np.quantile(embeddings[-1], [0.05, 0.95])
    share = _first_share(last.z)
    for place, (name, color, sets) in enumerate(
        (
            ("P: embeddings", P_COLOR, embeddings),
            (f"C: whole codebook, {len(codes[-1]):,} codes", C_COLOR, codes),
            (f"Q: assigned codes, {len(assigned[-1]):,} at the end", Q_COLOR, assigned),
        )
    ):
        ax = _panel(figure, place, 3, above=1.55 if title else 1.0, below=0.7)
        middle = ax.axvspan(*band, color=panels.RULE, alpha=0.45, linewidth=0, zorder=0)
        _ridges(ax, sets, color, [s.step for s in snapshots], low, high)
        ax.set_xlabel(f"first component of P{share}")
        panels.finish(ax, {"nine tenths of P at the end": middle}, name)
        outside = int(((sets[-1] < low) | (sets[-1] > high)).sum()) if place else 0
        if outside:
            panels.note(ax, f"{outside:,} outside the view at the end")
    return figure


def _reach(embeddings: Sequence[Floats], codes: Sequence[Floats]) -> tuple[float, float]:
    """Ends of the view: all but the rarest embeddings of all times, and the bulk of the codes."""
    ends = [np.quantile(x, [0.002, 0.998]) for x in embeddings] + [np.quantile(x, [0.02, 0.98]) for x in codes]
    low, high = float(np.min(ends)), float(np.max(ends))
    # Equal vectors span nothing.
    margin = 0.06 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def _ridges(ax: "Axes", sets: Sequence[Floats], color: str, steps: Sequence[int], low: float, high: float) -> None:
    """One density above the other, the last at the bottom and in front."""
    x = np.linspace(low, high, _BINS)
    count = len(sets)
    for number, values in enumerate(sets):
        base = count - 1 - number
        ink = panels.lighten(color, 0.7 * base / max(count - 1, 1))
        ridge = base + 1.9 * _density(values, low, high)
        ax.fill_between(x, base, ridge, color=panels.lighten(ink, 0.7), alpha=0.75, linewidth=0, zorder=2 + number)
        ax.plot(x, ridge, color=ink, linewidth=1.6, zorder=2 + number)
    # As many labels as fit, the last step always among them.
    shown = range(0, count, -(-count // 12))
    ax.set_yticks(list(shown), [f"{steps[count - 1 - base]:,}" for base in shown])
    ax.set_ylabel("training step")
    ax.set(xlim=(low, high), ylim=(-0.15, count - 1 + 2.1))
    ax.grid(visible=False, axis="y")


def _density(values: Floats, low: float, high: float) -> Floats:
    """A Gaussian kernel estimate on the bins of the view, scaled to a maximum of 1; zeros if nothing is inside."""
    histogram = np.histogram(values, _BINS, (low, high))[0].astype(float)
    half = int(4 * _BANDWIDTH * _BINS)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / (_BANDWIDTH * _BINS)) ** 2)
    smooth = np.convolve(histogram, kernel, mode="same")
    return smooth / smooth.max() if smooth.max() > 0 else smooth


def _first_share(z: Tensor) -> str:
    total = float(functional.moments(z)[1].sum())
    if total <= 0:
        return ""
    mean, basis = functional.principal_plane(z, 1)
    along = float(functional.moments((z.to(mean.dtype) - mean) @ basis)[1])
    return f" ({along / total:.0%} of its variance)"


# -- neighbourhoods ------------------------------------------------------------------------------------------


def joint_tsne(z: Tensor, codes: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Places embeddings and codes together in the plane so that neighbours stay neighbours (t-SNE).

    Deterministic: the start is the plane of the first two principal components, and scikit-learn runs in one thread.
    Distances within a neighbourhood mean something, distances between far clusters and cluster sizes do not. About
    5 s for 1,500 vectors on one core.

    Args:
        z: embeddings, P.
        codes: effective codes, C; the assigned ones among them, Q, are at the same places.
        perplexity: of t-SNE: how many neighbours each vector has, lowered if there are too few vectors.
        seed: of what scikit-learn draws.

    Shape:
        z: Float (n, dim); codes: Float (k, dim).

    Returns:
        Float (n, 2) and (k, 2), the places of embeddings and codes.

    Raises:
        ValueError: if the widths differ or there are fewer than four vectors in all.

    Source:
        Van der Maaten and Hinton, 2008, in the Barnes-Hut form of `sklearn.manifold.TSNE`.
    """
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1] or len(z) + len(codes) < 4:
        raise InvalidValueError(
            "`joint_tsne`: `z` and `codes` must have the shapes (n, dim) and (k, dim) with n + k >= 4. "
            f"Got {tuple(z.shape)} and {tuple(codes.shape)}."
        )
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    both = torch.cat([z, codes]).detach().cpu().double()
    mean, basis = functional.principal_plane(both, min(2, both.shape[1]))
    start = torch.zeros(len(both), 2, dtype=torch.float64)
    start[:, : basis.shape[1]] = (both - mean) @ basis
    # t-SNE wants a tight start; what is far is pulled apart by itself.
    start *= 1e-4 / start[:, 0].std().clamp(min=1e-30)
    tsne = TSNE(
        init=start.float().numpy(),
        perplexity=min(perplexity, (len(both) - 1) / 3),
        random_state=seed,
        learning_rate="auto",
        max_iter=500,
    )
    # The sum over threads would come in any order, and t-SNE makes much of the last digit.
    with threadpool_limits(1):
        places = torch.from_numpy(tsne.fit_transform((both - mean).float().numpy()))
    return places[: len(z)], places[len(z) :]


def tsne_map(
    snapshots: Sequence[Snapshot], *, max_vectors: int = 1000, seed: int = 0, title: str | None = None
) -> "Figure":
    """Joint t-SNE of embeddings, codebook and assigned codes, one panel for each snapshot.

    Args:
        snapshots: one to three; panels are laid out by themselves, and their places cannot be compared.
        max_vectors: of more embeddings an even selection is shown, and so of more codes than that.
        seed: of the t-SNE.
        title: headline of the figure.

    Raises:
        ValueError: if there is no snapshot, more than three, or their widths differ.

    Source:
        The paper's figure of P, C and Q: disjoint clouds for plain VQ.
    """
    _check_snapshots("tsne_map", snapshots, most=3)
    count = len(snapshots)
    figure = panels.new_figure(16.0 if count > 1 else 8.5, 8.6 if count < 3 else 6.6)
    if title:
        panels.headline(figure, title)
    for place, snapshot in enumerate(snapshots):
        chosen = _evenly(len(snapshot.codes), max_vectors)
        codes, used = snapshot.codes[chosen], (snapshot.counts[chosen] > 0).cpu()
        z = snapshot.z[_evenly(len(snapshot.z), max_vectors)]
        points, places = joint_tsne(z, codes, seed=seed)
        ax = _panel(figure, place, count, above=1.9 if title else 1.3, below=0.35, left=0.45, between=0.6)
        layers: tuple[tuple[str, Tensor, dict[str, Any]], ...] = (
            ("P: embeddings", points, {"s": 13, "color": panels.POINT, "alpha": 0.7, "linewidths": 0}),
            ("C: not assigned", places[~used], {"s": 26, "color": C_COLOR, "marker": "x", "linewidths": 1.0}),
            (
                "Q: assigned codes",
                places[used],
                {"s": 34, "color": Q_COLOR, "alpha": 0.9, "edgecolors": "white", "linewidths": 0.6},
            ),
        )
        handles = {name: ax.scatter(*xy.T.numpy(), rasterized=True, **style) for name, xy, style in layers}
        ax.set(xticks=[], yticks=[])
        ax.margins(0.04)
        total = int((snapshot.counts > 0).sum())
        panels.finish(ax, handles, f"Step {snapshot.step:,}: {total:,} of {len(snapshot.codes):,} codes assigned")
    return figure


def _evenly(size: int, most: int) -> Tensor:
    """Indices of an even selection of at most ``most``."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()


# -- curves --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePanel:
    """One quantity over the steps of training.

    Args:
        title: its name.
        unit: label of the vertical axis.
        lines: steps and values by what they were measured on. Values that are not finite are left out.
        reference: a level worth a dashed line, such as 1 for a gap as large as the gradient.
        is_share: whether values are fractions of 1, drawn on an axis from 0 to 100 %.
    """

    title: str
    unit: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    reference: float | None = None
    is_share: bool = False


def curves_over_time(plots: Sequence[CurvePanel], *, title: str | None = None) -> "Figure":
    """Small plots in rows of four over one axis of training steps.

    The lines of a plot take the colours in order.

    Raises:
        ValueError: if there is no plot, if one has more than six lines, or if steps and values differ in
            number.
    """
    most = max((len(plot.lines) for plot in plots), default=0)
    if not plots or most > len(panels.PALETTE):
        raise InvalidValueError(
            f"`curves_over_time`: `plots` must be at least one, each with at most {len(panels.PALETTE)} lines. "
            f"Got {len(plots)} with up to {most}."
        )
    rows = -(-len(plots) // 4)
    head, height = (0.85 if title else 0.2), 3.6
    figure = panels.new_figure(17.0, head + rows * height)
    if title:
        panels.headline(figure, title)
    steps = [step for plot in plots for at, _ in plot.lines.values() for step in at]
    for number, plot in enumerate(plots):
        row, column = divmod(number, 4)
        ax = _panel(
            figure,
            column,
            4,
            above=head + row * height + 1.05,
            below=(rows - 1 - row) * height + 0.65,
            left=0.9,
            between=0.95,
        )
        _draw_curves(ax, plot)
        # One measurement alone would stand on an axis of its own.
        ax.set_xlim(0, 1.04 * max(steps, default=1) or 1)
    return figure


def _draw_curves(ax: "Axes", plot: CurvePanel) -> None:
    handles = {}
    scale = 100 if plot.is_share else 1
    colors = panels.PALETTE[1:] + panels.PALETTE[:1]
    for (name, (steps, values)), color in zip(plot.lines.items(), colors, strict=False):
        if len(steps) != len(values):
            raise InvalidValueError(
                f"`curves_over_time`: {name!r} of {plot.title!r} must have as many steps as values. "
                f"Got {len(steps)} and {len(values)}."
            )
        at, height = np.asarray(steps, dtype=float), scale * np.asarray(values, dtype=float)
        finite = np.isfinite(height)
        # Single measurements are dots, a dense log is a line.
        marker = "o" if finite.sum() <= 25 else None
        (handles[name],) = ax.plot(
            at[finite], height[finite], color=color, linewidth=1.8, marker=marker, markersize=4.5
        )
    if plot.reference is not None:
        ax.axhline(scale * plot.reference, color=panels.FAINT_INK, linewidth=1.1, linestyle=(0, (5, 4)))
    if not handles:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=panels.FAINT_INK)
    if plot.is_share:
        ax.set(ylim=(-2, 104), yticks=[0, 25, 50, 75, 100])
    else:
        low, high = ax.get_ylim()
        low = min(low, 0)
        ax.set_ylim(low, high + 0.06 * (high - low))  # whole markers, also of a single value
    ax.set_xlabel("training step")
    ax.set_ylabel(plot.unit)
    panels.finish(ax, handles, plot.title)


# -- inside --------------------------------------------------------------------------------------------------


def _check_snapshots(owner: str, snapshots: Sequence[Snapshot], most: int | None = None) -> None:
    widths = sorted({s.codes.shape[1] for s in snapshots})
    if len(widths) != 1 or (most is not None and len(snapshots) > most):
        number = "at least one" if most is None else f"1 to {most}"
        raise InvalidValueError(
            f"`{owner}`: `snapshots` must be {number}, of one width. Got {len(snapshots)} of the widths {widths}."
        )


def _panel(
    figure: "Figure", place: int, count: int, *, above: float, below: float, left: float = 1.0, between: float = 1.0
) -> "Axes":
    """The axes at that place of a row of ``count``; all lengths in inches."""
    page_width, page_height = figure.get_size_inches()
    width = (page_width - left - 0.35 - (count - 1) * between) / count
    x = left + place * (width + between)
    box = (x / page_width, below / page_height, width / page_width, (page_height - above - below) / page_height)
    return panels.prepare(figure.add_axes(box))
