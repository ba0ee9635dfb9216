"""What all losses share: a name, a weight, whom they train, and the means that they are."""

from abc import abstractmethod
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.batch import Batch, Context
from straightvq.nn.part import Part, check_choice, check_float, setting
from straightvq.nn.ranks import Group, num_ranks, sum_over_ranks


class Loss(Part):
    """A scalar term. Required: the class attributes ``name`` and ``trains``, and ``forward``.

    ``trains`` says which sides its gradient is meant for: ``"encoder"``, ``"codes"`` or ``"both"``. With the class
    attribute ``takes_context`` the method is ``forward(z, code, valid, context)``, and ``context`` has the whole
    table, the indices and, in training, the batch with its random draws; with ``takes_signs`` also where codes are
    signs, see `Context`. With ``needs_codes`` a layer is refused whose codes take no gradient of a loss.

    A loss that remembers something makes its buffers in ``bind`` and writes them in ``record``, never in ``forward``.

    Args:
        weight: factor in ``QuantizerOutput.loss``; the entry in ``terms`` is unweighted. 0 reports only.

    Attributes:
        coefficient: the weight now in force. Set it to anneal a loss. (Not called ``weight``: programs that
            initialise networks look for tensors of that name.)
    """

    name: str
    trains: Literal["encoder", "codes", "both"]
    takes_context = takes_signs = needs_codes = False

    kept_as: ClassVar = {"weight": "coefficient"}

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

    def bind(self, size: int, dim: int) -> None:
        """Makes the buffers of a loss for ``size`` codes of width ``dim``. One without any may have several owners."""

    def record(self, batch: Batch, indices: Tensor) -> None:
        """Sees how the batch was assigned, Int64 (n,), -1 where masked: after its losses, in training only."""

    def measure(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None) -> Tensor:
        """``forward`` with what it takes."""
        out: Tensor = self(z, code, valid, context) if self.takes_context else self(z, code, valid)
        return out

    def extra_repr(self) -> str:
        return f"weight={self.coefficient}"


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the elements of the valid rows; 0, still connected to the graph, when there are none."""
    if valid is None:
        return x.mean() if x.numel() else x.sum()
    total = x.masked_fill(~valid[:, None], 0).sum()
    return total / (valid.sum() * x.shape[1]).clamp(min=1)


def means_over_ranks(sums: list[Tensor], count: Tensor, group: Group) -> list[Tensor]:
    """The sums over all ranks' vectors, divided by their number; zeros where there are none.

    The gradient of a rank is that of its own sums times the number of ranks, as wrappers that average gradients need.
    """
    own = torch.cat([part.reshape(-1) for part in sums])
    ranks = num_ranks(group)
    if ranks > 1:
        total = sum_over_ranks(torch.cat([own.detach(), count.reshape(1)]), group)
        own, count = total[:-1] + ranks * (own - own.detach()), total[-1]
    means = (own / count.clamp(min=1)).split([part.numel() for part in sums])
    return [mean.view(part.shape) for mean, part in zip(means, sums, strict=True)]


def has_any(z: Tensor, valid: Tensor | None, context: Context) -> Tensor:
    """Whether there is a valid vector, Bool scalar: in training on any rank, in evaluation in this process."""
    if context.batch is not None:
        return context.batch.total() > 0
    return torch.full((), len(z) > 0, device=z.device) if valid is None else valid.any()


def needed(owner: Loss, context: Context | None) -> Context:
    """``context``, without which the loss cannot be computed."""
    if context is None:
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `context` must be given, for it looks at more than vectors and their codes. "
            "Got None."
        )
    return context
