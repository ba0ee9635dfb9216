"""What is not well, its likely cause and its cure: one table of thresholds, over the doctor's numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from straightvq.analysis.doctor.measure import Table
from straightvq.analysis.quantities import concerns
from straightvq.diagnostics.concerns import VECTORS_PER_CODE, list_cures

Values = Mapping[str, float]

DEAD = 0.1  # share of the codes: more unused ones are not normal
CROWDED = 0.01  # share of the codes
RUNAWAY = 20.0  # norm of the largest code, over the median
SCALE = 2.0  # spread of the codes over that of the data, or the other way round
FAR = 0.5  # share of the unused codes


@dataclass(frozen=True)
class Finding:
    """One thing that is not well: a name for programs, what was seen with its likely cause, and what helps."""

    name: str
    seen: str
    cures: list[str]


@dataclass(frozen=True)
class _Sign:
    """When something is not well, and the words for it, in which {values} are filled in."""

    name: str
    is_there: Callable[[Values], bool]
    seen: str
    cure: str = ""  # empty for those of a collapse, which depend on what the quantizer has


def _share(v: Values, name: str) -> float:
    return v.get(name, 0) / v["codes"]


_REACH = (
    "start on the data, svq.Codebook(..., init=svq.KMeansInit()), and let the codes follow it, "
    "update=svq.EMAUpdate() or parametrization=svq.RunningAffine()"
)

_SIGNS = (
    _Sign("not_finite", lambda v: v.get("not_finite", 0) > 0,
        "{not_finite:,.0f} of {codes:,.0f} codes are NaN or infinite: the training has diverged",
        "go back to a checkpoint before that, lower the learning rate, and train with --stop_on_non_finite true"),
    _Sign("crowded", lambda v: _share(v, "crowded") >= CROWDED and v.get("at_origin", 0) < v["crowded"],
        "{crowded:,.0f} of {codes:,.0f} codes lie on another one, within {same_spot:.2g}: each spot counts once"),
    _Sign("at_origin", lambda v: _share(v, "at_origin") >= CROWDED and v["crowded"] > 0,
        "{at_origin:,.0f} of {codes:,.0f} codes lie on one spot at the origin, within {same_spot:.2g}, where no data "
        "need be: left there by a start near 0, or moved there by weight decay (svq.parameter_groups has none for "
        "codes) or by moving averages with Laplace's smoothing (svq.EMAUpdate() has none)"),
    _Sign("runaway", lambda v: v.get("norm_max", 0) > RUNAWAY * v.get("norm_median", 0) > 0,
        "the largest code has a norm of {norm_max:.3g}, the median one of {norm_median:.3g}: some have run away",
        "a lower codebook_lr in svq.parameter_groups, or svq.AlternatedUpdate(fraction=0.1) in place of its lr"),
    _Sign("far", lambda v: v.get("far", 0) > FAR * max(1, v["codes"] - v.get("used", 0)),
        "{far:,.0f} of the unused codes are farther from all data than three times the usual distance of a vector to "
        "its code: the embeddings have left them, and no batch will choose them again",
        "svq.Codebook(..., reset=svq.DeadCodeReset()) brings them back in the first steps of further training"),
    _Sign("wide", lambda v: v.get("scale", 1) > SCALE,
        "the codes are spread {scale:.3g} times as widely as the data: many of them are outside it, or the data are "
        "not in the scale that the codebook was trained on (pictures in [0, 1] or [-1, 1], a norm before the layer)",
        f"check the scale of the data first; then {_REACH}"),
    _Sign("small", lambda v: v.get("scale", 1) < 1 / SCALE and _share(v, "crowded") < CROWDED,
        "the codes are spread {scale:.3g} times as widely as the data: they lie in a part of it, or the data are not "
        "in the scale that the codebook was trained on (pictures in [0, 1] or [-1, 1], a norm before the layer)",
        f"check the scale of the data first; then {_REACH}"),
)  # fmt: skip


def findings(table: Table) -> list[Finding]:
    """What is not well with one table: lost codes first, then the others as listed."""
    values, collapse = table.values, _collapse(table)
    found = _unused(table, collapse)
    found += [
        Finding(sign.name, sign.seen.format(**values), [sign.cure] if sign.cure else collapse)
        for sign in _SIGNS
        if sign.is_there(values)
    ]
    # Those of the analysis, where enough data were sent. A collapse is told above, with the codes it has cost.
    enough = values.get("vectors", 0) >= VECTORS_PER_CODE * values["codes"]
    judged = {name: value for name, value in values.items() if enough or name not in ("usage", "perplexity")}
    told = ("usage",) if any(each.name == "unused" for each in found) else ()
    found += [
        Finding(quantity.name, f"{quantity.label} {values[quantity.name]:.3g}: {quantity.meaning}", [cure])
        for quantity, cure in concerns(judged, int(values["codes"]))
        if quantity.name not in told
    ]
    return found


def _collapse(table: Table) -> list[str]:
    """What helps against it, of what this quantizer does not have yet."""
    page = "docs/collapse.md" if table.followed.codebook is not None else "docs/codebook_free.md"
    return list_cures(table.followed.quantizer) or [f"all the usual cures are in place; see {page}"]


def _unused(table: Table, cures: list[str]) -> list[Finding]:
    codebook, size = table.followed.codebook, int(table.values["codes"])
    if codebook is not None and codebook.is_ready <= 0 and codebook.init.needs_data and not codebook.filled.any():
        seen = f"the codes have not been started: {type(codebook.init).__name__} waits for the first training batch"
        return [Finding("not_started", seen, ["train it, or write codes with set_codes"])]
    if table.unused is None or not (number := int(table.unused.sum())) > DEAD * size:
        return []
    kind = "are dead" if number > size / 2 and codebook is not None else "are unused"  # a grid's cannot die
    return [Finding("unused", f"{number:,} of {size:,} codes ({number / size:.0%}) {kind}: {table.unused_by}", cures)]
