"""Quantizers by the name of their paper. Each is a composition that you could write yourself."""

from straightvq.presets.codebook_free import best_rq, bsq, fsq, lfq
from straightvq.presets.codebooks import (
    dac,
    ema,
    rq_vae,
    soundstream,
    straight,
    straight_residual,
    vq_ste_pp,
    vq_vae,
)

__all__ = [
    "best_rq",
    "bsq",
    "dac",
    "ema",
    "fsq",
    "lfq",
    "rq_vae",
    "soundstream",
    "straight",
    "straight_residual",
    "vq_ste_pp",
    "vq_vae",
]
