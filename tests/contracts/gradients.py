"""The gradient contract: which term reaches what, for every parametrization x update x sync x losses.

This is the single source of ``docs/gradients.md``, which ``gradient_page.py`` writes, and of ``test_gradients.py``.
The routes and formulas are written out here, the formulas in NumPy; no automatic differentiation takes part.

Symbols: N unmasked vectors ``z_i`` of width D; ``q_i`` the chosen effective code; ``g_i`` the task gradient at the
layer's output; w_c, w_b and w_j the weights of the commitment, the codebook and the joint loss; nu the sync; ``c_k`` a
row of the raw table, ``c~_k`` the effective code that the forward left behind.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import straightvq as svq
from straightvq.nn.slots.losses import masked_mean

SYNC = 0.7
WEIGHTS = {"commitment": 0.3, "codebook": 0.6, "joint": 0.4}
LR_SCALE = 2.0
SHORTEST = 0.01  # length of the raw row below which UnitNormCodes lets no gradient grow

Array = np.ndarray[Any, np.dtype[np.float64]]


# --- parts of one's own -----------------------------------------------------------------------------------------------


class LinearMap(svq.Parametrization):
    """``code = raw @ map``: learned, and nothing says which raw table gives a code."""

    is_learned = True

    def _make(self, size: int, dim: int) -> None:
        self.map = nn.Parameter(torch.eye(dim))

    def forward(self, raw: Tensor) -> Tensor:
        return raw @ self.map


class OwnUpdate(svq.Update):
    """Writes nothing; what the gradients may train is for a subclass to say."""

    writes = False

    def step(self, table: Any, batch: svq.Batch, search: Callable[[Tensor], Tensor]) -> None:
        return None


class FrozenBasis(OwnUpdate):
    """Leaves the raw table as it starts; the parametrization alone is trained."""

    loss = task = svq.Trains(raw=False, parametrization=True)


class Joint(svq.Loss):
    """``mean((z - code)^2)``, no side detached; reads the code in the context's table, as an entropy would."""

    name = "joint"
    trains = "both"
    takes_context = True

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: svq.Context) -> Tensor:
        return masked_mean((z - context.codes[context.indices.clamp(min=0)]).square(), valid)


# --- the options ------------------------------------------------------------------------------------------------------


class Sides(NamedTuple):
    """Of a codebook: the raw table and the parametrization's own parameters."""

    raw: bool
    own: bool

    def __str__(self) -> str:
        return {(0, 0): "nothing", (1, 0): "raw table", (0, 1): "parametrization", (1, 1): "both"}[self]


NOTHING, RAW, OWN, BOTH = Sides(False, False), Sides(True, False), Sides(False, True), Sides(True, True)


@dataclass(frozen=True)
class Rule:
    """An update and what it has to be: what losses and task gradient train, and whether it writes codes."""

    update: type[svq.Update]
    loss: Sides
    task: Sides
    writes: bool

    def __str__(self) -> str:
        name = self.update.__name__
        return f"{name}(loss={self.loss}, task={self.task})" if issubclass(self.update, OwnUpdate) else f"{name}()"


UPDATES = (
    Rule(svq.GradientUpdate, BOTH, BOTH, writes=False),
    Rule(svq.EMAUpdate, NOTHING, NOTHING, writes=True),
    Rule(svq.AlternatedUpdate, OWN, BOTH, writes=True),
    Rule(FrozenBasis, OWN, OWN, writes=False),
)


def _own_rule(loss: Sides, task: Sides) -> Rule:
    routes = {"loss": svq.Trains(*loss), "task": svq.Trains(*task)}
    return Rule(type("OwnUpdate", (OwnUpdate,), routes), loss, task, writes=False)


OWN_UPDATES = tuple(itertools.starmap(_own_rule, itertools.product((NOTHING, RAW, OWN, BOTH), repeat=2)))


