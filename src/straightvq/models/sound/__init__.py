"""Networks for sound."""
