"""Quantizers of other families, and presets that make them, keep the laws of the layer."""

from collections.abc import Callable

import pytest
import torch

import straightvq as svq
from straightvq.testing import check_quantizer

DIM, SIZE = 6, 16
NO_TABLE = 10  # laws that say nothing about a quantizer without a codebook, at most
NOT_ONE_TABLE = 5  # ... about several tables


def _ema(dim: int = DIM) -> svq.VectorQuantizer:
    return svq.presets.ema(dim, SIZE, patience=4)


def _residual(dim: int = DIM) -> svq.ResidualQuantizer:
    return svq.ResidualQuantizer(dim, [_ema(dim) for _ in range(2)])


CASES: dict[str, Callable[[], svq.Quantizer]] = {
    "straight_residual": lambda: svq.presets.straight_residual(
        DIM, SIZE, num_quantizers=3, codebook_dim=3, sync=0.5, patience=4, dropout=0.5
    ),
    "soundstream": lambda: svq.presets.soundstream(DIM, SIZE, num_quantizers=3, patience=4, dropout=1.0),
    "dac": lambda: svq.presets.dac(DIM, SIZE, num_quantizers=3, codebook_dim=3),
    "rq_vae": lambda: svq.presets.rq_vae(DIM, SIZE, num_quantizers=3, patience=4),
    "residual of the paper's layers": lambda: svq.ResidualQuantizer(
        DIM, [svq.presets.vq_ste_pp(DIM, SIZE, patience=4) for _ in range(2)]
    ),
    "residual with a beam": lambda: svq.ResidualQuantizer(DIM, [_ema() for _ in range(2)], beam=3),
    "product": lambda: svq.ProductQuantizer(DIM, [_ema(2), svq.presets.straight(4, SIZE, codebook_dim=2, sync=0.3)]),
    "product, shared": lambda: svq.ProductQuantizer(DIM, _ema(3), num_groups=2),
    "product of residuals": lambda: svq.ProductQuantizer(DIM, [_residual(3) for _ in range(2)], dropout=0.5),
    "residual of products": lambda: svq.ResidualQuantizer(
        DIM, [svq.ProductQuantizer(DIM, [_ema(3) for _ in range(2)]) for _ in range(2)]
    ),
    "residual of finer and finer grids": lambda: svq.ResidualQuantizer(
        DIM,
        [svq.FiniteScalarQuantizer(DIM, [5] * DIM)]
        + [svq.FiniteScalarQuantizer(DIM, [5] * DIM, scale=5.0**-level, clamp=True) for level in (1, 2)],
    ),
    "residual of signs": lambda: svq.ResidualQuantizer(DIM, [svq.LookupFreeQuantizer(DIM, DIM) for _ in range(2)]),
    "product of signs on spheres": lambda: svq.ProductQuantizer(
        DIM, [svq.BinarySphericalQuantizer(3, 3) for _ in range(2)]
    ),
    "residual of drawn codes": lambda: svq.ResidualQuantizer(
        DIM, svq.presets.gumbel(DIM, SIZE, temperature=8.0), num_quantizers=2
    ),
    "projected product of a shared residual": lambda: svq.ProductQuantizer(
        2 * DIM, _residual(3), num_groups=2, transform=svq.Projection(DIM)
    ),
    "shared residual with a queue": lambda: svq.ResidualQuantizer(
        DIM,
        svq.VectorQuantizer(
            DIM,
            svq.Codebook(SIZE),
            assigner=svq.Sinkhorn(),
            losses=[svq.CommitmentLoss(), svq.RegionLoss(window=2), svq.WassersteinLoss(queue=90)],
        ),
        num_quantizers=2,
    ),
}
EXCEPTIONS: dict[str, dict[str, str]] = {}
# The second of a kind.
SLOW = {
    "product of residuals",
    "residual with a beam",
    "dac",
    "residual of the paper's layers",
    "residual of products",
    "shared residual with a queue",
    "projected product of a shared residual",
    "soundstream",
    "residual of signs",
    "product, shared",
    "residual of finer and finer grids",
    "product of signs on spheres",
    "residual of drawn codes",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_the_laws_hold(name: str) -> None:
    report = check_quantizer(CASES[name], exceptions=EXCEPTIONS.get(name))
    idle = [law for law, result in report.items() if result.startswith("does not apply")]
    idle = [law for law in idle if law != "compiled_forward_equals_eager" or torch.__version__ >= "2.13"]
    assert len(idle) <= (NOT_ONE_TABLE if CASES[name]().codebooks() else NO_TABLE), idle
