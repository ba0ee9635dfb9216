"""A learned scale and shift, shared by many codes."""

import torch
from torch import Tensor, nn

from straightvq.nn.part import check_float, check_int, setting
from straightvq.nn.slots.parametrizations.base import Parametrization
from straightvq.nn.slots.parametrizations.groups import LARGEST_SCALE, by_group, check_groups, is_steep


class Affine(Parametrization):
    """Learned scale and shift, shared by all codes of a group, so that unused codes move with the used ones.

    ``code = (1 + lr_scale * s) * raw + lr_scale * b``, with s and b zero at the start. Needs a loss or a
    synchronised estimator to train s and b, so it cannot be combined with ``EMAUpdate``.

    An optimizer may take the scale of a channel through zero: the codes then coincide in that channel and are mirrored
    beyond, but nothing can be written there. Before a write (init, reset, inner step, ``set_codes``) channels whose
    scale has left [1/1024, 1024] in size therefore start over with s = b = 0, and their raw rows become the codes.
    When a whole table is written, so do channels whose shift is more than 1024 times as large as the codes.

    Args:
        lr_scale: the paper's learning-rate multiplier for the map. It acts twice: one SGD step moves the effective
            scale by ``lr_scale**2``, one Adam step by ``lr_scale``. The authors use 2 to 10.
        groups: contiguous blocks of codes with a map of their own; must divide the codebook's size.

    Shape:
        scale s, shift b: Float (groups, codebook_dim).

    Source: arXiv 2305.08842, affine re-parameterisation (learned form).

    Example:
        >>> import torch
        >>> affine = Affine(lr_scale=2.0)
        >>> affine.bind(1, 1)
        >>> _ = affine.scale.data.fill_(0.5), affine.shift.data.fill_(0.25)
        >>> affine(torch.ones(1, 1)).item(), affine.inverse(torch.full((1, 1), 2.5)).item()
        (2.5, 1.0)
    """

    is_onto = True
    lr_scale: float = setting(check_float, minimum=0, open_minimum=True)
    groups: int = setting(check_int, minimum=1, keeps="all")

    def __init__(self, lr_scale: float = 1.0, groups: int = 1) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.groups = groups

    @property
    def is_learned(self) -> bool:
        return True

    def _check_size(self, size: int) -> None:
        check_groups(self, size, self.groups, smallest=1)

    def _make(self, size: int, dim: int) -> None:
        self.scale = nn.Parameter(torch.zeros(self.groups, dim))
        self.shift = nn.Parameter(torch.zeros(self.groups, dim))

    def _map(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Effective scale and shift, (groups, dim)."""
        return 1 + self.lr_scale * self.scale.to(dtype), self.lr_scale * self.shift.to(dtype)

    def forward(self, raw: Tensor) -> Tensor:
        scale, shift = self._map(raw.dtype)
        return (scale[:, None] * by_group(raw, self.groups) + shift[:, None]).reshape(raw.shape)

    def inverse(self, codes: Tensor) -> Tensor:
        scale, shift = self._map(codes.dtype)
        return ((by_group(codes, self.groups) - shift[:, None]) / scale[:, None]).reshape(codes.shape)

    @torch.no_grad()
    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Makes the map the identity in channels whose scale is too close to zero, or too large, to be inverted."""
        steep = is_steep(self._map(raw.dtype)[0]) & rows.any()
        based = torch.where(steep[:, None], by_group(self(raw), self.groups), by_group(raw, self.groups))
        self._start_over(steep)
        return based.reshape(raw.shape)

    @torch.no_grad()
    def adopt(self, codes: Tensor) -> Tensor:
        scale, shift = self._map(codes.dtype)
        largest = by_group(codes, self.groups).abs().amax(1)
        # A shift much larger than the codes would take their digits away.
        self._start_over(is_steep(scale) | (shift.abs() > LARGEST_SCALE * largest))
        return self.inverse(codes)

    def _start_over(self, channels: Tensor) -> None:
        self.scale.masked_fill_(channels, 0)
        self.shift.masked_fill_(channels, 0)

    def extra_repr(self) -> str:
        return f"lr_scale={self.lr_scale}, groups={self.groups}"
