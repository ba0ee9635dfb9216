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
from straightvq.presets.estimators import diveq, dynamic_ste, gumbel, ibq, nsvq, reinmax, rotation, sf_diveq
from straightvq.presets.losses import mmd, optvq, stablevq, wasserstein
from straightvq.presets.maps import cvq, fvq, simvq

__all__ = [
    "best_rq",
    "bsq",
    "cvq",
    "dac",
    "diveq",
    "dynamic_ste",
    "ema",
    "fsq",
    "fvq",
    "gumbel",
    "ibq",
    "lfq",
    "mmd",
    "nsvq",
    "optvq",
    "reinmax",
    "rotation",
    "rq_vae",
    "sf_diveq",
    "simvq",
    "soundstream",
    "stablevq",
    "straight",
    "straight_residual",
    "vq_ste_pp",
    "vq_vae",
    "wasserstein",
]
