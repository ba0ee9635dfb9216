"""Families of quantizers beside the vector-quantized layer."""
