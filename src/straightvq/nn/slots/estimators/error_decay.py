"""The error decay estimator: tanh, which steepens into the sign."""

from torch import Tensor

from straightvq.nn.part import check_float, setting
from straightvq.nn.slots.estimators.signs import SignEstimator


class ErrorDecay(SignEstimator):
    """The value is the sign; the gradient is that of a tanh, which becomes the sign as it steepens.

    With ``x = z / |code|``, the vector in units of the half-width, the gradient ``g`` reaches the encoder as::

        g f'(x),  f(x) = k tanh(t x),  f'(x) = k t (1 - tanh(t x)^2),  k = max(1 / t, 1),  t = sharpness

    A small sharpness passes nearly the whole gradient everywhere, a large one only that near 0. The same in training
    and evaluation.

    Args:
        sharpness: the paper's t, positive. A setting that a schedule changes, see ``error_decay_sharpness``.

    Raises:
        ValueError: from a quantizer whose codes are no signs.

    Source: arXiv 1909.10788 (IR-Net), error decay estimator, eq. (9) to (11).

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 0.5, -0.5]], requires_grad=True)
        >>> ErrorDecay(sharpness=2.0)(z, torch.tensor([[1.0, 1.0, -1.0]])).sum().backward()
        >>> [round(g, 4) for g in z.grad[0].tolist()]
        [2.0, 0.8399, 0.8399]
    """

    sharpness: float = setting(check_float, minimum=0, open_minimum=True)

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def factor(self, x: Tensor) -> Tensor:
        return max(1.0, self.sharpness) * (1 - (self.sharpness * x).tanh().square())

    def surrogate(self, x: Tensor) -> Tensor:
        """``f``, which stands for the sign: what `straightvq.diagnostics.functional.estimating_error` takes."""
        return max(1 / self.sharpness, 1.0) * (self.sharpness * x).tanh()

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness}"


def error_decay_sharpness(progress: float, start: float = 0.1, end: float = 10.0) -> float:
    """The sharpness at a share of the training: ``start (end / start)^progress``, by equal factors in equal times.

    Args:
        progress: share of the training that is done, 0 to 1.
        start: sharpness at the start, positive.
        end: sharpness at the end, positive.

    Source: arXiv 1909.10788, eq. (11).

    Example:
        >>> [round(error_decay_sharpness(progress), 3) for progress in (0.0, 0.5, 1.0)]
        [0.1, 1.0, 10.0]
    """
    progress = check_float("error_decay_sharpness", "progress", progress, minimum=0, maximum=1)
    start = check_float("error_decay_sharpness", "start", start, minimum=0, open_minimum=True)
    end = check_float("error_decay_sharpness", "end", end, minimum=0, open_minimum=True)
    return float(start * (end / start) ** progress)
