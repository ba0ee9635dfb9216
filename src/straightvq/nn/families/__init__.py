"""Quantizers beside the vector quantizer, one family per file."""
