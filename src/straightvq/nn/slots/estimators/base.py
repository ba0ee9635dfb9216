"""The base of all estimators, and the straight-through estimator."""

from abc import abstractmethod

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.functional.straight_through import straight_through
from straightvq.nn.batch import Context
from straightvq.nn.part import Part, check_float, setting


class Estimator(Part):
    """Required: ``forward``, whose value is the code. Set ``trains_codes`` if a gradient reaches the codes.

    With the class attribute ``takes_context`` the method is ``forward(z, code, context)``, and ``context`` has the
    whole table, the indices and, in training, the batch with its random draws. ``needs_signs`` is for estimators of the
    sign's derivative, ``needs_draws`` for those of a code that was drawn, ``takes_draws = False`` for those that go
    wrong with one, ``needs_nearest`` for those that search by Euclidean distance themselves. ``replaces_losses`` says
    that vectors and codes are meant to meet by this gradient alone, without commitment and codebook losses.
    """

    takes_context = takes_signs = needs_signs = needs_draws = needs_nearest = replaces_losses = False
    takes_draws = True

    @property
    def trains_codes(self) -> bool:
        """Whether the task gradient reaches the codes through this estimator."""
        return False

    @abstractmethod
    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        """z (n, d), code (n, d) -> quantized (n, d), equal to ``code`` unless the class says otherwise for training."""

    def _given(self, context: Context | None) -> Context:
        """The context of an estimator that takes one."""
        if context is None:
            raise InvalidValueError(f"`{type(self).__name__}`: `context` must be given, for it looks there. Got None.")
        return context

    def estimate(self, z: Tensor, code: Tensor, context: Context | None) -> Tensor:
        """``forward`` with what it takes."""
        out: Tensor = self(z, code, context) if self.takes_context else self(z, code)
        return out


class StraightThrough(Estimator):
    """Straight-through estimator with the paper's synchronised update.

    ``quantized = sg[code] + (z - sg[z]) + sync * (code - sg[code])``: the value is the code to the bit; the task
    gradient ``g`` reaches the encoder unchanged, and the codes as ``sync * g``, so that they do not lag one step
    behind the encoder. The same in training and evaluation.

    Args:
        sync: the paper's nu, at least 0; 0 is the plain estimator. The authors use 0.01 to 2. It needs a codebook
            that takes gradients, so it cannot be combined with ``EMAUpdate``.

    Source: arXiv 2305.08842, synchronised commitment update (eq. 21 of the draft).

    Example:
        >>> import torch
        >>> z, code = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
        >>> StraightThrough(sync=0.5)(z, code).sum().backward()
        >>> z.grad.tolist(), code.grad.tolist()
        ([[1.0, 1.0]], [[0.5, 0.5]])
    """

    sync: float = setting(check_float, minimum=0)

    def __init__(self, sync: float = 0.0) -> None:
        super().__init__()
        self.sync = sync

    @property
    def trains_codes(self) -> bool:
        return self.sync > 0

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        return straight_through(z, code, self.sync)

    def extra_repr(self) -> str:
        return f"sync={self.sync}"
