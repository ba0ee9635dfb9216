"""The laws of the layer, for your own quantizers and parts: ``check_quantizer``. Needs no test framework."""

from straightvq.testing.check import check_quantizer
from straightvq.testing.law import LAWS, Law, LawError

__all__ = ["LAWS", "Law", "LawError", "check_quantizer"]
