"""What quantizers of several quantizers have in common: several codes per vector."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.codebook import Codebook
from straightvq.nn.draws import Clock, Draws
from straightvq.nn.families.codebook_free import CodebookFree
from straightvq.nn.part import at_least_float32, can_ask, check_float, check_int, check_part, setting
from straightvq.nn.quantizer import Quantizer, QuantizerOutput, Step, zero_of
from straightvq.nn.ranks import Group, rank, stack_over_ranks
from straightvq.nn.slots.assigners import Assigner
from straightvq.nn.slots.estimators import Estimator
from straightvq.nn.slots.transforms import Transform


class Composite(Quantizer):
    """Base of quantizers that are made of quantizers: of a list of them, or of one that serves several times.

    Indices are ``(*batch, num_quantizers)``. ``decode`` takes the first entries of the last axis as well.

    Attributes:
        parts: the quantizers, each once.
        num_parts: how many serve, the shared one counted as often as it does.
        is_shared: whether one serves several times.
        dropout: share of the samples of a training forward that keep only some of their residual levels.
    """

    is_composite = True
    dropout: float = setting(check_float, keeps="zero", minimum=0, maximum=1)
    _is_bound = False

    def __init__(
        self,
        dim: int,
        parts: Sequence[Quantizer] | Quantizer,
        num_parts: int | None,
        *,
        name: str,
        number: str,
        transform: Transform | None,
        estimator: Estimator | None,
        channel_dim: int,
        dropout: float,
        kept_choices: Sequence[int] | None,
    ) -> None:
        listed = self._check_parts(parts, num_parts, name, number)
        super().__init__(dim, transform=transform, estimator=estimator, channel_dim=channel_dim)
        self.is_shared = isinstance(parts, Quantizer)
        self.parts = nn.ModuleList(listed)
        self.num_parts = len(listed) if num_parts is None else int(num_parts)
        try:
            self.dropout = dropout
            self._check_widths(self.transform.codebook_dim(self.dim))
            self._check_dropout()
            self.kept_choices = kept_choices
            if self.estimator.trains_codes:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: the codes belong to the {name}, so the estimator that trains them does "
                    f"too. Got {type(self.estimator).__name__}: give it to each of the {name}."
                )
            drawing = [m for m in self.modules() if isinstance(m, Assigner) and m.is_random]
            if drawing and not self.estimator.takes_draws:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: {type(self.estimator).__name__} diverges on codes that are drawn, as "
                    f"{type(drawing[0]).__name__} of the {name} does in training. Use Nearest there, or "
                    "StraightThrough as `estimator`."
                )
        except Exception:
            self.transform._unbind()  # a failed construction leaves its parts free
            raise
        if self.dropout:
            self.clock = Clock()
        self._declare(**{number: self.num_parts})
        self._is_bound = True
        self.num_quantizers = sum(part.num_quantizers for part in self._serving())
        self.codebook_size = max(self.codebook_sizes)

    def _check_parts(
        self, parts: Sequence[Quantizer] | nn.ModuleList | Quantizer, num_parts: int | None, name: str, number: str
    ) -> list[Quantizer]:
        owner = type(self).__name__
        if isinstance(parts, Quantizer):
            if num_parts is None:
                raise InvalidTypeError(
                    f"`{owner}`: `{number}` must say how often the one quantizer serves. Got None; or pass a list."
                )
            check_int(self, number, num_parts, 1)
            return [parts]
        if not isinstance(parts, (Sequence, nn.ModuleList)) or not parts:
            raise InvalidTypeError(f"`{owner}`: `{name}` must be a quantizer or a list of them. Got {parts!r}.")
        listed: list[Quantizer] = [check_part(self, name, part, Quantizer) for part in parts]
        if num_parts is not None and num_parts != len(parts):
            raise InvalidValueError(
                f"`{owner}`: `{number}` must be the length {len(parts)} of the list. Got {num_parts}."
            )
        inside = [id(module) for part in listed for module in part.modules() if isinstance(module, Quantizer)]
        if len(set(inside)) < len(inside):
            raise InvalidValueError(
                f"`{owner}`: `{name}` must be different quantizers, with different ones inside. Got one twice; to "
                f"share it pass it alone, with {number}={len(parts)}."
            )
        return listed

    def _check_widths(self, width: int) -> None:
        """Refuses parts that do not fit rows of this width."""

    @property
    def given_parts(self) -> list[Quantizer] | Quantizer:
        """The quantizers as the constructor takes them: a list, or the shared one alone."""
        return self._serving()[0] if self.is_shared else self._serving()

    def _serving(self) -> list[Quantizer]:
        """The quantizers in their order, the shared one as often as it serves."""
        parts: list[Quantizer] = [part for part in self.parts if isinstance(part, Quantizer)]
        return parts * self.num_parts if self.is_shared else parts

    @property
    def depth(self) -> int:
        """Number of residual levels that a sample may keep some of."""
        return 1

    @property
    def kept_choices(self) -> list[int]:
        """How many levels a sample may keep."""
        return self._kept_choices

    @kept_choices.setter
    def kept_choices(self, choices: Sequence[int] | None) -> None:
        if choices is None:
            choices = range(1, self.depth + 1)
        checked = [check_int(self, "kept_choices", choice, 1) for choice in choices]
        if not checked or max(checked) > self.depth:
            raise InvalidValueError(
                f"`{type(self).__name__}`: `kept_choices` must be numbers of levels in [1, {self.depth}]. "
                f"Got {choices!r}."
            )
        self._kept_choices = checked

    def _check_dropout(self) -> None:
        owner = type(self).__name__
        if self.dropout and self.depth == 1:
            raise InvalidValueError(
                f"`{owner}`: `dropout` needs residual levels to leave out. Got {self.dropout} and one."
            )
        for part in self.parts:
            if isinstance(part, Composite) and part.dropout:
                raise InvalidValueError(
                    f"`{owner}`: `dropout` belongs to the outermost quantizer. Got {part.dropout} in one inside."
                )

    def forward(self, z: Tensor, mask: Tensor | None = None, kept: Tensor | int | None = None) -> QuantizerOutput:
        """Quantizes ``z``; see the class for shapes.

        Args:
            z: as for every quantizer.
            mask: as for every quantizer.
            kept: how many levels each sample keeps, an integer or Int (samples,), where a sample is an entry of the
                first axis of ``z`` without its channels. Levels beyond have index -1 and take part in nothing. None
                keeps all, or in training what ``dropout`` leaves.
        """
        self._check(z, mask)
        self._check_reduction()
        batch = z.movedim(self.channel_dim, -1).shape[:-1]
        samples = batch[0] if batch else 1
        given = None if kept is None else self._check_kept(kept, samples, z.device)

        def step(x: Tensor, valid: Tensor | None) -> Step:
            by_samples = self._drop(x, samples, valid) if given is None else given
            if by_samples is None:
                return self.step(x, valid)
            return self.step(x, valid, by_samples[:, None].expand(-1, len(x) // max(1, samples)).flatten())

        return self._quantize(z, mask, step)

    def _check_reduction(self) -> None:
        """Refuses parts whose losses would have another shape."""
        for part in self.parts:
            assert isinstance(part, Quantizer)
            if part.reduction != self.reduction:
                raise InvalidValueError(
                    f"`{type(self).__name__}`: `reduction` must be the same in all quantizers inside: set it on the "
                    f"outermost one. Got {part.reduction!r} in {type(part).__name__} and {self.reduction!r} here."
                )
            if isinstance(part, Composite):
                part._check_reduction()

    def _work_dtype(self, dtype: torch.dtype) -> torch.dtype:
        for part in self.parts:
            assert isinstance(part, Quantizer)
            dtype = part._work_dtype(dtype)
        return at_least_float32(dtype)

    def _drop(self, x: Tensor, samples: int, valid: Tensor | None) -> Tensor | None:
        """Draws how many levels each sample keeps, Int64 (samples,); None for all."""
        if not (self.training and self.dropout):
            return None
        # By its number among the samples of all ranks that are not wholly masked, with the first rank's seed.
        group: Group = next((m.process_group for m in self.modules() if isinstance(m, (Codebook, CodebookFree))), None)
        takes_part = torch.ones(samples, dtype=torch.bool, device=x.device)
        if valid is not None:
            takes_part = valid.reshape(samples, -1).any(1) if valid.numel() else takes_part & False
        told = stack_over_ranks(torch.stack([takes_part.sum(), self.clock.seed]), group)
        numbers = told[: rank(group), 0].sum() + (takes_part.long().cumsum(0) - 1).clamp(min=0)
        self.clock.seed.copy_(told[0, 1])
        self.clock.tick()
        draws = Draws(self.clock)
        is_cut = draws.uniform("dropout", (samples,), torch.float32, rows=numbers) < self.dropout
        choices = torch.tensor(self.kept_choices, device=x.device)
        some = choices[draws.integers("levels", (samples,), rows=numbers) % len(choices)]
        return torch.where(is_cut, some, self.depth)

    def _check_kept(self, kept: Tensor | int, samples: int, device: torch.device) -> Tensor:
        owner = type(self).__name__
        if self.depth == 1:
            raise InvalidValueError(f"`{owner}`: `kept` counts residual levels, and there is one. Got {kept!r}.")
        if not isinstance(kept, Tensor):
            kept = torch.full((samples,), check_int(self, "kept", kept, 1), device=device)
        if kept.is_floating_point() or kept.dtype == torch.bool:
            raise InvalidTypeError(f"`{owner}`: `kept` must hold integers. Got {kept.dtype}.")
        if tuple(kept.shape) != (samples,):
            raise InvalidValueError(
                f"`{owner}`: `kept` must have shape {(samples,)}, one per sample. Got {tuple(kept.shape)}."
            )
        kept = kept.long()
        if can_ask(kept) and samples:
            low, high = (int(value) for value in kept.aminmax())
            if low < 1 or high > self.depth:
                raise InvalidValueError(
                    f"`{owner}`: `kept` must be in [1, {self.depth}]. Got values from {low} to {high}."
                )
        return kept

    @abstractmethod
    def step(self, x: Tensor, valid: Tensor | None, kept: Tensor | None = None) -> Step:
        """As for every quantizer; ``kept`` Int64 (n,) says how many residual levels each row keeps."""


def rows_of(part: Quantizer, indices: Tensor) -> Tensor:
    """What a part gives for its entries of a composite's indices, Int64 (n, its num_quantizers): rows (n, its dim).

    Zeros where all of them are -1.
    """
    rows = part.lookup_rows(indices if part.is_composite else indices[:, 0])
    return torch.where((indices >= 0).any(1, keepdim=True), rows, 0)


def columns(indices: Tensor) -> Tensor:
    """A quantizer's indices (n,) or (n, q) as (n, q)."""
    return indices[:, None] if indices.ndim == 1 else indices


def add_up(x: Tensor, steps: Sequence[Step], shares: Sequence[float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and terms of the steps, each times its share."""
    loss = zero_of(x)
    terms: dict[str, Tensor] = {}
    for step, share in zip(steps, shares, strict=True):
        loss = loss + share * step.loss
        for name, term in step.terms.items():
            terms[name] = terms.get(name, 0) + share * term
    return loss, terms
