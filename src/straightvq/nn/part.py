"""What all parts share: precision that survives ``.half()``, being bound once, settings, and the error sentence."""

import contextlib
from abc import ABC
from collections.abc import Callable, Collection, Iterator
from numbers import Integral, Real
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.internals import is_exporting

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Part(nn.Module, ABC):
    """A module that fills one slot of a quantizer.

    A part's constructor takes hyper-parameters only. Its owner binds it to sizes once, and only then does it make
    parameters and buffers. A part therefore has one owner; binding it again raises.

    Floating-point state stays at float32 or better: ``.half()``, ``.bfloat16()`` and ``.to(torch.float16)`` move it
    but do not round it, because a codebook in half precision cannot follow small updates.
    """

    _is_bound = False

    def _bind_once(self) -> None:
        if self._is_bound:
            raise InvalidValueError(
                f"`{type(self).__name__}`: this instance is already part of another quantizer. "
                "Make a new one: two owners would update the same state twice."
            )
        self._is_bound = True

    def _unbind(self) -> None:
        """Undoes a binding, with that of the parts inside: what was made is dropped."""
        for module in self.modules():
            module._parameters.clear()
            module._buffers.clear()
            if isinstance(module, Part):
                module._is_bound = False

    def reset_parameters(self) -> None:
        """Does nothing: a part starts over with the codebook that owns it, see ``Codebook.reset_parameters``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)


def setting(check: Callable[..., Any], *, keeps: str = "", **limits: Any) -> Any:
    """A hyper-parameter of a part: checked whenever it is set, at construction and by a schedule later.

    Args:
        check: ``check_int`` or one of its neighbours below.
        keeps: what a bound part refuses to change, because state of that kind was made by it: ``"all"`` for any value,
            ``"zero"`` for the step from 0 to something else, ``"none"`` for that from None or to it; empty for none.
        limits: for ``check``.
    """
    name = ""

    class Setting(property):
        def __set_name__(self, owner: type, given: str) -> None:
            nonlocal name
            name = given

    def read(part: Any) -> Any:
        return part.__dict__["_" + name]

    def write(part: Any, value: Any) -> None:
        value = check(part, name, value, **limits)
        if keeps and part._is_bound:
            before = part.__dict__["_" + name]
            kept = {"all": True, "zero": not before, "none": before is None or value is None}[keeps]
            if value != before and kept:
                raise InvalidValueError(
                    f"`{type(part).__name__}`: `{name}` must stay {before!r}, because what the layer holds was made "
                    f"for it. Got {value!r}; make a new layer."
                )
        part.__dict__["_" + name] = value

    return Setting(read, write)


def keeping_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, which moves or casts a tensor, but never to less than float32."""

    def guarded(tensor: Tensor) -> Tensor:
        out = fn(tensor)
        if out.is_floating_point() and out.dtype.itemsize < 4:
            return tensor.to(device=out.device, dtype=torch.float32)
        return out

    return guarded


def can_ask(tensor: Tensor) -> bool:
    """Whether Python may branch on the tensor's value: a graph cannot, and for an accelerator it would have to wait."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@contextlib.contextmanager
def making_float32() -> Iterator[None]:
    """While it lasts torch makes new tensors in at least float32, whatever its default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(at_least_float32(before))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Switches autocast off. A program that is exported where it is off gets no such region: it could not be saved."""
    if device.type == "meta":  # has none
        return contextlib.nullcontext()
    if is_exporting() and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def evaluating(module: ModuleT) -> Iterator[ModuleT]:
    """The module in evaluation mode, whatever its own, with every module inside.

    Another thread may be training it meanwhile: what is given is a view of it with the same tensors, and no mode is
    switched. Inside a graph, which makes no such views, the modes are switched while it lasts.
    """
    in_training = [child for child in module.modules() if child.training]
    if in_training and not torch.compiler.is_compiling():
        yield _evaluation_view(module, {})
        return
    try:
        for child in in_training:
            child.training = False
        yield module
    finally:
        for child in in_training:
            child.training = True


def _evaluation_view(module: ModuleT, made: dict[nn.Module, Any]) -> ModuleT:
    if module not in made:
        view = made[module] = object.__new__(type(module))
        view.__dict__.update(module.__dict__, training=False)
        children = {name: child and _evaluation_view(child, made) for name, child in module._modules.items()}
        view.__dict__["_modules"] = children
    return cast(ModuleT, made[module])


def check_int(owner: Any, name: str, value: Any, minimum: int) -> int:
    """Returns ``value`` if it is an integer of at least ``minimum``; raises the house's sentence otherwise."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InvalidTypeError(f"`{_name(owner)}`: `{name}` must be an integer >= {minimum}. Got {_show(value)}.")
    if value < minimum:
        raise InvalidValueError(f"`{_name(owner)}`: `{name}` must be an integer >= {minimum}. Got {value}.")
    return int(value)


