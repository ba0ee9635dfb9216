"""The gradient contract: which term reaches what, for every parametrization x update x sync x losses.

This is the single source of ``docs/gradients.md`` (``python docs/gradient_table.py``) and of ``test_gradients.py``.
The routes and formulas are written out here, the formulas in NumPy; no automatic differentiation takes part.

Symbols: N unmasked vectors ``z_i`` of width D; ``q_i`` the chosen effective code; ``g_i`` the task gradient at the
layer's output; w_c, w_b and w_j the weights of the commitment, the codebook and the joint loss; nu the sync; ``c_k`` a
row of the raw table, ``c~_k`` the effective code that the forward left behind.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import straightvq as svq
from straightvq.nn.losses import masked_mean

SYNC = 0.7
WEIGHTS = {"commitment": 0.3, "codebook": 0.6, "joint": 0.4}
LR_SCALE = 2.0
SHORTEST = 0.01  # length of the raw row below which UnitNormCodes lets no gradient grow

Array = np.ndarray[Any, np.dtype[np.float64]]


# --- parts of one's own -----------------------------------------------------------------------------------------------


class LinearMap(svq.Parametrization):
    """``code = raw @ map``: learned, and nothing says which raw table gives a code."""

    has_inverse = False
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
    Map("LinearMap()", LinearMap, "u Mᵀ", "map `Σₖ cₖᵀ uₖ`", has_inverse=False),
    Map(
        "Chain([LinearMap(), UnitNormCodes()])", lambda: svq.Chain([LinearMap(), svq.UnitNormCodes()]),
        "v Mᵀ", "map `Σₖ cₖᵀ vₖ`", has_inverse=False,
    ),
)  # fmt: skip
DIRECT, AFFINE = MAPS[0], MAPS[3]

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
# What writes codes beside the updates.
WRITERS: dict[str, Callable[[], dict[str, Any]]] = {
    "SampleInit": lambda: {"init": svq.SampleInit()},
    "KMeansInit": lambda: {"init": svq.KMeansInit()},
    "DeadCodeReset": lambda: {"reset": svq.DeadCodeReset()},
    **{rule.update.__name__: lambda rule=rule: {"update": rule.update()} for rule in UPDATES if rule.writes},
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
        if self.map.is_learned and not self.rule.loss.own:
            return Refusal(part, update, "need a gradient", "no loss may train the parametrization")
        if self.sync and self.rule.task == NOTHING:
            return Refusal("StraightThrough", update, "takes none", "the synchronised gradient has no target")
        if self.map.is_learned and not self.sync and not self.loss_trains_codes:
            return Refusal(part, update, "nothing trains", "nothing trains the parametrization")
        return None

    @property
    def is_idle(self) -> bool:
        """Legal, but nothing moves a raw table that waits for a gradient: construction warns."""
        return self.rule.loss.raw and not self.raw_terms

    @property
    def raw_terms(self) -> list[str]:
        """Terms of u that reach the raw table."""
        return self._terms(self.rule.task.raw, self.rule.loss.raw)

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
    shift: Array  # (groups, d); zeros where there is none
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
    answer: dict[str, Array | None] = dict.fromkeys(("raw", "scale", "shift", "map"))
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
    scale, shift = np.zeros_like(state.scale), np.zeros_like(state.shift)
    for k, row in enumerate(v):
        scale[k // state.per_group] += LR_SCALE * state.raw[k] * row
        shift[k // state.per_group] += LR_SCALE * row
    return {"scale": scale, "shift": shift}


# --- the page ---------------------------------------------------------------------------------------------------------

_INTRO = """# Which gradient reaches what

Made by `python docs/gradient_table.py` from `tests/contracts/gradients.py`; do not edit by hand. Every combination is
built, and every gradient compared with its closed form in float64 to 1e-10, by `tests/contracts/test_gradients.py`.

## In short

Which of the raw table and the parametrization's own parameters the losses that train codes and the task gradient of a
synchronised estimator train, by update:

"""

_SYMBOLS = """
An update says so in its class attributes `loss` and `task`. `EMAUpdate` and `AlternatedUpdate` move the raw table
themselves, in the forward and by no gradient; a loss that may train nothing is a reported value. The frozen basis is
an update of one's own that leaves the table alone, with `loss = task = Trains(raw=False, parametrization=True)`
([how to write one](extend.md)).

## Terms

| symbol | meaning |
|---|---|
| `N`, `D` | unmasked vectors in the batch, width of a code |
| `z_i`, `q_i`, `g_i` | vector, its effective code, task gradient at the layer's output |
| `c_k`, `c̃_k` | row of the raw table, effective code, both as the forward leaves them behind |
| `ν` | `StraightThrough(sync=ν)` |
| `w_c`, `w_b`, `w_j` | weights of `CommitmentLoss`, of `CodebookLoss`, and of a joint loss |
| `S` | `Σ g_i` over the vectors of code k |
| `L` | sum of what the losses send to code k, see below |
| `u` | what reaches an effective code: the sum in the columns "u at ..." |
| – | nothing arrives: the gradient is `None`, or zeros at a parameter, which stays connected |

The joint loss stands for any with `trains = "both"`: it is `mean((z − code)²)` with neither side detached.

