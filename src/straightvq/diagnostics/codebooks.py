"""Pictures of one codebook: its codes among the embeddings, and how often each of them is used."""

import numpy as np
from torch import Tensor

from straightvq.diagnostics import functional, panels
from straightvq.diagnostics.functional.spectrum import explained_variance
from straightvq.diagnostics.functional.vectors import shape_error
from straightvq.diagnostics.panels import Floats

# Above this many, more dots only make a scatter plot heavier.
MAX_POINTS = 4000


def codebook_scatter(
    target: "panels.Target",
    z: Tensor,
    codes: Tensor,
    counts: Tensor,
    *,
    color: str = panels.PALETTE[1],
    title: str | None = None,
) -> "panels.Figure":
    """Embeddings and codes on the first two principal components of the embeddings.

    Embeddings are light dots, used codes discs whose area grows with their share of the counts, unused codes crosses.
    The embeddings set the view; codes far outside it are counted in a note. For dim 1 the vertical axis only spreads
    the dots.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        z: embeddings, Float (*batch, dim); of more than `MAX_POINTS` an even selection is drawn.
        codes: effective codes, Float (k, dim).
        counts: how often each code was assigned, for example to these embeddings, Int (k,).

    Raises: ValueError if shapes do not fit or there is no embedding.
    """
    if z.ndim == 0 or codes.ndim != 2 or z.shape[-1] != codes.shape[1] or counts.shape != codes.shape[:1]:
        rule = "`z`, `codes` and `counts` must have the shapes (*batch, dim), (k, dim) and (k,)"
        raise shape_error("codebook_scatter", rule, z, codes, counts)
    ax = panels.prepare(target)
    share = _shares(counts)
    points, places = _project(ax, z.detach().cpu().reshape(-1, z.shape[-1]), codes.detach().cpu())
    low, high = _view(points, places)
    used = share > 0
    inside = np.all((places >= low) & (places <= high), axis=1)
    # Area follows the share; the floor keeps a code that is rarely used visible.
    area = 16 + 260 * np.sqrt(share[used & inside])
    dots, unused = points[:: -(-len(points) // MAX_POINTS)], places[~used & inside]
    handles = panels.draw_clouds(ax, dots, unused, places[used & inside], colors=(color, color), area=area)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    panels.finish(ax, {name: handles[name] for name in ("used", "unused", "embedding")}, title)
    if not inside.all():
        outside, in_use = int((~inside).sum()), int((~inside & used).sum())
        noun = "code" if outside == 1 else "codes"
        panels.note(ax, f"{outside:,} {noun} outside the view, {in_use or 'none'} in use")
    return panels.figure_of(ax)


def _shares(counts: Tensor) -> Floats:
    counts = counts.detach().cpu().double()
    return (counts / counts.sum().clamp(min=1)).numpy()


def _project(ax: "panels.Axes", z: Tensor, codes: Tensor) -> tuple[Floats, Floats]:
    """Two coordinates for embeddings and codes; names the axes."""
    mean, basis = functional.principal_plane(z, min(2, z.shape[1]))
    points, places = (((x.to(mean.dtype) - mean) @ basis).numpy() for x in (z, codes))
    if z.shape[1] > 1:
        share = explained_variance(z, basis)
        # Equal embeddings have no variance to share out.
        first, second = (f" ({part:.0%} of variance)" if share.sum() > 0 else "" for part in share.tolist())
        ax.set(xlabel=f"component 1{first}", ylabel=f"component 2{second}")
        return points, places
    ax.set(xlabel="the only channel", yticks=[])
    ax.spines["left"].set_visible(False)
    origin = (mean @ basis).numpy()
    # A line has no second axis. Multiples of the golden ratio spread the dots evenly and the same way each time.
    spread = (np.arange(len(points)) * 0.6180339887 % 1 - 0.5) * 0.8
    return np.column_stack([points + origin, spread]), np.column_stack([places + origin, np.zeros(len(places))])


def _view(points: Floats, places: Floats) -> tuple[Floats, Floats]:
    """Corners of the view: most embeddings with a wide margin, in which a code that is merely off can show."""
    low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    half, centre = (high - low) / 2, (high + low) / 2
    # Equal embeddings span nothing: the codes set the scale then, or failing that the unit.
    flat = half <= 1e-6 * np.maximum(np.abs(centre), half.max())
    reach = np.quantile(np.abs(places - centre), 0.9, axis=0)
    half = np.where(flat, np.where(reach > 0, reach, 1.0), half) * 1.4
    return centre - half, centre + half


def usage_histogram(
    target: "panels.Target", counts: Tensor, *, color: str = panels.PALETTE[1], title: str | None = None
) -> "panels.Figure":
    """Code frequencies from the most to the least used, on a logarithmic axis, beside the 1/k of an even codebook.

    Args:
        target: axes to draw into, a figure to fill, or None for a new figure.
        counts: how often each code was assigned, Int (k,).

    Raises: ValueError if `counts` is not a vector of at least one code.
    """
    if counts.ndim != 1 or not len(counts):
        raise shape_error("usage_histogram", "`counts` must have the shape (k,) with k >= 1", counts)
    ax = panels.prepare(target)
    share = np.sort(_shares(counts))[::-1]
    k, used = len(share), int((share > 0).sum())
    even = 1 / k
    floor = min(even, share[used - 1] if used else even) / 3
    edges = np.arange(used + 1)
    ax.stairs(share[:used], edges, baseline=floor, fill=True, color=color, alpha=0.3)
    ax.stairs(share[:used], edges, baseline=None, color=color, linewidth=1.8)
    alike = panels.level(ax, even)
    ax.set(yscale="log", xlim=(0, k), ylim=(floor, max(share[0], even) * 2))
    ax.set(xlabel="codes, most used first", ylabel="share of all vectors")
    panels.finish(ax, {"all codes alike": alike}, title)
    panels.note(ax, f"{used:,} of {k:,} codes used, perplexity {float(functional.perplexity(counts)):,.1f}")
    return panels.figure_of(ax)
