"""Estimators: the gradient that passes the quantizer, whose true derivative is zero almost everywhere."""

from straightvq.nn.slots.estimators.base import Estimator, StraightThrough
from straightvq.nn.slots.estimators.diveq import NSVQ, DiVeQ, SpaceFillingDiVeQ
from straightvq.nn.slots.estimators.dynamic import DynamicStraightThrough
from straightvq.nn.slots.estimators.error_decay import ErrorDecay, error_decay_sharpness
from straightvq.nn.slots.estimators.reste import ReSTE, reste_power
from straightvq.nn.slots.estimators.rotation import RotationTrick
from straightvq.nn.slots.estimators.signs import SignEstimator
from straightvq.nn.slots.estimators.soft import Gumbel, IndexBackpropagation, ReinMax

__all__ = [
    "NSVQ",
    "DiVeQ",
    "DynamicStraightThrough",
    "ErrorDecay",
    "Estimator",
    "Gumbel",
    "IndexBackpropagation",
    "ReSTE",
    "ReinMax",
    "RotationTrick",
    "SignEstimator",
    "SpaceFillingDiVeQ",
    "StraightThrough",
    "error_decay_sharpness",
    "reste_power",
]
