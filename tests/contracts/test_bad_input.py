"""One row per public argument: values that must be refused, the exception, and words that its message must hold.

A test inspects the signatures, so a new parameter without a row fails. Rows of calls on a finished layer also show
that the failed call changed no state.
"""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from tests.contracts.cases import CASES, DIM, FREE_PRESETS, SIZE

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Row:
    """Bad values of one argument; ``calls`` makes the call with the value, by default ``target(**base, arg=value)``."""

    target: str
    argument: str
    bad: list[Any]
    error: type[Exception]
    words: str
    base: dict[str, Any] = field(default_factory=dict)
    call: Callable[[Any], Any] | None = None


def resolve(name: str) -> Any:
    item: Any = svq
    for part in name.split("."):
        item = getattr(item, part)
    return item


def integer(target: str, argument: str, least: int, **base: Any) -> list[Row]:
    return [
        Row(target, argument, [2.5, "4", None, True], TypeError, f"`{argument}` must be an integer", base),
        Row(target, argument, [least - 1, -7], ValueError, f"`{argument}` must be an integer >= {least}", base),
    ]


def number(target: str, argument: str, outside: list[float], *, optional: bool = False, **base: Any) -> list[Row]:
    wrong = ["1", True, [0.5]] if optional else ["1", True, None]
    return [
        Row(target, argument, wrong, TypeError, f"`{argument}` must be a number in", base),
        Row(target, argument, [*outside, INF, NAN, -INF], ValueError, f"`{argument}` must be a finite number", base),
    ]


def slot(
    target: str, argument: str, kind: type, concrete: type, *, of: Callable[[Any], Any] | None = None
) -> list[Row]:
    name = kind.__name__
    return [
        Row(
            target,
            argument,
            [3, "x", nn.Linear(2, 2)],
            TypeError,
            f"`{argument}` must be an instance of {name}",
            {},
            of,
        ),
        Row(target, argument, [concrete], TypeError, f"write {concrete.__name__}()", {}, of),
    ]


def quantizer(**slots: Any) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(4, svq.Codebook(8), **slots)


WITH_CODEBOOK = [name for name in svq.presets.__all__ if name not in FREE_PRESETS]


def preset_rows(name: str) -> list[Row]:
    target, base = f"presets.{name}", {"dim": 4, "codebook_size": 8}
    rows = [
        *(Row(r.target, r.argument, r.bad, r.error, r.words, {"codebook_size": 8}) for r in integer(target, "dim", 1)),
        Row(target, "codebook_size", [2.5, None], TypeError, "`Codebook`: `size` must be an integer", {"dim": 4}),
        Row(target, "codebook_size", [1, 0], ValueError, "`Codebook`: `size` must be an integer >= 2", {"dim": 4}),
        Row(target, "channel_dim", [1.0, "last", None], TypeError, "`channel_dim` must be an integer", base),
    ]
    extra = {
        "codebook_dim": ("Projection", "codebook_dim", [0, -1]),
        "decay": ("AnchoredReset" if name == "cvq" else "EMAUpdate", "decay", [1.0, -0.1, 7.0]),
        "anchor": ("AnchoredReset", "anchor", ["farthest", None, 1]),
        "patch": ("Bridge", "patch", [0, -1]),
        "width": ("Bridge", "width", [0, -1]),
        "depth": ("Bridge", "depth", [0, -1]),
        "heads": ("Bridge", "heads", [0, -1, 3]),
        "patience": ("DeadCodeReset", "patience", [0, -1]),
        "lr_scale": ("Affine", "lr_scale", [0.0, -1.0]),
        "groups": ("Affine", "groups", [0, 3]),
        "sync": ("StraightThrough", "sync", [-0.1, NAN]),
        "fraction": ("AlternatedUpdate", "fraction", [0.0, 1.1]),
        "lr": ("AlternatedUpdate", "lr", [0.0, -1.0]),
        "memory": ("AlternatedUpdate", "memory", [-1.0, INF]),
        "momentum": ("AlternatedUpdate", "momentum", [1.0, -0.1]),
        "num_quantizers": (name, "num_quantizers", [0, -1]),
        "dropout": ("ResidualQuantizer", "dropout", [1.1, -0.1, NAN]),
        "kept_choices": ("ResidualQuantizer", "kept_choices", [[], [0], [99]]),
        "matching": ("WassersteinLoss" if name == "wasserstein" else "MMDLoss", "weight", [-0.1, INF]),
        "queue": ("WassersteinLoss" if name == "wasserstein" else "MMDLoss", "queue", [0, -1]),
        "iterations": ("Sinkhorn", "iterations", [0, -1]),
        "window": ("RegionLoss", "window", [0, -1]),
        "beam": ("ResidualQuantizer", "beam", [0, -1]),
        "commitment": ("CommitmentLoss", "weight", [-0.1, INF]),
        "codebook": ("CodebookLoss", "weight", [-0.1, INF]),
        "entropy": ("EntropyLoss", "weight", [-0.1, INF]),
        "max_gain": ("RotationTrick", "max_gain", [0.0, -1.0]),
        "noise": ("SpaceFillingDiVeQ" if name == "sf_diveq" else "DiVeQ", "noise", [-0.1, NAN]),
        "temperature": (
            {"ibq": "IndexBackpropagation", "optvq": "Sinkhorn"}.get(name, "Stochastic"),
            "temperature",
            [0.0, -1.0],
        ),
        "softness": ("ReinMax" if name == "reinmax" else "Gumbel", "temperature", [0.0, -1.0]),
    }
    for argument in inspect.signature(resolve(target)).parameters:
        if argument in extra:
            owner, inner, bad = extra[argument]
            rows.append(Row(target, argument, bad, ValueError, f"`{owner}`: `{inner}` must", base))
            if argument == "commitment":
                rows.append(Row(target, argument, ["much"], TypeError, "`CommitmentLoss`: `weight` must be", base))
        elif argument in ("l2", "affine"):
            expected = f"`{argument}` must be True or False"
            rows.append(Row(target, argument, ["yes", 1, None], TypeError, expected, base))
        elif argument == "reassign":
            expected = "`AlternatedUpdate`: `reassign` must be True or False"
            rows.append(Row(target, "reassign", ["yes", 1, None], TypeError, expected, base))
    return rows


