"""The numbers that the doctor judges: of a table of codes, of the statistics beside it, of data sent through it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from straightvq.diagnostics import functional
from straightvq.diagnostics.concerns import VECTORS_PER_CODE
from straightvq.diagnostics.following import Followed, follow
from straightvq.diagnostics.sums import Totals
from straightvq.diagnostics.task import undisturbed
from straightvq.functional import nearest_codes
from straightvq.nn import AlternatedUpdate, Codebook, DeadCodeReset, EMAUpdate

# Codes whose nearest other code is looked for; of a larger table an even selection.
MOST_CODES = 1 << 15
# Vectors that are kept, to look how far from the data a code is.
MOST_VECTORS = 20_000
# Two codes are on one spot if they are nearer than this part of what even spacing would give.
SAME_SPOT = 0.01
# A moving weight below this is that of a code without vectors: at a decay of 0.99, of 460 steps.
NO_WEIGHT = 0.01


@dataclass
class Table:
    """One quantizer with codes of its own, ``name`` its path, and what was measured on it.

    Attributes:
        values: numbers by name.
        unused: Bool (k,), codes that nothing chose, or None if nothing tells.
        unused_by: what tells.
    """

    name: str
    followed: Followed
    values: dict[str, float]
    unused: Tensor | None = None
    unused_by: str = ""


def tables_of(module: nn.Module) -> list[Table]:
    """Every quantizer with codes of its own, measured by what it holds."""
    tables = []
    for followed in follow(module, lambda *_: None):
        followed.remove()
        table = Table(followed.name, followed, {"codes": followed.size, "width": followed.dim})
        if followed.codebook is not None:
            table.values |= measure_codes(followed.codebook.codes())
            table.unused, table.unused_by = unused_by_statistics(followed.codebook)
        tables.append(table)
    return tables


def measure_codes(codes: Tensor) -> dict[str, float]:
    """How codes (k, d) lie among each other. ``not_finite`` alone if some are not finite.

    ``nearest_min`` and ``nearest_median``: distance to the nearest other code. ``spread``: root mean square distance
    from their mean. ``crowded``: number of codes with another one within `SAME_SPOT` times ``spread * k^(-1/d)``, which
    is about the spacing of k codes that share a volume of that size evenly; ``at_origin``: those within that of 0.
    ``norm_median`` leaves the latter out.

    Example:
        >>> values = measure_codes(torch.tensor([[0.0], [0.0], [4.0], [8.0]]))
        >>> values["crowded"], values["at_origin"], values["nearest_median"]
        (2.0, 2.0, 4.0)
    """
    bad = int((~torch.isfinite(codes).all(1)).sum())
    if bad:
        return {"not_finite": float(bad)}
    k, d = codes.shape
    rows = codes[:: math.ceil(k / MOST_CODES)]
    nearest = nearest_codes(rows, codes, 2)[0][:, 1]  # the first is the code itself, or one on the same spot
    norms = codes.double().norm(dim=1)
    spread = codes.double().var(0, correction=0).sum().sqrt().item()
    within = SAME_SPOT * spread * k ** (-1 / d)
    off = norms > within
    # The lower of the two middle values would say 0 of two codes on one spot and two others.
    middle = nearest.double().quantile(0.5, interpolation="higher") if len(nearest) < 1 << 24 else nearest.median()
    return {
        "nearest_min": nearest.min().item(),
        "nearest_median": middle.item(),
        "norm_median": norms[off].median().item() if off.any() else 0.0,
        "norm_max": norms.max().item(),
        "spread": spread,
        "same_spot": within,
        "crowded": float(round((nearest <= within).double().mean().item() * k)),
        "at_origin": float((~off).sum()),
        "code_directions": functional.effective_dimension(codes).item(),
    }


def unused_by_statistics(codebook: Codebook) -> tuple[Tensor | None, str]:
    """Which codes have had no vector for long, and what says so; None if nothing beside the codes tells."""
    update, reset = codebook.update, codebook.reset
    if isinstance(reset, DeadCodeReset) and codebook.is_ready > 0:
        return reset.idle >= VECTORS_PER_CODE, f"{VECTORS_PER_CODE} vectors per code have passed them by"
    if isinstance(update, EMAUpdate) and not (update.cluster_size == update.cluster_size[0]).all():
        return update.cluster_size < NO_WEIGHT, f"their moving number of vectors is below {NO_WEIGHT}"
    if isinstance(update, AlternatedUpdate) and update.memory is not None and update.seen.any():
        return update.seen == 0, "none of them has ever had a vector"
    return None, ""


@torch.no_grad()
def send(module: nn.Module, tables: list[Table], inputs: Iterable[Any], run: Any) -> None:
    """Sends data through in evaluation mode, ``run(input)`` for each, and adds to the tables what it shows.

    ``used``, ``perplexity``, ``error``, distances of the moments as `Totals` has them, ``vectors``, their
    ``directions``, the ratio ``scale`` of the codes' spread to theirs, and ``far``: how many unused codes are farther
    from all vectors than three times the usual distance of a vector to its code.
    """
    seen = {table.name: _Seen() for table in tables}

    def take(followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
        seen[followed.name].add(followed, z, code, indices)

    followed = follow(module, take)
    try:
        with undisturbed(module):
            for each in inputs:
                run(each)
    finally:
        for each in followed:
            each.remove()
    for table in tables:
        seen[table.name].tell(table)


class _Seen:
    """What has passed one quantizer."""

    def __init__(self) -> None:
        self.totals: Totals | None = None
        self.vectors = 0
        self.kept: list[Tensor] = []
        self.distances: list[Tensor] = []

    def add(self, followed: Followed, z: Tensor, code: Tensor, indices: Tensor) -> None:
        self.totals = self.totals or Totals(followed, z.device)
        self.totals.add(z, code, indices, followed.codes())
        room = MOST_VECTORS - sum(map(len, self.kept))
        chosen = indices >= 0
        self.vectors += int(chosen.sum())
        self.kept.append(z[chosen][:room])
        self.distances.append((z - code)[chosen][:room].norm(dim=1))

    def tell(self, table: Table) -> None:
        values = {} if self.totals is None else self.totals.compute()
        if self.totals is None or not values:
            return
        counts, z = self.totals.counts, torch.cat(self.kept)
        table.values |= {name: float(value) for name, value in values.items()}
        table.values |= {"vectors": float(self.vectors), "directions": functional.effective_dimension(z).item()}
        if len(counts):
            table.values["used"] = float((counts > 0).sum())
        if 0 < len(counts) <= counts.sum() / VECTORS_PER_CODE:
            table.unused, table.unused_by = counts == 0, f"none of {self.vectors:,} vectors chose them"
        codes = table.followed.codes()
        if codes is None or "not_finite" in table.values:
            return
        spread = z.double().var(0, correction=0).sum().sqrt().item()
        table.values["scale"] = table.values["spread"] / spread if spread else math.inf
        distance = getattr(getattr(table.followed.quantizer, "assigner", None), "distance", "euclidean")
        is_told = counts.sum() >= VECTORS_PER_CODE * len(codes)
        if is_told and table.unused is not None and table.unused.any() and distance == "euclidean":
            usual = torch.cat(self.distances).median()
            away = nearest_codes(codes[table.unused], z, 1)[0][:, 0]
            table.values["far"] = float((away > 3 * usual).sum())
