"""The gradient contract: which term reaches what, for every parametrization x update x sync x loss.

This is the single source of the table in ``docs/gradients.md`` (``python docs/gradient_table.py``) and of
``test_gradients.py``. The formulas are written out here in NumPy; no automatic differentiation takes part.

Symbols: N unmasked vectors ``z_i`` of width D; ``q_i`` the chosen effective code; ``g_i`` the task gradient at the
layer's output; w_c and w_b the weights of the commitment and the codebook loss; nu the sync; ``c_k`` a row of the raw
table, ``c~_k`` the effective code that the forward left behind.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import straightvq as svq

SYNC = 0.7
WEIGHT_COMMITMENT = 0.3
WEIGHT_CODEBOOK = 0.6
LR_SCALE = 2.0

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Map:
    """A parametrization: how it is made, and its chain rule."""

    name: str
    part: str  # the class that an error message names
    is_learned: bool
    groups: int
    raw: str  # formula of the raw table's gradient, in terms of u
    scale: str
    shift: str

    def make(self) -> svq.Parametrization:
        match self.name:
            case "Direct()":
                return svq.Direct()
            case "Affine()":
                return svq.Affine(LR_SCALE)
            case "Affine(groups=2)":
                return svq.Affine(LR_SCALE, groups=2)
            case "RunningAffine()":
                return svq.RunningAffine()
            case "UnitNormCodes()":
                return svq.UnitNormCodes()
            case "Chain([Affine(), UnitNormCodes()])":
                return svq.Chain([svq.Affine(LR_SCALE), svq.UnitNormCodes()])
        raise KeyError(self.name)


MAPS = (
    Map("Direct()", "Direct", False, 1, "u", "", ""),
    Map("Affine()", "Affine", True, 1, "(1 + λs) ⊙ u", "λ Σₖ cₖ ⊙ uₖ", "λ Σₖ uₖ"),
    Map("Affine(groups=2)", "Affine", True, 2, "(1 + λs) ⊙ u", "λ Σₖ cₖ ⊙ uₖ", "λ Σₖ uₖ"),
    Map("RunningAffine()", "RunningAffine", False, 1, "√(σ²_z / σ²_c) ⊙ u", "", ""),
    Map("UnitNormCodes()", "UnitNormCodes", False, 1, "(I − ĉĉᵀ) u / ‖c‖", "", ""),
    Map(
        "Chain([Affine(), UnitNormCodes()])", "Chain", True, 1,
        "(1 + λs) ⊙ v", "λ Σₖ cₖ ⊙ vₖ", "λ Σₖ vₖ",
    ),
)  # fmt: skip
UPDATES = {
    "GradientUpdate()": svq.GradientUpdate,
    "EMAUpdate()": svq.EMAUpdate,
    "AlternatedUpdate()": svq.AlternatedUpdate,
}
LOSSES = {"none": (), "commitment": ("commitment",), "codebook": ("codebook",), "both": ("commitment", "codebook")}


@dataclass(frozen=True)
class Cell:
    """One combination of options."""

    map: Map
    update: str
    sync: float
    losses: str

    def __str__(self) -> str:
        return f"{self.map.name}-{self.update}-sync={self.sync:g}-{self.losses}"

    @property
    def update_part(self) -> str:
        return self.update.removesuffix("()")

    @property
    def refusal(self) -> tuple[str, str, str] | None:
        """The two parts that contradict each other, and why; None for a legal cell."""
        part, update = self.map.part, self.update_part
        if self.map.is_learned and update == "EMAUpdate":
            return part, update, "its parameters need a gradient and none passes an EMA codebook"
        if self.sync and update == "EMAUpdate":
            return "StraightThrough", update, "the synchronised gradient has no target"
        if self.map.is_learned and not self.sync and "codebook" not in LOSSES[self.losses]:
            return part, update, "neither a codebook loss nor sync trains its parameters"
        return None

    @property
    def is_idle(self) -> bool:
        """Legal, but nothing moves the codebook: construction warns."""
        return self.update == "GradientUpdate()" and not self.sync and "codebook" not in LOSSES[self.losses]

    @property
    def encoder_terms(self) -> list[str]:
        return ["g", *(["C"] if "commitment" in LOSSES[self.losses] else [])]

    @property
    def raw_terms(self) -> list[str]:
        """Terms of u that reach the raw table."""
        if self.update == "EMAUpdate()":
            return []
        owns = "codebook" in LOSSES[self.losses] and self.update == "GradientUpdate()"
        return [*(["νS"] if self.sync else []), *(["B"] if owns else [])]

    @property
    def map_terms(self) -> list[str]:
        """Terms of u that reach the parametrization's own parameters."""
        if not self.map.is_learned:
            return []
        return [*(["νS"] if self.sync else []), *(["B"] if "codebook" in LOSSES[self.losses] else [])]