def residual(*levels: Any, **given: Any) -> svq.ResidualQuantizer:
    return svq.ResidualQuantizer(4, list(levels) or [quantizer(), quantizer()], **given)


def product(**given: Any) -> svq.ProductQuantizer:
    return svq.ProductQuantizer(8, [residual(), residual()], **given)


def composite_rows(name: str, make: Callable[..., Any], parts: str, number: str) -> list[Row]:
    """What residual and product quantizers refuse alike."""

    def row(argument: str, bad: list[Any], error: type[Exception], words: str) -> Row:
        return Row(name, argument, bad, error, words, {}, lambda v: make(**{argument: v}))

    target = resolve(name)
    return [
        Row(name, "dim", [2.5, "4", True], TypeError, "`dim` must be an integer", {parts: [quantizer()]}),
        Row(name, "dim", [0, -7], ValueError, "`dim` must be an integer >= 1", {parts: [quantizer()]}),
        Row(name, parts, [3, [], None], TypeError, f"`{parts}` must be a quantizer or a list", {"dim": 4}),
        Row(name, parts, [[3], ["vq"]], TypeError, "must be an instance of Quantizer", {"dim": 4}),
        Row(name, parts, [[quantizer] * 2], TypeError, "must be an instance of Quantizer", {"dim": 4}),
        row(number, [3, 0, 2.5], ValueError, "the length 2 of the list"),
        Row(name, number, [2.5, None, True], TypeError, f"`{number}` must", {},
            lambda v: target(4, quantizer(), **{number: v})),
        *slot(name, "transform", svq.Transform, svq.Identity, of=lambda v: make(transform=v)),
        row("channel_dim", [1.0, None, "last", True], TypeError, "`channel_dim` must be an integer"),
        row("dropout", ["1", True, None], TypeError, "`dropout` must be a number in [0, 1]"),
        row("dropout", [-0.1, 1.1, NAN], ValueError, "`dropout` must be a finite number in [0, 1]"),
        row("kept_choices", [[], [3]], ValueError, "`kept_choices` must be numbers of levels in [1, 2]"),
        row("kept_choices", [[1.5], ["1"]], TypeError, "`kept_choices` must be an integer"),
    ]  # fmt: skip


TWO = torch.ones(2, 3)


def free_rows(target: str, **base: Any) -> list[Row]:
    """What the quantizers without a codebook have in common."""
    make = resolve(target)
    rows = [*integer(target, "dim", 1, **{name: value for name, value in base.items() if name != "dim"})]
    rows.append(Row(target, "channel_dim", [1.0, "last", None], TypeError, "`channel_dim` must be an integer", base))
    if "estimator" in inspect.signature(make).parameters:
        rows += slot(target, "transform", svq.Transform, svq.Identity, of=lambda v: make(**base, transform=v))
        rows += slot(target, "estimator", svq.Estimator, svq.StraightThrough, of=lambda v: make(**base, estimator=v))
        rows.append(Row(target, "losses", [3, svq.CommitmentLoss()], TypeError, "`losses` must be a list", base))
    return rows


def bits_rows(target: str) -> list[Row]:
    return [
        *integer(target, "bits", 1, dim=4),
        Row(target, "bits", [63, 100], ValueError, "`bits` must give at most 2^62 codes", {"dim": 4}),
    ]


