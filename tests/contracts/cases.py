"""The table of quantizers that every law is tested on: all presets, and every part in some combination.

Each factory takes ``channel_dim``, makes a layer of width ``DIM`` with ``SIZE`` codes, and draws its start from torch's
global generator. ``FREE`` are the quantizers without a codebook, of that width and some number of codes.
``EXCEPTIONS`` is the table's column of laws that say nothing about a case, or are not kept by it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

import straightvq as svq

DIM, SIZE = 6, 16

Factory = Callable[..., svq.VectorQuantizer]


def _layer(
    channel_dim: int,
    *,
    transform: svq.Transform | None = None,
    assigner: svq.Assigner | None = None,
    sync: float = 0.0,
    estimator: svq.Estimator | None = None,
    losses: list[svq.Loss] | None = None,
    parametrization: svq.Parametrization | None = None,
    init: svq.Init | None = None,
    update: svq.Update | None = None,
    reset: svq.Reset | None = None,
) -> svq.VectorQuantizer:
    codebook = svq.Codebook(SIZE, parametrization=parametrization, init=init, update=update, reset=reset)
    return svq.VectorQuantizer(
        DIM,
        codebook,
        transform=transform,
        assigner=assigner,
        estimator=estimator or svq.StraightThrough(sync),
        losses=losses,
        channel_dim=channel_dim,
    )


PRESETS: dict[str, Factory] = {
    "vq_vae": lambda channel_dim=-1: svq.presets.vq_vae(DIM, SIZE, channel_dim=channel_dim),
    "ema": lambda channel_dim=-1: svq.presets.ema(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "vq_ste_pp": lambda channel_dim=-1: svq.presets.vq_ste_pp(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "vq_ste_pp-l2": lambda channel_dim=-1: svq.presets.vq_ste_pp(DIM, SIZE, channel_dim=channel_dim, l2=True),
    "vq_ste_pp-groups": lambda channel_dim=-1: svq.presets.vq_ste_pp(DIM, SIZE, channel_dim=channel_dim, groups=8),
    "vq_ste_pp-sgd": lambda channel_dim=-1: svq.presets.vq_ste_pp(
        DIM, SIZE, channel_dim=channel_dim, lr=2.0, momentum=0.9
    ),
    "straight": lambda channel_dim=-1: svq.presets.straight(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "straight-plain": lambda channel_dim=-1: svq.presets.straight(
        DIM, SIZE, channel_dim=channel_dim, patience=4, affine=False
    ),
    "straight-sync": lambda channel_dim=-1: svq.presets.straight(DIM, SIZE, channel_dim=channel_dim, sync=0.5),
    "straight-narrow": lambda channel_dim=-1: svq.presets.straight(
        DIM, SIZE, channel_dim=channel_dim, codebook_dim=3, patience=4, reassign=True, affine=False
    ),
    "rotation": lambda channel_dim=-1: svq.presets.rotation(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "diveq": lambda channel_dim=-1: svq.presets.diveq(DIM, SIZE, channel_dim=channel_dim, noise=0.1, patience=4),
    "diveq-detached": lambda channel_dim=-1: svq.presets.diveq(DIM, SIZE, channel_dim=channel_dim, noise=0.0),
    "sf_diveq": lambda channel_dim=-1: svq.presets.sf_diveq(DIM, SIZE, channel_dim=channel_dim, noise=0.1),
    "nsvq": lambda channel_dim=-1: svq.presets.nsvq(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "dynamic_ste": lambda channel_dim=-1: svq.presets.dynamic_ste(DIM, SIZE, channel_dim=channel_dim, patience=4),
    "gumbel": lambda channel_dim=-1: svq.presets.gumbel(
        DIM, SIZE, channel_dim=channel_dim, temperature=4.0, softness=0.5
    ),
    "reinmax": lambda channel_dim=-1: svq.presets.reinmax(DIM, SIZE, channel_dim=channel_dim, softness=2.0),
    "ibq": lambda channel_dim=-1: svq.presets.ibq(DIM, SIZE, channel_dim=channel_dim, temperature=3.0),
}

PRESETS |= {
    "wasserstein": lambda channel_dim=-1: svq.presets.wasserstein(DIM, SIZE, channel_dim=channel_dim, queue=100),
    "mmd": lambda channel_dim=-1: svq.presets.mmd(DIM, SIZE, channel_dim=channel_dim, queue=100),
    "optvq": lambda channel_dim=-1: svq.presets.optvq(DIM, SIZE, channel_dim=channel_dim),
    "stablevq": lambda channel_dim=-1: svq.presets.stablevq(DIM, SIZE, channel_dim=channel_dim, window=2),
    "simvq": lambda channel_dim=-1: svq.presets.simvq(DIM, SIZE, channel_dim=channel_dim),
    "fvq": lambda channel_dim=-1: svq.presets.fvq(
        DIM, SIZE, channel_dim=channel_dim, patch=3, width=8, depth=1, heads=2
    ),
    # Closest anchors of codes that start beside the data are all the same vector: rounding tells these codes apart.
    "cvq": lambda channel_dim=-1: svq.presets.cvq(DIM, SIZE, channel_dim=channel_dim, anchor="random"),
}

CASES: dict[str, Factory] = PRESETS | {
    "gradient+sample+reset": lambda channel_dim=-1: _layer(
        channel_dim, init=svq.SampleInit(), reset=svq.DeadCodeReset(3), sync=0.3
    ),
    "gradient+uniform+projection": lambda channel_dim=-1: _layer(
        channel_dim, init=svq.UniformInit(), transform=svq.Projection(3)
    ),
    "gradient+affine+kmeans": lambda channel_dim=-1: _layer(
        channel_dim, parametrization=svq.Affine(3.0, groups=2), init=svq.KMeansInit(3), reset=svq.DeadCodeReset(3)
    ),
    "gradient+running": lambda channel_dim=-1: _layer(
        channel_dim, parametrization=svq.RunningAffine(), reset=svq.DeadCodeReset(3)
    ),
    "gradient+unit_norm+cosine": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.UnitNormCodes(),
        transform=svq.UnitNorm(),
        assigner=svq.Nearest("cosine"),
        init=svq.NormalInit(0.5),
    ),
    "ema+running+groups": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.RunningAffine(groups=4),
        init=svq.KMeansInit(),
        update=svq.EMAUpdate(0.9),
        reset=svq.DeadCodeReset(3),
    ),
    "ema+unit_norm+projection": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.UnitNormCodes(),
        transform=svq.Projection(4),
        assigner=svq.Nearest("cosine"),
        update=svq.EMAUpdate(),
        losses=[svq.CommitmentLoss(1.0)],
    ),
    "ema+no_losses": lambda channel_dim=-1: _layer(channel_dim, update=svq.EMAUpdate(0.5), losses=[]),
    "alternated+momentum": lambda channel_dim=-1: _layer(
        channel_dim,
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(steps=2, fraction=0.3, momentum=0.5, reassign=False),
        reset=svq.DeadCodeReset(3, relative_to="norm"),
    ),
    "alternated+running+groups+sync": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.RunningAffine(groups=8),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(steps=2),
        reset=svq.DeadCodeReset(3),
        sync=0.5,
    ),
    "alternated+chain+sync": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Chain([svq.Affine(2.0), svq.UnitNormCodes()]),
        transform=svq.UnitNorm(),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(),
        reset=svq.DeadCodeReset(3),
        sync=0.5,
    ),
    "alternated+direct+explicit": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Direct(),
        transform=svq.Identity(),
        update=svq.AlternatedUpdate(),
        losses=[svq.CodebookLoss(), svq.CommitmentLoss()],
    ),
    "gradient+explicit": lambda channel_dim=-1: _layer(channel_dim, update=svq.GradientUpdate()),
    "gradient+chain_of_statistics+cosine": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Chain([svq.RunningAffine(0.5, groups=2), svq.UnitNormCodes()]),
        assigner=svq.Nearest("cosine"),
        init=svq.SampleInit(),
    ),
    "gradient+affine+sync_alone": lambda channel_dim=-1: _layer(
        channel_dim, parametrization=svq.Affine(groups=4), losses=[svq.CommitmentLoss()], sync=1.0
    ),
    "gradient+entropy": lambda channel_dim=-1: _layer(
        channel_dim, losses=[svq.CommitmentLoss(), svq.CodebookLoss(), svq.EntropyLoss()]
    ),
    "ema+entropy": lambda channel_dim=-1: _layer(
        channel_dim,
        init=svq.KMeansInit(),
        update=svq.EMAUpdate(),
        reset=svq.DeadCodeReset(3),
        losses=[svq.CommitmentLoss(), svq.EntropyLoss(0.3, diversity=2.0, temperature=5.0)],
    ),
    "gradient+orthogonality+moment": lambda channel_dim=-1: _layer(
        channel_dim,
        losses=[svq.CommitmentLoss(), svq.CodebookLoss(), svq.OrthogonalityLoss(2.0), svq.MomentLoss()],
    ),
    "alternated+affine+orthogonality+mmd": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Affine(groups=2),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(),
        losses=[svq.CommitmentLoss(), svq.OrthogonalityLoss(0.5, active_only=True), svq.MMDLoss(queue=30)],
        reset=svq.DeadCodeReset(3),
    ),
    "ema+sinkhorn": lambda channel_dim=-1: _layer(
        channel_dim, init=svq.KMeansInit(), update=svq.EMAUpdate(0.9), assigner=svq.Sinkhorn(0.3, iterations=3)
    ),
    "gradient+codebook_alone": lambda channel_dim=-1: _layer(
        channel_dim,
        init=svq.KMeansInit(0),
        losses=[svq.CodebookLoss(0.5), svq.CommitmentLoss(0.0)],
        reset=svq.DeadCodeReset(2, noise=0.0),
    ),
    "ema+unit_norm+sample+no_memory": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.UnitNormCodes(),
        transform=svq.UnitNorm(),
        init=svq.SampleInit(),
        update=svq.EMAUpdate(0.0),
        reset=svq.DeadCodeReset(3),
    ),
    "alternated+affine+groups+sgd": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Affine(2.0, groups=4),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(steps=2, lr=1.0, momentum=0.9, reassign=False),
        reset=svq.DeadCodeReset(3),
    ),
    "alternated+unit_norm+projection+cosine": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.UnitNormCodes(),
        transform=svq.Projection(4),
        assigner=svq.Nearest("cosine"),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(fraction=1.0),
        reset=svq.DeadCodeReset(3),
    ),
    "gradient+linear+kmeans+sync": lambda channel_dim=-1: _layer(
        channel_dim, parametrization=svq.Linear(bias=True), init=svq.KMeansInit(), sync=0.3
    ),
    "alternated+linear+sync": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Linear(freeze_basis=False, bias=True),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(fraction=0.3),
        reset=svq.DeadCodeReset(3),
        sync=0.3,
    ),
    "gradient+linear_chain+anchors": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Chain([svq.Linear(freeze_basis=False), svq.UnitNormCodes()]),
        transform=svq.UnitNorm(),
        init=svq.SampleInit(),
        reset=svq.AnchoredReset(0.5),
    ),
    "gradient+mlp+sync": lambda channel_dim=-1: _layer(channel_dim, parametrization=svq.MLP(8, 2), sync=0.3),
    "ema+anchors": lambda channel_dim=-1: _layer(
        channel_dim, init=svq.KMeansInit(), update=svq.EMAUpdate(0.9), reset=svq.AnchoredReset(0.9)
    ),
}

CASES |= {
    "ema+rotation+unbounded": lambda channel_dim=-1: _layer(
        channel_dim, update=svq.EMAUpdate(), estimator=svq.RotationTrick(None), transform=svq.Projection(4)
    ),
    "alternated+affine+diveq": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.Affine(2.0),
        init=svq.KMeansInit(),
        update=svq.AlternatedUpdate(reassign=False),
        estimator=svq.DiVeQ(noise=0.0),
    ),
    "ema+drawn": lambda channel_dim=-1: _layer(
        channel_dim, init=svq.KMeansInit(), update=svq.EMAUpdate(), assigner=svq.Stochastic(0.5)
    ),
    "alternated+unit_norm+reinmax": lambda channel_dim=-1: _layer(
        channel_dim,
        parametrization=svq.UnitNormCodes(),
        transform=svq.UnitNorm(),
        update=svq.AlternatedUpdate(),
        assigner=svq.Stochastic(0.3),
        estimator=svq.ReinMax(),
    ),
}

# Other combinations of what the rest holds: in the suite of slow tests only, which CI runs as well.
SLOW = {
    "vq_ste_pp-groups",
    "vq_ste_pp-sgd",
    "straight-sync",
    "diveq-detached",
    "gradient+uniform+projection",
    "gradient+running",
    "ema+no_losses",
    "alternated+momentum",
    "alternated+running+groups+sync",
    "alternated+direct+explicit",
    "gradient+explicit",
    "gradient+chain_of_statistics+cosine",
    "gradient+affine+sync_alone",
    "ema+entropy",
    "alternated+affine+orthogonality+mmd",
    "gradient+codebook_alone",
    "ema+unit_norm+sample+no_memory",
    "alternated+affine+groups+sgd",
    "alternated+unit_norm+projection+cosine",
    "alternated+linear+sync",
    "gradient+linear_chain+anchors",
    "ema+anchors",
    "ema+rotation+unbounded",
    "alternated+affine+diveq",
    "ema+drawn",
}


def every(argument: str, table: Mapping[str, Any]) -> pytest.MarkDecorator:
    """A test for each value of a table of cases; for each name where the argument is ``name`` or ``case``."""
    return pytest.mark.parametrize(
        argument,
        [
            pytest.param(
                name if argument in ("name", "case") else value,
                id=name,
                marks=[pytest.mark.slow] if name in SLOW else [],
            )
            for name, value in table.items()
        ],
    )


FREE_PRESETS: dict[str, Callable[..., svq.Quantizer]] = {
    "fsq": lambda channel_dim=-1: svq.presets.fsq(DIM, [4, 4], channel_dim=channel_dim),
    "lfq": lambda channel_dim=-1: svq.presets.lfq(DIM, 4, channel_dim=channel_dim),
    "bsq": lambda channel_dim=-1: svq.presets.bsq(DIM, DIM, channel_dim=channel_dim),
    "best_rq": lambda channel_dim=-1: svq.presets.best_rq(DIM, SIZE, channel_dim=channel_dim),
}

FREE: dict[str, Callable[..., svq.Quantizer]] = FREE_PRESETS | {
    "finite+symmetric+clamp": lambda channel_dim=-1: svq.FiniteScalarQuantizer(
        DIM, [2, 3, 2, 2, 3, 2], form="symmetric", clamp=True, scale=15.0, channel_dim=channel_dim
    ),
    "finite+paper+clamp": lambda channel_dim=-1: svq.FiniteScalarQuantizer(
        DIM, [2, 3, 2, 2, 3, 2], clamp=True, scale=15.0, channel_dim=channel_dim
    ),
    "finite+atanh": lambda channel_dim=-1: svq.FiniteScalarQuantizer(
        DIM, [3, 3, 4, 3, 3, 3], form="atanh", scale=8.0, channel_dim=channel_dim
    ),
    "finite+noise": lambda channel_dim=-1: svq.FiniteScalarQuantizer(
        DIM, [2, 3, 2, 2, 3, 2], noise=0.5, scale=2.0, losses=[svq.CommitmentLoss()], channel_dim=channel_dim
    ),
    "signs+reste": lambda channel_dim=-1: svq.LookupFreeQuantizer(
        DIM, DIM, scale=0.5, estimator=svq.ReSTE(2.0, limit=60.0), channel_dim=channel_dim
    ),
    "signs+tanh": lambda channel_dim=-1: svq.BinarySphericalQuantizer(
        DIM, DIM, estimator=svq.ErrorDecay(0.5), channel_dim=channel_dim
    ),
    "finite+reste": lambda channel_dim=-1: svq.FiniteScalarQuantizer(
        DIM, [2, 3, 2, 2, 3, 2], estimator=svq.ReSTE(2.0), channel_dim=channel_dim
    ),
    "signs+groups": lambda channel_dim=-1: svq.LookupFreeQuantizer(
        DIM, DIM, losses=[svq.EntropyLoss(diversity=0.5, group_bits=4)], channel_dim=channel_dim
    ),
    "random_projection+codebooks": lambda channel_dim=-1: svq.RandomProjectionQuantizer(
        DIM, SIZE, 4, num_codebooks=2, normalize=False, channel_dim=channel_dim
    ),
}

# Laws about tables of codes: they say nothing about ``FREE``.
OF_TABLES = (
    "codes_quantize_to_themselves",
    "far_from_the_origin_the_nearest_code_is_found",
    "freezing_is_saved",
    "frozen_codebook_stays_to_the_bit_under_adamw",
    "no_init_overwrites_codes_that_somebody_set",
    "no_matrix_of_vectors_times_codes_is_made",
    "ranks_do_what_one_process_does",  # for them: test_codebook_free.py
    "set_codes_writes_effective_codes",
    "training_moves_the_codebook",
    "unfrozen_codebook_moves_again",
)

_PROJECTION = {"codes_quantize_to_themselves": "a projection does not return to its argument"}

_NO_INVERSE = dict.fromkeys(
    (
        "far_from_the_origin_the_nearest_code_is_found",
        "no_init_overwrites_codes_that_somebody_set",
        "set_codes_writes_effective_codes",
    ),
    "the map has no inverse, through which codes could be written",
)

_NOISE = "in training a share of the vectors gets noise in place of a code"

_NO_CODE = {
    law: "in training the output is no code"
    for law in (
        "training_forward_returns_rows_of_the_table_it_leaves_behind",
        "double_input_to_a_float32_layer",
    )
}

# case -> law -> reason
EXCEPTIONS: dict[str, dict[str, str]] = {
    "diveq": _NO_CODE,
    "sf_diveq": _NO_CODE,
    "nsvq": _NO_CODE,
    "ibq": {"codes_quantize_to_themselves": "a longer code may have the larger inner product"},
    "ema+rotation+unbounded": _PROJECTION,
    "finite+noise": {
        "training_forward_returns_rows_of_the_table_it_leaves_behind": _NOISE,
        "double_input_to_a_float32_layer": _NOISE,
    },
    "fvq": _NO_INVERSE,
    "gradient+mlp+sync": _NO_INVERSE,
    "straight-narrow": _PROJECTION,
    "gradient+uniform+projection": _PROJECTION,
    "ema+unit_norm+projection": _PROJECTION,
    "alternated+unit_norm+projection+cosine": _PROJECTION,
}
