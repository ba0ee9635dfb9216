"""Finite scalar quantization: every channel is rounded to one of a few levels."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.internals import in_backward
from straightvq.nn.batch import Batch
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.families.codebook_free import CodebookFree, check_bits
from straightvq.nn.part import check_bool, check_choice, check_float, check_int, setting
from straightvq.nn.quantizer import Step
from straightvq.nn.ranks import stack_over_ranks
from straightvq.nn.slots.estimators import Estimator
from straightvq.nn.slots.losses import Loss
from straightvq.nn.slots.transforms import Transform

Form = Literal["paper", "symmetric", "atanh"]

# Of the paper's bound: it keeps the outermost levels half a step and a little away from the next.
_EPS = 1e-3
# Levels from which on the bound of the other form, wider by as much, would be rounded to one that there is not.
_MOST_OUTSIDE = 1000
# Indices below it are sums that float64 makes without rounding, by a product that is faster than one of integers.
_EXACT = 1 << 53
# Levels of one channel: with more of them rounding in float32 takes a code for its neighbour.
_MOST_LEVELS = 1 << 22


class FiniteScalarQuantizer(CodebookFree):
    """Bounds every channel and rounds it to one of ``L`` levels: the grid is the codebook, and nothing is learned.

    With ``x = z / scale``, in units of a grid step::

        paper:      b = tanh(x + tan(o / l)) l - o,  l = (L - 1)(1 - eps) / 2, o = 1/2 for even L else 0, eps = 1e-3
                    code = scale round(b) / floor(L / 2)
        atanh:      as in the paper's, with l = (L - 1)(1 + eps) / 2 and b = tanh(x + atanh(o / l)) l - o
        symmetric:  b = tanh(x) (L - 1) / 2
                    code = scale (round(b + (L - 1) / 2) / ((L - 1) / 2) - 1)

    The paper's even grids have a level at 0 and none at ``+scale``: for L = 4 they are -1, -1/2, 0, 1/2; the symmetric
    ones -1, -1/3, 1/3, 1. For odd L the two grids are equal. The index is ``sum_i digit_i L_1 ... L_{i-1}``: the first
    channel varies fastest, as in the paper.

    Evaluation is deterministic. So is training without ``noise``; with it ``quantized`` is, for a share of the vectors,
    the bounded vector plus uniform noise of one grid step in place of its rounding. Indices are those of the grid.

    Args:
        dim: channels of ``z``; as many as levels, unless a transform narrows them.
        levels: number of levels of each channel, 2 to 2^22 each; their product is the number of codes, 2^62 at most.
            The paper recommends at least 5, and [8, 5, 5, 5] for about 2^10 codes, [8, 8, 8, 6, 5] for 2^14.
        form: ``"paper"``, ``"symmetric"``, or ``"atanh"`` for the paper's grid with the bound of
            vector-quantize-pytorch, under which a vector of zeros is bounded to 0; of levels below 1,000.
        noise: share of a training batch's vectors that get noise instead of rounding, 0 to 1; may be changed later, but
            a layer made without noise stays without.
        scale: half-width of the grid. A level of a residual stack takes a finer one.
        clamp: bounds by cutting at the outermost levels instead of by tanh: what lies inside them is not distorted, and
            the code is the nearest of the grid. For later levels of a residual stack, which see what is left of a
            bounded vector. No gradient reaches what is cut off.
        transform: from ``z`` to the space of the codes and back; default ``Identity()``.
        estimator: the gradient that passes the rounding; default ``StraightThrough()``. One of signs sees each channel
            as its place beside the nearest threshold between two levels, in half-steps; not with ``noise``.
        losses: none by default.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch).

    Raises:
        ValueError, TypeError: at construction for impossible levels or a width that does not fit them; in ``forward``
            as in every quantizer. A failed call changes nothing.
        RuntimeError: in a training ``forward`` with noise that activation checkpointing repeats inside the backward.

    Source: arXiv 2309.15505, section 3.1 and appendix A.1 (grid, bound, eps); arXiv 2411.19842, section 3.2 (symmetric
    form and noise). The noise is drawn per vector, is a function of (seed, step, row), and is as wide as the grid step.

    Example:
        >>> layer = FiniteScalarQuantizer(1, [3])
        >>> out = layer(torch.tensor([[0.0], [10.0], [-10.0]]))
        >>> out.quantized[:, 0].tolist(), out.indices.tolist()
        ([0.0, 1.0, -1.0], [1, 2, 0])
        >>> FiniteScalarQuantizer(4, [8, 5, 5, 5]).codebook_size
        1000
    """

    has_thresholds = True
    levels: Tensor
    basis: Tensor
    form: Form = setting(check_choice, choices=get_args(Form), keeps="all")
    noise: float = setting(check_float, minimum=0, maximum=1, keeps="zero")
    scale: float = setting(check_float, minimum=0, open_minimum=True, keeps="all")
    clamp: bool = setting(check_bool, keeps="all")

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        form: Form = "paper",
        noise: float = 0.0,
        scale: float = 1.0,
        clamp: bool = False,
        transform: Transform | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__(dim, transform=transform, estimator=estimator, losses=losses, channel_dim=channel_dim)
        self._levels = self._check_levels(levels)
        self._check_width("levels", len(self._levels))
        self.form = form
        if self.form == "atanh" and max(self._levels) >= _MOST_OUTSIDE:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `levels` must be below {_MOST_OUTSIDE} each with form='atanh', whose bound "
                f"lies outside of the grid by a share of it. Got {max(self._levels)}."
            )
        self.noise = noise
        if self.noise and self.estimator.needs_signs:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `noise` must be 0 with {type(self.estimator).__name__}, which stands for "
                f"the derivative of the rounding that noise replaces. Got {self.noise}."
            )
        self.scale = scale
        self.clamp = clamp
        self.codebook_size = math.prod(self._levels)
        self.register_buffer("levels", torch.tensor(self._levels))
        self.register_buffer("basis", torch.tensor(self._basis()))
        zeros = zip(self._basis(), self._levels, strict=True)
        self._index_of_zero = sum(base * (count // 2) for base, count in zeros) if self.form != "symmetric" else 0
        self.clock = Clock() if self.noise else None
        self._declare(form=get_args(Form).index(self.form), scale=self.scale, clamp=self.clamp)
        self._is_bound = True

    def _check_levels(self, levels: Any) -> tuple[int, ...]:
        if not isinstance(levels, Sequence) or isinstance(levels, str):
            raise InvalidTypeError(
                f"`{type(self).__name__}`: `levels` must be a list of integers >= 2. Got {levels!r} "
                f"({type(levels).__name__})."
            )
        if not levels:
            raise InvalidValueError(f"`{type(self).__name__}`: `levels` must be a list of integers >= 2. Got none.")
        checked = tuple(check_int(self, "levels", level, 2) for level in levels)
        check_bits(self, "levels", math.prod(checked))
        if max(checked) > _MOST_LEVELS:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `levels` must be at most {_MOST_LEVELS:,} in each channel, which float32 "
                f"tells apart. Got {max(checked):,}; use several channels."
            )
        return checked

    def _basis(self) -> list[int]:
        return [math.prod(self._levels[:channel]) for channel in range(len(self._levels))]

    def reset_parameters(self) -> None:
        """Writes levels and settings anew, for a layer made on torch's meta device and given memory by ``to_empty``."""
        self.levels.copy_(torch.tensor(self._levels))
        self.basis.copy_(torch.tensor(self._basis()))
        super().reset_parameters()

    # --- maps on flat rows ----------------------------------------------------------------------------------------

    # Rows are narrow, and an operation with a number for each channel costs several times one with one for all.

    def bound(self, x: Tensor) -> Tensor:
        unit = self.scale / self._half(x.dtype)
        if self.clamp:
            return torch.minimum(x.clamp(min=-self.scale), (self.levels - 1) * unit - self.scale)
        x = x if self.scale == 1 else x / self.scale
        if self.form == "symmetric":
            return x.tanh() if self.scale == 1 else x.tanh() * self.scale
        is_paper = self.form == "paper"
        reach = (self.levels.to(x.dtype) - 1) * (0.5 * (1 - _EPS if is_paper else 1 + _EPS))
        offset = (self.levels % 2 == 0).to(x.dtype) * 0.5
        shift = (offset / reach).tan() if is_paper else (offset / reach).atanh()
        return torch.addcmul(-offset * unit, (x + shift).tanh(), reach * unit)

    def digits(self, z: Tensor) -> Tensor:
        """The grid's steps from the code 0 in the paper's form, from the lowest code in the symmetric one."""
        half = self._half(z.dtype)
        steps = half if self.scale == 1 else half / self.scale
        return (z * steps if self.form != "symmetric" else torch.addcmul(half, z, steps)).round()

    def index(self, digits: Tensor) -> Tensor:
        if self.codebook_size <= _EXACT and digits.device.type != "mps":
            index = (digits.double() @ self.basis.double()).long()
        else:
            index = (digits.long() * self.basis).sum(1)
        return index + self._index_of_zero if self._index_of_zero else index

    def split(self, indices: Tensor) -> Tensor:
        return indices[:, None] // self.basis % self.levels + self._lowest(torch.int64)

    def values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        half, digits = self._half(dtype), digits.to(dtype)
        code = digits / half if self.form != "symmetric" else (digits - half) / half
        return code if self.scale == 1 else code * self.scale

    def assign(self, z: Tensor) -> Tensor:
        lowest = self._lowest(z.dtype)  # of rows that nobody has bounded, too
        digits = torch.minimum(torch.maximum(self.digits(z), lowest), lowest + (self.levels - 1))
        return self.index(digits)

    def estimate(self, step: Step) -> Tensor:
        """As in ``Quantizer``; to an estimator of signs the rounding is a sign around the nearest threshold."""
        if not self.estimator.needs_signs:
            return super().estimate(step)
        threshold = self._threshold(step.z.detach())
        sign: Tensor = self.estimator(step.z - threshold, step.code - threshold)
        return step.code + (sign - sign.detach())

    def offsets(self, z: Tensor) -> Tensor:
        """Bounded rows (n, d) -> how far they are from the nearest threshold between two levels, in half-steps."""
        return (z - self._threshold(z)) * (2 * self._half(z.dtype) / self.scale)

    def _threshold(self, z: Tensor) -> Tensor:
        """The nearest one between two levels, (n, d)."""
        unit, lowest = self.scale / self._half(z.dtype), self._lowest(z.dtype)
        shift = self._half(z.dtype) if self.form == "symmetric" else 0.0  # digits count from the lowest code there
        place = torch.maximum(torch.minimum((z / unit + shift).floor(), lowest + (self.levels - 2)), lowest)
        return (place + 0.5 - shift) * unit

    def _half(self, dtype: torch.dtype) -> Tensor:
        """Steps of the grid in a half-width, (d,)."""
        return (self.levels // 2).to(dtype) if self.form != "symmetric" else (self.levels.to(dtype) - 1) / 2

    def _lowest(self, dtype: torch.dtype) -> Tensor:
        """Digit of the lowest code, (d,)."""
        return (-(self.levels // 2) if self.form != "symmetric" else 0 * self.levels).to(dtype)

    # --- noise in place of rounding -------------------------------------------------------------------------------

    def step(self, x: Tensor, valid: Tensor | None) -> Step:
        if self.clock is None or not self.training:
            return super().step(x, valid)
        self._check_not_recomputed()
        step = super().step(x, valid)
        self._advance(self.clock)
        if not self.noise:
            return step
        batch = Batch(step.z.detach(), valid, self.process_group, Draws(self.clock))
        return step._replace(code=self._with_noise(batch, step.code))

    @torch.no_grad()
    def _advance(self, clock: Clock) -> None:
        """One step on, with the first rank's clock on all ranks."""
        seed, step = stack_over_ranks(torch.stack([clock.seed, clock.step]), self.process_group)[0].unbind()
        clock.seed.copy_(seed)
        clock.step.copy_(step)
        clock.tick()

    def _with_noise(self, batch: Batch, code: Tensor) -> Tensor:
        z, rows = batch.z, batch.rows()
        # One more draw than channels says whether the vector gets noise.
        drawn = batch.draws.uniform("noise", (len(z), z.shape[1] + 1), z.dtype, rows=rows)
        noisy = z + (drawn[:, 1:] - 0.5) * (self.scale / self._half(z.dtype))
        return torch.where(drawn[:, :1] < self.noise, noisy, code)

    def _check_not_recomputed(self) -> None:
        if not torch.compiler.is_compiling() and in_backward():
            raise RuntimeError(
                f"`{type(self).__name__}`: this training forward with noise runs inside a backward pass, as "
                "activation checkpointing does. The second noise would not be that of the first. Keep the quantizer "
                "outside the checkpointed segment, or make it without noise."
            )

    # --- other people's programs ----------------------------------------------------------------------------------

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        saved = state_dict.get(prefix + "levels")
        if isinstance(saved, Tensor) and not saved.is_meta and tuple(saved.tolist()) != self._levels:
            raise InvalidValueError(
                f"`{type(self).__name__}`: the state must be of a layer with the levels {list(self._levels)}. "
                f"Got {saved.tolist()}."
            )
        super()._check_state(state_dict, prefix)

    def extra_repr(self) -> str:
        options = [f"dim={self.dim}, levels={list(self._levels)}, form={self.form!r}"]
        options += [f"noise={self.noise}"] if self.noise else []
        options += [f"scale={self.scale}"] if self.scale != 1 else []
        options += ["clamp=True"] if self.clamp else []
        return ", ".join([*options, f"channel_dim={self.channel_dim}"])
