"""The contract suite as a function: one's own quantizer or part against the laws."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn import (
    Assigner,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    Estimator,
    Init,
    Loss,
    Parametrization,
    Quantizer,
    Reset,
    Transform,
    Update,
    VectorQuantizer,
)
from straightvq.nn.part import Part
from straightvq.testing import laws as _laws  # noqa: F401 (fills LAWS)
from straightvq.testing.law import LAWS, Law, LawError, NotApplicable
from straightvq.testing.subject import Subject

_DIM, _SIZE = 6, 16


def check_quantizer(
    make: Quantizer | Part | Callable[[], Quantizer | Part],
    *,
    laws: Iterable[str] | None = None,
    exceptions: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Holds a quantizer, or a part in an otherwise plain one, against the laws of the layer.

    All laws are tried, and all that are broken are reported at once. Runs on the CPU, in seconds for a small codebook;
    torch's global generator is as before afterwards.

    Args:
        make: a function, or a class, that gives a new quantizer or part at each call. An instance works too: copies of
            it are tested. A part (an estimator, a loss, an update, a whole ``Codebook``, ...) is tested in a
            ``VectorQuantizer`` of width 6 with 16 codes.
        laws: names of laws or of their chapters (``LAWS`` has both); None for all.
        exceptions: law -> reason, for laws that are not meant to hold. An exception that is not needed is an error.

    Returns:
        law -> ``"holds"``, ``"does not apply: ..."`` or ``"exception: ..."``, in the order of ``LAWS``.

    Raises:
        LawError: if a law is broken; the message names each with what was expected and what came.
        ValueError, TypeError: for unknown laws, exceptions without a reason, and things that are no quantizer.

    Example:
        >>> import straightvq as svq
        >>> report = check_quantizer(lambda: svq.presets.ema(6, 16), laws=["masks", "decode_of_a_subset_agrees"])
        >>> report["masked_positions_take_part_in_nothing"]
        'holds'
    """
    chosen = _choose(laws)
    reasons = _check_exceptions(exceptions)
    report, broken = {}, []
    with torch.random.fork_rng(devices=[]):
        subject = Subject(_factory(make))
        for law in chosen:
            try:
                report[law.name] = outcome(law, subject, reasons.get(law.name))
            except LawError as error:
                broken.append(error)
    if broken:
        count = f"{len(broken)} of {len(chosen)} laws {'is' if len(broken) == 1 else 'are'} broken"
        raise LawError("\n".join([f"{count}:", *(f"- {error}" for error in broken)])) from broken[0]
    return report


def outcome(law: Law, subject: Subject, reason: str | None = None) -> str:
    """What ``check_quantizer`` reports for one law; raises ``LawError`` if it is broken, or kept despite a reason."""
    try:
        law.check(subject)
    except NotApplicable as why:
        return f"does not apply: {why}"
    except Exception as error:
        if reason is not None:
            return f"exception: {reason}"
        raise LawError(f"{law.name} ({law.chapter}): {law.statement} Here: {_sentence(error)}") from error
    if reason is not None:
        raise LawError(f"{law.name} ({law.chapter}): expected the exception to be needed ({reason}). Got: it holds.")
    return "holds"


def _sentence(error: Exception) -> str:
    if isinstance(error, LawError):
        return str(error)
    first, *_ = str(error).strip().splitlines() or [""]
    return f"expected no error. Got {type(error).__name__}: {first.rstrip('.')}."


def _choose(names: Iterable[str] | None) -> list[Law]:
    if names is None:
        return list(LAWS.values())
    if isinstance(names, str):
        raise InvalidTypeError(f"`check_quantizer`: `laws` must be a list of names. Got {names!r}; write [{names!r}].")
    names = list(names)
    known = {*LAWS, *(law.chapter for law in LAWS.values())}
    _refuse_unknown("laws", [name for name in names if name not in known], known)
    return [law for law in LAWS.values() if law.name in names or law.chapter in names]


def _check_exceptions(exceptions: Mapping[str, str] | None) -> dict[str, str]:
    reasons = dict(exceptions or {})
    _refuse_unknown("exceptions", [name for name in reasons if name not in LAWS], set(LAWS))
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidValueError(f"`check_quantizer`: the exception to {name} must have a reason. Got {reason!r}.")
    return reasons


def _refuse_unknown(argument: str, unknown: list[str], known: set[str]) -> None:
    if unknown:
        raise InvalidValueError(f"`check_quantizer`: `{argument}` must name laws, of {sorted(known)}. Got {unknown}.")


def _factory(make: Any) -> Callable[[], Quantizer]:
    def new() -> Quantizer:
        is_instance = isinstance(make, (Quantizer, Part))
        return quantizer_of(copy.deepcopy(make) if is_instance else make())

    if not isinstance(make, (Quantizer, Part)) and not callable(make):
        raise InvalidTypeError(
            "`check_quantizer`: `make` must be a quantizer, a part, or a function that gives one. "
            f"Got {make!r} ({type(make).__name__})."
        )
    return new


def quantizer_of(item: Any) -> Quantizer:
    """The quantizer itself, or a plain one with this part in its slot."""
    match item:
        case Quantizer():
            return item
        case Codebook():
            return VectorQuantizer(item.dim or _DIM, item)
        case Estimator():
            return VectorQuantizer(_DIM, Codebook(_SIZE), estimator=item)
        case Transform():
            return VectorQuantizer(_DIM, Codebook(_SIZE), transform=item)
        case Assigner():
            return VectorQuantizer(_DIM, Codebook(_SIZE), assigner=item)
        case Loss():
            others: list[Loss] = [loss for loss in (CommitmentLoss(), CodebookLoss()) if loss.name != item.name]
            return VectorQuantizer(_DIM, Codebook(_SIZE), losses=[item, *others])
        case Parametrization():
            return VectorQuantizer(_DIM, Codebook(_SIZE, parametrization=item))
        case Init():
            return VectorQuantizer(_DIM, Codebook(_SIZE, init=item))
        case Update():
            return VectorQuantizer(_DIM, Codebook(_SIZE, update=item))
        case Reset():
            return VectorQuantizer(_DIM, Codebook(_SIZE, reset=item))
    raise InvalidTypeError(
        f"`check_quantizer`: `make` must give a quantizer or a part of one. Got {item!r} ({type(item).__name__})."
    )
