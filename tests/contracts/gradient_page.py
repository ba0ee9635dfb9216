"""The page ``docs/gradients.md``, made from the gradient contract: ``python docs/gradient_table.py``."""

import itertools
from collections.abc import Iterable, Iterator

from tests.contracts import estimator_gradients as estimators
from tests.contracts.gradients import (
    AFFINE,
    MAPS,
    NOTHING,
    OWN_UPDATES,
    SYNC,
    UPDATES,
    WRITERS,
    Cell,
    FrozenBasis,
    Map,
    Rule,
    Sides,
    cells,
)

_INTRO = """# Which gradient reaches what

Made by `python docs/gradient_table.py` from `tests/contracts/gradients.py`; do not edit by hand. Every combination is
built, and every gradient compared with its closed form in float64 to 1e-10, by `tests/contracts/test_gradients.py`.

## In short

Two things can train the codes: the losses meant for them, and the task gradient of a synchronised estimator. The update
decides whether each reaches the raw table, the parametrization's own parameters, or both:

"""

_SYMBOLS = """
An update says so in its class attributes `loss` and `task`. `EMAUpdate` and `AlternatedUpdate` move the raw table
themselves, in the forward and by no gradient; a loss that may train nothing is only reported. The frozen basis is an
update of your own that leaves the table alone, with `loss = task = Trains(raw=False, parametrization=True)`
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
the map of `LinearMap`, a parametrization of your own with `code = raw @ M` and no inverse. In a chain
`v = (I − ĉĉᵀ) u / max(‖a‖, 0.01)`, where `a` is the row before `UnitNormCodes` and `ĉ = a / ‖a‖`; alone, `ĉ = c / ‖c‖`.
A row of zeros (k, counted from 0) stands for `(cos(kD + 1), …, cos(kD + D))`, in its direction and in its length.
The running moments of `RunningAffine` take no gradient. `W` and its shift are those of `Linear`, `code = raw Wᵀ + b`.
`MLP` and `Bridge` are networks without an inverse: they take the routes of `LinearMap`, and `u` goes on through their
layers, checked by `tests/unit/nn/slots/parametrizations/test_networks.py`.
"""


_FROZEN = """The init writes the table, once at the start, and so may `set_codes`. Refused by name:
{}.
"""
_WITHOUT_INVERSE = """Without an inverse nothing can write codes. Refused by name:
{}; and `set_codes`.
"""
_OWN_UPDATES = """## Updates of your own

All routes that an update which writes no codes can name, for `Affine()` with a loss that trains codes. With `Direct()`
the raw table gets the same, and nothing is refused but the synchronised gradient without a target.
"""
_LEVELS = """## Several codes per vector

Level l of a residual quantizer gets `r_l = z − Σ_{m<l} q_m` and gives `q_l`; `T_l` is its transform. Checked by
`tests/unit/nn/families/test_composites.py`.

"""
_LEVEL_ROWS: list[tuple[str, ...]] = [
    (
        'task, `gradient="once"`',
        "exactly `g`, or what the outer estimator gives",
        "as a layer of its own at `r_l`",
        "as a layer of its own, `ν` times",
    ),
    (
        'task, `gradient="per_level"`',
        "along all levels, and along `r_{l+1} = r_l − q_l`; `g` without transforms",
        "the same",
        "the same",
    ),
    (
        "`CommitmentLoss` of level l",
        "`w_c · 2 (r_l − q_l) / (N D)`, through `T_l`; of every level",
        "as a layer of its own",
        "–",
    ),
    ("`CodebookLoss` of level l", "–", "–", "as a layer of its own"),
    (
        "group of a product",
        "its own estimator, on its own channels",
        "as a layer of its own",
        "as a layer of its own",
    ),
]
_LEVELS_END = """
Losses of levels are added up; those of groups are averaged over the channels. Rows that leave a level out send it
nothing.
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
        if maps[0].freezes_raw:
            lines += [_FROZEN.format(_listed(name for name in WRITERS if not name.endswith("Init")))]
    lines += [_WITHOUT_INVERSE.format(_listed(WRITERS)), _OWN_UPDATES, _table(_OWN_HEAD, _own_rows())]
    lines += [estimators.TITLE, estimators.INTRO, _table(estimators.HEAD, estimators.rows()) + estimators.NOTES]
    lines += [_LEVELS + _table(("", "encoder", "transform of level l", "codes of level l"), _LEVEL_ROWS) + _LEVELS_END]
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
