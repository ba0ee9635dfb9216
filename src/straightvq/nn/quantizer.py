"""What every quantizer has in common: one way through, one result type, one input layout, bypass."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from straightvq.errors import InvalidTypeError, InvalidValueError, NonFiniteError
from straightvq.hub.pretrained import Pretrained
from straightvq.internals import is_exporting, register_named_tuple
from straightvq.nn.batch import Context
from straightvq.nn.codebook import Codebook
from straightvq.nn.part import (
    at_least_float32,
    can_ask,
    check_choice,
    check_int,
    check_module,
    check_part,
    count_beyond,
    count_not_finite,
    default,
    evaluating,
    keeping_float32,
    largest_value,
    making_float32,
    no_autocast,
)
from straightvq.nn.slots.estimators import Estimator, StraightThrough
from straightvq.nn.slots.losses import Loss
from straightvq.nn.slots.transforms import Identity, Transform

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class QuantizerOutput(NamedTuple):
    """What a quantizer returns, the same type for all of them.

    Attributes:
        quantized: same shape and dtype as ``z``; zeros where masked.
        indices: Int64, ``z``'s shape without the channel axis, for a composite with an axis of its quantizers behind;
            -1 where masked.
        loss: scalar, the weighted sum of the terms, ready to be added to the task loss.
        terms: unweighted scalars by name, in training and evaluation. With ``reduction = "none"`` loss and terms have
            ``z``'s shape without the channel axis.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], *_: Any) -> NoReturn:
        """Where torch wants a tensor and gets the whole output, as the layer behind ours in ``nn.Sequential`` does."""
        raise InvalidTypeError(
            f"`{cls.__name__}`: `{func.__name__}` takes a tensor. Give it `out.quantized`; in nn.Sequential write "
            "`straightvq.interop.Bare(quantizer)`, which returns `quantized` and keeps `loss`. Got the whole output."
        )


# So that an exported layer can be saved.
register_named_tuple(QuantizerOutput, "straightvq.QuantizerOutput")


class Step(NamedTuple):
    """What a quantizer makes of flat rows, before the estimator: all that a composite needs of a level.

    Attributes:
        z: what the codes stand for (n, d): the rows themselves, or what the quantizer bounds them to.
        indices: Int64 (n,), or (n, levels) for a composite; -1 where masked.
        code: the chosen codes (n, d), with the gradient that the estimator may send them.
        loss: scalar, weighted; (n,) with ``reduction = "none"``.
        terms: unweighted, by name, of the same shape.
        context: for parts that take it; None where the quantizer has no table.
        levels: of a composite, the steps of its quantizers.
    """

    z: Tensor
    indices: Tensor
    code: Tensor
    loss: Tensor
    terms: dict[str, Tensor]
    context: Context | None = None
    levels: tuple["Step", ...] = ()

    @staticmethod
    def sum(z: Tensor, levels: list["Step"]) -> "Step":
        """The step of a composite whose code for ``z`` is the sum of its levels' codes."""
        code, loss = levels[0].code, levels[0].loss
        terms = dict(levels[0].terms)
        for level in levels[1:]:
            code, loss = code + level.code, loss + level.loss
            for name, term in level.terms.items():
                terms[name] = terms[name] + term if name in terms else term
        indices = torch.stack([level.indices for level in levels], 1)
        return Step(z, indices, code, loss, terms, levels=tuple(levels))


