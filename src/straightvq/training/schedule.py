"""Settings that change while a network trains: an unquantized start, and hyper-parameters along a curve."""

import contextlib
import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import lightning
from lightning import Callback
from torch import nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn import Loss, Quantizer, VectorQuantizer, bypass, reste_power
from straightvq.nn.part import check_choice, check_float, check_int, check_part

Shape = Literal["linear", "cosine", "reste", "constant"]


@dataclass(frozen=True)
class Point:
    """One point of a curve, and how the curve comes to it from the point before.

    Args:
        step: optimizer steps done, at least 0.
        value: what the setting then is.
        shape: "linear"; "cosine", slow at both ends; "reste", slow at first, as `reste_power`; or "constant": the value
            before, until this step.

    Raises:
        TypeError, ValueError: for values out of range.
    """

    step: int
    value: float
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        check_int(self, "step", self.step, 0)
        check_float(self, "value", self.value)
        check_choice(self, "shape", self.shape, get_args(Shape))


@dataclass(frozen=True)
class Anneal:
    """A curve for one setting: through its points, and constant before the first and behind the last.

    Args:
        path: of the setting, from the task's network or, where it has none of that name, from the task: names and
            numbers with dots between, such as ``quantizer.losses.0.coefficient``.
        points: at least one, with rising steps.

    Raises:
        TypeError, ValueError: for values out of range.

    Example:
        >>> curve = Anneal("quantizer.estimator.sync", [Point(100, 1.0), Point(300, 0.0, "cosine")])
        >>> [round(curve.at(step), 4) for step in (0, 100, 150, 200, 300, 999)]
        [1.0, 1.0, 0.8536, 0.5, 0.0, 0.0]
    """

    path: str
    points: list[Point]

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not all(self.path.split(".")):
            raise InvalidValueError(f"`Anneal`: `path` must be names with dots between. Got {self.path!r}.")
        for point in _checked_list(self, "points", self.points):
            check_part(self, "points", point, Point)
        steps = [point.step for point in self.points]
        if not steps or any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise InvalidValueError(f"`Anneal`: `points` must be at least one, with rising steps. Got steps {steps}.")

    def at(self, step: int) -> float:
        """The value after ``step`` optimizer steps."""
        before = [point for point in self.points if point.step <= step]
        behind = self.points[len(before) :]
        if not before or not behind:
            return (before or behind[:1])[-1].value
        start, end = before[-1], behind[0]
        done = _eased((step - start.step) / (end.step - start.step), end.shape)
        return start.value + done * (end.value - start.value)


class Schedule(Callback):
    """Trains the first steps without the codes, and moves settings along curves.

    In the first ``unquantized_steps`` optimizer steps every quantizer is bypassed (`straightvq.bypass`): the encoder
    learns first, and the codebook's init then sees what it gives. Validation in between quantizes as ever, with codes
    that have not begun: its error says nothing, so that no such checkpoint becomes the best one.

    Curves are followed by optimizer steps, whatever the accumulation of gradients. Both depend on the trainer's step
    alone, which every checkpoint holds: a resumed run continues bit for bit. After training, settings keep their last
    values; an evaluation alone has those that the network was made with.

    Args:
        unquantized_steps: at least 0.
        anneal: the curves, each of a path of its own.

    Raises:
        TypeError, ValueError: for values out of range; as soon as a training starts for a path that leads to no number
            that can be set, with the nearest ones that do, for a value that the setting refuses, and for an unquantized
            start of a network without a quantizer.

    Source: arXiv 2605.06870 and 2603.17052 for the unquantized start.

    Example:
        >>> schedule = Schedule(1000, [Anneal("quantizer.losses.0.coefficient", [Point(0, 0.0), Point(500, 0.25)])])
        >>> schedule.anneal[0].at(250)
        0.125
    """

    def __init__(self, unquantized_steps: int = 0, anneal: list[Anneal] | None = None) -> None:
        self.unquantized_steps = check_int(self, "unquantized_steps", unquantized_steps, 0)
        self.anneal = [check_part(self, "anneal", one, Anneal) for one in _checked_list(self, "anneal", anneal or [])]
        paths = [one.path for one in self.anneal]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise InvalidValueError(f"`Schedule`: `anneal` must have a path once. Got {twice[0]!r} twice.")
        self._settings: list[tuple[_Setting, Anneal]] = []
        self._bypass = contextlib.ExitStack()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.unquantized_steps and not any(isinstance(module, Quantizer) for module in pl_module.modules()):
            raise InvalidValueError(
                f"`Schedule`: `unquantized_steps` must be 0 without a quantizer. Got {self.unquantized_steps}."
            )
        self._settings = [(_find(pl_module, one.path), one) for one in self.anneal]
        for setting, curve in self._settings:
            before = setting.value
            for point in curve.points:
                try:
                    setting.set(point.value)
                    _check_codes(pl_module)
                except (InvalidValueError, InvalidTypeError) as error:
                    raise InvalidValueError(
                        f"`Schedule`: {curve.path!r} cannot become {point.value:g} at step {point.step}. {error}"
                    ) from error
                finally:
                    setting.set(before)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any
    ) -> None:
        for setting, curve in self._settings:
            setting.set(curve.at(trainer.global_step))
        if trainer.global_step < self.unquantized_steps:
            self._bypass.enter_context(bypass(pl_module))

    def on_train_batch_end(self, *args: Any) -> None:
        self._bypass.close()

    def on_train_epoch_end(self, *args: Any) -> None:
        self._bypass.close()  # a task may skip the rest of an epoch, and then no batch ends

    def on_exception(self, *args: Any) -> None:
        self._bypass.close()


