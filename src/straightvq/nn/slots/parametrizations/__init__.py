"""Parametrizations: the map from the raw table to the effective codes, and its exact inverse.

Shapes: K codes of width D in G contiguous groups. Search, output and losses use effective codes; whoever writes codes
(init, reset, EMA, inner step, import) writes effective ones, and the inverse turns them into raw rows.
"""

from straightvq.nn.slots.parametrizations.affine import Affine
from straightvq.nn.slots.parametrizations.base import Parametrization
from straightvq.nn.slots.parametrizations.bridge import Bridge
from straightvq.nn.slots.parametrizations.chain import Chain
from straightvq.nn.slots.parametrizations.direct import Direct
from straightvq.nn.slots.parametrizations.linear import Linear
from straightvq.nn.slots.parametrizations.mlp import MLP
from straightvq.nn.slots.parametrizations.running import RunningAffine
from straightvq.nn.slots.parametrizations.unit_norm import UnitNormCodes

__all__ = [
    "MLP",
    "Affine",
    "Bridge",
    "Chain",
    "Direct",
    "Linear",
    "Parametrization",
    "RunningAffine",
    "UnitNormCodes",
]