SIGNS: dict[str, Any] = {"dim": 4, "bits": 4}
LEVELS: dict[str, Any] = {"dim": 2, "levels": [5, 4]}
RANDOM: dict[str, Any] = {"dim": 4, "codebook_size": 8}
CODEBOOK_FREE: list[Row] = [
    *free_rows("FiniteScalarQuantizer", **LEVELS),
    *free_rows("LookupFreeQuantizer", **SIGNS),
    *free_rows("BinarySphericalQuantizer", **SIGNS),
    *free_rows("RandomProjectionQuantizer", **RANDOM),
    *free_rows("presets.fsq", **LEVELS),
    *free_rows("presets.lfq", **SIGNS),
    *free_rows("presets.bsq", **SIGNS),
    *free_rows("presets.best_rq", **RANDOM),
    *(
        row
        for target in ("FiniteScalarQuantizer", "presets.fsq")
        for row in (
            Row(target, "levels", [5, None, "55", {5, 4}], TypeError, "`levels` must be a list of", {"dim": 2}),
            Row(target, "levels", [[5, 2.5], [5, "4"], [True, 3]], TypeError, "must be an integer >= 2", {"dim": 2}),
            Row(target, "levels", [[], [5, 1], [0, 3]], ValueError, ">= 2", {"dim": 2}),
            Row(target, "levels", [[1 << 40, 1 << 40]], ValueError, "at most 2^62 codes", {"dim": 2}),
        )
    ),
    Row("FiniteScalarQuantizer", "levels", [[5], [5, 5, 5]], ValueError, "one entry for each of the 2 channels",
        {"dim": 2}),
    Row("FiniteScalarQuantizer", "form", ["even", None, 1], ValueError, "one of 'paper', 'symmetric'", LEVELS),
    Row("FiniteScalarQuantizer", "levels", [[5, 1000]], ValueError, "below 1000 each", {"dim": 2, "form": "atanh"}),
    *number("FiniteScalarQuantizer", "noise", [-0.1, 1.1], **LEVELS),
    *number("FiniteScalarQuantizer", "scale", [0.0, -1.0], **LEVELS),
    Row("FiniteScalarQuantizer", "clamp", [1, "no", None], TypeError, "`clamp` must be True or False", LEVELS),
    *(row for name in ("LookupFreeQuantizer", "BinarySphericalQuantizer", "presets.lfq", "presets.bsq")
      for row in bits_rows(name)),
    Row("LookupFreeQuantizer", "bits", [3, 5], ValueError, "one entry for each of the 4 channels", {"dim": 4}),
    *number("LookupFreeQuantizer", "scale", [0.0, -1.0], **SIGNS),
    *integer("RandomProjectionQuantizer", "codebook_size", 2, dim=4),
    *integer("presets.best_rq", "codebook_size", 2, dim=4),
    *integer("RandomProjectionQuantizer", "codebook_dim", 1, **RANDOM),
    *integer("RandomProjectionQuantizer", "num_codebooks", 1, **RANDOM),
    *integer("RandomProjectionQuantizer", "seed", 0, **RANDOM),
    Row("RandomProjectionQuantizer", "normalize", [1, "no", None], TypeError, "`normalize` must be True or False",
        RANDOM),
    *number("EntropyLoss", "weight", [-0.1]),
    *number("EntropyLoss", "diversity", [-0.1]),
    *number("EntropyLoss", "temperature", [0.0, -0.1]),
    *integer("EntropyLoss", "group_bits", 1),
    Row("EntropyLoss", "group_bits", [25, 62], ValueError, "`group_bits` must be at most 24"),
    *number("WassersteinLoss", "weight", [-0.1]),
    *integer("WassersteinLoss", "queue", 1),
    *number("MMDLoss", "weight", [-0.1]),
    *integer("MMDLoss", "queue", 1),
    *number("RegionLoss", "weight", [-0.1]),
    *integer("RegionLoss", "window", 1),
    *number("OrthogonalityLoss", "weight", [-0.1]),
    Row("OrthogonalityLoss", "active_only", [1, "no", None], TypeError, "`active_only` must be True or False"),
    *number("MomentLoss", "weight", [-0.1]),
    *number("MomentLoss", "variance", [-0.1]),
    *number("Sinkhorn", "temperature", [0.0, -0.1]),
    *integer("Sinkhorn", "iterations", 1),
    *number("ReSTE", "power", [0.5, 0.0, -1.0]),
    *number("ReSTE", "limit", [0.0, -1.0]),
    *number("ReSTE", "clip", [0.0, -0.1]),
    Row("ReSTE", "secant", ["theirs", None], ValueError, "one of 'continuous', 'authors'"),
    *number("ErrorDecay", "sharpness", [0.0, -1.0]),
    *number("error_decay_sharpness", "progress", [-0.1, 1.1], progress=0.5),
    *number("error_decay_sharpness", "start", [0.0, -1.0], progress=0.5),
    *number("error_decay_sharpness", "end", [0.0, -1.0], progress=0.5),
    *number("reste_power", "progress", [-0.1, 1.1], progress=0.5),
    *number("reste_power", "end", [0.5, -1.0], progress=0.5),
]  # fmt: skip

