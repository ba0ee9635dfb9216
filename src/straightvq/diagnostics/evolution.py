"""Pictures of a quantizer in the course of training: where the embeddings and the codes went."""

from collections.abc import Sequence
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

    Raises: ValueError if shapes do not fit or there is no embedding.
    """

    step: int
    z: Tensor
    codes: Tensor
    counts: Tensor

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
    _check_snapshots("divergence_over_time", snapshots)
    last = snapshots[-1]
    mean, basis = functional.principal_plane(last.z, 1)

    def along(vectors: Tensor) -> Floats:
        return ((vectors.to(mean.dtype) - mean) @ basis).flatten().cpu().double().numpy()

    embeddings = [along(s.z) for s in snapshots]
    codes, assigned = [along(s.codes) for s in snapshots], [along(s.assigned) for s in snapshots]
    view = _reach(embeddings, codes)
    figure = panels.new_figure(16.0, 3.1 + 0.42 * len(snapshots), title)
    axes = panels.grid(figure, 3, 3, above=1.55 if title else 1.0, below=0.7)
    band = np.quantile(embeddings[-1], [0.05, 0.95])
    share = float(explained_variance(last.z, basis))
    of_variance = f" ({share:.0%} of its variance)" if share else ""
    columns = (
        ("P: embeddings", P_COLOR, embeddings),
        (f"C: whole codebook, {len(codes[-1]):,} codes", C_COLOR, codes),
        (f"Q: assigned codes, {len(assigned[-1]):,} at the end", Q_COLOR, assigned),
    )
    for ax, (name, color, sets) in zip(axes, columns, strict=True):
        middle = ax.axvspan(*band, color=panels.RULE, alpha=0.45, linewidth=0, zorder=0)
        _ridges(ax, sets, color, [s.step for s in snapshots], view)
        ax.set_xlabel(f"first component of P{of_variance}")
        panels.finish(ax, {"nine tenths of P at the end": middle}, name)
        outside = int(((sets[-1] < view[0]) | (sets[-1] > view[1])).sum())
        if outside and sets is not embeddings:
            panels.note(ax, f"{outside:,} outside the view at the end")
    return figure


def _reach(embeddings: Sequence[Floats], codes: Sequence[Floats]) -> tuple[float, float]:
    """Ends of the view: all but the rarest embeddings of all times, and the bulk of the codes."""
    ends = [np.quantile(x, [0.002, 0.998]) for x in embeddings] + [np.quantile(x, [0.02, 0.98]) for x in codes]
    low, high = float(np.min(ends)), float(np.max(ends))
    # Equal vectors span nothing.
    margin = 0.06 * (high - low) or max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def _ridges(
    ax: "panels.Axes", sets: Sequence[Floats], color: str, steps: Sequence[int], view: tuple[float, float]
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
    # As many labels as fit, the last step always among them.
    shown = range(0, len(sets), -(-len(sets) // 12))
    ax.set_yticks(list(shown), [f"{steps[top - base]:,}" for base in shown])
    ax.set(ylabel="training step", xlim=view, ylim=(-0.15, top + 2.1))
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
    snapshots: Sequence[Snapshot], *, max_vectors: int = 1000, seed: int = 0, title: str | None = None
) -> "panels.Figure":
    """Joint t-SNE of embeddings, codebook and assigned codes, one panel for each snapshot.

    Args:
        snapshots: one to three; places cannot be compared between panels.
        max_vectors: of more embeddings, or more codes, an even selection is shown.

    Raises: ValueError if there is no snapshot, more than three, or their widths differ.
    Source: the paper's figure of P, C and Q: disjoint clouds for plain VQ.
    """
    _check_snapshots("tsne_map", snapshots, most=3)
    count = len(snapshots)
    figure = panels.new_figure(16.0 if count > 1 else 8.5, 8.6 if count < 3 else 6.6, title)
    axes = panels.grid(figure, count, count, above=1.9 if title else 1.3, below=0.35, left=0.45, between=0.6)
    for ax, snapshot in zip(axes, snapshots, strict=True):
        chosen = _evenly(len(snapshot.codes), max_vectors)
        used = (snapshot.counts[chosen] > 0).cpu().numpy()
        z = snapshot.z[_evenly(len(snapshot.z), max_vectors)]
        points, places = (x.numpy() for x in joint_tsne(z, snapshot.codes[chosen], seed=seed))
        names = ("P: embeddings", "C: not assigned", "Q: assigned codes")
        handles = panels.draw_clouds(ax, points, places[~used], places[used], names=names, colors=(C_COLOR, Q_COLOR))
        ax.set(xticks=[], yticks=[])
        ax.margins(0.04)
        assigned = f"{len(snapshot.assigned):,} of {len(snapshot.codes):,} codes assigned"
        panels.finish(ax, handles, f"Step {snapshot.step:,}: {assigned}")
    return figure


def _evenly(size: int, most: int) -> Tensor:
    """Indices of an even selection of at most ``most``."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()


def _check_snapshots(owner: str, snapshots: Sequence[Snapshot], most: int | None = None) -> None:
    widths = sorted({s.codes.shape[1] for s in snapshots})
    if len(widths) != 1 or (most is not None and len(snapshots) > most):
        number = "at least one" if most is None else f"1 to {most}"
        raise InvalidValueError(
            f"`{owner}`: `snapshots` must be {number}, of one width. Got {len(snapshots)} of the widths {widths}."
        )