def cells() -> Iterator[Cell]:
    for which, update, sync, losses in itertools.product(MAPS, UPDATES, (0.0, SYNC), LOSSES):
        yield Cell(which, update, sync, losses)


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

    @property
    def groups(self) -> int:
        return len(self.scale)


def effective(which: Map, state: State) -> Array:
    """The effective codes (k, d), row by row."""
    out = np.empty_like(state.raw)
    for k, row in enumerate(state.raw):
        group = k // (len(state.raw) // state.groups)
        if which.part == "RunningAffine":
            row = state.scale[0] * (row - state.mean_c) + state.mean_z
        elif which.is_learned:
            row = (1 + LR_SCALE * state.scale[group]) * row + LR_SCALE * state.shift[group]
        if "UnitNormCodes" in which.name:
            row = row / np.sqrt(np.sum(row * row))
        out[k] = row
    return out


def expected(cell: Cell, state: State) -> dict[str, Array | None]:
    """Gradient at encoder, raw table, scale and shift; None where nothing may arrive."""
    codes = effective(cell.map, state)
    n, d = int((state.indices >= 0).sum()), state.z.shape[1]
    encoder = np.zeros_like(state.z)
    sync, book = np.zeros_like(codes), np.zeros_like(codes)  # nu S and B, per effective code
    for i, k in enumerate(state.indices):
        if k < 0:
            continue
        encoder[i] = state.g[i]
        if "C" in cell.encoder_terms:
            encoder[i] += WEIGHT_COMMITMENT * 2 * (state.z[i] - codes[k]) / (n * d)
        sync[k] += SYNC * state.g[i]
        book[k] += WEIGHT_CODEBOOK * 2 * (codes[k] - state.z[i]) / (n * d)
    kinds = {"νS": sync, "B": book}
    answer: dict[str, Array | None] = {"encoder": encoder, "raw": None, "scale": None, "shift": None}
    if cell.raw_terms:
        u = sum((kinds[term] for term in cell.raw_terms), start=np.zeros_like(codes))
        answer["raw"] = _to_raw(cell.map, state, u)
    if cell.map_terms:
        u = sum((kinds[term] for term in cell.map_terms), start=np.zeros_like(codes))
        answer["scale"], answer["shift"] = _to_map(cell.map, state, u)
    return answer


def _before_norm(which: Map, state: State, u: Array) -> Array:
    """Gradient before the normalisation: ``(I - c c^T) u / ||a||`` for the un-normalised row a."""
    if "UnitNormCodes" not in which.name:
        return u
    out = np.empty_like(u)
    for k, row in enumerate(state.raw):
        if which.is_learned:
            row = (1 + LR_SCALE * state.scale[0]) * row + LR_SCALE * state.shift[0]
        length = np.sqrt(np.sum(row * row))
        unit = row / length
        out[k] = (u[k] - unit * np.sum(unit * u[k])) / length
    return out


