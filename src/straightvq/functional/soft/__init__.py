"""Soft assignments to all codes, tile by tile: codes drawn from them, and the gradient of an index through them."""
