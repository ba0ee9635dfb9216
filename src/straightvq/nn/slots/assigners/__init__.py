"""Assigners: which code a vector gets."""

from straightvq.nn.slots.assigners.base import Assigner, Nearest

__all__ = ["Assigner", "Nearest"]
