"""Updates: the rule that owns the raw table.

Exactly one rule moves a codebook. ``GradientUpdate`` leaves it to the main optimizer; ``EMAUpdate`` and
``AlternatedUpdate`` write it themselves, before the codes are read, in training forwards only.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.batch import Batch
from straightvq.nn.part import Part, check_bool, check_float, check_int, check_optional_float, setting


class Assigned(NamedTuple):
    """What an update tells of the batch's assignment.

    Attributes:
        indices: Int64 (n,), -1 where masked, for the forward to use; None to search in the table left behind.
        counts: (k,) as the last ``pull`` gave them; None if it made none.
    """

    indices: Tensor | None = None
    counts: Tensor | None = None


class Table(Protocol):
    """What an update may do with the codebook."""

    def codes(self) -> Tensor:
        """Effective codes (k, d), detached."""

    def write(self, codes: Tensor, rows: Tensor) -> None:
        """Writes the effective codes where ``rows``, Bool (k,), is set."""

    def pull(self, z: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (k,) and sums of ``z - code`` (k, d) per code, over all ranks: one message."""


class Trains(NamedTuple):
    """Which of a codebook's two kinds of parameters a gradient may reach.

    Attributes:
        raw: the raw table.
        parametrization: the parametrization's own parameters.
    """

    raw: bool
    parametrization: bool


NOTHING, MAP_ONLY, ALL = Trains(False, False), Trains(False, True), Trains(True, True)


class Update(Part):
    """Required: ``step``; ``forget`` where there is state per row.

    Three class attributes say what it shares the codebook with: ``loss``, what the losses that train codes may reach;
    ``task``, what the task gradient of a synchronised estimator may reach; ``writes``, whether ``step`` writes codes,
    which needs a parametrization with an inverse.
    """

    loss: Trains = NOTHING
    task: Trains = NOTHING
    writes = True

    def bind(self, size: int, dim: int) -> None:
        self._bind_once()
        self._make(size, dim)

    def _make(self, size: int, dim: int) -> None:
        """Makes buffers; called once."""

    @abstractmethod
    def step(self, table: Table, batch: Batch, search: Callable[[Tensor], Tensor]) -> Assigned | None:
        """Moves the codes toward the vectors ``batch.z`` (n, d).

        Args:
            table: the codebook.
            batch: the step's vectors, detached, with its random draws.
            search: effective codes -> indices Int64 (n,), -1 where masked.

        Returns:
            what it knows of the assignment; None for nothing.
        """

    def forget(self, rows: Tensor | None) -> None:
        """Starts over for these rows (None: all), because somebody rewrote them."""


class GradientUpdate(Update):
    """The raw table is a parameter, trained by ``CodebookLoss`` and the synchronised gradient in the main optimizer.

    Source: arXiv 1711.00937.

    Example:
        >>> GradientUpdate()
        GradientUpdate()
    """

    loss = task = ALL
    writes = False

    def step(self, table: Table, batch: Batch, search: Callable[[Tensor], Tensor]) -> None:
        return None


class EMAUpdate(Update):
    """Each code is an exponential moving average of the vectors assigned to it.

    ``N <- decay * N + (1 - decay) * n``; ``code <- code + (1 - decay) * (sum - n * code) / N``, which is the usual
    ratio of two moving averages, kept as the code itself and its weight: there is no second copy of the codebook that
    could go stale when a code is reset. The weight of a new code is one vector, so early steps are larger, as with
    Adam's bias correction. An unused code stays where it is. No gradient reaches the codes.

    The forward returns the updated codes at the indices of this rule's own search.

    Args:
        decay: weight of the old value, in [0, 1). 0.99 follows the last hundred steps; 0.9 to 0.95 follow faster.

    Source: arXiv 1711.00937, appendix A.1. Deviation: no Laplace smoothing of N, which moves unused codes to the
    origin.

    Example:
        >>> EMAUpdate(decay=0.99)
        EMAUpdate(decay=0.99)
    """

    cluster_size: Tensor
    decay: float = setting(check_float, minimum=0, maximum=1, open_maximum=True)

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay

    def _make(self, size: int, dim: int) -> None:
        self.register_buffer("cluster_size", torch.ones(size))

    def step(self, table: Table, batch: Batch, search: Callable[[Tensor], Tensor]) -> Assigned:
        codes = table.codes()
        indices = search(codes)
        counts, pull = table.pull(batch.z, codes, indices)
        size = self.decay * self.cluster_size + (1 - self.decay) * counts
        # An idle code's size may underflow; the code itself stays, and its next vectors then decide alone.
        size = size.clamp(min=torch.finfo(size.dtype).tiny)
        table.write(codes + (1 - self.decay) * pull / size[:, None].to(pull.dtype), counts > 0)
        # A batch without vectors is no step: nothing decays.
        self.cluster_size.copy_(torch.where((counts > 0).any(), size, self.cluster_size))
        return Assigned(indices, counts)

    def forget(self, rows: Tensor | None) -> None:
        if rows is None:
            self.cluster_size.fill_(1)
        else:
            self.cluster_size.masked_fill_(rows, 1)

    def extra_repr(self) -> str:
        return f"decay={self.decay}"


_RATES = ("fraction", "lr", "memory")


def _check_rate(owner: Update, name: str, value: Any, **limits: Any) -> float | None:
    """One of `fraction`, `lr` and `memory`: the others would be ignored."""
    given = {other: vars(owner).get("_" + other) for other in _RATES if other != name}
    others = [other for other, rate in given.items() if rate is not None]
    if value is None and not others and owner._is_bound:
        listed = ", ".join(f"`{rate}`" for rate in _RATES)
        raise InvalidValueError(f"`{type(owner).__name__}`: one of {listed} must be given. Got none.")
    if value is not None and others:
        raise InvalidValueError(
            f"`{type(owner).__name__}`: only one of `{name}` and `{others[0]}` may be given. "
            f"Got {value!r} and {given[others[0]]!r}."
        )
    return check_optional_float(owner, name, value, **limits)