def check_float(
    owner: Any,
    name: str,
    value: Any,
    *,
    minimum: float = -float("inf"),
    maximum: float = float("inf"),
    open_minimum: bool = False,
    open_maximum: bool = False,
) -> float:
    """Returns ``value`` if it is a finite number in the interval; raises the house's sentence otherwise."""
    interval = f"{'(' if open_minimum else '['}{minimum:g}, {maximum:g}{')' if open_maximum else ']'}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InvalidTypeError(f"`{_name(owner)}`: `{name}` must be a number in {interval}. Got {_show(value)}.")
    number = float(value)
    above = number > minimum if open_minimum else number >= minimum
    below = number < maximum if open_maximum else number <= maximum
    if not (above and below) or number in (float("inf"), -float("inf")):
        raise InvalidValueError(f"`{_name(owner)}`: `{name}` must be a finite number in {interval}. Got {value}.")
    return number


def check_optional_float(owner: Any, name: str, value: Any, **limits: Any) -> float | None:
    """As ``check_float``; None is taken too."""
    return None if value is None else check_float(owner, name, value, **limits)


def check_bool(owner: Any, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidTypeError(f"`{_name(owner)}`: `{name}` must be True or False. Got {_show(value)}.")
    return value


def check_choice(owner: Any, name: str, value: Any, choices: Collection[str]) -> str:
    """Returns ``value`` if it is one of ``choices``; raises the house's sentence otherwise."""
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise InvalidValueError(f"`{_name(owner)}`: `{name}` must be one of {listed}. Got {value!r}.")
    return str(value)


def check_part(owner: Any, name: str, value: Any, kind: type) -> Any:
    """Returns ``value`` if it is an instance of ``kind``; a class in its place gets its own hint."""
    if isinstance(value, type) and issubclass(value, kind):
        raise InvalidTypeError(
            f"`{_name(owner)}`: `{name}` must be an instance of {kind.__name__}. "
            f"Got the class {value.__name__}; write {value.__name__}()."
        )
    if not isinstance(value, kind):
        raise InvalidTypeError(
            f"`{_name(owner)}`: `{name}` must be an instance of {kind.__name__}. Got {_show(value)}."
        )
    return value


def largest_value(dtype: torch.dtype) -> float:
    """What vectors and codes may hold: room is left for four billion squares in a sum."""
    return torch.finfo(dtype).max ** 0.375


def count_not_finite(x: Tensor) -> str:
    bad = ~torch.isfinite(x)
    first = bad.reshape(-1).to(torch.uint8).argmax().item()
    return f"{int(bad.sum())} of {x.numel()} values NaN or infinite, the first at flat position {first}"


def count_beyond(x: Tensor, limit: float) -> str:
    sizes = x.abs().double()
    return f"{int((sizes > limit).sum())} of {x.numel()} values beyond, the largest {sizes.max().item():.2g}"


def default(part: Any, kind: type) -> Any:
    """The part, or a new one of this kind where a slot was left at None."""
    return kind() if part is None else part


def check_module(owner: str, value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise InvalidTypeError(f"`{owner}`: `module` must be a torch.nn.Module. Got {_show(value)}.")
    return value


def _name(owner: Any) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__


def _show(value: Any) -> str:
    if isinstance(value, nn.Module) and any(True for _ in value.children()):
        return type(value).__name__  # all that is inside would fill a screen
    return f"{value!r} ({type(value).__name__})"
