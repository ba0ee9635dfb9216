"""What all adapters share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.interop.source import Imported
from straightvq.nn import Loss, Quantizer, Step


class Adapter(nn.Module, ABC):
    """One of our quantizers that is called as a class of another library is.

    Attributes:
        quantizer: ours.
        notes: what differs from the library in training, in sentences.
    """

    def __init__(self, imported: Imported) -> None:
        super().__init__()
        self.quantizer: Quantizer = imported.quantizer
        self.notes = imported.notes

    @classmethod
    @abstractmethod
    def of(cls, module: Any) -> "Adapter":
        """The adapter for a live module of the library."""


@contextmanager
def watching(quantizers: list[Quantizer]) -> Iterator[list[Step]]:
    """Collects the steps of these quantizers while it lasts, in their order."""
    steps: list[Step] = []
    unique = {id(quantizer): quantizer for quantizer in quantizers}.values()
    handles = [quantizer.register_step_hook(lambda _, step: steps.append(step)) for quantizer in unique]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()


def refuse(owner: Any, options: dict[str, Any], allowed: tuple[Any, ...] = (None, False, 0, 0.0)) -> None:
    """Raises for an option of the library that is switched on and has no part here."""
    for name, value in options.items():
        if value not in allowed:
            raise InvalidValueError(
                f"`replace`: `{name}` of {type(owner).__name__} must be switched off: it has no part here. "
                f"Got {value!r}."
            )


def refuse_calls(owner: nn.Module, options: dict[str, Any]) -> None:
    """Raises for an argument of a call that has no part here."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise InvalidValueError(
                f"`{type(owner).__name__}`: `{name}` must be left out: it has no part here. Got {type(value).__name__}."
            )


def set_weights(quantizer: Quantizer, weights: dict[str, float]) -> None:
    """Sets the weights of losses by name, in all quantizers inside."""
    for part in quantizer.modules():
        if isinstance(part, Quantizer):
            for loss in part.losses:
                if isinstance(loss, Loss) and loss.name in weights:
                    loss.coefficient = weights[loss.name]


def zero_in_evaluation(owner: nn.Module, loss: Tensor) -> Tensor:
    """For libraries that give no loss in evaluation."""
    return loss if owner.training else loss.new_zeros(loss.shape)