CONSTRUCTORS: list[Row] = [
    *integer("VectorQuantizer", "dim", 1, codebook=None),
    *slot("VectorQuantizer", "codebook", svq.Codebook, svq.Codebook, of=lambda v: svq.VectorQuantizer(4, v)),
    Row("VectorQuantizer", "codebook", [5], ValueError, "`dim` must equal the width 4", {},
        lambda v: svq.VectorQuantizer(4, svq.Codebook(8, v))),
    Row("VectorQuantizer", "codebook", [quantizer], ValueError, "already part of another quantizer", {},
        lambda v: svq.VectorQuantizer(4, v().codebook)),
    *slot("VectorQuantizer", "transform", svq.Transform, svq.Identity, of=lambda v: quantizer(transform=v)),
    *slot("VectorQuantizer", "assigner", svq.Assigner, svq.Nearest, of=lambda v: quantizer(assigner=v)),
    *slot("VectorQuantizer", "estimator", svq.Estimator, svq.StraightThrough, of=lambda v: quantizer(estimator=v)),
    Row("VectorQuantizer", "losses", [3, svq.CommitmentLoss()], TypeError, "`losses` must be a list", {},
        lambda v: quantizer(losses=v)),
    Row("VectorQuantizer", "losses", [[3], ["mse"]], TypeError, "`losses` must be an instance of Loss", {},
        lambda v: quantizer(losses=v)),
    Row("VectorQuantizer", "losses", [[svq.CommitmentLoss(), svq.CommitmentLoss()]], ValueError, "different names", {},
        lambda v: quantizer(losses=v)),
    Row("VectorQuantizer", "channel_dim", [1.0, None, "last", True], TypeError, "`channel_dim` must be an integer", {},
        lambda v: quantizer(channel_dim=v)),
    *integer("Codebook", "size", 2),
    *(row for row in integer("Codebook", "dim", 1, size=8) if row.error is ValueError),
    Row("Codebook", "dim", [2.5, "4", True], TypeError, "`dim` must be an integer", {"size": 8}),
    *slot("Codebook", "parametrization", svq.Parametrization, svq.Affine,
          of=lambda v: svq.Codebook(8, parametrization=v)),
    *slot("Codebook", "init", svq.Init, svq.KMeansInit, of=lambda v: svq.Codebook(8, init=v)),
    *slot("Codebook", "update", svq.Update, svq.EMAUpdate, of=lambda v: svq.Codebook(8, update=v)),
    *slot("Codebook", "reset", svq.Reset, svq.DeadCodeReset, of=lambda v: svq.Codebook(8, reset=v)),
    *number("Affine", "lr_scale", [0.0, -1.0]),
    *integer("Affine", "groups", 1),
    Row("Affine", "groups", [3, 16], ValueError, "`groups` must divide the codebook's size 8", {},
        lambda v: svq.VectorQuantizer(4, svq.Codebook(8, parametrization=svq.Affine(groups=v)))),
    *number("RunningAffine", "momentum", [0.0, 1.1, -0.1]),
    *integer("RunningAffine", "groups", 1),
    Row("RunningAffine", "groups", [3, 8], ValueError, "`groups` must divide the codebook's size 8 with at least 2", {},
        lambda v: svq.VectorQuantizer(4, svq.Codebook(8, parametrization=svq.RunningAffine(groups=v)))),
    *number("RunningAffine", "shrink", [0.0, 1.1]),
    Row("Linear", "freeze_basis", [1, "no", None], TypeError, "`freeze_basis` must be True or False"),
    Row("Linear", "bias", [1, "no", None], TypeError, "`bias` must be True or False"),
    *integer("MLP", "hidden", 1),
    *integer("MLP", "depth", 1),
    *(row for argument in ("patch", "width", "depth", "heads") for row in integer("Bridge", argument, 1)),
    Row("Bridge", "heads", [3, 512], ValueError, "`heads` must divide `width` 256"),
    Row("Bridge", "width", [6, 1], ValueError, "`heads` must divide `width`"),
    Row("Chain", "parts", [[], ()], ValueError, "at least one parametrization"),
    Row("Chain", "parts", [[3], "ab"], TypeError, "must be an instance of Parametrization"),
    *number("NormalInit", "std", [0.0, -1.0]),
    *integer("KMeansInit", "iterations", 0),
    *integer("KMeansInit", "trials", 1),
    *number("EMAUpdate", "decay", [1.0, 7.0, -0.1]),
    *integer("AlternatedUpdate", "steps", 1),
    *number("AlternatedUpdate", "fraction", [0.0, 1.1, -0.1], optional=True),
    *number("AlternatedUpdate", "lr", [0.0, -1.0], optional=True),
    *number("AlternatedUpdate", "memory", [-1.0], optional=True),
    *number("AlternatedUpdate", "momentum", [1.0, -0.1]),
    Row("AlternatedUpdate", "reassign", [1, "no", None], TypeError, "`reassign` must be True or False"),
    *integer("DeadCodeReset", "patience", 1),
    *number("DeadCodeReset", "noise", [-0.1]),
    Row("DeadCodeReset", "relative_to", ["std", None, 2], ValueError, "must be one of 'spread', 'norm'"),
    *number("AnchoredReset", "decay", [1.0, 7.0, -0.1]),
    Row("AnchoredReset", "anchor", ["farthest", None, 2], ValueError, "must be one of 'closest', 'random'"),
    *integer("Projection", "codebook_dim", 1),
    Row("AlternatedUpdate", "lr", [0.5], ValueError, "only one of `lr` and `fraction`", {"fraction": 0.1}),
    Row("AlternatedUpdate", "memory", [5.0], ValueError, "only one of `memory` and `lr`", {"lr": 0.1}),
    Row("Nearest", "distance", ["manhattan", None, 2], ValueError, "one of 'euclidean', 'cosine'"),
    Row("Nearest", "backend", ["cuda", None, 2], ValueError, "one of 'auto', 'faiss', 'tiled', 'triton'"),
    *number("StraightThrough", "sync", [-0.1]),
    *number("RotationTrick", "max_gain", [0.0, -1.0], optional=True),
    *number("DiVeQ", "noise", [-0.1]),
    *number("SpaceFillingDiVeQ", "noise", [-0.1]),
    *number("Stochastic", "temperature", [0.0, -1.0]),
    *number("Gumbel", "temperature", [0.0, -1.0]),
    *number("ReinMax", "temperature", [0.9, 0.0, -1.0]),
    *number("IndexBackpropagation", "temperature", [0.0, -1.0]),
    *number("CommitmentLoss", "weight", [-0.1]),
    *number("CodebookLoss", "weight", [-0.1]),
    *composite_rows("ResidualQuantizer", residual, "levels", "num_quantizers"),
    *slot("ResidualQuantizer", "estimator", svq.Estimator, svq.StraightThrough, of=lambda v: residual(estimator=v)),
    Row("ResidualQuantizer", "gradient", ["twice", None, 1], ValueError, "`gradient` must be one of", {},
        lambda v: residual(gradient=v)),
    Row("ResidualQuantizer", "beam", [2.5, None, True], TypeError, "`beam` must be an integer >= 1", {},
        lambda v: residual(beam=v)),
    Row("ResidualQuantizer", "beam", [0, -1], ValueError, "`beam` must be an integer >= 1", {},
        lambda v: residual(beam=v)),
    *composite_rows("ProductQuantizer", product, "groups", "num_groups"),
    Row("Projection", "start", ["random", None, 2], ValueError, "one of 'scaled', 'orthonormal'", {"codebook_dim": 4}),
    *(row for name in WITH_CODEBOOK for row in preset_rows(name)),
    *CODEBOOK_FREE,
]  # fmt: skip

