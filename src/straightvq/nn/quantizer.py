"""What every quantizer has in common: one result type, one input layout, bypass."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from straightvq.nn.codebook import _count_not_finite
from straightvq.nn.part import at_least_float32, can_ask, check_int, check_module

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class QuantizerOutput(NamedTuple):
    """What a quantizer returns, the same type for all of them.

    Attributes:
        quantized: same shape and dtype as ``z``; zeros where masked.
        indices: Int64, ``z``'s shape without the channel axis; -1 where masked.
        loss: scalar, the weighted sum of the terms, ready to be added to the task loss.
        terms: unweighted scalars by name, in training and evaluation.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Base of all quantizers: flattens ``z`` to channels-last rows and puts results back in place.

    Attributes:
        check_finite: whether ``forward`` and ``encode`` refuse NaN, infinity, and values so large (2.8e14 in float32)
            that sums of their squares would overflow (under ``torch.compile`` and on accelerators by an asynchronous
            assertion). Switch it off by setting it to False on the instance.
    """

    check_finite: bool = True
    _is_bypassed: bool = False

    def __init__(self, dim: int, channel_dim: int) -> None:
        super().__init__()
        self.dim = check_int(self, "dim", dim, 1)
        if not isinstance(channel_dim, int) or isinstance(channel_dim, bool):
            raise TypeError(f"`{type(self).__name__}`: `channel_dim` must be an integer. Got {channel_dim!r}.")
        self.channel_dim = channel_dim

    @abstractmethod
    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput: ...

    @abstractmethod
    def encode(self, z: Tensor, mask: Tensor | None = None) -> Tensor: ...

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor: ...

    def unquantized(self, z: Tensor) -> Tensor:
        """What comes out if there is a code at every vector: ``z`` itself, unless the layer transforms it.

        It differs from ``forward(z).quantized`` by the quantization error alone, which makes it the place to compare
        gradients at (`straightvq.diagnostics.estimator_gap`). Changes no state.

        Returns:
            The shape and dtype of ``z``, detached.
        """
        self._check(z, None)
        return z.detach()

    def _flatten(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """z -> rows (n, dim), zeros where masked, and valid Bool (n,) or None."""
        moved = z.movedim(self.channel_dim, -1)
        flat = moved.reshape(-1, self.dim)
        if mask is None:
            return flat, None
        valid = mask.reshape(-1)
        return torch.where(valid[:, None], flat, 0), valid

    def _unflatten(self, rows: Tensor, z: Tensor) -> Tensor:
        """rows (n, dim) -> the shape and dtype of z."""
        return rows.to(z.dtype).reshape(z.movedim(self.channel_dim, -1).shape).movedim(-1, self.channel_dim)

    def _check(self, z: Tensor, mask: Tensor | None) -> None:
        owner = type(self).__name__
        if not isinstance(z, Tensor):
            raise TypeError(f"`{owner}`: `z` must be a tensor. Got {type(z).__name__}.")
        if not z.is_floating_point():
            raise TypeError(f"`{owner}`: `z` must be floating point. Got {z.dtype}.")
        rank = z.ndim
        if not -rank <= self.channel_dim < rank:
            raise ValueError(f"`{owner}`: `z` must have an axis {self.channel_dim}. Got shape {tuple(z.shape)}.")
        if z.shape[self.channel_dim] != self.dim:
            fits = [axis for axis in range(rank) if z.shape[axis] == self.dim]
            hint = f" Its axis {fits[0]} has that size: pass channel_dim={fits[0]}?" if fits else ""
            raise ValueError(
                f"`{owner}`: `z` must have {self.dim} channels on axis {self.channel_dim}. "
                f"Got {z.shape[self.channel_dim]}, shape {tuple(z.shape)}.{hint}"
            )
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"`{owner}`: `mask` must be a boolean tensor, True where valid. Got {got}.")
        expected = z.movedim(self.channel_dim, -1).shape[:-1]
        if mask.shape != expected:
            raise ValueError(
                f"`{owner}`: `mask` must have the shape of `z` without its channel axis, {tuple(expected)}. "
                f"Got {tuple(mask.shape)}."
            )

    def _check_not_recomputed(self) -> None:
        """A forward inside a backward is a recomputation: it would update the codebook twice and assign differently."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                f"`{type(self).__name__}`: this training forward runs inside a backward pass, as activation "
                "checkpointing does. The codebook would move twice, and the second assignment would not be that of "
                "the first. Keep the quantizer outside the checkpointed segment, or freeze its codebook."
            )

    def _check_values(self, flat: Tensor) -> None:
        if not self.check_finite or torch.compiler.is_exporting() or flat.numel() == 0:
            return
        dtype = at_least_float32(flat.dtype)
        low, high = (v.to(dtype) for v in flat.detach().aminmax())  # one pass; NaN comes through
        # Leaves room for four billion squares in a sum.
        limit = torch.finfo(dtype).max ** 0.375
        sound = (low >= -limit) & (high <= limit)
        owner = f"`{type(self).__name__}`: `z` must be"
        if not can_ask(sound):
            torch._assert_async(sound, f"{owner} finite, and at most {limit:.2g} in size.")
        elif not sound:
            finite = bool(torch.isfinite(low + high))
            expected = f"at most {limit:.2g} in size, so that sums of squares do not overflow" if finite else "finite"
            got = _count_beyond(flat.detach(), limit) if finite else _count_not_finite(flat)
            raise ValueError(
                f"{owner} {expected}. Got {got} (rows of {self.dim} channels). Nothing was changed; "
                "set `check_finite = False` on the layer to skip this check."
            )

    def _check_indices(self, indices: Tensor, size: int) -> None:
        owner = type(self).__name__
        if not isinstance(indices, Tensor) or indices.dtype not in _INTEGERS:
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"`{owner}`: `indices` must be an integer tensor. Got {got}.")
        if torch.compiler.is_exporting() or indices.numel() == 0:
            return
        indices = indices.long()  # comparing in a narrow dtype would wrap -1 and the size around
        message = f"`{owner}`: `indices` must be in [0, {size}), or -1 for masked positions."
        inside = ((indices >= -1) & (indices < size)).all()
        if not can_ask(inside):
            torch._assert_async(inside, message)
        elif not inside:
            low, high = (int(v) for v in indices.aminmax())
            raise ValueError(f"{message} Got values from {low} to {high}.")

    def _pass_through(self, z: Tensor, mask: Tensor | None, names: list[str]) -> QuantizerOutput:
        if mask is not None:
            z = torch.where(mask.unsqueeze(-1).movedim(-1, self.channel_dim), z, 0)
        shape = z.movedim(self.channel_dim, -1).shape[:-1]
        # Connected to z, like every loss of the layer, so that a training step needs no special case.
        zero = 0 * z.reshape(-1)[:0].to(torch.promote_types(z.dtype, torch.float32)).sum()
        indices = torch.full(shape, -1, dtype=torch.int64, device=z.device)
        return QuantizerOutput(z, indices, zero, dict.fromkeys(names, zero))


def _count_beyond(x: Tensor, limit: float) -> str:
    sizes = x.abs().double()
    return f"{int((sizes > limit).sum())} of {x.numel()} values beyond, the largest {sizes.max().item():.2g}"


@contextlib.contextmanager
def bypass(module: nn.Module) -> Iterator[None]:
    """While it lasts every quantizer inside ``module`` passes ``z`` through: no search, no state change.

    ``quantized`` is ``z`` (zeros where masked), ``indices`` are -1, ``loss`` and ``terms`` are 0. For training the
    first steps of an autoencoder unquantized, and for measuring what quantization costs.

    Example:
        >>> import straightvq as svq
        >>> layer = svq.presets.vq_vae(4, 16)
        >>> z = torch.randn(2, 4)
        >>> with bypass(layer):
        ...     bool((layer(z).quantized == z).all())
        True
    """
    check_module("bypass", module)
    quantizers = [m for m in module.modules() if isinstance(m, Quantizer)]
    before = [q._is_bypassed for q in quantizers]
    try:
        for q in quantizers:
            q._is_bypassed = True
        yield
    finally:
        for q, was in zip(quantizers, before, strict=True):
            q._is_bypassed = was
