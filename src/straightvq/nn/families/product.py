"""Product quantization: the channels are split into groups, and each group has a code of its own."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.families.composite import Composite, add_up, columns, rows_of
from straightvq.nn.quantizer import Quantizer, Step
from straightvq.nn.slots.estimators import StraightThrough
from straightvq.nn.slots.transforms import Identity, Transform
from straightvq.nn.vector_quantizer import VectorQuantizer


class ProductQuantizer(Composite):
    """A code for each group of channels: ``g`` codebooks of k codes make k^g combinations.

    Each group is a layer of its own on its channels: its transform, estimator, losses and codebook. The losses are
    means over all channels, as if it were one layer. With a shared quantizer the groups of all vectors are one batch:
    one search, one update, one reset.

    Args:
        dim: channels of ``z``, or with a transform what it takes; the groups' widths add up to what it gives.
        groups: a list of quantizers, or a single one that all groups share.
        num_groups: number of groups that share a single one.
        transform: in front of all groups; default ``Identity()``. ``Projection`` mixes channels before they are split.
        dropout: of residual groups, as in ``ResidualQuantizer``: a sample keeps as many levels in all of them.
        kept_choices: as in ``ResidualQuantizer``.
        channel_dim: axis of ``z`` that holds the channels.

    Shape:
        z: Float (*batch, dim); indices: Int64 (*batch, num_quantizers). Groups that are residual quantizers give
        their first levels first, so that a prefix of the indices decodes to fewer levels of all groups.

    Raises:
        TypeError, ValueError: for widths that do not add up, one quantizer twice, and groups of different numbers of
            codes per vector.

    Source: Jegou, Douze, Schmid 2011, Product quantization for nearest neighbor search.

    Example:
        >>> import straightvq as svq
        >>> pq = ProductQuantizer(8, [svq.presets.ema(4, 16) for _ in range(2)])
        >>> pq(torch.randn(3, 8)).indices.shape
        torch.Size([3, 2])
    """

    kept_as: ClassVar = {"groups": "given_parts", "num_groups": "num_parts"}

    def __init__(
        self,
        dim: int,
        groups: Sequence[Quantizer] | Quantizer,
        *,
        num_groups: int | None = None,
        transform: Transform | None = None,
        dropout: float = 0.0,
        kept_choices: Sequence[int] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(
            dim,
            groups,
            num_groups,
            name="groups",
            number="num_groups",
            transform=transform,
            estimator=None,
            channel_dim=channel_dim,
            dropout=dropout,
            kept_choices=kept_choices,
        )

    def _check_widths(self, width: int) -> None:
        widths = self.widths
        if sum(widths) != width:
            raise InvalidValueError(
                f"`ProductQuantizer`: the widths of the groups must add up to {width}. Got {widths}."
            )
        depths = [(group.num_quantizers, _depth(group)) for group in self._serving()]
        if len(set(depths)) > 1:
            raise InvalidValueError(
                f"`ProductQuantizer`: every group must have as many codes per vector, in as many levels. "
                f"Got (codes, levels) {depths}."
            )

    @property
    def groups(self) -> list[Quantizer]:
        """The quantizer of each group."""
        return self._serving()

    @property
    def widths(self) -> list[int]:
        """Channels of each group."""
        return [group.dim for group in self._serving()]

    @property
    def depth(self) -> int:
        return _depth(self._each()[0])

    @property
    def codebook_sizes(self) -> list[int]:
        sizes = [group.codebook_sizes for group in self._serving()]
        return [size for level in zip(*sizes, strict=True) for size in level]

    # --- maps on flat rows ----------------------------------------------------------------------------------------

    def step(self, x: Tensor, valid: Tensor | None, kept: Tensor | None = None) -> Step:
        if self.is_shared:
            valid, kept = (None if each is None else each.repeat_interleave(self.num_parts) for each in (valid, kept))
        given = {} if kept is None else {"kept": kept}
        parts = self._split(x)
        steps = [group.step_rows(rows, valid, **given) for group, rows in zip(self._each(), parts, strict=True)]
        code = self._join(
            [group.transform.inverse(s.code.detach()) for group, s in zip(self._each(), steps, strict=True)]
        )
        each = [rows.shape[1] * (self.num_parts if self.is_shared else 1) for rows in parts]
        loss, terms = add_up(x, steps, [width / x.shape[1] for width in each])
        for group, step in zip(self._each(), steps, strict=True):
            group.tell(step)
        if self.is_shared and self.reduction == "none":
            loss, terms = self._over_groups(loss), {name: self._over_groups(term) for name, term in terms.items()}
        return Step(x, self._join_indices([step.indices for step in steps]), code, loss, terms, levels=tuple(steps))

    def without_codes(self, x: Tensor) -> Tensor:
        parts = zip(self._each(), self._split(x), strict=True)
        return self._join([group.without_codes_rows(rows) for group, rows in parts])

    def estimate(self, step: Step) -> Tensor:
        if all(_is_plain(group) for group in self._each()):
            return self.estimator.estimate(step.z, step.code, None)  # of all groups at once
        parts = zip(self._each(), self._split(step.z), step.levels, strict=True)
        return self._join([group.estimate_rows(rows, inner) for group, rows, inner in parts])

    def assign(self, z: Tensor) -> Tensor:
        return self._join_indices(
            [group.assign_rows(rows) for group, rows in zip(self._each(), self._split(z), strict=True)]
        )

    def lookup(self, indices: Tensor) -> Tensor:
        missing = self.num_quantizers - indices.shape[1]
        indices = F.pad(indices, (0, missing), value=-1).unflatten(1, (-1, self.num_parts))  # (n, levels, groups)
        if self.is_shared:
            rows = rows_of(self._each()[0], indices.transpose(1, 2).flatten(0, 1))
            return rows.reshape(len(indices), self.num_parts * rows.shape[1])
        return self._join([rows_of(group, own) for group, own in zip(self._each(), indices.unbind(2), strict=True)])

    # --- layout ---------------------------------------------------------------------------------------------------

    def _each(self) -> list[Quantizer]:
        """The quantizers, a shared one once."""
        return [part for part in self.parts if isinstance(part, Quantizer)]

    def _split(self, x: Tensor) -> list[Tensor]:
        """Rows (n, width) for each quantizer; for a shared one (n * groups, width), vector by vector."""
        if self.is_shared:
            return [x.reshape(-1, self._each()[0].dim)]
        return list(x.split(self.widths, 1))

    def _join(self, rows: list[Tensor]) -> Tensor:
        """Undoes ``_split``."""
        return rows[0].reshape(-1, self.num_parts * rows[0].shape[1]) if self.is_shared else torch.cat(rows, 1)

    def _over_groups(self, values: Tensor) -> Tensor:
        """Means over the groups of each vector, of values (n * groups,)."""
        return values.view(-1, self.num_parts).mean(1)

    def _join_indices(self, indices: list[Tensor]) -> Tensor:
        """Indices of each quantizer -> (n, levels * groups), level by level."""
        if self.is_shared:
            own = columns(indices[0])
            return own.view(-1, self.num_parts, own.shape[1]).transpose(1, 2).flatten(1)
        return torch.stack([columns(own) for own in indices], 2).flatten(1)

    def extra_repr(self) -> str:
        return f"num_quantizers={self.num_quantizers}, channel_dim={self.channel_dim}"


def _is_plain(group: Quantizer) -> bool:
    """Whether its vectors get the gradient of its codes as it is, and nothing else does."""
    is_straight = type(group.estimator) is StraightThrough and not group.estimator.trains_codes
    return isinstance(group, VectorQuantizer) and type(group.transform) is Identity and is_straight


def _depth(group: Quantizer) -> int:
    return group.depth if isinstance(group, Composite) else 1