class Quantizer(Pretrained, nn.Module, ABC):
    """Base of all quantizers: flattens ``z`` to channels-last rows, quantizes them and puts results back in place.

    A quantizer without a codebook gives ``codebook_size`` and three maps on rows: ``bound`` (the identity unless it
    says otherwise), ``assign`` and ``lookup``. Masks, dtypes, layout, checks, bypass and the losses are inherited.
    One with a codebook, or of several quantizers, overrides ``step``.

    Args:
        dim: channels of ``z``.
        transform: from ``z`` to the space of the codes and back; default ``Identity()``.
        estimator: the gradient that passes the layer; default ``StraightThrough()``.
        losses: none by default.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Attributes:
        codebook_size: number of codes: indices are in [0, codebook_size).
        check_finite: whether ``forward`` and ``encode`` refuse NaN, infinity, and values so large (2.8e14 in float32)
            that sums of their squares would overflow. On the CPU that is a ``NonFiniteError``, a ``ValueError``. Under
            ``torch.compile`` and on accelerators, where nobody can ask without waiting, the batch is treated as masked:
            it changes nothing, its indices are -1, and ``quantized`` and ``loss`` are NaN. Set it to False on the
            instance to switch it off.
        has_table: whether parts with ``takes_context`` can be served.
        has_signs: whether every coordinate of a code is a number or its negative, so that parts with ``takes_signs``
            can be served.
        has_thresholds: whether every coordinate is rounded by itself, to one of the two neighbours of a threshold, so
            that estimators with ``needs_signs`` can be served.
        is_composite: whether indices have an axis for its quantizers behind those of the vectors.
        num_quantizers: codes per vector, and the length of that axis.
    """

    settings: Tensor
    codebook_size: int
    check_finite: bool = True
    has_table: bool = False
    has_signs: bool = False
    has_thresholds: bool = False
    is_composite: bool = False
    num_quantizers: int = 1
    _is_bypassed = False
    _reduction = "mean"
    _step_hooks: OrderedDict[int, Callable[["Quantizer", Step], None]] | None = None
    _declared: dict[str, float] | None = None

    def __init__(
        self,
        dim: int,
        *,
        transform: Transform | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        self.dim = check_int(self, "dim", dim, 1)
        if not isinstance(channel_dim, int) or isinstance(channel_dim, bool):
            raise InvalidTypeError(f"`{type(self).__name__}`: `channel_dim` must be an integer. Got {channel_dim!r}.")
        self.channel_dim = channel_dim
        self.transform: Transform = check_part(self, "transform", default(transform, Identity), Transform)
        self.estimator: Estimator = check_part(self, "estimator", default(estimator, StraightThrough), Estimator)
        self.losses = nn.ModuleList(_check_losses(self, losses))
        for part in (self.estimator, *self._losses()):
            if part.takes_context and not (self.has_table or (self.has_signs and part.takes_signs)):
                raise InvalidValueError(
                    f"`{type(self).__name__}`: {type(part).__name__} looks at the table of codes, and there is none. "
                    "Use a part that takes vectors and codes only."
                )
        if self.estimator.needs_signs and not self.has_thresholds:
            raise InvalidValueError(
                f"`{type(self).__name__}`: {type(self.estimator).__name__} stands for the derivative of a sign, and "
                "these codes are no signs. Use it in a LookupFreeQuantizer, BinarySphericalQuantizer or "
                "FiniteScalarQuantizer."
            )
        with making_float32():
            self.transform.bind(self.dim)

    def _declare(self, **settings: float) -> None:
        """Writes into the state what it is a state of, where shapes do not say so: loading refuses another one's."""
        self._declared = settings
        with making_float32():
            self.register_buffer("settings", self._settings())

    def _settings(self) -> Tensor:
        return torch.tensor(list((self._declared or {}).values()), dtype=torch.get_default_dtype())

    def reset_parameters(self) -> None:
        """Writes the settings anew, for a layer made on torch's meta device and given memory by ``to_empty``."""
        if self._declared is not None:
            self.settings.copy_(self._settings())

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes for each entry of the last axis of a composite's indices, (num_quantizers,)."""
        return [self.codebook_size] * self.num_quantizers

    @property
    def reduction(self) -> str:
        """``"mean"``, or ``"none"`` for loss and terms per vector (0 where masked), of all quantizers inside."""
        return self._reduction

    @reduction.setter
    def reduction(self, value: str) -> None:
        value = check_choice(self, "reduction", value, ("mean", "none"))
        quantizers = [module for module in self.modules() if isinstance(module, Quantizer)]
        for loss in (loss for quantizer in quantizers for loss in quantizer._losses()):
            if value == "none" and not loss.has_vectors:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `reduction` must be 'mean', because {type(loss).__name__} has no value "
                    f"per vector. Got {value!r}."
                )
        for quantizer in quantizers:
            quantizer._reduction = value

    def register_step_hook(self, hook: Callable[["Quantizer", Step], None]) -> RemovableHandle:
        """Has ``hook(quantizer, step)`` called after each of its steps, also as a part of a composite.

        The step is that of flat rows in the space of the codes, in training and evaluation; ``encode`` makes none. A
        copy of the quantizer has no hooks.

        Returns:
            a handle; ``handle.remove()`` takes the hook away.
        """
        if not callable(hook):
            raise InvalidTypeError(f"`{type(self).__name__}`: `hook` must be callable. Got {hook!r}.")
        if self._step_hooks is None:
            self._step_hooks = OrderedDict()  # a plain dict cannot be referred to weakly
        handle = RemovableHandle(self._step_hooks)
        self._step_hooks[handle.id] = hook
        return handle

    def tell(self, step: Step) -> None:
        """Calls the step hooks."""
        for hook in tuple((self._step_hooks or {}).values()):
            hook(self, step)

    def _losses(self) -> list[Loss]:
        return [loss for loss in self.losses if isinstance(loss, Loss)]

    # --- one vector's way through ---------------------------------------------------------------------------------

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantizes ``z``; see the class for shapes. Steps 0 to 7 are those of the concepts page."""
        return self._quantize(z, mask, self.step)

    def _quantize(
        self, z: Tensor, mask: Tensor | None, step_of: Callable[[Tensor, Tensor | None], Step]
    ) -> QuantizerOutput:
        """``forward`` with another ``step``."""
        self._check(z, mask)
        with no_autocast(z.device):
            rows, valid, sound = self._flatten(z, mask)  # 0
            x = self.transformed(rows)  # 1
            if self._is_bypassed:
                step = self._without_codes(x)
                quantized = step.z
            else:
                step = step_of(x, valid)  # 2, 3, 4, 6
                quantized = self.estimate(step)  # 5
            self.tell(step)
            out = self._inverse(quantized, valid)  # 7
            return self._output(z, out, step, sound)

    @torch.no_grad()
    def encode(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Indices by the evaluation rule, whatever the mode; changes no state.

        Returns:
            Int64, ``z``'s shape without the channel axis; -1 where masked.
        """
        self._check(z, mask)
        with no_autocast(z.device), evaluating(self) as still:
            rows, valid, _ = self._flatten(z, mask)
            indices = where_valid(still.assign(still.bound(still.transformed(rows))), valid)
        return self._view_indices(indices, z)

    def decode(self, indices: Tensor) -> Tensor:
        """What the evaluation forward gives for these indices, in the codebook's dtype; zeros for -1.

        Args:
            indices: integers (*batch), each in ``[-1, codebook_size)``; of a composite (*batch, levels), where the
                last levels may be missing. One out of range raises on the CPU, and gives NaN where nobody can ask.

        Returns:
            Float (*batch, dim), the channels on ``channel_dim``.
        """
        inside = self._check_indices(indices)
        batch = indices.shape[:-1] if self.is_composite else indices.shape
        flat = indices.reshape(-1, *indices.shape[len(batch) :]).long()
        if inside is not None:
            flat = torch.where(inside.reshape(flat.shape), flat, -1)
        valid = (flat >= 0).any(1) if self.is_composite else flat >= 0
        with no_autocast(indices.device), evaluating(self) as still:
            out = still._inverse(still.lookup(flat), valid)
        if inside is not None:
            inside = inside.all(-1) if self.is_composite else inside
            out = torch.where(inside.reshape(-1, 1), out, math.nan)
        return out.reshape(*batch, self.dim).movedim(-1, self.channel_dim).contiguous()

    @torch.no_grad()
    def unquantized(self, z: Tensor) -> Tensor:
        """The transform and its inverse, without the codes: quantization with no error.

        It differs from ``forward(z).quantized`` by the quantization error alone, which makes it the place to compare
        gradients at (`straightvq.diagnostics.estimator_gap`). By the evaluation rule; changes no state.

        Returns:
            The shape and dtype of ``z``, detached.

        Example:
            >>> import straightvq as svq
            >>> layer = svq.VectorQuantizer(2, svq.Codebook(4), transform=svq.UnitNorm())
            >>> layer.unquantized(torch.tensor([[3.0, 4.0]]))
            tensor([[0.6000, 0.8000]])
        """
        self._check(z, None)
        with no_autocast(z.device), evaluating(self) as still:
            flat = z.movedim(self.channel_dim, -1).reshape(-1, self.dim)
            return self._unflatten(still.without_codes_rows(flat), z)

    # --- maps on flat rows: what a quantizer is -------------------------------------------------------------------

    def bound(self, x: Tensor) -> Tensor:
        """Rows (n, d) -> rows (n, d), differentiable: what happens to a vector before a code is chosen for it."""
        return x

    @abstractmethod
    def assign(self, z: Tensor) -> Tensor:
        """Bounded rows (n, d) -> indices Int64 (n,) by the evaluation rule."""

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Indices Int64 (n,) -> rows (n, d); any row for -1."""

    def step(self, x: Tensor, valid: Tensor | None) -> Step:
        """Rows (n, d), valid Bool (n,) or None -> codes, indices and losses, without the estimator.

        In training state may change here, once, before the codes are read.
        """
        z = self.bound(x)
        indices = where_valid(self.assign(z.detach()), valid)
        code = self.lookup(indices.clamp(min=0)).to(z.dtype)
        loss, terms = self._measure(z, code, valid, None)
        return Step(z, indices, code, loss, terms)

    def without_codes(self, x: Tensor) -> Tensor:
        """Rows (n, d) -> rows (n, d), differentiable: what ``estimate`` would give if every vector were a code."""
        return self.bound(x)

    def estimate(self, step: Step) -> Tensor:
        """The codes of a step, (n, d), with the gradient of the estimator."""
        return self.estimator.estimate(step.z, step.code, step.context)

    # --- for composites, which give rows of their own -------------------------------------------------------------

    def step_rows(self, rows: Tensor, valid: Tensor | None, **given: Any) -> Step:
        """``step`` of rows (n, dim) before the transform."""
        return self.step(self.transformed(rows), valid, **given)

    def estimate_rows(self, rows: Tensor, step: Step) -> Tensor:
        """``estimate``, after the inverse transform, with the gradient to ``rows`` (n, dim), whose step this was."""
        return self.transform.inverse(self.estimate(step._replace(z=self.bound(self.transformed(rows)))))

    def assign_rows(self, rows: Tensor) -> Tensor:
        """``assign`` of rows (n, dim) before the transform."""
        return self.assign(self.bound(self.transformed(rows)))

    def lookup_rows(self, indices: Tensor) -> Tensor:
        """``lookup``, after the inverse transform: rows (n, dim)."""
        return self.transform.inverse(self.lookup(indices))

    def without_codes_rows(self, rows: Tensor) -> Tensor:
        """``without_codes`` of rows (n, dim) before the transform, and after its inverse."""
        return self.transform.inverse(self.without_codes(self.transformed(rows)))

    def codebooks(self) -> list[Codebook]:
        """All codebooks inside, each once: what monitors, freezing and the laws run over."""
        return [module for module in self.modules() if isinstance(module, Codebook)]

    def freeze(self) -> None:
        """Freezes every codebook inside; see ``Codebook.freeze``."""
        for book in self.codebooks():
            book.freeze()

    def unfreeze(self) -> None:
        """Undoes ``freeze``."""
        for book in self.codebooks():
            book.unfreeze()

    def _measure(
        self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses, connected to ``z`` whatever they are, and the terms."""
        if self._reduction == "none":
            terms = {loss.name: where_valid(loss.per_vector(z, code), valid, 0) for loss in self._losses()}
            zero = zero_of(z).expand(z.shape[0])
            return sum((loss.coefficient * terms[loss.name] for loss in self._losses()), start=zero), terms
        terms = {loss.name: loss.measure(z, code, valid, context) for loss in self._losses()}
        for name, term in terms.items():
            if term.ndim:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: the loss {name!r} must be a scalar. Got shape {tuple(term.shape)}."
                )
        return sum((loss.coefficient * terms[loss.name] for loss in self._losses()), start=zero_of(z)), terms

    def _without_codes(self, x: Tensor) -> Step:
        """The step under ``bypass``."""
        z = self.without_codes(x)
        zero = zero_of(z) if self._reduction == "mean" else zero_of(z).expand(z.shape[0])
        shape = (z.shape[0], self.num_quantizers) if self.is_composite else z.shape[:1]
        indices = torch.full(shape, -1, dtype=torch.int64, device=z.device)
        return Step(z, indices, z, zero, dict.fromkeys((m.name for m in self.modules() if isinstance(m, Loss)), zero))

    def transformed(self, rows: Tensor) -> Tensor:
        return self.transform(rows.to(self._work_dtype(rows.dtype)))

    def _work_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """In what rows of ``dtype`` are computed with: at least float32, and no less than the codes."""
        for book in self.codebooks():
            dtype = torch.promote_types(dtype, book.raw.dtype)
        return at_least_float32(dtype)

    def _inverse(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        out = self.transform.inverse(rows)
        return out if valid is None else torch.where(valid[:, None], out, 0)

    # --- layout ---------------------------------------------------------------------------------------------------

    def _flatten(self, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """z -> rows (n, dim), zeros where masked; valid Bool (n,) or None; and whether all is finite, if not known."""
        flat = z.movedim(self.channel_dim, -1).reshape(-1, self.dim)
        valid = None if mask is None else mask.reshape(-1)
        if valid is not None:
            flat = torch.where(valid[:, None], flat, 0)
        sound = self._check_values(flat)
        if sound is not None:
            valid = sound.expand(flat.shape[0]) if valid is None else valid & sound
            flat = torch.where(sound, flat, 0)
        return flat, valid, sound

    def _output(self, z: Tensor, rows: Tensor, step: Step, sound: Tensor | None) -> QuantizerOutput:
        # Wrappers for data-parallel training wait for every parameter's gradient, and a step may leave some out.
        loss = sum((zero_of(p) for p in self.parameters() if p.requires_grad), start=step.loss)
        if sound is not None:
            rows, loss = torch.where(sound, rows, math.nan), torch.where(sound, loss, math.nan)
        quantized = self._unflatten(rows, z)
        if self._is_bypassed:
            quantized = quantized.clone()  # the caller may change it in place, and it may be z
        terms = step.terms
        if self._reduction == "none":
            loss = self._view_indices(loss.expand(rows.shape[0]), z)
            terms = {name: self._view_indices(term, z) for name, term in terms.items()}
        return QuantizerOutput(quantized, self._view_indices(step.indices, z), loss, terms)

    def _unflatten(self, rows: Tensor, z: Tensor) -> Tensor:
        """rows (n, dim) -> the shape and dtype of z, and contiguous if z is."""
        out = rows.to(z.dtype).reshape(z.movedim(self.channel_dim, -1).shape).movedim(-1, self.channel_dim)
        return out.contiguous() if z.is_contiguous() else out

    def _view_indices(self, indices: Tensor, z: Tensor) -> Tensor:
        batch = z.movedim(self.channel_dim, -1).shape[:-1]
        return indices.view(batch + indices.shape[1:])

    # --- checks ---------------------------------------------------------------------------------------------------

    def _check(self, z: Tensor, mask: Tensor | None) -> None:
        owner = type(self).__name__
        if not isinstance(z, Tensor):
            raise InvalidTypeError(f"`{owner}`: `z` must be a tensor. Got {type(z).__name__}.")
        if not z.is_floating_point():
            raise InvalidTypeError(f"`{owner}`: `z` must be floating point. Got {z.dtype}.")
        rank = z.ndim
        if not -rank <= self.channel_dim < rank:
            raise InvalidValueError(f"`{owner}`: `z` must have an axis {self.channel_dim}. Got shape {tuple(z.shape)}.")
        if z.shape[self.channel_dim] != self.dim:
            fits = [axis for axis in range(rank) if z.shape[axis] == self.dim]
            hint = f" Its axis {fits[0]} has that size: pass channel_dim={fits[0]}?" if fits else ""
            raise InvalidValueError(
                f"`{owner}`: `z` must have {self.dim} channels on axis {self.channel_dim}. "
                f"Got {z.shape[self.channel_dim]}, shape {tuple(z.shape)}.{hint}"
            )
        if mask is None:
            return
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InvalidTypeError(f"`{owner}`: `mask` must be a boolean tensor, True where valid. Got {got}.")
        expected = z.movedim(self.channel_dim, -1).shape[:-1]
        if mask.shape != expected:
            raise InvalidValueError(
                f"`{owner}`: `mask` must have the shape of `z` without its channel axis, {tuple(expected)}. "
                f"Got {tuple(mask.shape)}."
            )

    def _check_values(self, flat: Tensor) -> Tensor | None:
        """Raises where the values can be asked for; elsewhere returns whether they are sound, Bool ()."""
        if not self.check_finite or is_exporting() or flat.numel() == 0:
            return None
        dtype = at_least_float32(flat.dtype)
        low, high = (v.to(dtype) for v in flat.detach().aminmax())  # one pass; NaN comes through
        limit = largest_value(dtype)
        sound = (low >= -limit) & (high <= limit)
        if not can_ask(sound):
            return sound
        if not sound:
            finite = bool(torch.isfinite(low + high))
            expected = f"at most {limit:.2g} in size, so that sums of squares do not overflow" if finite else "finite"
            got = count_beyond(flat.detach(), limit) if finite else count_not_finite(flat)
            raise NonFiniteError(
                f"`{type(self).__name__}`: `z` must be {expected}. Got {got} (rows of {self.dim} channels). Nothing "
                "was changed; set `check_finite = False` on the layer to skip this check."
            )
        return None

    def _check_indices(self, indices: Tensor) -> Tensor | None:
        """Raises where the values can be asked for; elsewhere returns which are in range."""
        owner = type(self).__name__
        if not isinstance(indices, Tensor) or indices.dtype not in _INTEGERS:
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise InvalidTypeError(f"`{owner}`: `indices` must be an integer tensor. Got {got}.")
        if self.is_composite and not (indices.ndim and 1 <= indices.shape[-1] <= self.num_quantizers):
            raise InvalidValueError(
                f"`{owner}`: `indices` must have 1 to {self.num_quantizers} entries on its last axis. "
                f"Got shape {tuple(indices.shape)}."
            )
        axes = indices.ndim + (not self.is_composite)  # of the vectors that come out
        if not -axes <= self.channel_dim < axes:
            raise InvalidValueError(
                f"`{owner}`: `indices` must have enough axes for vectors with their channels on axis "
                f"{self.channel_dim}. Got shape {tuple(indices.shape)}."
            )
        if is_exporting() or indices.numel() == 0:
            return None
        # Comparing in a narrow dtype would wrap -1 and the size around; of an unsigned one nothing is below 0.
        least = -1 if indices.dtype.is_signed else 0
        indices = indices.long()
        sizes = self.codebook_sizes[: indices.shape[-1]] if self.is_composite else [self.codebook_size]
        largest = torch.tensor(sizes, device=indices.device) - 1 if len(set(sizes)) > 1 else sizes[0] - 1
        inside = (indices >= least) & (indices <= largest)
        if not can_ask(inside):
            return inside
        if not inside.all():
            low, high = (int(v) for v in indices.aminmax())
            allowed = (
                f"[0, {sizes[0]})" if len(set(sizes)) == 1 else f"[0, size) for the sizes {sizes} of its quantizers"
            )
            raise InvalidValueError(
                f"`{owner}`: `indices` must be in {allowed}, or -1 for masked positions. "
                f"Got values from {low} to {high}."
            )
        return None

    # --- other people's programs ----------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keeping_float32(fn), recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, value in state_dict.items():  # with `assign` they become the state, of all parts
            if name.startswith(prefix) and isinstance(value, Tensor):
                state_dict[name] = keeping_float32(lambda tensor: tensor)(value)
        for path, part in self.named_modules():  # all of them before the first takes its state
            if isinstance(part, Quantizer):
                part._check_state(state_dict, f"{prefix}{path}." if path else prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Refuses the state of another kind of layer, whose shapes may be the same."""
        if self._declared is None:
            return
        own = self._declared
        saved = state_dict.setdefault(prefix + "settings", self.settings)  # an earlier version's states do not say
        if not isinstance(saved, Tensor) or saved.is_meta:
            return
        theirs = dict(zip(own, saved.tolist(), strict=False)) if saved.ndim == 1 else {}
        if any(not math.isclose(own[key], theirs.get(key, math.nan), rel_tol=1e-5) for key in own):
            raise InvalidValueError(
                f"`{type(self).__name__}`: the state must be of a layer with {_listed(own)}. Got {_listed(theirs)}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: not that it was made inside ``bypass``, nor who was told of its steps."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_is_bypassed", "_step_hooks")}

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise InvalidValueError(
            f"`{type(self).__name__}`: torch.nn.DataParallel would train the codebook of one replica and quantize "
            "with the others. Use DistributedDataParallel."
        )


@contextlib.contextmanager
def bypass(module: nn.Module) -> Iterator[None]:
    """While it lasts every quantizer inside ``module`` leaves its codes out: no search, no state change.

    ``quantized`` is the transform and its inverse of ``z`` (``z`` itself for most layers; zeros where masked), in a
    composite with those of its parts, each on what it would be given if every vector were a code;
    ``indices`` are -1, ``loss`` and ``terms`` are 0 and still connected to all parameters. For training the first
    steps of an autoencoder unquantized, and for measuring what quantization costs.

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


def _listed(settings: dict[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in settings.items()) or "others"


def zero_of(x: Tensor) -> Tensor:
    """A scalar 0 that is connected to ``x``, whatever that holds."""
    # Its gradient is one 0, expanded; that of an empty slice of x would be a tensor of zeros.
    return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x.sum(), 0) if x.requires_grad else _zero(x)


def _zero(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype, device=x.device)


def where_valid(values: Tensor, valid: Tensor | None, other: int = -1) -> Tensor:
    if valid is None:
        return values
    return torch.where(valid.view(-1, *(1 for _ in values.shape[1:])), values, other)


def _check_losses(owner: Quantizer, losses: list[Loss] | None) -> list[Loss]:
    if losses is not None and not isinstance(losses, (Sequence, nn.ModuleList)):
        raise InvalidTypeError(
            f"`{type(owner).__name__}`: `losses` must be a list of losses. Got {type(losses).__name__}."
        )
    checked: list[Loss] = [check_part(owner, "losses", loss, Loss) for loss in losses or []]
    names = [getattr(loss, "name", None) for loss in checked]
    for name in names:
        if not isinstance(name, str):
            raise InvalidTypeError(f"`{type(owner).__name__}`: every loss must have a `name`, a string. Got {name!r}.")
        if names.count(name) > 1:
            raise InvalidValueError(
                f"`{type(owner).__name__}`: `losses` must have different names. Got {name!r} twice."
            )
    return checked