| loss | adds at the encoder | adds to `L` |
|---|---|---|
| `CommitmentLoss` | `w_c · 2 (z_i − q_i) / (N D)` | – |
| `CodebookLoss` | – | `w_b · 2 / (N D) · Σ (c̃_k − z_i)` over the vectors of code k |
| joint | `w_j · 2 (z_i − q_i) / (N D)` | `w_j · 2 / (N D) · Σ (c̃_k − z_i)` over the vectors of code k |

The encoder gets `g` and these, whatever the update, the parametrization and ν: `g`, not `(1 + ν) g`. Through a
transform all terms go on by the chain rule.
"""

_CHAIN_RULES = """
Here `λ` is `Affine(lr_scale=λ)`, `s` and `b` its scale and shift, whose sums go over the codes of a group; `M` is
the map of `LinearMap`, a parametrization of one's own with `code = raw @ M` and no inverse. In a chain
`v = (I − ĉĉᵀ) u / max(‖a‖, 0.01)`, where `a` is the row before `UnitNormCodes` and `ĉ = a / ‖a‖`; alone, `ĉ = c / ‖c‖`.
A row of zeros (k, counted from 0) stands for `(cos(kD + 1), …, cos(kD + D))`, in its direction and in its length.
The running moments of `RunningAffine` take no gradient.
"""


_WITHOUT_INVERSE = """Without an inverse nothing can write codes. Refused by name:
{}; and `set_codes`.
"""
_OWN_UPDATES = """## Updates of one's own

All routes that an update which writes no codes can name, for `Affine()` with a loss that trains codes. With `Direct()`
the raw table gets by the same routes, and nothing is refused but the synchronised gradient without a target.
"""
_HEAD = ("update", "ν", "loss that trains codes", "u at the raw table", "u at its parameters")
_OWN_HEAD = (
    "losses train",
    "task gradient trains",
    *(f"ν {n}: u at {at}" for n in ("= 0", "> 0") for at in ("raw", "s, b")),
)


def page() -> str:
    """The text of ``docs/gradients.md``."""
    lines = [_INTRO + _table(("update", "losses train", "task gradient trains"), _short_rows()) + _SYMBOLS]
    lines += ["## Chain rules\n", _table(("parametrization", "raw table", "parameters"), _chain_rules()) + _CHAIN_RULES]
    for kind, group in itertools.groupby(MAPS, key=lambda which: which.kind):
        maps = list(group)
        head = _HEAD if maps[0].is_learned else _HEAD[:-1]
        lines += [f"## {kind}\n", _listed(which.name for which in maps) + ".\n", _table(head, _rows(maps))]
    lines += [_WITHOUT_INVERSE.format(_listed(WRITERS)), _OWN_UPDATES, _table(_OWN_HEAD, _own_rows())]
    return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n{body}"


def _short_rows() -> list[tuple[str, ...]]:
    """What the classes say of themselves."""
    return [(_title(rule), str(Sides(*rule.update.loss)), str(Sides(*rule.update.task))) for rule in UPDATES]


def _title(rule: Rule) -> str:
    return "frozen basis" if rule.update is FrozenBasis else f"`{rule.update.__name__}`"


def _chain_rules() -> list[tuple[str, ...]]:
    return [(f"`{which.name}`", f"`{which.raw}`", which.own or "–") for which in MAPS]


def _rows(maps: list[Map]) -> list[tuple[str, ...]]:
    """One row for each update, sync and whether a loss trains codes, equal ones merged."""
    out: list[tuple[str, ...]] = []
    for rule in UPDATES:
        same = [cell for cell in cells() if cell.map in maps and cell.rule is rule]
        tails = {
            (sync, trains): _common(cell for cell in same if (cell.sync, cell.loss_trains_codes) == (sync, trains))
            for sync, trains in itertools.product((0.0, SYNC), (False, True))
        }
        if len(set(tails.values())) == 1:
            out.append((_title(rule), "any", "any", *tails[0.0, True]))
            continue
        for sync, nu in ((0.0, "0"), (SYNC, "> 0")):
            without, with_loss = tails[sync, False], tails[sync, True]
            if without == with_loss:
                out.append((_title(rule), nu, "any", *with_loss))
            else:
                out += [(_title(rule), nu, "no", *without), (_title(rule), nu, "yes", *with_loss)]
    return out


def _common(same: Iterator[Cell]) -> tuple[str, ...]:
    """What all these cells show; they must not differ."""
    (shown,) = {_shown(cell) for cell in same}
    return shown


def _shown(cell: Cell) -> tuple[str, ...]:
    if cell.refusal is not None:
        return (f"refused: {cell.refusal.why}", *([""] if cell.map.is_learned else []))
    raw = (" + ".join(cell.raw_terms) or "–") + ("; construction warns" if cell.is_idle else "")
    return (raw, *([" + ".join(cell.own_terms) or "–"] if cell.map.is_learned else []))


def _own_rows() -> list[tuple[str, ...]]:
    """One row for each pair of routes; for losses whose rows are all the same, one row."""
    out: list[tuple[str, ...]] = []
    for loss, rules in itertools.groupby(OWN_UPDATES, key=lambda rule: rule.loss):
        tails = {
            str(rule.task): (*_shown(Cell(AFFINE, rule, 0.0, "all")), *_shown(Cell(AFFINE, rule, SYNC, "all")))
            for rule in rules
        }
        if len(set(tails.values())) == 1:
            tails = {"any": tails[str(NOTHING)]}
        out += [(str(loss), task, *tail) for task, tail in tails.items()]
    return out
