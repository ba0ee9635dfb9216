"""A law: a property that every quantizer keeps, and the sentence that says how one was broken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from straightvq.testing.subject import Subject

    Check = Callable[[Subject], None]


class LawError(AssertionError):
    """A law does not hold; the message says what was expected and what came."""


class NotApplicable(Exception):  # noqa: N818 (not an error: the law has nothing to say)
    """The law says nothing about this quantizer; the message says why."""


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: of the function that checks it.
        chapter: what it belongs to, as "masks" or "precision".
        statement: one sentence.
        check: raises ``LawError`` where the law is broken, ``NotApplicable`` where it says nothing.
    """

    name: str
    chapter: str
    statement: str
    check: "Check"

    def __str__(self) -> str:
        return self.name


LAWS: dict[str, Law] = {}


def law(chapter: str) -> Callable[["Check"], "Check"]:
    """Makes a function a law; its docstring is the statement."""

    def register(check: "Check") -> "Check":
        name, statement = check.__name__, " ".join((check.__doc__ or "").split())
        LAWS[name] = Law(name, chapter, statement, check)
        return check

    return register


def hold(condition: object, expected: str, got: object) -> None:
    """Raises unless ``condition`` is true."""
    if not condition:
        raise LawError(f"expected {expected}. Got {_show(got)}.")


def same(got: Tensor, expected: Tensor, what: str) -> None:
    """Raises unless the two tensors are equal bit for bit, in dtype and shape too."""
    hold(_kind(got) == _kind(expected), f"{what}: {_kind(expected)}", _kind(got))
    if not torch.equal(got, expected):
        hold(False, f"{what}, bit for bit", _difference(got, expected))


def near(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Raises unless the two tensors agree within ``tolerance``, absolute and relative; ``got`` in any dtype."""
    hold(got.shape == expected.shape, f"{what}: {_kind(expected)}", _kind(got))
    got, expected = got.detach().to(expected.dtype), expected.detach()
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        hold(False, f"{what}, within {tolerance:g}", _difference(got, expected))


def same_state(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Raises unless two state dicts are equal bit for bit."""
    hold(list(got) == list(expected), f"{what}: the entries {list(expected)}", list(got))
    for name, value in expected.items():
        same(got[name], value, f"{what}: `{name}` alike")


def near_state(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Raises unless two state dicts agree up to rounding."""
    for name, value in expected.items():
        near(got[name], value.double(), f"{what}: `{name}` alike")


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _difference(got: Tensor, expected: Tensor) -> str:
    where = ((got != expected) & ~(got.isnan() & expected.isnan())).flatten().nonzero()
    if not len(where):
        return "other NaN"
    first = int(where[0])
    a, b = got.flatten()[first].item(), expected.flatten()[first].item()
    differ = f"{len(where)} of {got.numel()} values that differ, the first at flat position {first}"
    return f"{differ}: {a:.6g} instead of {b:.6g}"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():.6g}" if value.numel() == 1 else _kind(value)
    return str(value)
