"""Pictures of a quantizer in the course of training: where the embeddings and the codes went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from straightvq.diagnostics import functional, panels
from straightvq.diagnostics.functional.spectrum import explained_variance
from straightvq.diagnostics.functional.vectors import shape_error
from straightvq.diagnostics.panels import Floats
from straightvq.errors import InvalidValueError

# The three distributions, each in its colour throughout.
P_COLOR, C_COLOR, Q_COLOR = "#5B6470", panels.PALETTE[1], panels.PALETTE[0]
_BINS = 400
# In bins: narrow enough to keep two clouds apart, wide enough to make one of a few codes.
_BANDWIDTH = _BINS / 60


@dataclass(frozen=True)
class Snapshot:
    """A quantizer at one moment of training, in the codebook's space.

    Args:
        step: training steps done.
        z: embeddings of a fixed set of inputs, the distribution P, Float (n, dim), n >= 1.
        codes: effective codes, the distribution C, Float (k, dim).
        counts: how often each code was assigned to inputs of that set, Int (k,); the codes with a count are Q.
        size: number of codes, where ``codes`` are only those that were assigned; None where they are all.

    Raises: ValueError if shapes do not fit or there is no embedding.
    """

    step: int
    z: Tensor
    codes: Tensor
    counts: Tensor
    size: int | None = None

    def __post_init__(self) -> None:
        z, codes, counts = self.z, self.codes, self.counts
        fits = z.ndim == codes.ndim == 2 and z.shape[1:] == codes.shape[1:] and counts.shape == codes.shape[:1]
        if not fits or not z.numel():
            rule = "`z`, `codes` and `counts` must have the shapes (n, dim), (k, dim) and (k,) with n >= 1"
            raise shape_error("Snapshot", rule, z, codes, counts)

    @property
    def assigned(self) -> Tensor:
        """The codes that were assigned, Float (used, dim)."""
        return self.codes[self.counts > 0]


def divergence_over_time(snapshots: Sequence[Snapshot], *, title: str | None = None) -> "panels.Figure":
    """Densities of embeddings, whole codebook and assigned codes along one line, in the course of training.

    The line is the first principal component of the last snapshot's embeddings; the shaded band holds nine tenths of
    them. One panel for each distribution, one curve for each snapshot, from the first (light, at the back) to the last
    (dark, in front), each scaled to the same height. Codes far outside the view are counted in a note.

    Raises: ValueError if there is no snapshot or their widths differ.

    Source:
        The paper's divergence figure: with plain VQ the codebook stays behind as a separate cloud, of which a few
        codes are assigned; with affine codes the three distributions lie on one another.
    """
    widths = sorted({s.codes.shape[1] for s in snapshots})
    if len(widths) != 1:
        raise InvalidValueError(
            "`divergence_over_time`: `snapshots` must be at least one, of one width. "
            f"Got {len(snapshots)} of the widths {widths}."
        )
    last = snapshots[-1]
    line = functional.principal_plane(last.z, 1)
    return _ridge_figure(
        [_Ridge(f"{s.step:,}", *_along(line, s)) for s in snapshots],
        title=title,
        ylabel="training step",
        xlabel=f"first component of P{_explained(last.z, line)}",
        names=(
            "P: embeddings",
            f"C: whole codebook, {len(last.codes):,} codes"
            if last.size is None
            else f"C: taken of {last.size:,} codes",
            f"Q: assigned codes, {len(last.assigned):,} at the end",
        ),
        band_name="nine tenths of P at the end",
        note="outside the view at the end",
    )


def divergence_of_parts(parts: Mapping[str, Snapshot], *, title: str | None = None) -> "panels.Figure":
    """As `divergence_over_time`, for the parts of a composite at one moment: a curve for each, the last in front.

    Each part is drawn along the first principal component of what it was given: in a residual quantizer what the
    levels before have left, so that the curves become narrower. The shaded band holds nine tenths of that of the last.

    Raises: ValueError if there is no part.

    Example:
        >>> level = Snapshot(9, torch.randn(20, 2), torch.randn(4, 2), torch.tensor([5, 5, 10, 0]))
        >>> len(divergence_of_parts({"level 0": level, "level 1": level}).axes)
        3
    """
    if not parts:
        raise InvalidValueError("`divergence_of_parts`: `parts` must be at least one. Got none.")
    size, used = sum(len(s.codes) for s in parts.values()), sum(len(s.assigned) for s in parts.values())
    return _ridge_figure(
        [_Ridge(name, *_along(functional.principal_plane(s.z, 1), s)) for name, s in parts.items()],
        title=title,
        ylabel="",
        xlabel="first component of each part's P",
        names=("P: what each part was given", f"C: codebooks, {size:,} codes in all", f"Q: {used:,} assigned codes"),
        band_name="nine tenths of the last P",
        note="codes of the last part outside the view",
    )


@dataclass(frozen=True)
class _Ridge:
    """One curve in each of three panels: places along a line."""

    name: str
    embeddings: Floats
    codes: Floats
    assigned: Floats


def _along(line: tuple[Tensor, Tensor], snapshot: Snapshot) -> tuple[Floats, Floats, Floats]:
    mean, basis = line

    def along(vectors: Tensor) -> Floats:
        return ((vectors.to(mean.dtype) - mean) @ basis).flatten().cpu().double().numpy()

    return along(snapshot.z), along(snapshot.codes), along(snapshot.assigned)


def _explained(z: Tensor, line: tuple[Tensor, Tensor]) -> str:
    share = float(explained_variance(z, line[1]))
    return f" ({share:.0%} of its variance)" if share else ""


def _ridge_figure(
    ridges: Sequence[_Ridge],
    *,
    title: str | None,
    ylabel: str,
    xlabel: str,
    names: tuple[str, str, str],
    band_name: str,
    note: str,
) -> "panels.Figure":
    view = _reach([ridge.embeddings for ridge in ridges], [ridge.codes for ridge in ridges])
    figure = panels.new_figure(16.0, 3.1 + 0.42 * len(ridges), title)
    aside = max(1.0, 0.3 + panels.LETTER_WIDTH * max(len(ridge.name) for ridge in ridges))  # room for the names
    axes = panels.grid(figure, 3, 3, above=1.55 if title else 1.0, below=0.7, left=aside, between=aside)
    band = np.quantile(ridges[-1].embeddings, [0.05, 0.95])
    columns = (
        (P_COLOR, [ridge.embeddings for ridge in ridges]),
        (C_COLOR, [ridge.codes for ridge in ridges]),
        (Q_COLOR, [ridge.assigned for ridge in ridges]),
    )
    for ax, name, (color, sets) in zip(axes, names, columns, strict=True):
        middle = ax.axvspan(*band, color=panels.RULE, alpha=0.45, linewidth=0, zorder=0)
        _draw_ridges(ax, sets, color, [ridge.name for ridge in ridges], view)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        panels.finish(ax, {band_name: middle}, name)
        outside = int(((sets[-1] < view[0]) | (sets[-1] > view[1])).sum())
        if outside and color != P_COLOR:
            panels.note(ax, f"{outside:,} {note}")
    return figure


def _reach(embeddings: Sequence[Floats], codes: Sequence[Floats]) -> tuple[float, float]:
    """Ends of the view: all but the rarest embeddings of all times, and the bulk of the codes."""
    ends = [np.quantile(x, [0.002, 0.998]) for x in embeddings] + [np.quantile(x, [0.02, 0.98]) for x in codes]
    low, high = float(np.min(ends)), float(np.max(ends))
    # Equal vectors span nothing.
    margin = 0.06 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def _draw_ridges(
    ax: "panels.Axes", sets: Sequence[Floats], color: str, names: Sequence[str], view: tuple[float, float]
) -> None:
    """One density above the other, the last at the bottom and in front."""
    x = np.linspace(*view, _BINS)
    top = len(sets) - 1
    for order, values in enumerate(sets):
        base = top - order
        ink = panels.lighten(color, 0.7 * base / max(top, 1))
        ridge = base + 1.9 * _density(values, view)
        ax.fill_between(x, base, ridge, color=panels.lighten(ink, 0.7), alpha=0.75, linewidth=0, zorder=2 + order)
        ax.plot(x, ridge, color=ink, linewidth=1.6, zorder=2 + order)
    # As many labels as fit, the last name always among them.
    shown = range(0, len(sets), -(-len(sets) // 12))
    ax.set_yticks(list(shown), [names[top - base] for base in shown])
    ax.set(xlim=view, ylim=(-0.15, top + 2.1))
    ax.grid(visible=False, axis="y")


def _density(values: Floats, view: tuple[float, float]) -> Floats:
    """A Gaussian kernel estimate on the bins of the view, scaled to a maximum of 1; zeros if nothing is inside."""
    reach = np.arange(-int(4 * _BANDWIDTH), int(4 * _BANDWIDTH) + 1)
    smooth = np.convolve(np.histogram(values, _BINS, view)[0], np.exp(-0.5 * (reach / _BANDWIDTH) ** 2), mode="same")
    return smooth / (smooth.max() or 1.0)


def joint_tsne(z: Tensor, codes: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Place embeddings and codes together in the plane so that neighbours stay neighbours (t-SNE).

    Deterministic: it starts from the first two principal components, and scikit-learn runs in one thread. Distances
    between far clusters and cluster sizes mean nothing. About 5 s for 1,500 vectors on one core. ``perplexity``, the
    number of neighbours that each vector has, is lowered if there are too few vectors.

    Shape: z: Float (n, dim); codes: Float (k, dim), effective codes; the results are Float (n, 2) and (k, 2).
    Raises: ValueError if the widths differ or there are fewer than four vectors in all.
    Source: Van der Maaten and Hinton, 2008, in the Barnes-Hut form of `sklearn.manifold.TSNE`.
    """
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1] or len(z) + len(codes) < 4:
        rule = "`z` and `codes` must have the shapes (n, dim) and (k, dim) with n + k >= 4"
        raise shape_error("joint_tsne", rule, z, codes)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    both = torch.cat([z, codes]).detach().cpu().double()
    mean, basis = functional.principal_plane(both, min(2, both.shape[1]))
    start = torch.zeros(len(both), 2, dtype=torch.float64)
    start[:, : basis.shape[1]] = (both - mean) @ basis
    # t-SNE wants a tight start; what is far is pulled apart by itself.
    start *= 1e-4 / start[:, 0].std().clamp(min=1e-30)
    perplexity = min(perplexity, (len(both) - 1) / 3)
    tsne = TSNE(
        init=start.float().numpy(), perplexity=perplexity, random_state=seed, learning_rate="auto", max_iter=500
    )
    # The sum over threads would come in any order, and t-SNE makes much of the last digit.
    with threadpool_limits(1):
        places = torch.from_numpy(tsne.fit_transform((both - mean).float().numpy()))
    return places[: len(z)], places[len(z) :]