@dataclass(frozen=True)
class Map:
    """A parametrization: how it is made, and its chain rule."""

    name: str
    make: Callable[[], svq.Parametrization]
    raw: str  # formula of the raw table's gradient, in terms of u
    own: str = ""  # formula of its own parameters' gradients; empty for none
    has_inverse: bool = True
    freezes_raw: bool = False

    @property
    def part(self) -> str:
        """The class that an error message names."""
        return self.name.partition("(")[0]

    @property
    def is_learned(self) -> bool:
        return bool(self.own)

    @property
    def kind(self) -> str:
        if not self.is_learned:
            return "Parametrizations without parameters"
        if self.freezes_raw:
            return "Learned parametrizations of a frozen table"
        return "Learned parametrizations" if self.has_inverse else "Learned parametrizations without an inverse"


_UNIT = "(I − ĉĉᵀ) u / max(‖c‖, 0.01)"
_AFFINE = "scale `λ Σₖ cₖ ⊙ {0}ₖ`, shift `λ Σₖ {0}ₖ`"
MAPS = (
    Map("Direct()", svq.Direct, "u"),
    Map("RunningAffine()", svq.RunningAffine, "√(σ²_z / σ²_c) ⊙ u"),
    Map("UnitNormCodes()", svq.UnitNormCodes, _UNIT),
    Map("Affine()", lambda: svq.Affine(LR_SCALE), "(1 + λs) ⊙ u", _AFFINE.format("u")),
    Map("Affine(groups=2)", lambda: svq.Affine(LR_SCALE, groups=2), "(1 + λs) ⊙ u", _AFFINE.format("u")),
    Map(
        "Chain([Affine(), UnitNormCodes()])", lambda: svq.Chain([svq.Affine(LR_SCALE), svq.UnitNormCodes()]),
        "(1 + λs) ⊙ v", _AFFINE.format("v"),
    ),
    Map(
        "Linear(freeze_basis=False, bias=True)", lambda: svq.Linear(freeze_basis=False, bias=True),
        "u W", "weight `Σₖ uₖᵀ cₖ`, shift `Σₖ uₖ`",
    ),
    Map("Linear()", svq.Linear, "–", "weight `Σₖ uₖᵀ cₖ`", freezes_raw=True),
    Map("LinearMap()", LinearMap, "u Mᵀ", "map `Σₖ cₖᵀ uₖ`", has_inverse=False),
    Map(
        "Chain([LinearMap(), UnitNormCodes()])", lambda: svq.Chain([LinearMap(), svq.UnitNormCodes()]),
        "v Mᵀ", "map `Σₖ cₖᵀ vₖ`", has_inverse=False,
    ),
)  # fmt: skip
DIRECT, AFFINE = MAPS[0], MAPS[3]

# Networks without an inverse: routes and refusals as `LinearMap`, and the chain rule of a network.
NETWORKS = ("MLP", "Bridge")

# Per loss: its term at the encoder and at the effective codes.
TERMS = {"commitment": ("C", ""), "codebook": ("", "B"), "joint": ("J", "−J")}
LOSSES: dict[str, tuple[str, ...]] = {
    "none": (),
    "commitment": ("commitment",),
    "codebook": ("codebook",),
    "commitment + codebook": ("commitment", "codebook"),
    "joint": ("joint",),
    "all": ("commitment", "codebook", "joint"),
}
# What writes codes.
WRITERS: dict[str, Callable[[], dict[str, Any]]] = {
    "SampleInit": lambda: {"init": svq.SampleInit()},
    "KMeansInit": lambda: {"init": svq.KMeansInit()},
    "DeadCodeReset": lambda: {"reset": svq.DeadCodeReset()},
    "AnchoredReset": lambda: {"reset": svq.AnchoredReset()},
    "EMAUpdate": lambda: {"update": svq.EMAUpdate()},
    "AlternatedUpdate": lambda: {"update": svq.AlternatedUpdate()},
}


class Refusal(NamedTuple):
    """Two parts that contradict each other."""

    first: str
    second: str
    says: str  # what the message has to say
    why: str  # on the page