NET = nn.Sequential(nn.Linear(4, 4), svq.presets.vq_vae(4, 8))
GROUPS: dict[str, Any] = {"module": NET, "lr": 0.1, "weight_decay": 0.1}
NEAREST: dict[str, Any] = {"z": TWO, "codes": TWO}
FEW: dict[str, Any] = NEAREST | {"few": 1}
CODES: dict[str, Any] = NEAREST | {"k": 1}
SUMS: dict[str, Any] = {"z": TWO, "indices": torch.tensor([0, 1]), "num_codes": 2}
NO_FOLDER = {"name": "some/layer"}
KMEANS: dict[str, Any] = {"z": TWO, "num_codes": 2, "iterations": 1}
RESIZE: dict[str, Any] = {"state_dict": NET.state_dict(), "module": NET}
REFINE: dict[str, Any] = {"quantizer": svq.presets.straight_residual(4, 8, num_quantizers=2), "z": torch.ones(2, 4)}
FUNCTIONS: list[Row] = [
    Row("refine_residual", "quantizer", [3, None, NET, quantizer], TypeError,
        "`quantizer` must be an instance of", REFINE),
    Row("refine_residual", "quantizer", [svq.presets.rq_vae(4, 8)], ValueError, "levels of their own", REFINE),
    Row("refine_residual", "z", [None, [[1.0]], TWO.long()], TypeError, "`z` must be a floating-point", REFINE),
    Row("refine_residual", "z", [torch.ones(2, 3), torch.ones(0, 4), torch.ones(4), TWO, TWO[:, :0]], ValueError,
        "(n, 4)", REFINE),
    Row("refine_residual", "z", [torch.full((2, 4), NAN)], ValueError, "`z` must be finite", REFINE),
    *integer("refine_residual", "rounds", 1, **REFINE),
    *integer("refine_residual", "sweeps", 1, **REFINE),
    Row("parameter_groups", "module", [3, None, [NET]], TypeError, "`module` must be", GROUPS),
    *number("parameter_groups", "lr", [-0.1], **GROUPS),
    *number("parameter_groups", "weight_decay", [-0.1], **GROUPS),
    *number("parameter_groups", "codebook_lr", [-0.1], optional=True, **GROUPS),
    Row("attach_optimizer", "optimizer", [3, None, torch.optim.SGD], TypeError, "must be a torch.optim.Optimizer",
        {"module": NET}),
    Row("attach_optimizer", "module", [3, None], TypeError, "`module` must be",
        {"optimizer": torch.optim.SGD(NET.parameters(), 0.1)}),
    Row("resize_codebooks", "state_dict", [3, None, [NET]], TypeError, "`state_dict` must be a dict", RESIZE),
    Row("resize_codebooks", "state_dict", [{"state_dict": NET.state_dict()}], ValueError,
        'pass checkpoint["state_dict"]', RESIZE),
    Row("resize_codebooks", "state_dict", [{}, {"0.weight": TWO}], ValueError, "must hold '1.codebook.raw'", RESIZE),
    Row("resize_codebooks", "module", [3, None, [NET]], TypeError, "`module` must be", RESIZE),
    Row("resize_codebooks", "module", [nn.Linear(2, 2)], ValueError, "`module` must hold a codebook", RESIZE),
    Row("resize_codebooks", "module", [svq.Codebook(8)], ValueError, "no vectors before a quantizer", RESIZE),
    *number("resize_codebooks", "noise", [0.0, -0.1], **RESIZE),
    Row("replace", "model", [3, None, [NET]], TypeError, "`model` must be a torch.nn.Module"),
    Row("replace", "model", [nn.Linear(2, 2), quantizer()], ValueError, "`model` must hold a known quantizer"),
    Row("replace", "layout", ["vqva", 3], ValueError, "`layout` must be one of", {"model": NET}),
    Row("replace", "layout", ["vqvae"], ValueError, "a quantizer of the layout 'vqvae'", {"model": NET}),
    Row("bypass", "module", [3, None], TypeError, "`module` must be", {}, lambda v: svq.bypass(v).__enter__()),
    Row("functional.nearest_code", "z", [TWO[0], TWO[:, :2], TWO[None]], ValueError, "`z` must be (n, d)", NEAREST),
    Row("functional.nearest_code", "z", [[[1.0]], None], TypeError, "`z` must be", NEAREST),
    Row("functional.nearest_code", "z", [TWO.long(), TWO.bool()], TypeError, "floating", NEAREST),
    Row("functional.nearest_code", "codes", [TWO[0], TWO[:, :2]], ValueError, "`codes` (k, d)", NEAREST),
    Row("functional.nearest_code", "codes", [TWO[:0]], ValueError, "at least one code", NEAREST),
    Row("functional.nearest_code", "codes", [None], TypeError, "`codes` must be", NEAREST),
    Row("functional.nearest_code", "distance", ["manhattan", None], ValueError, "'euclidean' or 'cosine'", NEAREST),
    Row("functional.nearest_code", "backend", ["cuda", None], ValueError, "`backend` must be one of", NEAREST),
    Row("functional.nearest_few", "z", [TWO[0], TWO[:, :2], TWO[None]], ValueError, "`z` must be (n, d)", FEW),
    Row("functional.nearest_few", "codes", [TWO[:0]], ValueError, "at least one code", FEW),
    Row("functional.nearest_few", "few", [0, -1], ValueError, "`few` must be an integer >= 1", FEW),
    Row("functional.nearest_few", "few", [2.5, None, True], TypeError, "`few` must be an integer >= 1", FEW),
    Row("functional.nearest_few", "distance", ["manhattan", None], ValueError, "'euclidean' or 'cosine'", FEW),
    Row("functional.nearest_codes", "z", [TWO[0], TWO[:, :2], TWO[None]], ValueError, "`z` must be (n, d)", CODES),
    Row("functional.nearest_codes", "codes", [TWO[:0]], ValueError, "at least one code", CODES),
    Row("functional.nearest_codes", "k", [0, -1], ValueError, "`k` must be an integer >= 1", CODES),
    Row("functional.nearest_codes", "k", [2.5, None, True], TypeError, "`k` must be an integer >= 1", CODES),
    Row("functional.nearest_codes", "distance", ["manhattan", None], ValueError, "'euclidean' or 'cosine'", CODES),
    Row("functional.code_sums", "z", [TWO[0], TWO[None]], ValueError, "`z` must be (n, d)", SUMS),
    Row("functional.code_sums", "z", [None], TypeError, "`z` must be", SUMS),
    Row("functional.code_sums", "indices", [torch.tensor([0.0, 1.0])], TypeError, "integer", SUMS),
    Row("functional.code_sums", "indices", [torch.tensor([0]), torch.tensor([[0, 1]])], ValueError, "(n,)", SUMS),
    Row("functional.code_sums", "indices", [torch.tensor([0, 2]), torch.tensor([0, 5])], ValueError, "[0, 2)", SUMS),
    Row("functional.code_sums", "num_codes", [0, -1], ValueError, "`num_codes` must be", SUMS),
    Row("functional.code_sums", "num_codes", [2.5, None], TypeError, "`num_codes` must be", SUMS),
    Row("functional.kmeans", "z", [TWO[0], TWO[:0], TWO[:, :0]], ValueError, "`z` must be (n, d) with n >= 1", KMEANS),
    Row("functional.kmeans", "z", [NAN * TWO, INF * TWO], ValueError, "finite", KMEANS),
    Row("functional.kmeans", "z", [None, TWO.long()], TypeError, "`z` must be", KMEANS),
    Row("functional.kmeans", "num_codes", [0, -1], ValueError, "`num_codes` must be", KMEANS),
    Row("functional.kmeans", "num_codes", [2.5, "2"], TypeError, "`num_codes` must be", KMEANS),
    Row("functional.kmeans", "iterations", [-1], ValueError, "`iterations`", KMEANS),
    Row("functional.kmeans", "iterations", [2.5, None], TypeError, "`iterations`", KMEANS),
    Row("functional.kmeans", "trials", [0, -1], ValueError, "`trials` must be >= 1", KMEANS),
    Row("functional.kmeans", "trials", [2.5, None, True], TypeError, "`trials` must be an integer", KMEANS),
    Row("functional.kmeans", "generator", [3, "seed"], TypeError, "", KMEANS),
    Row("functional.kmeans", "batch_size", [0, -1], ValueError, "`batch_size` must be >= 1", KMEANS),
    Row("functional.kmeans", "batch_size", [2.5, "2", True], TypeError, "`batch_size` must be an integer", KMEANS),
    Row("from_pretrained", "name", [3, None, b"layer"], TypeError, "`name` must be a folder or owner/name"),
    Row("from_pretrained", "name", ["nowhere", "a/b/c"], ValueError, "`name` must be a folder, or owner/name on the"),
    Row("from_pretrained", "revision", [3, True], TypeError, "`revision` must be None or str", NO_FOLDER),
    Row("from_pretrained", "token", [3, b"x"], TypeError, "`token` must be None or str or bool", NO_FOLDER),
    Row("from_pretrained", "cache_dir", [3, True], TypeError, "`cache_dir` must be None or str or", NO_FOLDER),
]  # fmt: skip

