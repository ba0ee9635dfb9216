"""What a quantizer is and whether it is well: from its codes, from the statistics beside them, and from data."""