@dataclass(frozen=True)
class Cell:
    """One combination of options."""

    map: Map
    rule: Rule
    sync: float
    losses: str

    def __str__(self) -> str:
        return f"{self.map.name}-{self.rule}-sync={self.sync:g}-{self.losses}"

    @property
    def loss_trains_codes(self) -> bool:
        return any(TERMS[loss][1] for loss in LOSSES[self.losses])

    @property
    def refusal(self) -> Refusal | None:
        """None for a legal cell."""
        part, update = self.map.part, self.rule.update.__name__
        if self.rule.writes and not self.map.has_inverse:
            return Refusal(update, part, "would write codes", "it would write codes that no raw table is known for")
        if self.rule.writes and self.map.freezes_raw:
            return Refusal(update, part, "would move the raw table", "it would move a table that is to stay")
        if self.map.is_learned and not (self.rule.loss.own or self.rule.task.own):
            return Refusal(part, update, "need a gradient", "no loss may train the parametrization")
        if self.sync and self.rule.task == NOTHING:
            return Refusal("StraightThrough", update, "takes none", "the synchronised gradient has no target")
        if self.map.is_learned and not self.own_terms:
            return Refusal(part, update, "nothing trains", "nothing trains the parametrization")
        return None

    @property
    def is_idle(self) -> bool:
        """Legal, but nothing moves a raw table that waits for a gradient: construction warns."""
        return self.rule.loss.raw and not self.map.freezes_raw and not self.raw_terms

    @property
    def raw_terms(self) -> list[str]:
        """Terms of u that reach the raw table."""
        return [] if self.map.freezes_raw else self._terms(self.rule.task.raw, self.rule.loss.raw)

    @property
    def own_terms(self) -> list[str]:
        """Terms of u that reach the parametrization's own parameters."""
        return self._terms(self.rule.task.own, self.rule.loss.own) if self.map.is_learned else []

    def _terms(self, by_task: bool, by_loss: bool) -> list[str]:
        task, loss = by_task and self.sync > 0, by_loss and self.loss_trains_codes
        return [*(["νS"] if task else []), *(["L"] if loss else [])]


def cells() -> Iterator[Cell]:
    """All shipped updates and a frozen basis with all maps, then all routes with a plain and a learned map."""
    for each in itertools.product(MAPS, UPDATES, (0.0, SYNC), LOSSES):
        yield Cell(*each)
    for each in itertools.product((DIRECT, AFFINE), OWN_UPDATES, (0.0, SYNC), ("none", "codebook", "all")):
        yield Cell(*each)


# --- the closed forms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What the closed forms need: the batch, and the codebook as the forward left it."""

    z: Array  # (n, d)
    g: Array  # (n, d)
    indices: Any  # (n,), -1 where masked
    raw: Array  # (k, d)
    scale: Array  # (groups, d); the running form's sqrt(var_z / var_c)
    shift: Array  # (groups, d), or (d,) of a linear map; zeros where there is none
    mean_z: Array  # (d,)
    mean_c: Array  # (d,)
    matrix: Array  # (d, d)

    @property
    def per_group(self) -> int:
        return len(self.raw) // len(self.scale)


def effective(which: Map, state: State) -> Array:
    """The effective codes (k, d), row by row."""
    rows = _before_norm(which, state)
    if "UnitNormCodes" in which.name:
        rows = np.stack([_direction(k, row)[0] for k, row in enumerate(rows)])
    return rows


def _before_norm(which: Map, state: State) -> Array:
    out = np.empty_like(state.raw)
    for k, row in enumerate(state.raw):
        group = k // state.per_group
        if "RunningAffine" in which.name:
            row = state.scale[group] * (row - state.mean_c) + state.mean_z
        elif "Affine" in which.name:
            row = (1 + LR_SCALE * state.scale[group]) * row + LR_SCALE * state.shift[group]
        elif "LinearMap" in which.name:
            row = row @ state.matrix
        elif "Linear" in which.name:
            row = row @ state.matrix.T + state.shift.reshape(-1)
        out[k] = row
    return out


