"""Where vectors and codes stand for a nearest-code search, and distances by differences."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.internals import is_exporting


class Table(NamedTuple):
    """What a search needs of the codes, once for all vectors."""

    points: Tensor  # (k, d): the codes; for the cosine as unit vectors
    middle: Tensor  # (d,): a point among them, relative to which products round less
    centred: Tensor  # (k, d): the points relative to the middle
    bias: Tensor  # (k,): half their squares


def make_table(codes: Tensor, distance: str) -> Table:
    """The middle is the median of up to 64 codes: one code that is far away draws a mean after it."""
    always = codes.device.type != "cpu" or is_exporting()  # asking would wait for the device
    points = codes
    if distance == "cosine":
        points = _unit(codes)
        # A code of length 0 is at a right angle to everything: the unit vector of an axis of its own.
        is_zero = (points == 0).all(1)
        if always or is_zero.any():
            points = torch.cat([points, is_zero.to(points.dtype)[:, None]], 1)
    some = points[:: -(-len(points) // 64)].sort(0).values
    middle = some[len(some) // 2]
    centred = points - middle
    bias = centred.square().sum(1) / 2
    # A code so far that its square overflows is taken out before its products do.
    is_far = ~bias.isfinite()
    if always or is_far.any():
        centred, bias = torch.where(is_far[:, None], 0, centred), torch.where(is_far, torch.inf, bias)
    return Table(points, middle, centred, bias)


def place(z: Tensor, table: Table, distance: str) -> Tensor:
    """Vectors whose euclidean distances to the table's points rank the codes."""
    return z if distance == "euclidean" else F.pad(_unit(z), (0, table.points.shape[1] - z.shape[1]))


def _unit(x: Tensor) -> Tensor:
    """Vectors of length 1; those of length 0 stay. The largest number is made 1 before any is squared."""
    x = x / x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=1, keepdim=True).clamp(min=1)


def closest(z: Tensor, codes: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index of the candidate of the smallest distance, of equals the lowest index.

    Shape:
        z: Float (n, d); codes: Float (k, d); candidates: Int64 (n, few).

    Example:
        >>> z, codes = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [9.0], [-1.0]])
        >>> closest(z, codes, torch.tensor([[2, 0], [1, 2]]))
        (tensor([1., 4.]), tensor([0, 1]))
    """
    candidates = candidates.sort(1).values if candidates.shape[1] > 1 else candidates
    chosen = codes.index_select(0, candidates.flatten()).view(*candidates.shape, z.shape[1])
    distances = chosen.sub_(z[:, None]).norm(dim=2)
    best = distances.argmin(1, keepdim=True)
    return distances.gather(1, best)[:, 0], candidates.gather(1, best)[:, 0]


def closest_of_all(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index of the closest code, of equals the lowest index; holds the (n, k) distances."""
    distances, indices = torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return distances, indices