@dataclass(frozen=True)
class _Setting:
    """A number that can be set on an object."""

    owner: Any
    name: str

    @property
    def value(self) -> float:
        found: float = getattr(self.owner, self.name)
        return found

    def set(self, value: float) -> None:
        setattr(self.owner, self.name, round(value) if isinstance(self.value, int) else value)


def _eased(progress: float, shape: Shape) -> float:
    """How much of the way is done at a share of the time."""
    if shape == "linear":
        return progress
    if shape == "cosine":
        return (1 - math.cos(math.pi * progress)) / 2
    return reste_power(progress, end=2.0) - 1 if shape == "reste" else 0.0


def _find(task: nn.Module, path: str) -> _Setting:
    """The setting of a path, from the task's network or from the task."""
    roots = [root for root in (getattr(task, "model", None), task) if isinstance(root, nn.Module)]
    *names, last = path.split(".")
    for root in roots:
        owner: Any = root
        with contextlib.suppress(AttributeError, IndexError, TypeError):
            for name in names:
                owner = owner[int(name)] if name.isdecimal() else getattr(owner, name)
            if isinstance(owner, nn.Module) and last in _numbers(owner):
                return _Setting(owner, last)
    known = [f"{name}.{number}" if name else number for name, m in roots[0].named_modules() for number in _numbers(m)]
    near = difflib.get_close_matches(path, known, 5, 0.5) or known[:5]
    raise InvalidValueError(
        f"`Schedule`: `path` must lead to a number that can be set in {type(roots[0]).__name__}. Got {path!r}. "
        f"The nearest are {', '.join(near) or 'none'}."
    )


def _numbers(module: nn.Module) -> list[str]:
    """Names of what can be annealed in a module: settings that check what they are set to, and plain fractions."""
    kind = type(module)
    settings = [name for name in dir(kind) if isinstance(getattr(kind, name), property) and getattr(kind, name).fset]
    found = [name for name in settings if isinstance(getattr(module, name, None), (int, float))]
    found += [name for name, value in vars(module).items() if isinstance(value, float)]
    return [name for name in found if not name.startswith("_") and not isinstance(getattr(module, name), bool)]


def _check_codes(task: nn.Module) -> None:
    """Refuses settings that send a gradient to codes that take none."""
    for layer in task.modules():
        if isinstance(layer, VectorQuantizer):
            by_loss = any(loss.trains_codes for loss in layer.losses if isinstance(loss, Loss))
            layer.codebook.routes(by_loss=by_loss, by_task=layer.estimator.trains_codes)


def _checked_list(owner: object, name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidTypeError(f"`{type(owner).__name__}`: `{name}` must be a list. Got {type(value).__name__}.")
    return value
