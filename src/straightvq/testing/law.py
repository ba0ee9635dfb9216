"""A law: a property that every quantizer keeps, and the sentence that says how one was broken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from straightvq.testing.subject import Subject


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
    check: Callable[["Subject"], None]

    def __str__(self) -> str:
        return self.name


LAWS: dict[str, Law] = {}


def law(chapter: str) -> Callable[[Callable[["Subject"], None]], Callable[["Subject"], None]]:
    """Makes a function a law; its docstring is the statement."""

    def register(check: Callable[["Subject"], None]) -> Callable[["Subject"], None]:
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
    if got.dtype != expected.dtype or got.shape != expected.shape:
        raise LawError(f"expected {what}: {_kind(expected)}. Got {_kind(got)}.")
    if not torch.equal(got, expected):
        raise LawError(f"expected {what}, bit for bit. Got {_difference(got, expected)}.")


def near(got: Tensor, expected: Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Raises unless the two tensors agree within ``tolerance``, absolute and relative."""
    if got.shape != expected.shape:
        raise LawError(f"expected {what}: {_kind(expected)}. Got {_kind(got)}.")
    got, expected = got.detach().to(expected.dtype), expected.detach()
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        raise LawError(f"expected {what}, within {tolerance:g}. Got {_difference(got, expected)}.")


def same_state(got: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Raises unless two state dicts are equal bit for bit."""
    hold(list(got) == list(expected), f"{what}: the entries {list(expected)}", list(got))
    for name, value in expected.items():
        same(got[name], value, f"{what}: `{name}` alike")


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _difference(got: Tensor, expected: Tensor) -> str:
    unlike = (got != expected) & ~(got.isnan() & expected.isnan())
    where = unlike.reshape(-1).nonzero()
    if not len(where):
        return "other NaN"
    first = int(where[0])
    return (
        f"{len(where)} of {got.numel()} values that differ, the first at flat position {first}: "
        f"{got.reshape(-1)[first].item():.6g} instead of {expected.reshape(-1)[first].item():.6g}"
    )


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():.6g}" if value.numel() == 1 else _kind(value)
    return str(value)
