"""The contract suite as a function: your own quantizer or part against the laws."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from straightvq import nn
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn import Codebook, CodebookLoss, CommitmentLoss, Loss, Quantizer, VectorQuantizer
from straightvq.nn.part import Part
from straightvq.testing import laws as _laws  # noqa: F401 (fills LAWS)
from straightvq.testing.law import LAWS, Law, LawError, NotApplicable
from straightvq.testing.subject import Subject

_DIM, _SIZE = 6, 16
# Slots of a plain quantizer and of its codebook.
_SLOTS = {nn.Estimator: "estimator", nn.Transform: "transform", nn.Assigner: "assigner"}
_SLOTS_OF_CODEBOOK = {
    nn.Parametrization: "parametrization", nn.Init: "init", nn.Update: "update", nn.Reset: "reset"
}  # fmt: skip


def check_quantizer(
    make: Quantizer | Part | Callable[[], Quantizer | Part],
    *,
    laws: Iterable[str] | None = None,
    exceptions: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Holds a quantizer, or a part in an otherwise plain one, against the laws of the layer.

    All laws are tried, and all that are broken are reported at once. Runs on the CPU, in seconds for a small codebook;
    leaves torch's global generator as it was.

    Args:
        make: a function or class that gives a new quantizer or part at each call, or an instance, of which copies are
            tested. A part (an estimator, a loss, a whole ``Codebook``, ...) is tested in a ``VectorQuantizer`` of
            width 6 with 16 codes.
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
    chosen, reasons = _choose(laws), _check_exceptions(exceptions)
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
    names = set(names)
    _refuse_unknown("laws", names, {*LAWS, *(law.chapter for law in LAWS.values())})
    return [law for law in LAWS.values() if law.name in names or law.chapter in names]


def _check_exceptions(exceptions: Mapping[str, str] | None) -> dict[str, str]:
    reasons = dict(exceptions or {})
    _refuse_unknown("exceptions", set(reasons), set(LAWS))
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidValueError(f"`check_quantizer`: the exception to {name} must have a reason. Got {reason!r}.")
    return reasons


def _refuse_unknown(argument: str, names: set[str], known: set[str]) -> None:
    if unknown := sorted(names - known):
        raise InvalidValueError(f"`check_quantizer`: `{argument}` must name laws, of {sorted(known)}. Got {unknown}.")


def _factory(make: Any) -> Callable[[], Quantizer]:
    if isinstance(make, (Quantizer, Part)):
        return lambda: quantizer_of(copy.deepcopy(make))
    if callable(make):
        return lambda: quantizer_of(make())
    raise InvalidTypeError(
        "`check_quantizer`: `make` must be a quantizer, a part, or a function that gives one. "
        f"Got {make!r} ({type(make).__name__})."
    )


def quantizer_of(item: Any) -> Quantizer:
    """The quantizer itself, or a plain one with this part in its slot."""
    slots: dict[str, Any] = {slot: item for kind, slot in _SLOTS.items() if isinstance(item, kind)}
    of_codebook: dict[str, Any] = {slot: item for kind, slot in _SLOTS_OF_CODEBOOK.items() if isinstance(item, kind)}
    if isinstance(item, Loss):
        slots["losses"] = [item, *(loss for loss in (CommitmentLoss(), CodebookLoss()) if loss.name != item.name)]
    if isinstance(item, Quantizer):
        return item
    if isinstance(item, nn.Estimator) and item.needs_draws:
        slots["assigner"] = nn.Stochastic()
    if isinstance(item, Codebook):
        return VectorQuantizer(item.dim or _DIM, item)
    if slots or of_codebook:
        return VectorQuantizer(_DIM, Codebook(_SIZE, **of_codebook), **slots)
    raise InvalidTypeError(
        f"`check_quantizer`: `make` must give a quantizer or a part of one. Got {item!r} ({type(item).__name__})."
    )
