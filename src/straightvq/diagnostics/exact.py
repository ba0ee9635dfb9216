"""What the metrics share: states that keep their dtype, and pools of moments that merge without rounding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from straightvq.diagnostics.functional.vectors import merge_tables, moment_table, shape_error, wide_dtype
from straightvq.errors import InvalidValueError


class ExactMetric(Metric):
    """A metric whose states never change dtype."""

    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Module:
        # torchmetrics guards its states against `.half()`, but not against `.to(torch.half)`, which is what
        # true half-precision training calls, nor against `set_dtype`. Devices still change.
        def keep_dtype(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(keep_dtype, *args, **kwargs)


class PooledMoments(ExactMetric):
    """Base of metrics built on means and variances that must survive an offset.

    A state is one float64 table `(rows, dim)` as `merge_tables` describes it. It has no columns before the first batch,
    which tells the width; torchmetrics stacks states and so needs the full form of `forward`, and the merging and
    gathering below.
    """

    full_state_update = True

    def __init__(self, **rows: int) -> None:
        """Make a state of that many rows for each name."""
        super().__init__(dist_sync_fn=gather_wide)
        for name, number in rows.items():
            self.add_state(name, torch.zeros(number, 0), dist_reduce_fx=merge_tables)

    def pool(self, name: str, flat: Tensor, *sums: Tensor) -> None:
        """Take vectors (n, dim) into a state, n >= 0, and further rows (dim,) that add."""
        self._take_in(name, torch.cat([moment_table(flat), *(row[None] for row in sums)]))

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another metric of this class, or its `metric_state`, has accumulated."""
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `incoming_state` must be of the same class. "
                    f"Got {type(incoming_state).__name__}."
                )
            incoming_state = {name: getattr(incoming_state, name) for name in self._defaults}
        for name in self._defaults:
            self._take_in(name, incoming_state[name])
        # As after an update: no cached value, and no warning that there was none.
        self._computed = None
        self._update_count += 1

    def _take_in(self, name: str, table: Tensor) -> None:
        state = getattr(self, name)
        if state.shape[1] == 0:
            setattr(self, name, table)
        elif table.shape[1] not in (0, state.shape[1]):
            raise InvalidValueError(
                f"`{type(self).__name__}`: vectors must have dim={state.shape[1]} as before. Got {table.shape[1]}."
            )
        elif table.shape[1]:
            setattr(self, name, merge_tables(torch.stack([state, table.to(state)])))

    def select(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The unmasked vectors of `(*batch, dim)`, wide `(n, dim)`; n may be 0."""
        owner = type(self).__name__
        if x.ndim == 0 or x.shape[-1] == 0:
            raise shape_error(owner, "vectors must have the shape (*batch, dim)", x)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:-1]):
            raise InvalidValueError(
                f"`{owner}`: `mask` must be boolean of the shape {tuple(x.shape[:-1])}. "
                f"Got {mask.dtype} of {tuple(mask.shape)}."
            )
        wide = x.detach().to(wide_dtype(x))
        return wide.reshape(-1, x.shape[-1]) if mask is None else wide[mask]


def gather_wide(state: Tensor, group: Any | None = None) -> list[Tensor]:
    """States of all ranks, alike in dtype and width; a rank that saw nothing contributes zeros, which count nothing."""
    gathered = gather_all_tensors(state.to(wide_dtype(state)), group)
    shape = max(part.shape for part in gathered)
    return [part if part.shape == shape else part.new_zeros(shape) for part in gathered]
