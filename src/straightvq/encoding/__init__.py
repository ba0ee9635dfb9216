"""Whole data sets to tokens and back: shards that any number of processes make, and a killed one loses nothing."""

from straightvq.encoding.decoder import decode
from straightvq.encoding.encoder import encode

__all__ = ["decode", "encode"]
