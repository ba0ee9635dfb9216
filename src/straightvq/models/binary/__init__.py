"""Networks whose weights and activations are signs."""
