"""The codebook: the only owner of code vectors."""

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from straightvq.functional.draws import draw_integers
from straightvq.functional.sums import code_sums
from straightvq.nn.batch import Batch
from straightvq.nn.inits import Init, NormalInit
from straightvq.nn.parametrizations import Direct, Parametrization
from straightvq.nn.part import Part, check_int, check_part, keeping_float32, making_float32
from straightvq.nn.ranks import Group, Message, copy_from_first_rank, rows_of_first_rank, rows_over_ranks
from straightvq.nn.resets import Clock, Reset
from straightvq.nn.updates import Assigned, GradientUpdate, Update

_INIT = 0  # stream of random draws
# A data-dependent init repeats on all vectors seen so far until there are this many per code ...
_ENOUGH = 4
# ... and looks at no more than this many: more do not improve the centres.
_PLENTY = 64


class Codebook(Part):
    """A table of code vectors with the rules that start, map, move and revive them.

    The raw table is turned into effective codes by the parametrization; everything outside this class sees
    effective codes. In training each forward may change the table before it is read: initialise once, follow
    running statistics, rewrite dead codes, take the update's own step. In evaluation nothing changes.

    All state is in parameters and buffers. ``raw`` is a parameter only if a gradient reaches it, else a buffer, so
    that data-parallel wrappers neither wait for its gradient nor shard it.

    Args:
        size: number of codes, at least 2.
        dim: width of a code; None lets the quantizer set it from its transform. If given it must agree.
        parametrization: map from raw to effective codes; default ``Direct()``.
        init: where the codes start; default ``NormalInit()``. A data-dependent init fills every row in the first
            training forward and repeats on the pooled batches while fewer than four vectors per code were seen.
        update: the rule that owns the raw table; default ``GradientUpdate()``.
        reset: what happens to dead codes; default None, nothing.

    Attributes:
        process_group: ranks that share the codebook: None for the default group of ``torch.distributed`` if there is
            one at call time, a ``ProcessGroup`` that this process belongs to, or False for no synchronisation. It is
            no part of the state: a copy shares the group, a saved state does not know it.

    Raises:
        TypeError, ValueError: for parts of the wrong kind and for combinations that contradict each other.

    Source: arXiv 2305.08842; the order of one training step is in the documentation's concepts page.

    Example:
        >>> codebook = Codebook(512, reset=None)
        >>> codebook
        Codebook(
          size=512
          (parametrization): Direct()
          (init): NormalInit(std=1.0)
          (update): GradientUpdate()
        )
    """

    raw: Tensor
    is_ready: Tensor
    is_set: Tensor
    is_frozen: Tensor
    pool: Tensor
    rewritten: Tensor
    seed: Tensor
    step: Tensor

    def __init__(
        self,
        size: int,
        dim: int | None = None,
        *,
        parametrization: Parametrization | None = None,
        init: Init | None = None,
        update: Update | None = None,
        reset: Reset | None = None,
    ) -> None:
        super().__init__()
        self.size = check_int(self, "size", size, 2)
        self.dim = None if dim is None else check_int(self, "dim", dim, 1)
        self.parametrization = check_part(self, "parametrization", _or(parametrization, Direct), Parametrization)
        self.init = check_part(self, "init", _or(init, NormalInit), Init)
        self.update = check_part(self, "update", _or(update, GradientUpdate), Update)
        self.reset = None if reset is None else check_part(self, "reset", reset, Reset)
        self._check_learned()
        self.process_group: Group = None
        self._ready = self._frozen = False
        self._handle = _register(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": _Shared(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "process_group": state["process_group"].group})
        self._handle = _register(self)  # a copy is another codebook

    def _check_learned(self) -> None:
        if self.parametrization.is_learned and not self.update.loss_trains_parametrization:
            raise ValueError(
                f"`Codebook`: {_kind(self.parametrization)} has parameters that need a gradient, and with "
                f"{_kind(self.update)} none reaches them. Use GradientUpdate or AlternatedUpdate, "
                "or RunningAffine, which follows statistics instead."
            )

    # --- construction -------------------------------------------------------------------------------------------

    @making_float32()
    def bind(self, dim: int, *, raw_takes_gradient: bool) -> None:
        """Makes the table and all state. Called once, by the quantizer that owns this codebook.

        Args:
            dim: width of a code.
            raw_takes_gradient: whether the raw table is to be a parameter.
        """
        if self.dim is not None and self.dim != dim:
            raise ValueError(
                f"`Codebook`: `dim` must equal the width {dim} that the quantizer's transform gives. Got {self.dim}."
            )
        self.parametrization.bind(self.size, dim)  # first: the only one that may refuse the sizes
        self._bind_once()
        self.dim = dim
        self._check_learned()  # again: some parts show their parameters only now
        self.update.bind(self.size, dim)
        if self.reset is not None:
            self.reset.bind(self.size, dim)
        with torch.no_grad():
            start = self.init.start(self.size, dim).to(torch.get_default_dtype())
            raw = self.parametrization.inverse(start)  # its statistics wait for data
        if raw_takes_gradient:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)
        self.register_buffer("is_ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("is_set", torch.zeros((), dtype=torch.bool))
        self.register_buffer("is_frozen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("rewritten", torch.zeros(self.size, dtype=torch.bool))
        self.register_buffer("seed", torch.randint(1 << 62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        # Part of the state, but no buffer: its length varies, and whoever averages models copies buffers one to one.
        self.pool = raw.new_empty(0, dim)
        self._read_flags()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts over as if just made: with the start of the init, a new seed, no statistics, not frozen.

        For a codebook that was made on torch's meta device and has been given memory by ``to_empty``.
        """
        self._require_bound()
        twin = copy.deepcopy(self)
        for module in twin.modules():
            module._parameters.clear()
            module._buffers.clear()
            if isinstance(module, Part):
                module._is_bound = False
        with torch.device("cpu"):
            twin.bind(self.raw.shape[1], raw_takes_gradient=isinstance(self.raw, nn.Parameter))
        self.pool = self.pool[:0].clone()
        fresh = twin.state_dict()
        for name, tensor in self.state_dict().items():
            tensor.copy_(fresh[name])
        self._read_flags()

    def _read_flags(self) -> None:
        """Python's copies of the two flags, so that no forward has to ask the device."""
        if self.is_ready.is_meta:
            return  # no values yet
        self._ready = bool(self.is_ready)
        was_frozen, self._frozen = self._frozen, bool(self.is_frozen)
        if self._frozen != was_frozen:
            for parameter in self.parameters():
                parameter.requires_grad_(not self._frozen)
                if self._frozen:
                    parameter.grad = None  # an optimizer skips it: no weight decay, no momentum

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Codebook":
        super()._apply(fn, recurse)
        if self._is_bound:
            self.pool = keeping_float32(fn)(self.pool)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._is_bound:
            destination[prefix + "pool"] = self.pool

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = prefix + "pool"
        pool = state_dict.pop(name, None) if self._is_bound else None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if not self._is_bound:
            return
        if pool is None:
            missing_keys.append(name)
        elif pool.ndim != 2 or pool.shape[1] != self.pool.shape[1]:
            error_msgs.append(f"size mismatch for {name}: expected (n, {self.pool.shape[1]}). Got {tuple(pool.shape)}.")
        elif local_metadata.get("assign_to_params_buffers", False):
            self.pool = pool.detach()
        else:
            self.pool = pool.detach().to(self.pool, copy=True)
        self._read_flags()

    # --- reading and writing ------------------------------------------------------------------------------------

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Effective codes (size, dim), detached."""
        self._require_bound()
        return self.parametrization(self.raw).detach()

    def tables(self) -> tuple[Tensor, Tensor]:
        """Effective codes twice: as the estimator's gradient may train them, and as the codebook loss may.

        Which of raw table and parametrization a gradient reaches is the update's to say.
        """
        if self._frozen:
            codes = self.codes()
            return codes, codes
        # Autograd may keep the table it maps; the next training forward writes into `raw`, so it gets a copy.
        raw = self.raw.clone() if self.parametrization.saves_table else self.raw
        takes_raw = self.update.takes_task_gradient and raw.requires_grad
        if takes_raw or (self.update.takes_task_gradient and self.parametrization.is_learned):
            task = self.parametrization(raw)
        else:
            task = self.codes()
        if self.update.loss_trains_raw or not task.requires_grad:
            loss = task
        elif self.update.loss_trains_parametrization and self.parametrization.is_learned:
            loss = self.parametrization(raw.detach())
        else:
            loss = task.detach()
        return task, loss

    @torch.no_grad()
    def write(self, codes: Tensor, rows: Tensor) -> None:
        """Writes effective ``codes`` (size, dim) through the parametrization's inverse where ``rows`` is set."""
        raw = self.parametrization.rebase(self.raw, rows)
        written = self.parametrization.inverse(codes.to(self.raw.dtype))
        self.raw.copy_(torch.where(rows[:, None], written, raw))

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Replaces all effective codes; no init will overwrite them, and all per-row state starts over.

        Shape:
            codes: Float (size, dim).

        Raises:
            TypeError, ValueError: for another type or shape, NaN or infinity; nothing is changed then.
        """
        self._require_bound()
        if not isinstance(codes, Tensor) or not codes.is_floating_point():
            got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise TypeError(f"`set_codes`: `codes` must be a floating-point tensor. Got {got}.")
        if tuple(codes.shape) != (self.size, self.dim):
            raise ValueError(f"`set_codes`: `codes` must have shape {(self.size, self.dim)}. Got {tuple(codes.shape)}.")
        if not torch.isfinite(codes).all():
            raise ValueError(f"`set_codes`: `codes` must be finite. Got {_count_not_finite(codes)}.")
        self._adopt(codes.to(self.raw))
        self.pool = self.pool[:0].clone()
        self.is_set.fill_(True)

    def _adopt(self, codes: Tensor) -> None:
        self.raw.copy_(self.parametrization.adopt(codes))
        self._forget(None)

    def _forget(self, rows: Tensor | None) -> None:
        """Everything that belonged to rewritten rows starts over (None: all rows)."""
        self.update.forget(rows)
        if self.reset is not None:
            self.reset.forget(rows)
        if rows is None:
            self.rewritten.fill_(True)
        else:
            self.rewritten.logical_or_(rows)

    def _require_bound(self) -> None:
        if not self._is_bound:
            raise ValueError(
                "`Codebook`: it has no vectors before a quantizer owns it. Pass it to VectorQuantizer(dim, codebook)."
            )

    def _mark_ready(self) -> None:
        self.pool = self.pool[:0].clone()
        self.is_ready.fill_(True)
        self._ready = True

    @property
    def is_still(self) -> bool:
        """Whether it is frozen, so that no forward changes it."""
        return self._frozen

    def freeze(self) -> None:
        """Stops everything that moves codes: gradients, updates, statistics, init and resets. Saved in the state."""
        self._require_bound()
        self.is_frozen.fill_(True)
        self._read_flags()

    def unfreeze(self) -> None:
        """Undoes ``freeze``."""
        self._require_bound()
        self.is_frozen.fill_(False)
        self._read_flags()

    # --- one training step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(self, z: Tensor, valid: Tensor | None, search: Callable[[Tensor], Tensor]) -> Assigned:
        """All in-place changes of one training forward, before the codes are read.

        Args:
            z: vectors (n, dim), detached, finite.
            valid: Bool (n,), or None for all.
            search: effective codes -> indices, -1 where not valid.

        Returns:
            what the update knows of the batch's assignment.
        """
        if not (self._ready or self._frozen or torch.compiler.is_compiling()):
            self._read_flags()  # a data-parallel wrapper copies the first rank's buffers to the others
        if self._frozen:
            return Assigned(None, None)
        batch = Batch(z, valid, self.process_group)
        if not self._ready:
            self._initialise(z, valid)
        else:
            self.parametrization.observe(batch, self.raw)
        if self.reset is not None:
            due = self.reset.due(batch, Clock(self.seed, self.step))
            if due is not None:
                rows, vectors = due
                self.write(vectors, rows)
                self._forget(rows)
        assigned = self.update.step(self, z, search)
        self.step.add_(1)
        return Assigned(None, None) if assigned is None else assigned

    @torch.no_grad()
    def record(self, z: Tensor, indices: Tensor, counts: Tensor | None) -> None:
        """Tells reset and parametrization how the batch was assigned; ``counts`` if the update has pulled them."""
        if self._frozen:
            return
        if counts is None:
            message = self._message(z, indices)
            if self.reset is None and message.is_empty:
                return
            counts = message.send(code_sums(z[:, :0], indices, self.size)[0])
        if self.reset is not None:
            self.reset.record(counts)

    def pull(self, z: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (k,) and sums of ``z - code`` per code (k, d), over all ranks.

        Differences, not vectors, are summed: they keep their digits when the data are far from the origin.
        """
        counts, sums = code_sums(z - codes.index_select(0, indices.clamp(min=0)), indices, self.size)
        both = self._message(z, indices).send(torch.cat([counts[:, None], sums], 1))
        return both[:, 0], both[:, 1:]

    def _message(self, z: Tensor, indices: Tensor) -> Message:
        """For sums over an assignment; what the parametrization remembers of it travels along."""
        message = Message(self.process_group)
        self.parametrization.remember(z, indices, message)
        return message

    def _initialise(self, z: Tensor, valid: Tensor | None) -> None:
        if torch.compiler.is_compiling():
            # The first steps look at sizes and flags on the host, which a graph cannot; an opaque op can.
            torch.ops.straightvq.initialise(self._fixed_state(), z, valid, self._handle)
        else:
            self._initialise_now(z, valid)

    def _fixed_state(self) -> list[Tensor]:
        """All state of constant shape: what an init may change, but for the pool.

        The pool is not even looked at: a graph that has seen it is made anew whenever its length changes.
        """
        own = (self.raw, self.is_ready, self.is_set, self.is_frozen, self.rewritten, self.seed, self.step)
        others = (t for part in self.children() for t in (*part.parameters(), *part.buffers()))
        return [t.detach() for t in (*own, *others)]

    def _initialise_now(self, z: Tensor, valid: Tensor | None) -> None:
        """Makes all ranks equal, then fits the codes to all vectors seen so far."""
        for tensor in (*self.parameters(), *self.buffers()):
            copy_from_first_rank(tensor.detach(), self.process_group)
        self.pool = rows_of_first_rank(self.pool.to(z.device), self.process_group)
        if self.is_set or not self.init.needs_data:
            self.parametrization.observe(Batch(z, valid, self.process_group), self.raw)
            self._mark_ready()
            return
        rows = rows_over_ranks(z if valid is None else z[valid], self.process_group)
        if len(rows) == 0:
            return
        pool = torch.cat([self.pool, rows.to(self.pool.dtype)])
        generator = torch.Generator().manual_seed(int(draw_integers(self.seed, self.step, _INIT, (1,))))
        seen = len(pool)
        if seen > _PLENTY * self.size:
            keep = torch.randperm(seen, generator=generator)[: _PLENTY * self.size]
            pool = pool[keep.to(pool.device)]
        codes = self.init.fit(pool, self.size, generator)
        copy_from_first_rank(codes, self.process_group)
        self._adopt(codes.to(self.raw.dtype))
        if seen >= _ENOUGH * self.size:
            self._mark_ready()
        else:
            self.pool = pool

    def extra_repr(self) -> str:
        return f"size={self.size}" if self.dim is None else f"size={self.size}, dim={self.dim}"


class _Shared:
    """A process group on its way to a copy, which shares it."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Shared":
        return self


# Codebooks by handle: how an opaque op inside a compiled graph finds the one it belongs to.
_OWNERS: weakref.WeakValueDictionary[int, Codebook] = weakref.WeakValueDictionary()
_HANDLES = itertools.count()


def _register(codebook: Codebook) -> int:
    handle = next(_HANDLES)
    _OWNERS[handle] = codebook
    return handle


@torch.library.custom_op("straightvq::initialise", mutates_args=("state",))
def _initialise_op(state: list[Tensor], z: Tensor, valid: Tensor | None, owner: int) -> None:
    """``Codebook._initialise_now`` inside a compiled graph, where ``state`` may be copies of the codebook's own."""
    codebook = _OWNERS[owner]
    if codebook._ready:
        return  # by an earlier call in the same graph
    own = codebook._fixed_state()
    for mine, given in zip(own, state, strict=True):
        mine.copy_(given)
    codebook._initialise_now(z, valid)
    for mine, given in zip(own, state, strict=True):
        given.copy_(mine)


@_initialise_op.register_fake
def _(state: list[Tensor], z: Tensor, valid: Tensor | None, owner: int) -> None:
    return None


def _or(part: Any, default: type) -> Any:
    return default() if part is None else part


def _kind(part: object) -> str:
    return type(part).__name__


def _count_not_finite(x: Tensor) -> str:
    bad = ~torch.isfinite(x)
    first = bad.reshape(-1).to(torch.uint8).argmax().item()
    return f"{int(bad.sum())} of {x.numel()} values NaN or infinite, the first at flat position {first}"
