"""The one quantizer of a task with its parts, and what the vectors that pass each of them say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

import lightning
import torch
from torch import Tensor

from straightvq.diagnostics import QuantizationError, Snapshot, functional
from straightvq.diagnostics.following import Followed, Seen, follow, outermost
from straightvq.diagnostics.sums import Totals
from straightvq.errors import InvalidValueError
from straightvq.nn import ProductQuantizer, Quantizer, SignEstimator, StraightThrough
from straightvq.nn.families.composite import Composite

# Of one quantizer: embeddings that pictures and full covariances are made of; counts, errors and moments take all.
MAX_VECTORS = 20_000


class Subject:
    """The only quantizer of a task and its parts, followed while this lasts.

    Attributes:
        whole: the quantizer.
        followed: by name: the whole is ``""``; a part ``"level 0"``, ``"group 1"``, ``"level 0, group 1"``, or
            ``"all levels"`` where they share one.
    """

    def __init__(self, task: lightning.LightningModule, seen: Seen = lambda *_: None) -> None:
        found = outermost(task)
        if len(found) != 1:
            raise InvalidValueError(
                f"`analyze`: {type(task).__name__} must have exactly one quantizer, which may be a composite. "
                f"Got {', '.join(found) or 'none'}."
            )
        (self.whole,) = found.values()
        places = dict(_places(self.whole, ""))
        self.followed: dict[str, Followed] = {}
        for each in follow(task, seen):
            column = "" if each.column is None else f"codebook {each.column}"
            self.followed[", ".join(filter(None, (places[each.quantizer], column)))] = each
        if "" not in self.followed:
            self.followed = {"": Followed("", self.whole, seen), **self.followed}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.followed.values():
            each.remove()


def _places(quantizer: Quantizer, place: str) -> Iterator[tuple[Quantizer, str]]:
    """Each quantizer without parts, and where it is."""
    if not isinstance(quantizer, Composite):
        yield quantizer, place
        return
    kind = "group" if isinstance(quantizer, ProductQuantizer) else "level"
    for number, part in enumerate(quantizer.parts):
        own = f"all {kind}s" if quantizer.is_shared else f"{kind} {number}"
        yield from _places(cast(Quantizer, part), f"{place}, {own}" if place else own)


@dataclass(frozen=True)
class Measurement:
    """What one quantizer shows at a checkpoint.

    Attributes:
        vectors: how many have passed.
        values: numbers by the names of `QUANTITIES`, and more.
        snapshot: for the pictures; None for a composite, which has no codes of its own.
    """

    vectors: int
    values: dict[str, Any]
    snapshot: Snapshot | None = None


class Passed:
    """What has passed one quantizer: sums over all vectors, and an even choice of them.

    Args:
        followed: the quantizer.
        device: where it is.
        share: vectors that are kept of one call, at most.
        seed: of the choice.
    """

    def __init__(self, followed: Followed, device: torch.device, *, share: int, seed: int) -> None:
        self.followed, self.share, self.seed = followed, share, seed
        self.is_composite = followed.column is None and followed.quantizer.is_composite
        self.totals = None if self.is_composite else Totals(followed, device)
        self.error = QuantizationError().to(device)
        self.vectors = 0
        self.kept: list[Tensor] = []
        self.codes: list[Tensor] = []  # of those

    def add(self, z: Tensor, code: Tensor, indices: Tensor) -> None:
        """Takes vectors (n, d), their codes (n, d) and indices."""
        is_valid = (indices[:, 0] if self.is_composite else indices) >= 0
        if self.totals is None:
            self.error.update(z, code, is_valid)
        else:
            self.totals.add(z, code, indices, self.followed.codes())
        z, code = z[is_valid], code[is_valid]
        self.vectors += len(z)
        if len(z) > self.share:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + len(self.kept))  # alike for every state
            chosen = torch.randperm(len(z), generator=generator)[: self.share].sort().values.to(z.device)
            z, code = z[chosen], code[chosen]
        self.kept.append(z.float())
        self.codes.append(code.float())

    def measure(self, step: int) -> Measurement:
        """What ``report.md`` says of it, without gradients and the next step; ``step`` is for the snapshot."""
        z = torch.cat(self.kept)
        values: dict[str, Any] = {"effective_dimension": functional.effective_dimension(z)}
        if (surrogate := surrogate_of_signs(self.followed.quantizer)) is not None:
            values["estimating_error"] = functional.estimating_error(z / torch.cat(self.codes).abs(), surrogate)
        if self.totals is None:
            return Measurement(self.vectors, {"error": self.error.compute()["normalized"], **values})
        values |= self.totals.compute()
        counts, codes, size = self.totals.counts, self.followed.snapshot(), None
        if len(counts):
            values["codes_used"] = (counts > 0).sum()
        if codes is not None:
            mean, cov = functional.covariance(z)
            distance = functional.gaussian_w2(mean, cov, *functional.covariance(codes))
            values["wasserstein_full"] = functional.ratio(distance, cov.diagonal().sum().sqrt())
        elif self.followed.column is None and 0 < len(counts) <= MAX_VECTORS:
            codes = self.followed.quantizer.lookup(torch.arange(len(counts), device=z.device))
        else:  # too many to be drawn, or none of its own: those that were taken
            codes, counts = torch.cat(self.codes).unique(dim=0, return_counts=True)
            size = self.followed.size
        return Measurement(self.vectors, values, Snapshot(step, z.cpu(), codes.float().cpu(), counts.cpu(), size))


def surrogate_of_signs(quantizer: Quantizer) -> Callable[[Tensor], Tensor] | None:
    """The function whose gradient passes a quantizer's signs, in units of their half-width; None for other codes."""
    if quantizer.has_signs:
        if isinstance(quantizer.estimator, SignEstimator):
            return quantizer.estimator.surrogate
        if isinstance(quantizer.estimator, StraightThrough):
            return torch.clone
    return None
