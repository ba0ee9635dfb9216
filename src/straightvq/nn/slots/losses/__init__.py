"""Losses of the layer, the same in training and evaluation unless they say otherwise."""

from straightvq.nn.slots.losses.base import Loss, masked_mean
from straightvq.nn.slots.losses.entropy import EntropyLoss
from straightvq.nn.slots.losses.matching import MMDLoss, WassersteinLoss
from straightvq.nn.slots.losses.moments import MomentLoss
from straightvq.nn.slots.losses.orthogonality import OrthogonalityLoss
from straightvq.nn.slots.losses.pair import CodebookLoss, CommitmentLoss
from straightvq.nn.slots.losses.region import RegionLoss

__all__ = [
    "CodebookLoss",
    "CommitmentLoss",
    "EntropyLoss",
    "Loss",
    "MMDLoss",
    "MomentLoss",
    "OrthogonalityLoss",
    "RegionLoss",
    "WassersteinLoss",
    "masked_mean",
]
