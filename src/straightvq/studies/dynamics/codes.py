"""Codes that move while the weights learn: the library's updates, and the equations that they follow for large d.

A step of the training changes a code by about 1 / d, so that in the limit it moves smoothly in ``tau = steps / d``.
With ``p`` the share of the weights' blocks at a code c, ``mean(w)`` and ``mean(w*)`` their mean and that of their
targets, m the width of a block, s the speed and nu the synchronisation::

    gradient     dc = -s (2 p / m) (c - mean(w)) dtau          raw table trained by the codebook loss
    alternated   dc = -s (c - mean(w)) dtau                    AlternatedUpdate(fraction=s / d)
    EMA          dc = -s (p / N) (c - mean(w)) dtau            EMAUpdate(decay=1 - s / d)
                 dN =  s (p - N) dtau                          N starts as one block's share
    sync adds    dc = -s nu (p / m) (c - mean(w*)) dtau        the task gradient; its noise vanishes as 1 / sqrt(d)
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

import straightvq as svq
from straightvq.functional import code_sums
from straightvq.nn import Update
from straightvq.nn.part import check_choice, check_float

Kind = Literal["fixed", "gradient", "EMA", "alternated"]


@dataclass(frozen=True)
class Rule:
    """How codes move.

    Args:
        kind: ``"fixed"``, ``"gradient"``, ``"EMA"`` or ``"alternated"``.
        speed: s above, per unit of tau, positive.
        sync: nu, at least 0; not with ``"fixed"`` or ``"EMA"``, whose codes take no gradient.
        commitment: weight of the loss that pulls the weights to their codes, at least 0.

    Raises:
        ValueError, TypeError: for other values.
    """

    kind: Kind
    speed: float = 1.0
    sync: float = 0.0
    commitment: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, "kind", self.kind, get_args(Kind))
        check_float(self, "speed", self.speed, minimum=0, open_minimum=True)
        limit = 0 if self.kind in ("fixed", "EMA") else float("inf")
        check_float(self, "sync", self.sync, minimum=0, maximum=limit)
        check_float(self, "commitment", self.commitment, minimum=0)

    def layer(self, codes: Tensor, d: int) -> svq.VectorQuantizer:
        """The library's layer with this rule, for d weights and with these codes, Float64 (k, m)."""
        share = self.speed / d
        updates: dict[str, Update] = {
            "EMA": svq.EMAUpdate(decay=1 - share),
            "alternated": svq.AlternatedUpdate(fraction=share),
        }
        layer = svq.VectorQuantizer(
            codes.shape[1],
            svq.Codebook(len(codes), update=updates.get(self.kind, svq.GradientUpdate())),
            estimator=svq.StraightThrough(self.sync),
            losses=[svq.CommitmentLoss(self.commitment), svq.CodebookLoss()],
        ).double()
        layer.set_codes(codes)
        if self.kind == "fixed":
            layer.codebook.freeze()
        return layer

    def flow(self, codes: Tensor, sizes: Tensor, means: "Means", dt: float) -> tuple[Tensor, Tensor]:
        """Codes (k, m) and EMA's sizes (k,) a time dt later; each equation is solved for means that stay."""
        m = codes.shape[1]
        later = means.share + (sizes - means.share) * _decay(self.speed * dt)
        left = {  # share of the way to the mean that is left
            "fixed": torch.ones_like(means.share),
            "gradient": _decay(self.speed * dt * 2 * means.share / m),
            "alternated": _decay(self.speed * dt * (means.share > 0)),
            "EMA": _decay(self.speed * dt) * sizes / later,  # log N grows by the integral of s (p / N - 1)
        }[self.kind]
        codes = means.weights + (codes - means.weights) * left[:, None]
        if self.sync:
            left = _decay(self.speed * self.sync * dt * means.share / m)
            codes = means.targets + (codes - means.targets) * left[:, None]
        return codes, later


def _decay(exponent: Tensor | float) -> Tensor:
    return torch.exp(-torch.as_tensor(exponent, dtype=torch.float64))


@dataclass(frozen=True)
class Means:
    """Of the blocks at each code; zeros at codes that have none."""

    share: Tensor  # (k,)
    weights: Tensor  # (k, m)
    targets: Tensor  # (k, m)

    @classmethod
    def of(cls, w: Tensor, targets: Tensor, indices: Tensor, count: int) -> "Means":
        """w and targets (n, m), indices (n,) of the codes, of which there are ``count``."""
        sizes, sums = code_sums(torch.cat([w, targets], 1), indices, count)
        weights, targets = (sums / sizes.clamp(min=1)[:, None]).chunk(2, 1)
        return cls(sizes / len(w), weights, targets)
