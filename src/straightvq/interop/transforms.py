"""Transforms that other libraries make of several steps, or in another order."""

from collections.abc import Sequence

from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn import Transform
from straightvq.nn.part import check_part


class Steps(Transform):
    """Several transforms one after the other, such as a projection whose result is normalised.

    Args:
        parts: at least one, in the order in which they act on ``z``; codes go back through them in reverse.

    Raises:
        TypeError, ValueError: for other parts than transforms, and for none.

    Example:
        >>> import torch
        >>> from straightvq import Projection, UnitNorm
        >>> steps = Steps([Projection(2), UnitNorm()])
        >>> steps.bind(8)
        >>> abs(steps(torch.ones(1, 8)).norm().item() - 1) < 1e-6
        True
    """

    def __init__(self, parts: Sequence[Transform]) -> None:
        super().__init__()
        if not isinstance(parts, Sequence) or not parts:
            raise InvalidValueError(f"`Steps`: `parts` must be a list of at least one transform. Got {parts!r}.")
        self.parts = nn.ModuleList(check_part(self, "parts", part, Transform) for part in parts)

    def _parts(self) -> list[Transform]:
        return [part for part in self.parts if isinstance(part, Transform)]

    def _make(self, dim: int) -> None:
        for part in self._parts():
            part.bind(dim)
            dim = part.codebook_dim(dim)

    def codebook_dim(self, dim: int) -> int:
        for part in self._parts():
            dim = part.codebook_dim(dim)
        return dim

    def forward(self, z: Tensor) -> Tensor:
        for part in self._parts():
            z = part(z)
        return z

    def inverse(self, code: Tensor) -> Tensor:
        for part in reversed(self._parts()):
            code = part.inverse(code)
        return code


class Reversed(Transform):
    """Takes the channels in reverse, for libraries whose first channel is the highest bit of the index.

    Example:
        >>> import torch
        >>> Reversed()(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[3.0, 2.0, 1.0]]
    """

    def forward(self, z: Tensor) -> Tensor:
        return z.flip(-1)

    def inverse(self, code: Tensor) -> Tensor:
        return code.flip(-1)