def tsne_map(
    snapshots: Sequence[Snapshot],
    *,
    names: Sequence[str] | None = None,
    max_vectors: int = 1000,
    seed: int = 0,
    title: str | None = None,
) -> "panels.Figure":
    """Joint t-SNE of embeddings, codebook and assigned codes, one panel for each snapshot.

    Args:
        snapshots: one to three; places cannot be compared between panels.
        names: what the panels are called; None for the steps.
        max_vectors: of more embeddings, or more codes, an even selection is shown.

    Raises: ValueError if there is no snapshot, or more than three.
    Source: the paper's figure of P, C and Q: disjoint clouds for plain VQ.
    """
    if not 1 <= len(snapshots) <= 3:
        raise InvalidValueError(f"`tsne_map`: `snapshots` must be 1 to 3. Got {len(snapshots)}.")
    called = [f"Step {s.step:,}" for s in snapshots] if names is None else names
    count = len(snapshots)
    figure = panels.new_figure(16.0 if count > 1 else 8.5, 8.6 if count < 3 else 6.6, title)
    axes = panels.grid(figure, count, count, above=1.9 if title else 1.3, below=0.35, left=0.45, between=0.6)
    for ax, snapshot, name in zip(axes, snapshots, called, strict=True):
        chosen = _evenly(len(snapshot.codes), max_vectors)
        used = (snapshot.counts[chosen] > 0).cpu().numpy()
        z = snapshot.z[_evenly(len(snapshot.z), max_vectors)]
        points, places = (x.numpy() for x in joint_tsne(z, snapshot.codes[chosen], seed=seed))
        handles = panels.draw_clouds(
            ax,
            points,
            places[~used],
            places[used],
            names=("P: embeddings", "C: not assigned", "Q: assigned codes"),
            colors=(C_COLOR, Q_COLOR),
        )
        ax.set(xticks=[], yticks=[])
        ax.margins(0.04)
        assigned = f"{len(snapshot.assigned):,} of {len(snapshot.codes):,} codes assigned"
        panels.finish(ax, handles, f"{name}: {assigned}")
    return figure


def _evenly(size: int, most: int) -> Tensor:
    """Indices of an even selection of at most ``most``."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()
