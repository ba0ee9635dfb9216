"""The codebook: the only owner of code vectors."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from straightvq.errors import InvalidTypeError, InvalidValueError, NonFiniteError
from straightvq.functional.sums import code_sums
from straightvq.nn import start
from straightvq.nn.batch import Batch
from straightvq.nn.part import (
    Part,
    check_int,
    check_part,
    count_not_finite,
    default,
    largest_value,
    making_float32,
)
from straightvq.nn.ranks import Group, Message, SharedGroup
from straightvq.nn.slots.inits import Init, NormalInit
from straightvq.nn.slots.parametrizations import Direct, Parametrization
from straightvq.nn.slots.resets import Reset
from straightvq.nn.slots.updates import NOTHING, Assigned, GradientUpdate, Trains, Update


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
            training forward. If that batch is smaller than the codebook, the rows without a vector of their own take
            vectors of the next batches.
        update: the rule that owns the raw table; default ``GradientUpdate()``.
        reset: what happens to dead codes; default None, nothing.

    Attributes:
        raw: the raw table, Float (size, dim) unless the parametrization has another shape.
        is_ready: 1 once the init has ended and all ranks hold the same codes. A number, as all flags are: whoever
            averages models averages them with the codes, and an average that holds data is not initialised again.
        filled: Float (size,), 1 for rows that stand for a vector, or were set.
        is_frozen: above one half while the codebook is frozen.
        rewritten: Float (size,), positive for rows whose optimizer moments are to be cleared.
        process_group: ranks that share the codebook: None for the default group of ``torch.distributed`` if there is
            one at call time, a ``ProcessGroup`` that this process belongs to, or False for no synchronisation. It is
            not part of the state: a copy shares the group, a saved state does not contain it.

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
    filled: Tensor
    is_frozen: Tensor
    rewritten: Tensor

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
        self.parametrization: Parametrization = check_part(
            self, "parametrization", default(parametrization, Direct), Parametrization
        )
        self.init: Init = check_part(self, "init", default(init, NormalInit), Init)
        self.update: Update = check_part(self, "update", default(update, GradientUpdate), Update)
        self.reset: Reset | None = None if reset is None else check_part(self, "reset", reset, Reset)
        self._check_inverse()
        self._check_frozen_raw()
        self._check_learned()
        self.process_group: Group = None
        self._trained_by, self._estimator = (False, False), ""
        self._ready = self._frozen = False
        self._handle = start.register(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": SharedGroup(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "process_group": state["process_group"].group})
        self._handle = start.register(self)  # a copy is another codebook

    # --- construction -------------------------------------------------------------------------------------------

    def _check_learned(self) -> None:
        update = self.update
        if self.parametrization.is_learned and not (update.loss.parametrization or update.task.parametrization):
            raise InvalidValueError(
                f"`Codebook`: {_kind(self.parametrization)} has parameters that need a gradient, and with "
                f"{_kind(self.update)} none reaches them. Use GradientUpdate or AlternatedUpdate, "
                "or RunningAffine, which follows statistics instead."
            )

    def _check_inverse(self) -> None:
        """Refuses parts that write codes, where nothing says which raw table gives them."""
        if self.parametrization.has_inverse:
            return
        writers: list[Part] = [self.init] if self.init.needs_data else []
        writers += [self.update] if self.update.writes else []
        writers += [] if self.reset is None else [self.reset]
        if writers:
            names = " and ".join(map(_kind, writers))
            raise InvalidValueError(
                f"`Codebook`: {names} would write codes, and {_kind(self.parametrization)} has no inverse that finds "
                "the raw table for them. Use GradientUpdate, no reset and no init from data, or another "
                "parametrization."
            )

    def _check_frozen_raw(self) -> None:
        """Refuses parts that would move a raw table which is meant to stay as it starts."""
        if not self.parametrization.freezes_raw:
            return
        movers: list[Part] = [self.update] if self.update.writes else []
        movers += [] if self.reset is None else [self.reset]
        if movers:
            raise InvalidValueError(
                f"`Codebook`: {' and '.join(map(_kind, movers))} would move the raw table, and "
                f"{_kind(self.parametrization)} keeps it as it starts. Use GradientUpdate and no reset, or a "
                "parametrization whose table may move, such as Linear(freeze_basis=False)."
            )

    def _check_task(self, by_task: bool) -> None:
        if by_task and self.update.task == NOTHING:
            raise InvalidValueError(
                f"`Codebook`: {self._estimator} sends a gradient to the codes, and {_kind(self.update)} takes none. "
                "Use an estimator that sends none, such as StraightThrough(sync=0), or GradientUpdate or "
                "AlternatedUpdate."
            )

    def _check_trained(self) -> None:
        by_loss, by_task = self._trained_by
        self._check_task(by_task)
        is_trained = (by_loss and self.update.loss.parametrization) or (by_task and self.update.task.parametrization)
        if self.parametrization.is_learned and not is_trained:
            raise InvalidValueError(
                f"`Codebook`: nothing trains the parameters of {_kind(self.parametrization)}: with "
                f"{_kind(self.update)} they need a CodebookLoss with positive weight or a synchronised estimator."
            )

    def _check_reached(self, needed_by: Sequence[str]) -> None:
        loss = self.update.loss
        if needed_by and not (loss.raw or (loss.parametrization and self.parametrization.is_learned)):
            raise InvalidValueError(
                f"`Codebook`: {' and '.join(needed_by)} would train the codes, and with {_kind(self.update)} and "
                f"{_kind(self.parametrization)} no gradient of a loss reaches them. Use GradientUpdate, or leave the "
                "loss out."
            )

    def bind(
        self,
        dim: int,
        *,
        by_loss: bool,
        by_task: bool,
        estimator: str = "the estimator",
        needed_by: Sequence[str] = (),
    ) -> None:
        """Makes the table and all state. Called once, by the quantizer that owns this codebook.

        Args:
            dim: width of a code.
            by_loss: whether a loss is meant to train the codes.
            by_task: whether the estimator sends the task gradient to the codes.
            estimator: its name, for messages.
            needed_by: names of losses that do nothing unless the codes take their gradient.
        """
        if self.dim not in (None, dim):
            raise InvalidValueError(
                f"`Codebook`: `dim` must equal the width {dim} that the quantizer's transform gives. Got {self.dim}."
            )
        self._trained_by, self._estimator = (by_loss, by_task), estimator
        self._check_trained()
        self._bind_once()
        given, self.dim = self.dim, dim
        try:
            with making_float32():
                self._make(dim)
            self._check_reached(needed_by)
        except Exception:
            self._unbind()
            self.dim = given
            raise

    def _make(self, dim: int) -> None:
        self.parametrization.bind(self.size, dim)
        self._check_learned()  # again: some parts show their parameters only now
        self._check_trained()
        self.update.bind(self.size, dim)
        if self.reset is not None:
            self.reset.bind(self.size, dim)
        with torch.no_grad():
            raw = self.parametrization.start(self.init, self.size, dim).to(torch.get_default_dtype())
            self._check_start(raw, self.parametrization(raw), dim)
        self._hold(raw)
        self.register_buffer("is_ready", torch.zeros(()))
        self.register_buffer("filled", torch.zeros(self.size))
        self.register_buffer("is_frozen", torch.zeros(()))
        self.register_buffer("rewritten", torch.zeros(self.size))
        self.read_flags()

    def _hold(self, raw: Tensor) -> None:
        """Makes this the raw table: a parameter or a buffer."""
        by_loss, by_task = self._trained_by
        self._takes_gradient = (by_loss and self._reach(self.update.loss).raw) or (
            by_task and self._reach(self.update.task).raw
        )
        if self._takes_gradient:
            self.raw = nn.Parameter(raw, requires_grad=not self._frozen)
        else:
            self.register_buffer("raw", raw)

    def _reach(self, trains: Trains) -> Trains:
        """What is left of it where the parametrization freezes the raw table."""
        return Trains(trains.raw and not self.parametrization.freezes_raw, trains.parametrization)

    def _check_start(self, raw: Tensor, codes: Tensor, dim: int) -> None:
        if tuple(codes.shape) != (self.size, dim):
            raise InvalidValueError(
                f"`Codebook`: {_kind(self.init)} and {_kind(self.parametrization)} must start with codes of shape "
                f"{(self.size, dim)}. Got {tuple(codes.shape)}."
            )
        if self.parametrization.has_inverse and (raw.ndim != 2 or len(raw) != self.size):
            raise InvalidValueError(
                f"`Codebook`: {_kind(self.parametrization)} has an inverse, so its raw table must have one row for "
                f"each of the {self.size} codes. Got shape {tuple(raw.shape)}."
            )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts over as if just made: with the start of the init, no statistics, not frozen.

        For a codebook that was made on torch's meta device and has been given memory by ``to_empty``.
        """
        self._require_bound()
        twin = copy.deepcopy(self)
        twin._unbind()
        with torch.device("cpu"), making_float32():
            twin._make(self.codes().shape[1])
        fresh = twin.state_dict()
        for name, tensor in self.state_dict().items():
            tensor.copy_(fresh[name])
        self.read_flags()

    def read_flags(self) -> None:
        """Python's copies of the two flags, so that no forward has to ask the device."""
        if self.is_ready.is_meta:
            return  # no values yet
        self._ready = bool(self.is_ready > 0)
        was_frozen, self._frozen = self._frozen, bool(self.is_frozen > 0.5)
        if self._frozen != was_frozen:
            for parameter in self.parameters():
                parameter.requires_grad_(not self._frozen)
                if self._frozen:
                    parameter.grad = None  # an optimizer skips it: no weight decay, no momentum

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        raw, has_flags = state_dict.get(prefix + "raw"), prefix + "is_ready" in state_dict
        fits = self._is_bound and raw is not None and raw.shape == self.raw.shape
        if self._is_bound and not fits:
            # A table that is not loaded has not been started, nor frozen, whatever else fits.
            for name in ("is_ready", "filled", "is_frozen"):
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not self._is_bound:
            return
        if fits and not has_flags and not self.filled.is_meta:
            self.filled.fill_(1)  # a table without flags holds codes that somebody wants: no init takes its place
        self.read_flags()

    # --- reading and writing ------------------------------------------------------------------------------------

    def codes(self) -> Tensor:
        """Effective codes (size, dim), detached; a copy."""
        self._require_bound()
        return self.current().clone()

    def current(self) -> Tensor:
        """As ``codes``, but perhaps the table itself, which the next training forward changes."""
        codes: Tensor = self.parametrization(self.raw.detach())
        return codes.detach()

    def routes(self, *, by_loss: bool, by_task: bool) -> tuple[Trains, Trains]:
        """What the task gradient and the losses may train, in this order, by the word of the update.

        Raises:
            ValueError: where nothing is there to be trained: a setting has changed since the layer was made.
        """
        self._check_task(by_task)
        task = self._reach(self.update.task) if by_task else NOTHING
        loss = self._reach(self.update.loss) if by_loss else NOTHING
        if (task.raw or loss.raw) and not self._takes_gradient:
            source = "an estimator" if task.raw else "a loss"
            raise InvalidValueError(
                f"`Codebook`: it must be made with what is to train it. Got {source} that now sends a gradient to a "
                "raw table that takes none: build the layer with a positive `sync` or weight, and set that to 0 "
                "until you need it."
            )
        return task, loss

    def tables(self, task: Trains, loss: Trains) -> tuple[Tensor, Tensor]:
        """Effective codes twice: as the estimator's gradient may train them, and as the losses may."""
        if loss == NOTHING or task == NOTHING:  # one reading serves both
            codes = self._read(task if loss == NOTHING else loss)
            still = codes.detach() if codes.requires_grad else codes
            return (still, codes) if task == NOTHING else (codes, still)
        codes = self._read(task)
        return codes, codes if loss == task else self._read(loss)

    def _read(self, trains: Trains) -> Tensor:
        is_learned = self.parametrization.is_learned
        if self._frozen or not (trains.raw or (trains.parametrization and is_learned)):
            return self.codes()
        # A copy: autograd may keep it, and the next training forward writes into the table.
        raw = (self.raw if trains.raw else self.raw.detach()).clone()
        if is_learned and not trains.parametrization:
            still = {name: p.detach() for name, p in self.parametrization.named_parameters()}
            return functional_call(self.parametrization, still, raw)
        codes: Tensor = self.parametrization(raw)
        return codes

    @torch.no_grad()
    def write(self, codes: Tensor, rows: Tensor) -> None:
        """Writes effective ``codes`` (size, dim) through the parametrization's inverse where ``rows`` is set."""
        raw = self.parametrization.rebase(self.raw, rows)
        if raw is not self.raw:  # rows in other units are new ones to an optimizer
            self.rewritten.logical_or_((raw != self.raw).any(1))
        written = self.parametrization.inverse(codes.to(self.raw.dtype))
        self.raw.copy_(torch.where(rows[:, None], written, raw))

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Replaces all effective codes; no init will overwrite them, and all per-row state starts over.

        Shape:
            codes: Float (size, dim).

        Raises:
            TypeError, ValueError: for another type or shape, NaN or infinity, and a parametrization without an
                inverse; nothing is changed then.
        """
        self._require_bound()
        if not self.parametrization.has_inverse:
            raise InvalidValueError(
                f"`set_codes`: the parametrization must have an inverse. {_kind(self.parametrization)} has none; "
                "write its raw table and its parameters instead."
            )
        if not isinstance(codes, Tensor) or not codes.is_floating_point():
            got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise InvalidTypeError(f"`set_codes`: `codes` must be a floating-point tensor. Got {got}.")
        if tuple(codes.shape) != (self.size, self.dim):
            raise InvalidValueError(
                f"`set_codes`: `codes` must have shape {(self.size, self.dim)}. Got {tuple(codes.shape)}."
            )
        if not torch.isfinite(codes).all():
            raise NonFiniteError(f"`set_codes`: `codes` must be finite. Got {count_not_finite(codes)}.")
        if (largest := codes.abs().max()) > (limit := largest_value(self.raw.dtype)):
            raise NonFiniteError(
                f"`set_codes`: `codes` must be at most {limit:.2g} in size, so that sums of squares do not overflow. "
                f"Got {largest:.2g}."
            )
        self.adopt(codes.to(self.raw))
        self.filled.fill_(1)

    def adopt(self, codes: Tensor) -> None:
        """Writes a whole new set of effective codes; the map may change so that it fits them."""
        self.raw.copy_(self.parametrization.adopt(codes))
        self.forget(None)

    def rewrite(self, codes: Tensor, rows: Tensor) -> None:
        """Writes effective codes that have nothing to do with the old rows: what belonged to those starts over."""
        self.write(codes, rows)
        self.forget(rows)

    def forget(self, rows: Tensor | None) -> None:
        """Everything that belonged to rewritten rows starts over (None: all rows)."""
        self.update.forget(rows)
        if self.reset is not None:
            self.reset.forget(rows)
        rows = torch.ones_like(self.rewritten, dtype=torch.bool) if rows is None else rows
        self.rewritten.logical_or_(rows)
        if self.raw.grad is not None:  # of earlier forwards, which found the old rows
            self.raw.grad.masked_fill_(rows[:, None], 0)

    def _require_bound(self) -> None:
        if not self._is_bound:
            raise InvalidValueError(
                "`Codebook`: it has no vectors before a quantizer owns it. Pass it to VectorQuantizer(dim, codebook)."
            )

    @property
    def is_still(self) -> bool:
        """Whether it is frozen, so that no forward changes it."""
        return self._frozen

    def freeze(self) -> None:
        """Stops everything that moves codes: gradients, updates, statistics, init and resets. Saved in the state."""
        self._require_bound()
        self.is_frozen.fill_(True)
        self.read_flags()

    def unfreeze(self) -> None:
        """Undoes ``freeze``."""
        self._require_bound()
        self.is_frozen.fill_(False)
        self.read_flags()

    @torch.no_grad()
    def fold(self) -> None:
        """Makes the effective codes the raw table and drops the parametrization, for use without it.

        The codes stay what they are to the bit, and so do all indices. What is left is a codebook as if made without a
        parametrization: its state loads into one. An optimizer that holds the old parameters knows nothing of it.

        Example:
            >>> import straightvq as svq
            >>> layer = svq.VectorQuantizer(8, svq.Codebook(32, parametrization=svq.Linear()))
            >>> codes = layer.codes()
            >>> layer.codebook.fold()
            >>> layer.codebook.parametrization, bool((layer.codes() == codes).all())
            (Direct(), True)
        """
        codes = self.codes()
        self.parametrization = Direct()
        self.parametrization.bind(*codes.shape)
        del self.raw
        self._hold(codes)

    # --- one training step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def adapt(
        self,
        batch: Batch,
        assign: Callable[[Batch, Tensor], Tensor],
        collect: Callable[[], Batch] | None = None,
    ) -> Assigned:
        """All in-place changes of one training forward, before the codes are read.

        Args:
            batch: the vectors, detached and finite. An init that has not ended takes these.
            assign: vectors and effective codes -> indices, -1 where not valid.
            collect: gives the vectors for everything after the init, for a composite that finds them with the codes.

        Returns:
            what the update knows of the batch's assignment.
        """
        if not (self._ready or self._frozen or torch.compiler.is_compiling()):
            self.read_flags()  # a data-parallel wrapper copies the first rank's buffers to the others
        if self._frozen:
            return Assigned()
        was_ready = self._ready
        if not was_ready:
            start.start(self, batch)
        if collect is not None:
            batch = collect()
        if was_ready:
            self.parametrization.observe(batch, self.raw)
        due = None if self.reset is None else self.reset.due(batch, self)
        if due is not None:
            rows, vectors = due
            self.rewrite(vectors, rows)
        return self.update.step(self, batch, lambda codes: assign(batch, codes)) or Assigned()

    @torch.no_grad()
    def record(self, batch: Batch, indices: Tensor, counts: Tensor | None) -> None:
        """Tells reset and parametrization how the batch was assigned; ``counts`` if the update has pulled them."""
        if self._frozen:
            return
        if counts is None:
            message = self._message(batch.z, indices)
            if self.reset is None and message.is_empty:
                return
            counts = message.send(code_sums(batch.z[:, :0], indices, self.size)[0])
        if self.reset is not None:
            self.reset.record(counts)

    def pull(self, z: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (k,) and sums of ``z - code`` per code (k, d), over all ranks.

        Differences, not vectors, are summed: they keep their digits when the data are far from the origin.
        """
        chosen = codes.to(z.dtype).index_select(0, indices.clamp(min=0))
        counts, sums = code_sums(chosen.sub_(z), indices, self.size)
        both = self._message(z, indices).send(torch.cat([counts[:, None], -sums], 1))
        return both[:, 0], both[:, 1:]

    def _message(self, z: Tensor, indices: Tensor) -> Message:
        """For sums over an assignment; what the parametrization remembers of it travels along."""
        message = Message(self.process_group)
        self.parametrization.remember(z, indices, message)
        return message

    def extra_repr(self) -> str:
        return f"size={self.size}" if self.dim is None else f"size={self.size}, dim={self.dim}"


def _kind(part: object) -> str:
    return type(part).__name__
