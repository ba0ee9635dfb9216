"""Assigners: which code a vector gets."""

from straightvq.nn.slots.assigners.base import Assigner, Nearest
from straightvq.nn.slots.assigners.product import LargestProduct
from straightvq.nn.slots.assigners.sinkhorn import Sinkhorn
from straightvq.nn.slots.assigners.stochastic import Stochastic

__all__ = ["Assigner", "LargestProduct", "Nearest", "Sinkhorn", "Stochastic"]
