"""The vector-quantized layer."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.internals import in_backward
from straightvq.nn.batch import Batch, Context
from straightvq.nn.codebook import Codebook
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.part import can_ask, check_part, default, evaluating, making_float32, no_autocast
from straightvq.nn.quantizer import Quantizer, Step, where_valid
from straightvq.nn.slots.assigners import Assigner, Nearest
from straightvq.nn.slots.estimators import Estimator
from straightvq.nn.slots.losses import CodebookLoss, CommitmentLoss, Loss
from straightvq.nn.slots.transforms import Transform
from straightvq.nn.slots.updates import Assigned, Trains


class VectorQuantizer(Quantizer):
    """Replaces every vector by the nearest of ``codebook_size`` codes.

    In training the codebook may change in the forward (init, running statistics, resets, the update's own step),
    before the codes are read; the result is made of rows of the table left behind. In evaluation nothing changes
    and nothing is random. Losses are computed in both. The search, the statistics and the losses run in at least
    float32 under any autocast; ``quantized`` comes back in the dtype of ``z``.

    Args:
        dim: channels of ``z``.
        codebook: the codes and the rules that move them. It belongs to this layer alone.
        transform: from ``z`` to the codebook's space and back; default ``Identity()``.
        assigner: which code a vector gets; default ``Nearest()``.
        estimator: the gradient that passes the layer; default ``StraightThrough()``.
        losses: default ``[CommitmentLoss(), CodebookLoss()]``, with weights 0 for an estimator that takes their place
            (``replaces_losses``); ``[]`` for none.
        channel_dim: axis of ``z`` that holds the channels: -1 for sequences, 1 for images ``(B, C, H, W)``.

    Shape:
        z: Float (*batch, dim) with the channels on ``channel_dim``; mask: Bool (*batch), True where valid;
        indices: Int64 (*batch).

    Raises:
        ValueError, TypeError: at construction for parts that contradict each other, in ``forward`` for a wrong
            width, dtype, mask or non-finite values; a failed call changes nothing.
        RuntimeError: in a training ``forward`` that activation checkpointing repeats inside the backward.

    Source: arXiv 1711.00937; arXiv 2305.08842 for what the codebook and the estimator can do.

    Example:
        >>> layer = VectorQuantizer(8, Codebook(32), channel_dim=1)
        >>> out = layer(torch.randn(2, 8, 4, 4))
        >>> out.quantized.shape, out.indices.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([2, 4, 4]))
        >>> bool((layer.eval()(torch.zeros(1, 8, 1, 1)).quantized == layer.decode(
        ...     layer.encode(torch.zeros(1, 8, 1, 1)))).all())
        True
    """

    has_table = True

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        *,
        transform: Transform | None = None,
        assigner: Assigner | None = None,
        estimator: Estimator | None = None,
        losses: list[Loss] | None = None,
        channel_dim: int = -1,
    ) -> None:
        if losses is None:
            alone = isinstance(estimator, Estimator) and estimator.replaces_losses
            losses = [CommitmentLoss(0.0), CodebookLoss(0.0)] if alone else [CommitmentLoss(), CodebookLoss()]
        super().__init__(dim, transform=transform, estimator=estimator, losses=losses, channel_dim=channel_dim)
        unbound = [self.transform, *(loss for loss in self._losses() if not loss._is_bound)]
        try:
            self._own(codebook, assigner)
        except Exception:
            for part in unbound:
                if part._is_bound:
                    part._unbind()  # a failed construction leaves its parts free
            raise
        self.clock = Clock()
        self._warn_of_losses()
        is_idle = codebook.update.loss.raw and not codebook.raw.requires_grad
        if is_idle and not codebook.parametrization.freezes_raw:
            warnings.warn(
                f"The codebook will not move: {type(codebook.update).__name__} needs a CodebookLoss with positive "
                "weight or a synchronised estimator. If that is meant, call codebook.freeze().",
                UserWarning,
                stacklevel=2,
            )

    def _own(self, codebook: Codebook, assigner: Assigner | None) -> None:
        check_part(self, "codebook", codebook, Codebook)
        self.assigner: Assigner = check_part(self, "assigner", default(assigner, Nearest), Assigner)
        self._check_assigner()
        width = self.transform.codebook_dim(self.dim)
        with making_float32():
            for loss in self._losses():
                loss.bind(codebook.size, width)
        codebook.bind(
            width,
            by_loss=self._loss_trains_codes,
            by_task=self.estimator.trains_codes,
            estimator=type(self.estimator).__name__,
            needed_by=[type(loss).__name__ for loss in self._losses() if loss.needs_codes],
        )
        self.codebook = codebook
        self.codebook_size = codebook.size

    def _check_assigner(self) -> None:
        estimator, assigner = type(self.estimator).__name__, type(self.assigner).__name__
        if self.estimator.needs_draws and self._draw_temperature is None:
            raise InvalidValueError(
                f"`{type(self).__name__}`: {estimator} is the gradient of a code that was drawn, and {assigner} draws "
                "none. Use Stochastic as `assigner`, or another estimator."
            )
        if self.assigner.is_random and not self.estimator.takes_draws:
            raise InvalidValueError(
                f"`{type(self).__name__}`: {estimator} diverges on codes that are drawn, as {assigner} does in "
                "training. Use Nearest as `assigner`, or Gumbel or ReinMax as `estimator`."
            )
        is_nearest = type(self.assigner) is Nearest and self.assigner.distance == "euclidean"
        if self.estimator.needs_nearest and not is_nearest:
            raise InvalidValueError(
                f"`{type(self).__name__}`: {estimator} searches by Euclidean distance itself in training, so "
                f"{assigner}({self.assigner.extra_repr()}) would choose indices that nothing learns from. Use Nearest "
                "as `assigner`, or DiVeQ as `estimator`."
            )

    @property
    def _draw_temperature(self) -> float | None:
        """Other assigners have a temperature too, of something else."""
        return self.assigner.temperature if self.assigner.is_random else None

    def _warn_of_losses(self) -> None:
        own = [
            type(x).__name__ for x in self._losses() if isinstance(x, (CommitmentLoss, CodebookLoss)) and x.coefficient
        ]
        if own and self.estimator.replaces_losses:
            warnings.warn(
                f"{type(self.estimator).__name__} has no commitment or codebook loss: its own gradient trains vectors "
                f"and codes. Got {' and '.join(own)} with a positive weight; leave `losses` out to have them reported.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def _loss_trains_codes(self) -> bool:
        return any(loss.trains_codes for loss in self._losses())

    # --- maps on flat rows ----------------------------------------------------------------------------------------

    def step(self, x: Tensor, valid: Tensor | None) -> Step:
        """Steps 2, 3, 4 and 6 of the concepts page on rows (n, codebook_dim)."""
        if not self.training:
            return self.choose(x, valid)
        batch = self.batch(x, valid)
        assigned = self.adapt(batch)  # 2
        step = self.choose(x, valid, batch, assigned.indices)  # 3, 4, 6
        self.settle(batch, step.indices, assigned.counts)
        return step

    def batch(self, x: Tensor, valid: Tensor | None, level: int = 0) -> Batch:
        """Rows of a training step for the codebook; ``level`` tells the random draws of a composite's levels apart."""
        return Batch(x.detach(), valid, self.codebook.process_group, Draws(self.clock, level))

    def gather(self, steps: list[Step], valid: Tensor | None) -> Batch:
        """Rows of all levels of a composite that share this codebook, vector by vector, in one batch."""
        every = None if valid is None else valid[:, None].expand(-1, len(steps)).flatten()
        return self.batch(torch.stack([step.z for step in steps], 1).flatten(0, 1), every)

    def adapt(self, batch: Batch, collect: Callable[[], Batch] | None = None) -> Assigned:
        """Lets the codebook change, once per training forward and before its codes are read.

        A composite whose levels share this codebook gives its own rows, which an unfinished init takes, and
        ``collect`` for those of all levels, which it finds with the codes as they then are.
        """
        self._routes()
        self._check_not_recomputed()
        self.clock.tick()  # before all draws: those of the estimator come last
        return self.codebook.adapt(batch, self._assign, collect)

    def choose(
        self, x: Tensor, valid: Tensor | None, batch: Batch | None = None, indices: Tensor | None = None
    ) -> Step:
        """Reads the codes, assigns rows to them unless ``indices`` are given, and measures the losses.

        By the training rule if there is a ``batch``, else by the evaluation rule; changes no state.
        """
        book = self.codebook
        codes, loss_codes = (table.to(x.dtype) for table in book.tables(*self._routes()))  # 3
        if indices is None:  # 4
            indices = self._assign(batch, codes) if batch else where_valid(self._nearest(x, codes), valid)
        code = _rows(codes, indices)
        loss_code = code if loss_codes is codes else _rows(loss_codes, indices)
        loss, terms = self._measure(x, loss_code, valid, Context(loss_codes, indices, batch))  # 6
        context = Context(codes, indices, batch, temperature=self._draw_temperature)
        return Step(x, indices, code, loss, terms, context)

    def settle(self, batch: Batch, indices: Tensor, counts: Tensor | None = None) -> None:
        """Tells the codebook and the losses how the batch was assigned."""
        self.codebook.record(batch, indices, counts)
        with torch.no_grad():
            for loss in self._losses():
                loss.record(batch, indices)

    def assign(self, z: Tensor) -> Tensor:
        return self._nearest(z, self.codebook.current())

    def lookup(self, indices: Tensor) -> Tensor:
        if can_ask(indices) and indices.numel() and (largest := int(indices.max())) >= self.codebook_size:
            raise InvalidValueError(
                f"`{type(self).__name__}`: indices must be below {self.codebook_size}. Got {largest}."
            )
        return _rows(self.codebook.current(), indices)

    def _nearest(self, z: Tensor, codes: Tensor) -> Tensor:
        """By the evaluation rule."""
        indices: Tensor = self.assigner(z.detach(), codes)
        return indices.long()

    def _assign(self, batch: Batch, codes: Tensor) -> Tensor:
        return where_valid(self.assigner.training_rule(batch, codes.detach().to(batch.z.dtype)).long(), batch.valid)

    def _routes(self) -> tuple[Trains, Trains]:
        return self.codebook.routes(by_loss=self._loss_trains_codes, by_task=self.estimator.trains_codes)

    # --- more than one code ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def nearest(self, z: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest codes of every vector, nearest first, by the evaluation rule's distance.

        For programs that assign again, as those that give every item an index of its own. In training and evaluation
        the same; changes no state.

        Args:
            z: as for ``forward``.
            k: how many, at least 1; at most all codes are given.
            mask: as for ``forward``.

        Returns:
            distances in the space of the codes, Float (*batch, k), infinite where masked, and indices Int64
            (*batch, k), -1 where masked; see ``straightvq.functional.nearest_codes``. With `LargestProduct` these
            are the codes of the largest products, and the distances those of its search.

        Example:
            >>> layer = VectorQuantizer(1, Codebook(3))
            >>> layer.set_codes(torch.tensor([[3.0], [1.0], [-2.0]]))
            >>> layer.nearest(torch.zeros(1), 2)
            (tensor([1., 2.]), tensor([1, 2]))
        """
        self._check(z, mask)
        with no_autocast(z.device), evaluating(self) as still:
            rows, valid, _ = self._flatten(z, mask)
            x, codes = still.bound(still.transformed(rows)), still.codebook.current()
            distances, indices = still.assigner.nearest(x, codes, k)
        if valid is not None:
            distances, indices = distances.masked_fill(~valid[:, None], torch.inf), where_valid(indices, valid)
        batch = z.movedim(self.channel_dim, -1).shape[:-1]
        return distances.reshape(*batch, -1), indices.reshape(*batch, -1)

    # --- the table ------------------------------------------------------------------------------------------------

    def codebooks(self) -> list[Codebook]:
        return [self.codebook]

    def codes(self) -> Tensor:
        """Effective codes Float (codebook_size, codebook_dim), detached; a copy."""
        return self.codebook.codes()

    def set_codes(self, codes: Tensor) -> None:
        """Writes effective codes Float (codebook_size, codebook_dim); see ``Codebook.set_codes``."""
        self.codebook.set_codes(codes)

    def _check_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        if prefix + "codebook.pool" in state_dict:
            raise InvalidValueError(
                f"`{type(self).__name__}`: the state must be of this version of straightvq. Got one of an earlier "
                "version, whose codebooks hold other entries: load it with that version, or train anew."
            )
        super()._check_state(state_dict, prefix)

    def _check_not_recomputed(self) -> None:
        """Refuses a forward inside a backward: it would update the codebook twice and assign differently."""
        if not self.training or torch.compiler.is_compiling() or not in_backward():
            return
        parts = [self.estimator, *self._losses()]
        is_random = self.assigner.is_random or any(part.takes_context for part in parts)
        if is_random or not self.codebook.is_still:
            raise RuntimeError(
                f"`{type(self).__name__}`: this training forward runs inside a backward pass, as activation "
                "checkpointing does. The codebook would move twice, and the second assignment would not be that of "
                "the first. Keep the quantizer outside the checkpointed segment, or freeze its codebook."
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, channel_dim={self.channel_dim}"


def _rows(codes: Tensor, indices: Tensor) -> Tensor:
    """codes[indices], with row 0 standing in at masked positions."""
    return F.embedding(indices.clamp(min=0), codes)