def _to_raw(which: Map, state: State, u: Array) -> Array:
    v = _before_norm(which, state, u)
    per_group = len(v) // state.groups
    for k in range(len(v)):
        if which.part == "RunningAffine":
            v[k] = state.scale[0] * v[k]
        elif which.is_learned:
            v[k] = (1 + LR_SCALE * state.scale[k // per_group]) * v[k]
    return v


def _to_map(which: Map, state: State, u: Array) -> tuple[Array, Array]:
    v = _before_norm(which, state, u)
    scale, shift = np.zeros_like(state.scale), np.zeros_like(state.shift)
    per_group = len(v) // state.groups
    for k in range(len(v)):
        scale[k // per_group] += LR_SCALE * state.raw[k] * v[k]
        shift[k // per_group] += LR_SCALE * v[k]
    return scale, shift


# --- the page --------------------------------------------------------------------------------------------------------

_INTRO = """# Which gradient reaches what

Made by `python docs/gradient_table.py` from `tests/contracts/gradients.py`; do not edit by hand. Every row is checked
against its closed form by `tests/contracts/test_gradients.py`, in float64 to 1e-10.

| symbol | meaning |
|---|---|
| `N`, `D` | unmasked vectors in the batch, width of a code |
| `z_i`, `q_i`, `g_i` | vector, its effective code, task gradient at the layer's output |
| `c_k`, `c̃_k` | row of the raw table, effective code, both as the forward leaves them behind |
| `ν` | `StraightThrough(sync=ν)` |
| `w_c`, `w_b` | weights of `CommitmentLoss` and `CodebookLoss` |
| `C` | `w_c · 2 (z_i − q_i) / (N D)` |
| `S` | `Σ g_i` over the vectors of code k |
| `B` | `w_b · 2 / (N D) · Σ (c̃_k − z_i)` over the vectors of code k |
| `u` | what reaches an effective code: the sum in the columns "raw table" and "scale and shift" |
| `λ` | `Affine(lr_scale=λ)` |
| – | nothing arrives: the gradient is `None` |

The encoder gets `g`, not `(1 + ν) g`. Losses are `none`, `commitment`, `codebook` or `both`. An update that moves the
raw table itself (`EMAUpdate`, `AlternatedUpdate`) does so in the forward and by no gradient; the codebook loss is then
a reported value (`EMAUpdate`) or trains the map only (`AlternatedUpdate`). Through a transform all terms go on by the
chain rule.
"""


def page() -> str:
    """The text of ``docs/gradients.md``."""
    lines = [_INTRO]
    for which in MAPS:
        lines += [f"## {which.name}", "", _chain_rule(which), ""]
        lines += ["| update | ν | losses | encoder | u at the raw table | u at scale and shift |", "|" + "---|" * 6]
        lines += [_row(cell) for cell in cells() if cell.map is which]
        lines.append("")
    return "\n".join(lines)


def _chain_rule(which: Map) -> str:
    rule = f"Raw table: `{which.raw}`."
    if which.is_learned:
        rule += f" Scale: `{which.scale}`; shift: `{which.shift}`, each over the codes of a group."
    if which.part == "Chain":
        rule += " Here `v = (I − ĉĉᵀ) u / ‖a‖` with `a = (1 + λs) ⊙ c + λb` and `ĉ = a / ‖a‖`."
    elif which.part == "UnitNormCodes":
        rule += " Here `ĉ = c / ‖c‖`."
    elif which.part == "RunningAffine":
        rule += " The running moments take no gradient."
    return rule


def _row(cell: Cell) -> str:
    start = f"| {cell.update_part} | {'> 0' if cell.sync else '0'} | {cell.losses} |"
    if cell.refusal:
        first, second, why = cell.refusal
        return f"{start} refused: {first} with {second}, {why} | | |"
    encoder = " + ".join(cell.encoder_terms)
    note = "; construction warns" if cell.is_idle else ""
    raw = " + ".join(cell.raw_terms) or "–"
    return f"{start} {encoder} | {raw}{note} | {' + '.join(cell.map_terms) or '–'} |"