class AlternatedUpdate(Update):
    """Fits the codebook to the batch before the task gradient is taken, because the estimator's error grows with it.

    Each of ``steps`` inner steps assigns the vectors and moves every code that got some ``fraction`` of the way to
    their mean: ``code <- code + fraction * (mean - code)``. With ``lr`` it takes the authors' step instead: SGD on
    ``mean((code - sg[z])^2)`` over all elements, gradient ``2 / (N D) * (n * code - sum)``, in closed form and with
    respect to the effective codes. With ``memory`` a code is the running mean of its vectors, of which only the last
    ``memory`` or so count: n new ones move it ``n / (min(seen, memory) + n)`` of the way, where ``seen`` counts those
    before them. That is a k-means step at first and for large batches, and a small one for the few vectors of a small
    batch, whose mean is mostly noise. ``momentum`` works as in ``torch.optim.SGD`` on all three.

    The codebook loss then trains the parametrization's own parameters only, and a synchronised estimator adds
    ``sync`` times the task gradient through the main optimizer. Nothing is updated twice.

    Args:
        steps: inner steps per forward.
        fraction: in (0, 1], by default 0.1; 1 is a k-means step.
        lr: a learning rate, given instead of ``fraction``. One step moves code k by ``2 lr n_k / (N D)`` of
            the way to its mean, so it must grow with ``codebook_size * dim`` and overshoots when one code owns all
            vectors of a narrow codebook (``2 lr / D > 2`` diverges). The authors use 50 with momentum 0.9.
        memory: in vectors, at least 0; given instead of ``fraction``. 100 serves small noisy batches, whole data sets
            and data that move. A layer made without it stays without.
        momentum: in [0, 1). With it a code may overshoot its mean, whatever the fraction.
        reassign: whether vectors are assigned again after each inner step, the last one included. False keeps the
            first assignment, which saves the searches, as the authors do.

    Source: arXiv 2305.08842, alternated optimisation (codebook form); ``memory``: MacQueen 1967, sequential k-means,
    with a bound on the counts. The form that also moves the encoder is an
    option of the reconstruction task.

    Example:
        >>> AlternatedUpdate(steps=2, fraction=0.5)
        AlternatedUpdate(steps=2, fraction=0.5)
    """

    loss, task = MAP_ONLY, ALL

    velocity: Tensor
    seen: Tensor
    steps: int = setting(check_int, minimum=1)
    fraction: float | None = setting(_check_rate, minimum=0, maximum=1, open_minimum=True)
    lr: float | None = setting(_check_rate, minimum=0, open_minimum=True)
    memory: float | None = setting(_check_rate, keeps="none", minimum=0)
    momentum: float = setting(check_float, keeps="zero", minimum=0, maximum=1, open_maximum=True)
    reassign: bool = setting(check_bool)

    def __init__(
        self,
        steps: int = 1,
        fraction: float | None = None,
        lr: float | None = None,
        momentum: float = 0.0,
        reassign: bool = True,
        memory: float | None = None,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.fraction = 0.1 if fraction is None and lr is None and memory is None else fraction
        self.lr = lr
        self.memory = memory
        self.momentum = momentum
        self.reassign = reassign

    def _make(self, size: int, dim: int) -> None:
        if self.momentum:
            self.register_buffer("velocity", torch.zeros(size, dim))
        if self.memory is not None:
            self.register_buffer("seen", torch.zeros(size))

    def step(self, table: Table, batch: Batch, search: Callable[[Tensor], Tensor]) -> Assigned:
        for number in range(self.steps):
            codes = table.codes()
            if number == 0 or self.reassign:
                indices = search(codes)
            counts, pull = table.pull(batch.z, codes, indices)
            rows = counts > 0
            move = self._move(counts, pull)
            if self.momentum:
                # On a batch without vectors nothing moves, not even by momentum.
                alive = rows.any()
                move = torch.where(alive, self.momentum * self.velocity.to(move.dtype) + move, 0)
                self.velocity.copy_(torch.where(alive, move, self.velocity.to(move.dtype)))
                rows = (move != 0).any(1)
            table.write(codes + move, rows)
        return Assigned(None if self.reassign else indices, counts)

    def _move(self, counts: Tensor, pull: Tensor) -> Tensor:
        """Where one inner step takes the codes (k, d), from the counts (k,) and the sums of ``z - code`` (k, d)."""
        if self.lr is not None:
            return self.lr * 2 * pull / (counts.sum().clamp(min=1) * pull.shape[1])
        if self.memory is not None:
            seen = self.seen.clamp(max=self.memory) + counts
            self.seen.copy_(torch.where(counts > 0, seen, self.seen))
            return pull / seen.clamp(min=1)[:, None].to(pull.dtype)
        return (self.fraction or 0.0) * pull / counts.clamp(min=1)[:, None]

    def forget(self, rows: Tensor | None) -> None:
        for state in self.buffers():
            if rows is None:
                state.zero_()
            else:
                state.masked_fill_(rows.view(-1, *(1 for _ in state.shape[1:])), 0)

    def extra_repr(self) -> str:
        given = [f"steps={self.steps}"]
        given += [f"{rate}={value}" for rate in _RATES if (value := getattr(self, rate)) is not None]
        if self.momentum:
            given.append(f"momentum={self.momentum}")
        if not self.reassign:
            given.append("reassign=False")
        return ", ".join(given)
