"""Several quantizers of the same vector, whose codes are added up."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn import Quantizer, Step
from straightvq.nn.families.composite import Composite, add_up, columns, rows_of


class SplitQuantizer(Composite):
    """Branches that each quantize ``z`` itself; their codes are added up, as in the split quantizer of Mimi.

    The first branch may be trained to hold one thing, such as what is said, and the others the rest. Each branch has
    its own transform, estimator, losses and codebooks; the losses are added up, and the gradient passes all branches.

    Args:
        dim: channels of ``z``.
        branches: quantizers of that width, different ones.
        channel_dim: axis of ``z`` that holds the channels.

    Shape:
        z: Float (*batch, dim); indices: Int64 (*batch, num_quantizers), those of the first branch first. A prefix of
        the last axis decodes to the first branches and levels alone.

    Raises:
        TypeError, ValueError: for branches of another width, and one quantizer twice.

    Source: Moshi (arXiv 2410.00037), section 3.3.3.

    Example:
        >>> import straightvq as svq
        >>> split = SplitQuantizer(8, [svq.presets.ema(8, 16), svq.presets.soundstream(8, 16, num_quantizers=3)])
        >>> split(torch.randn(2, 5, 8)).indices.shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, dim: int, branches: Sequence[Quantizer], *, channel_dim: int = -1) -> None:
        super().__init__(
            dim,
            branches,
            None,
            name="branches",
            number="num_branches",
            transform=None,
            estimator=None,
            channel_dim=channel_dim,
            dropout=0.0,
            kept_choices=None,
        )

    def _check_widths(self, width: int) -> None:
        for number, branch in enumerate(self._serving()):
            if branch.dim != width:
                raise InvalidValueError(
                    f"`SplitQuantizer`: every branch must have the width {width}. Got {branch.dim} at branch {number}."
                )

    @property
    def branches(self) -> list[Quantizer]:
        """The quantizers, in their order."""
        return self._serving()

    @property
    def codebook_sizes(self) -> list[int]:
        return [size for branch in self._serving() for size in branch.codebook_sizes]

    def step(self, x: Tensor, valid: Tensor | None, kept: Tensor | None = None) -> Step:
        steps = [branch.step_rows(x, valid) for branch in self._serving()]
        for branch, step in zip(self._serving(), steps, strict=True):
            branch.tell(step)
        loss, terms = add_up(x, steps, [1.0] * len(steps))
        with torch.no_grad():
            codes = [b.transform.inverse(s.code) for b, s in zip(self._serving(), steps, strict=True)]
        indices = torch.cat([columns(step.indices) for step in steps], 1)
        return Step(x, indices, functools.reduce(torch.add, codes), loss, terms, levels=tuple(steps))

    def estimate(self, step: Step) -> Tensor:
        parts = zip(self._serving(), step.levels, strict=True)
        return functools.reduce(torch.add, [branch.estimate_rows(step.z, inner) for branch, inner in parts])

    def assign(self, z: Tensor) -> Tensor:
        return torch.cat([columns(branch.assign_rows(z)) for branch in self._serving()], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        every = []
        for branch in self._serving():
            own, indices = indices[:, : branch.num_quantizers], indices[:, branch.num_quantizers :]
            every.append(rows_of(branch, own))
            if indices.shape[1] == 0:
                break
        return functools.reduce(torch.add, every)

    def extra_repr(self) -> str:
        return f"num_quantizers={self.num_quantizers}, channel_dim={self.channel_dim}"