def _direction(k: int, row: Array) -> tuple[Array, float]:
    """Unit vector of row k, and the length that its gradient is divided by."""
    length = float(np.sqrt(np.sum(row * row)))
    if length > 0:
        return row / length, max(length, SHORTEST)
    own = np.cos(np.arange(k * len(row) + 1, (k + 1) * len(row) + 1))
    return own / np.sqrt(np.sum(own * own)), float(np.sqrt(np.sum(own * own)))


def expected(cell: Cell, state: State) -> dict[str, Array | None]:
    """Gradient at the encoder, the raw table and each parameter of a map; None where nothing arrives."""
    codes = effective(cell.map, state)
    per_element = 2 / (int((state.indices >= 0).sum()) * state.z.shape[1])
    weights = {loss: WEIGHTS[loss] if loss in LOSSES[cell.losses] else 0.0 for loss in TERMS}
    encoder = np.zeros_like(state.z)
    kinds = {"νS": np.zeros_like(codes), "L": np.zeros_like(codes)}
    for i, k in enumerate(state.indices):
        if k < 0:
            continue
        error = per_element * (state.z[i] - codes[k])
        encoder[i] = state.g[i] + (weights["commitment"] + weights["joint"]) * error
        kinds["νS"][k] += SYNC * state.g[i]
        kinds["L"][k] -= (weights["codebook"] + weights["joint"]) * error
    answer: dict[str, Array | None] = dict.fromkeys(("raw", "scale", "shift", "map", "weight"))
    answer["encoder"] = encoder
    if cell.raw_terms:
        u = sum((kinds[term] for term in cell.raw_terms), start=np.zeros_like(codes))
        answer["raw"] = _to_raw(cell.map, state, u)
    if cell.own_terms:
        u = sum((kinds[term] for term in cell.own_terms), start=np.zeros_like(codes))
        answer |= _to_own(cell.map, state, u)
    return answer


def _through_norm(which: Map, state: State, u: Array) -> Array:
    """Gradient before the normalisation: ``(I - c c^T) u / max(||a||, 0.01)`` for the un-normalised row a."""
    if "UnitNormCodes" not in which.name:
        return u
    out = np.empty_like(u)
    for k, row in enumerate(_before_norm(which, state)):
        unit, length = _direction(k, row)
        out[k] = (u[k] - unit * np.sum(unit * u[k])) / length
    return out


def _to_raw(which: Map, state: State, u: Array) -> Array:
    v = _through_norm(which, state, u)
    if "LinearMap" in which.name:
        return v @ state.matrix.T
    if "Linear" in which.name:
        return v @ state.matrix
    out = np.empty_like(v)
    for k, row in enumerate(v):
        scale = state.scale[k // state.per_group]
        if "RunningAffine" in which.name:
            row = scale * row
        elif "Affine" in which.name:
            row = (1 + LR_SCALE * scale) * row
        out[k] = row
    return out


def _to_own(which: Map, state: State, u: Array) -> dict[str, Array | None]:
    v = _through_norm(which, state, u)
    if "LinearMap" in which.name:
        return {
            "map": sum((np.outer(c, row) for c, row in zip(state.raw, v, strict=True)), np.zeros_like(state.matrix))
        }
    if "Linear" in which.name:
        weight = sum((np.outer(row, c) for c, row in zip(state.raw, v, strict=True)), np.zeros_like(state.matrix))
        return {"weight": weight} | ({"shift": v.sum(0)} if "bias=True" in which.name else {})
    scale, shift = np.zeros_like(state.scale), np.zeros_like(state.shift)
    for k, row in enumerate(v):
        scale[k // state.per_group] += LR_SCALE * state.raw[k] * row
        shift[k // state.per_group] += LR_SCALE * row
    return {"scale": scale, "shift": shift}
