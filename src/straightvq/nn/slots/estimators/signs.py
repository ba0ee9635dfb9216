"""The base of the estimators of signs, and of their kin: roundings to one of two neighbours."""

from abc import abstractmethod

from torch import Tensor

from straightvq.nn.slots.estimators.base import Estimator


class SignEstimator(Estimator):
    """Base of estimators whose value is the sign and whose gradient is that of a function near it.

    Required: ``factor``, what the gradient is multiplied by, and ``surrogate``, the function that stands for the sign;
    both elementwise, of ``x = z / |code|``, the vector in units of the half-width.
    """

    needs_signs = True

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        return code.detach() + self.factor(z.detach() / code.detach().abs()) * (z - z.detach())

    @abstractmethod
    def factor(self, x: Tensor) -> Tensor:
        """What the gradient is multiplied by, elementwise, for vectors in units of the half-width."""

    @abstractmethod
    def surrogate(self, x: Tensor) -> Tensor:
        """``f``, which stands for the sign: what `straightvq.diagnostics.functional.estimating_error` takes."""