# Public names whose arguments come from the layer, or that only hold results.
EXEMPT = {
    "QuantizerOutput": "a result",
    "Step": "a result",
    "Batch": "made by the layer",
    "Context": "made by the layer",
    "Trains": "two flags on a class",
    "functional.straight_through": "tensor maths of the estimator; torch's own shape errors",
    "functional.draw_integers": "called by the layer with its own state",
    "functional.draw_normal": "called by the layer with its own state",
    "functional.draw_uniform": "called by the layer with its own state",
    "functional.draw_gumbel": "called by the layer with its own state",
    "functional.draw_distinct": "called by the layer with its own state",
}


def cases(rows: list[Row]) -> list[Any]:
    return [
        pytest.param(row, value, id=f"{row.target}-{row.argument}-{_show(value)}") for row in rows for value in row.bad
    ]


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}"
    return getattr(value, "__name__", None) or repr(value)[:20].replace("\n", "")


@pytest.mark.parametrize(("row", "value"), cases(CONSTRUCTORS + FUNCTIONS))
def test_bad_argument_is_refused_with_a_telling_message(row: Row, value: Any) -> None:
    base = dict(row.base)
    if row.target == "VectorQuantizer" and "codebook" in base:
        base["codebook"] = svq.Codebook(8)
    call = row.call or (lambda bad: resolve(row.target)(**(base | {row.argument: bad})))
    with pytest.raises(row.error) as caught:
        call(value)
    assert row.words in str(caught.value), f"{caught.value}"


