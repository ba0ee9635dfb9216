"""Losses of the layer: means over all unmasked elements, the same in training and evaluation."""

from abc import abstractmethod
from typing import Literal, NoReturn

import torch.nn.functional as F
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.batch import Context
from straightvq.nn.part import Part, check_choice, check_float, setting


class Loss(Part):
    """A scalar term. Required: the class attributes ``name`` and ``trains``, and ``forward``.

    ``trains`` says which sides its gradient is meant for: ``"encoder"``, ``"codes"`` or ``"both"``. With the class
    attribute ``takes_context`` the method is ``forward(z, code, valid, context)``, and ``context`` has the whole
    table, the indices and, in training, the batch with its random draws; with ``takes_signs`` also where codes are
    signs, see `Context`.

    Args:
        weight: factor in ``QuantizerOutput.loss``; the entry in ``terms`` is unweighted. 0 reports only.

    Attributes:
        coefficient: the weight now in force. Set it to anneal a loss. (Not called ``weight``: programs that
            initialise networks look for tensors of that name.)
    """

    name: str
    trains: Literal["encoder", "codes", "both"]
    takes_context = takes_signs = False

    coefficient: float = setting(check_float, minimum=0)

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_choice(self, "trains", getattr(self, "trains", None), ("encoder", "codes", "both"))
        self.coefficient = check_float(self, "weight", weight, minimum=0)

    def _set_weight(self, value: float) -> NoReturn:
        raise InvalidValueError(f"`{type(self).__name__}`: set `coefficient`, not `weight`. Got {value!r}.")

    weight = property(None, _set_weight)  # there to be refused, and not to be found by ``hasattr``

    @property
    def trains_codes(self) -> bool:
        """Whether its gradient is meant for the codes, and its weight is positive."""
        return self.trains != "encoder" and self.coefficient > 0

    @abstractmethod
    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """z (n, d), code (n, d), valid Bool (n,) or None for all -> scalar."""

    def per_vector(self, z: Tensor, code: Tensor) -> Tensor:
        """z (n, d), code (n, d) -> (n,), whose mean over the valid vectors is the scalar; optional."""
        raise InvalidTypeError(f"`{type(self).__name__}` has no value per vector.")

    @property
    def has_vectors(self) -> bool:
        """Whether ``per_vector`` is given."""
        return type(self).per_vector is not Loss.per_vector

    def measure(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None) -> Tensor:
        """``forward`` with what it takes."""
        out: Tensor = self(z, code, valid, context) if self.takes_context else self(z, code, valid)
        return out

    def extra_repr(self) -> str:
        return f"weight={self.coefficient}"


class CommitmentLoss(Loss):
    """Pulls the embeddings to their codes: ``mean((z - sg[code])^2)``.

    Args:
        weight: 0.25 as in the VQ-VAE. In the paper's terms it is ``alpha * (1 - beta)`` (alpha 5 and beta 0.9 to
            0.995 there, which is 0.5 to 0.025). Useful range 0.02 to 1: it is the setting that matters most for a
            plain VQ layer.

    Source: arXiv 1711.00937 eq. (3); arXiv 2305.08842, first half of the commitment loss.

    Example:
        >>> import torch
        >>> z = torch.tensor([[0.0, 0.0], [3.0, 1.0]], requires_grad=True)
        >>> loss = CommitmentLoss()(z, torch.tensor([[1.0, 0.0], [3.0, 3.0]]), None)
        >>> loss.backward()
        >>> loss.item(), z.grad.tolist()
        (1.25, [[-0.5, 0.0], [0.0, -1.0]])
    """

    name = "commitment"
    trains = "encoder"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        return _mean_square(z, code.detach(), valid)

    def per_vector(self, z: Tensor, code: Tensor) -> Tensor:
        return (z - code.detach()).square().mean(1)


class CodebookLoss(Loss):
    """Pulls the codes to their embeddings: ``mean((code - sg[z])^2)``.

    What it trains depends on the codebook's update: with ``GradientUpdate`` the raw table and the parametrization,
    with ``AlternatedUpdate`` the parametrization only, with ``EMAUpdate`` nothing (it is a reported value).

    Args:
        weight: 1 as in the VQ-VAE; the paper's ``alpha * beta``.

    Source: arXiv 1711.00937 eq. (3); arXiv 2305.08842, second half of the commitment loss.

    Example:
        >>> import torch
        >>> code = torch.tensor([[1.0, 0.0], [3.0, 3.0]], requires_grad=True)
        >>> CodebookLoss()(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), code, None).backward()
        >>> code.grad.tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """

    name = "codebook"
    trains = "codes"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        return _mean_square(code, z.detach(), valid)

    def per_vector(self, z: Tensor, code: Tensor) -> Tensor:
        return (code - z.detach()).square().mean(1)


def _mean_square(x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """``masked_mean((x - target)^2)`` in one pass over each, forward and backward."""
    if valid is None and x.numel():
        return F.mse_loss(x, target)
    return masked_mean(F.mse_loss(x, target, reduction="none"), valid)


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the elements of the valid rows; 0, still connected to the graph, when there are none."""
    if valid is None:
        return x.mean() if x.numel() else x.sum()
    total = x.masked_fill(~valid[:, None], 0).sum()
    return total / (valid.sum() * x.shape[1]).clamp(min=1)
