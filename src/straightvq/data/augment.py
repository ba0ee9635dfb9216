"""Flips and shifts of training pictures: functions of (seed, epoch, picture), the same on resume and on any ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from straightvq.functional import draw_integers

# Number of the random stream of each use.
_FLIP, _SHIFT = 0, 1


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for the pictures of an epoch; ``index``, Int64 ``(B)``, on their device, numbers them."""

    seed: int
    epoch: int
    index: Tensor

    def mirrored(self) -> Tensor:
        """Whether each picture is to be mirrored left to right, with probability 1/2: Bool ``(B)``."""
        return self._draw(_FLIP, 1)[:, 0] % 2 == 1

    def shifted(self, image: Tensor, padding: int) -> Tensor:
        """Squares of the old size at random places of images ``(B, C, H, W)``, padded with zeros on each side."""
        top, left = (self._draw(_SHIFT, 2) % (2 * padding + 1)).unbind(1)
        size = torch.arange(image.shape[-1], device=image.device)
        padded = torch.nn.functional.pad(image, (padding,) * 4).permute(0, 2, 3, 1)
        picture = torch.arange(len(image), device=image.device)[:, None, None]
        cut = padded[picture, (top[:, None] + size)[:, :, None], (left[:, None] + size)[:, None, :]]
        return cut.permute(0, 3, 1, 2).contiguous()

    def _draw(self, stream: int, count: int) -> Tensor:
        seed, epoch = (self.index.new_full((), value) for value in (self.seed, self.epoch))
        return draw_integers(seed, epoch, stream, (len(self.index), count), rows=self.index)