def public_callables() -> dict[str, Any]:
    names = [n for n in svq.__all__ if callable(getattr(svq, n))]
    names += [f"functional.{n}" for n in svq.functional.__all__] + [f"presets.{n}" for n in svq.presets.__all__]
    return {n: resolve(n) for n in names if not inspect.isabstract(resolve(n))}


def test_every_public_parameter_has_a_row() -> None:
    rows = {(row.target, row.argument) for row in CONSTRUCTORS + FUNCTIONS}
    missing, known = [], set()
    for name, item in public_callables().items():
        if name in EXEMPT:
            continue
        for argument in inspect.signature(item).parameters:
            known.add((name, argument))
            if argument not in ("args", "kwargs") and (name, argument) not in rows:
                missing.append(f"{name}({argument})")
    assert not missing, "parameters without a row of bad values"
    assert rows <= known, f"rows of parameters that do not exist: {rows - known}"


def test_exempt_names_exist() -> None:
    assert set(EXEMPT) <= set(public_callables())


# --- calls on a finished layer ---------------------------------------------------------------------------------------

Z = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 5, dtype=torch.bool)


def spoilt(value: float) -> Tensor:
    z = Z.clone()
    z[1, 2, 3] = value
    return z


CALLS: list[tuple[str, str, Callable[[svq.VectorQuantizer], Any], type[Exception], str]] = []


def both(name: str, error: type[Exception], words: str, *args: Any) -> None:
    CALLS.append((f"forward-{name}", "forward", lambda layer: layer(*args), error, words))
    CALLS.append((f"encode-{name}", "encode", lambda layer: layer.encode(*args), error, words))


def one(method: str, name: str, error: type[Exception], words: str, *args: Any) -> None:
    CALLS.append((f"{method}-{name}", method, lambda layer: getattr(layer, method)(*args), error, words))


