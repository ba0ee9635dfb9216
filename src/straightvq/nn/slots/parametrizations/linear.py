"""One learned linear map of all codes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.nn.part import check_bool, setting
from straightvq.nn.slots.parametrizations.base import Parametrization
from straightvq.nn.slots.parametrizations.groups import LARGEST_SCALE


class Linear(Parametrization):
    """One learned linear map of a table that stays as it starts, so that every code moves in every step.

    ``code = raw W^T (+ b)``, with W the identity and b zero at the start: the codes start as the init has them. Needs a
    loss or a synchronised estimator to train W, so it cannot be combined with ``EMAUpdate``.

    With a frozen basis the raw table is written by the init, once at the start, and by ``set_codes``; an update or a
    reset that would move it is refused. With a trained one they work: what is written goes through the inverse of W.
    An optimizer may take W close to a singular matrix. Before a write W and b therefore start over, and the raw rows
    become the codes, if W, its inverse, or the product of both exceeds 1024 in the norm (the largest sum of absolute
    values in a column). When a whole table is written, they do so too if b is more than 1024 times as large as the
    codes.

    The authors train W at a constant learning rate of 1e-4: keep it out of the schedule that anneals the network's,
    see ``parameter_groups``.

    Args:
        freeze_basis: whether the raw table stays as it starts; False trains it together with W.
        bias: whether there is a shift b, shared by all codes.

    Shape:
        weight W: Float (codebook_dim, codebook_dim); shift b: Float (codebook_dim).

    Source: arXiv 2411.02038 (SimVQ). Deviations: W starts as the identity, not with random numbers, so that an init
    from data fits the data; the shift, and the trained basis, are options.

    Example:
        >>> import torch
        >>> linear = Linear()
        >>> linear.bind(1, 2)
        >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> linear(torch.tensor([[3.0, 4.0]])).tolist(), linear.inverse(torch.tensor([[11.0, 4.0]])).tolist()
        ([[11.0, 4.0]], [[3.0, 4.0]])
    """

    is_onto = True
    freeze_basis: bool = setting(check_bool, keeps="all")
    bias: bool = setting(check_bool, keeps="all")

    def __init__(self, freeze_basis: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.freeze_basis = freeze_basis
        self.bias = bias

    @property
    def is_learned(self) -> bool:
        return True

    @property
    def freezes_raw(self) -> bool:
        return self.freeze_basis

    def _make(self, size: int, dim: int) -> None:
        self.weight = nn.Parameter(torch.eye(dim))
        self.shift = nn.Parameter(torch.zeros(dim)) if self.bias else None

    def forward(self, raw: Tensor) -> Tensor:
        shift = None if self.shift is None else self.shift.to(raw.dtype)
        # A copy: autograd keeps it, and a write before the backward may make W start over.
        return F.linear(raw, self.weight.to(raw.dtype, copy=True), shift)

    def inverse(self, codes: Tensor) -> Tensor:
        if self.shift is not None:
            codes = codes - self.shift.to(codes.dtype)
        raw: Tensor = torch.linalg.solve_ex(self.weight.to(codes.dtype).mT, codes, left=False)[0]
        return raw

    @torch.no_grad()
    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Makes the map the identity if W is too close to a singular matrix, or too large or small."""
        steep = self._is_steep() & rows.any()
        based = torch.where(steep, self(raw), raw)
        self._start_over(steep)
        return based

    @torch.no_grad()
    def adopt(self, codes: Tensor) -> Tensor:
        steep = self._is_steep()
        if self.shift is not None:  # one that is much larger than the codes would take their digits away
            steep = steep | (self.shift.abs().amax() > LARGEST_SCALE * codes.abs().amax())
        self._start_over(steep)
        return self.inverse(codes)

    def _is_steep(self) -> Tensor:
        there = torch.linalg.matrix_norm(self.weight, 1)
        back = torch.linalg.matrix_norm(torch.linalg.inv_ex(self.weight)[0], 1)
        # Not a number where W has no inverse: then no comparison holds.
        return ~((there <= LARGEST_SCALE) & (back <= LARGEST_SCALE) & (there * back <= LARGEST_SCALE))

    def _start_over(self, steep: Tensor) -> None:
        identity = torch.eye(len(self.weight), dtype=self.weight.dtype, device=self.weight.device)
        self.weight.copy_(torch.where(steep, identity, self.weight))
        if self.shift is not None:
            self.shift.masked_fill_(steep, 0)

    def extra_repr(self) -> str:
        return f"freeze_basis={self.freeze_basis}, bias={self.bias}"
