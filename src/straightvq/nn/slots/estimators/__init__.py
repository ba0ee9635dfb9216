"""Estimators: the gradient that passes the quantizer, whose true derivative is zero almost everywhere."""

from straightvq.nn.slots.estimators.base import Estimator, StraightThrough
from straightvq.nn.slots.estimators.reste import ReSTE, reste_power

__all__ = ["Estimator", "ReSTE", "StraightThrough", "reste_power"]