both("not_a_tensor", TypeError, "`z` must be a tensor. Got list", [[1.0] * DIM])
both("integers", TypeError, "`z` must be floating point. Got torch.int64", Z.long())
both("booleans", TypeError, "`z` must be floating point", Z.bool())
both("complex", TypeError, "`z` must be floating point", Z.to(torch.complex64))
both("scalar", ValueError, "`z` must have an axis -1", torch.tensor(1.0))
both("narrow", ValueError, f"`z` must have {DIM} channels on axis -1. Got 5", Z[..., :5])
both("channels_first", ValueError, "Its axis 1 has that size: pass channel_dim=1?", Z.movedim(-1, 1))
both(
    "nan",
    ValueError,
    "`z` must be finite. Got 1 of 60 values NaN or infinite, the first at flat position 45",
    spoilt(NAN),
)
both("infinity", ValueError, "`z` must be finite", spoilt(-INF))
both("mask_shape", ValueError, "`mask` must have the shape of `z` without its channel axis, (2, 5)", Z, MASK[:, :4])
both("mask_rank", ValueError, "`mask` must have the shape", Z, MASK[..., None])
both("mask_integers", TypeError, "`mask` must be a boolean tensor", Z, MASK.long())
both("mask_list", TypeError, "`mask` must be a boolean tensor, True where valid. Got list", Z, [True])
one("decode", "float", TypeError, "`indices` must be an integer tensor. Got torch.float32", torch.tensor([1.0]))
one("decode", "bool", TypeError, "`indices` must be an integer tensor", torch.tensor([True]))
one("decode", "list", TypeError, "`indices` must be an integer tensor. Got list", [1])
one("decode", "too_high", ValueError, f"`indices` must be in [0, {SIZE})", torch.tensor([0, SIZE]))
one("decode", "too_low", ValueError, "Got values from -2 to 0", torch.tensor([0, -2]))
one("nearest", "narrow", ValueError, f"`z` must have {DIM} channels on axis -1. Got 5", Z[..., :5], 2)
one("nearest", "mask", ValueError, "`mask` must have the shape of `z`", Z, 2, MASK[:, :4])
one("nearest", "none", ValueError, "`k` must be an integer >= 1. Got 0", Z, 0)
one("nearest", "part", TypeError, "`k` must be an integer >= 1. Got 2.5", Z, 2.5)
one("set_codes", "list", TypeError, "`codes` must be a floating-point tensor. Got list", [[1.0]])
one("set_codes", "integers", TypeError, "`codes` must be a floating-point tensor", torch.ones(SIZE, DIM).long())
one("set_codes", "rows", ValueError, f"`codes` must have shape ({SIZE}, {DIM})", torch.ones(SIZE + 1, DIM))
one("set_codes", "width", ValueError, f"`codes` must have shape ({SIZE}, {DIM})", torch.ones(SIZE, DIM + 1))
one("set_codes", "rank", ValueError, f"`codes` must have shape ({SIZE}, {DIM})", torch.ones(SIZE * DIM))
one("set_codes", "nan", ValueError, "`codes` must be finite", torch.full((SIZE, DIM), NAN))
one("set_codes", "infinity", ValueError, "`codes` must be finite", torch.full((SIZE, DIM), INF))


@pytest.mark.parametrize("preset", ["vq_vae", "ema", "vq_ste_pp", "straight"])
@pytest.mark.parametrize("ready", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize(("call", "error", "words"), [pytest.param(*c[2:], id=c[0]) for c in CALLS])
def test_bad_call_is_refused_and_changes_nothing(
    preset: str, ready: bool, call: Callable[[svq.VectorQuantizer], Any], error: type[Exception], words: str
) -> None:
    torch.manual_seed(0)
    layer = CASES[preset](channel_dim=-1)
    if ready:
        layer(torch.randn(80, DIM))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(error) as caught:
        call(layer)
    assert words in str(caught.value)
    after = layer.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert (layer(torch.randn(80, DIM)).indices >= 0).all()


def test_every_argument_of_a_call_has_a_row() -> None:
    named = {
        "forward": {"z", "mask"},
        "encode": {"z", "mask"},
        "decode": {"indices"},
        "set_codes": {"codes"},
        "nearest": {"z", "k", "mask"},
    }
    for method, arguments in named.items():
        parameters = set(inspect.signature(getattr(svq.VectorQuantizer, method)).parameters) - {"self"}
        assert parameters == arguments, f"{method} has an argument without a row"
        assert any(row[1] == method for row in CALLS)


def test_check_for_finite_values_can_be_switched_off() -> None:
    layer = svq.presets.vq_vae(DIM, SIZE).eval()
    layer.check_finite = False
    assert layer(spoilt(NAN)).indices.shape == (2, 5)


def test_non_finite_values_at_masked_positions_are_fine() -> None:
    mask = MASK.clone()
    mask[1, 2] = False
    assert svq.presets.vq_vae(DIM, SIZE)(spoilt(NAN), mask).quantized.isfinite().all()


def test_refused_construction_leaves_the_codebook_usable() -> None:
    codebook = svq.Codebook(8, parametrization=svq.Affine())
    with pytest.raises(ValueError, match="nothing trains"):
        svq.VectorQuantizer(4, codebook, losses=[])
    svq.VectorQuantizer(4, codebook)


def test_same_fault_gives_the_same_message_twice() -> None:
    codebook = svq.Codebook(10, parametrization=svq.Affine(groups=3))
    for _ in range(2):
        with pytest.raises(ValueError, match="`groups` must divide the codebook's size 10"):
            svq.VectorQuantizer(4, codebook)


@pytest.mark.parametrize("part", [svq.Affine, svq.EMAUpdate, svq.DeadCodeReset], ids=lambda part: part.__name__)
def test_part_with_two_owners_is_refused(part: Callable[[], Any]) -> None:
    slot_of = {svq.Affine: "parametrization", svq.EMAUpdate: "update", svq.DeadCodeReset: "reset"}[part]
    shared = part()
    svq.VectorQuantizer(4, svq.Codebook(8, **{slot_of: shared}))
    with pytest.raises(ValueError, match="already part of another quantizer"):
        svq.VectorQuantizer(4, svq.Codebook(8, **{slot_of: shared}))


# --- importing -------------------------------------------------------------------------------------------------------

HEAVY = ("lightning", "datasets", "matplotlib", "sklearn", "faiss", "triton", "torchmetrics", "jsonargparse", "PIL")


def test_import_is_silent_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import straightvq; "
        f"new = set(sys.modules) - before; sys.exit(', '.join(n for n in {HEAVY!r} if n in new) or 0)"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == ""
    assert run.stderr == ""
    assert run.returncode == 0
