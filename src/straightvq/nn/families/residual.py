"""Residual quantization: each level quantizes what the levels before it have left."""

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.functional.few import nearest_few
from straightvq.nn.families.composite import Composite, add_up, columns, rows_of
from straightvq.nn.part import check_choice, check_int
from straightvq.nn.quantizer import Quantizer, Step, where_valid
from straightvq.nn.slots.assigners import Nearest
from straightvq.nn.slots.estimators import Estimator, StraightThrough
from straightvq.nn.slots.transforms import Transform
from straightvq.nn.vector_quantizer import VectorQuantizer

Gradient = Literal["once", "per_level"]

# Numbers that a beam search holds at once.
_NUMBERS = 1 << 22


class ResidualQuantizer(Composite):
    """Several codes per vector, each for what the earlier ones have left: ``z ~ c_1 + c_2 + ... + c_L``.

    Level l gets ``r_l = z - (q_1 + ... + q_{l-1})``, with its own transform, codebook, update, reset and losses, so
    that affine maps, alternated updates and resets work on the residuals. A data-dependent init starts level by level.
    The losses of the levels are added up, and all of them reach the encoder.

    The gradient of the task (``gradient``):

    - ``"once"``: the encoder gets exactly what the outer estimator gives, g for ``StraightThrough``. Each level's
      transform and codes get what a layer of their own would give them for the input ``r_l``.
    - ``"per_level"``: it passes each level's transform and estimator, along ``r_{l+1} = r_l - q_l`` too, as in the
      code of DAC. With plain straight-through levels of full width this is g as well.

    Args:
        dim: channels of ``z``.
        levels: a list of quantizers of that width (of the transform's, if there is one), or a single one whose codes
            all levels share.
        num_quantizers: number of levels that share a single one.
        gradient: see above.
        dropout: share of the samples of a training forward that keep only some of their levels, so that one model
            serves all bit rates; an entry of the first axis of ``z`` without its channels is a sample. 0 to 1.
        kept_choices: how many levels such a sample may keep, drawn evenly; None for 1 to all.
        beam: candidates kept per vector while encoding in evaluation; 1 is greedy, as training always is. A wider one
            lowers the error, and is never worse than greedy; the first entries of its indices alone may be. Levels
            must be ``VectorQuantizer`` layers with ``Nearest``.
        transform: in front of all levels; default ``Identity()``.
        estimator: of ``gradient="once"``; default ``StraightThrough()``. Levels have estimators of their own.
        channel_dim: axis of ``z`` that holds the channels.

    Shape:
        z: Float (*batch, dim); indices: Int64 (*batch, num_quantizers), -1 for levels left out. Levels that are
        composites take as many entries as they have quantizers.

    Raises:
        TypeError, ValueError: for levels of another width, one quantizer twice, and settings that contradict.

    Source: SoundStream (arXiv 2107.03312, section III.C, algorithm 1); beam search as in additive quantization (Babenko
    and Lempitsky 2014); shared codes as in RQ-VAE (arXiv 2203.01941).

    Example:
        >>> import straightvq as svq
        >>> rvq = ResidualQuantizer(8, [svq.presets.ema(8, 16) for _ in range(4)]).eval()
        >>> indices = rvq.encode(torch.randn(2, 5, 8))
        >>> indices.shape, rvq.decode(indices[..., :2]).shape
        (torch.Size([2, 5, 4]), torch.Size([2, 5, 8]))
    """

    kept_as: ClassVar = {"levels": "given_parts", "num_quantizers": "num_parts", "estimator": "given_estimator"}

    def __init__(
        self,
        dim: int,
        levels: Sequence[Quantizer] | Quantizer,
        *,
        num_quantizers: int | None = None,
        gradient: Gradient = "once",
        dropout: float = 0.0,
        kept_choices: Sequence[int] | None = None,
        beam: int = 1,
        transform: Transform | None = None,
        estimator: Estimator | None = None,
        channel_dim: int = -1,
    ) -> None:
        if estimator is not None:
            _check_outer(gradient, estimator)
        super().__init__(
            dim,
            levels,
            num_quantizers,
            name="levels",
            number="num_quantizers",
            transform=transform,
            estimator=estimator,
            channel_dim=channel_dim,
            dropout=dropout,
            kept_choices=kept_choices,
        )
        self.gradient = gradient
        self.beam = beam

    def _check_widths(self, width: int) -> None:
        for number, level in enumerate(self._serving()):
            if level.dim != width:
                raise InvalidValueError(
                    f"`ResidualQuantizer`: every level must have the width {width}. "
                    f"Got {level.dim} at level {number}; a transform of the level may narrow its codes."
                )

        first = self._serving()[0]
        if self.is_shared and first.codebooks() and not isinstance(first, VectorQuantizer):
            raise InvalidValueError(
                "`ResidualQuantizer`: a quantizer that all levels share must be a VectorQuantizer or have no codebook, "
                f"because its codes may change once per forward. Got {type(first).__name__}."
            )

    @property
    def gradient(self) -> Gradient:
        """How the gradient of the task passes the levels."""
        return self._gradient

    @gradient.setter
    def gradient(self, value: Gradient) -> None:
        check_choice(self, "gradient", value, get_args(Gradient))
        if type(self.estimator) is not StraightThrough:
            _check_outer(value, self.estimator)
        self._check_estimators(value)
        self._gradient: Gradient = value

    @property
    def given_estimator(self) -> Estimator | None:
        """The estimator as the constructor takes it: none where the levels' own pass the gradient."""
        return self.estimator if self.gradient == "once" else None

    def _check_estimators(self, gradient: Gradient) -> None:
        for number, level in enumerate(self._serving()):
            is_plain = isinstance(level.estimator, StraightThrough) or _carries_gradient(level)
            if gradient == "once" and not is_plain:
                raise InvalidValueError(
                    f"`ResidualQuantizer`: with gradient='once' the estimator {type(level.estimator).__name__} of "
                    f"level {number} would do nothing. Give it to the residual quantizer as `estimator`, or pass "
                    "gradient='per_level'."
                )

    @property
    def depth(self) -> int:
        return self.num_parts

    @property
    def beam(self) -> int:
        """Candidates kept per vector while encoding in evaluation."""
        return self._beam

    @beam.setter
    def beam(self, value: int) -> None:
        value = check_int(self, "beam", value, 1)
        if value > 1:
            for level in self.parts:
                if not isinstance(level, VectorQuantizer) or type(level.assigner) is not Nearest:
                    raise InvalidValueError(
                        "`ResidualQuantizer`: a `beam` wider than 1 needs levels that are VectorQuantizer layers with "
                        f"Nearest. Got {type(level).__name__}."
                    )
        self._beam = value

    @property
    def levels(self) -> list[Quantizer]:
        """The quantizer of each level."""
        return self._serving()

    @property
    def codebook_sizes(self) -> list[int]:
        return [size for level in self._serving() for size in level.codebook_sizes]

    # --- maps on flat rows ----------------------------------------------------------------------------------------

    def step(self, x: Tensor, valid: Tensor | None, kept: Tensor | None = None) -> Step:
        valids = self._valids(valid, kept)
        level = self.parts[0]
        if self.is_shared and level.training and isinstance(level, VectorQuantizer):
            steps, code = self._step_shared(level, x, valids)
        elif self._beam > 1 and not self.training:
            steps, code = self._step_chosen(x, valids)
        else:
            steps, code = self._walk(x, valids, lambda level, rows, valid, _: level.step_rows(rows, valid))
        for level, step in zip(self._serving(), steps, strict=True):
            level.tell(step)
        loss, terms = add_up(x, steps, [1.0] * len(steps))
        indices = torch.cat([columns(step.indices) for step in steps], 1)
        return Step(x, indices, code, loss, terms, levels=tuple(steps))

    def _valids(self, valid: Tensor | None, kept: Tensor | None) -> list[Tensor | None]:
        """Which rows take part at each level."""
        if kept is None:
            return [valid] * self.num_parts
        return [kept > number if valid is None else valid & (kept > number) for number in range(self.num_parts)]

    def _walk(
        self,
        x: Tensor,
        valids: list[Tensor | None],
        step_of: Callable[[Quantizer, Tensor, Tensor | None, int], Step],
    ) -> tuple[list[Step], Tensor]:
        """The steps of all levels, each on what the earlier ones have left, and the sum of their codes, detached."""
        steps: list[Step] = []
        rest, total = x, None
        for number, (level, valid) in enumerate(zip(self._serving(), valids, strict=True)):
            step = step_of(level, rest, valid, number)
            with torch.no_grad():
                rows = level.transform.inverse(step.code.detach())
                rows = rows if valid is None else _zero_where_left_out(rows, step.indices)
                total = rows if total is None else total + rows
            if number + 1 < self.num_parts:
                rest = rest - rows
            steps.append(step)
        assert total is not None  # there is a level
        return steps, total

    def _step_shared(self, level: VectorQuantizer, x: Tensor, valids: list[Tensor | None]) -> tuple[list[Step], Tensor]:
        """The shared codebook changes once, by the rows of all levels."""

        def choose(_: Quantizer, rows: Tensor, valid: Tensor | None, number: int) -> Step:
            y = level.bound(level.transformed(rows))
            return level.choose(y, valid, level.batch(y, valid, number))

        def gather(steps: list[Step]) -> tuple[Tensor, Tensor | None]:
            z = torch.stack([step.z for step in steps], 1).flatten(0, 1)
            if valids[0] is None:
                return z, None
            return z, torch.stack([valid for valid in valids if valid is not None], 1).flatten()

        first = level.batch(level.bound(level.transformed(x.detach())), valids[0])
        level.adapt(first, lambda: level.batch(*gather(self._walk(x, valids, choose)[0])))
        steps, code = self._walk(x, valids, choose)
        level.settle(level.batch(*gather(steps)), torch.stack([step.indices for step in steps], 1).flatten())
        return steps, code

    def _step_chosen(self, x: Tensor, valids: list[Tensor | None]) -> tuple[list[Step], Tensor]:
        """With the codes that the beam search finds."""
        indices = self.assign(x.detach())

        def choose(level: Quantizer, rows: Tensor, valid: Tensor | None, number: int) -> Step:
            assert isinstance(level, VectorQuantizer)
            y = level.bound(level.transformed(rows))
            return level.choose(y, valid, None, where_valid(indices[:, number], valid))

        return self._walk(x, valids, choose)

    def without_codes(self, x: Tensor) -> Tensor:
        rest, every = x, []
        for level in self._serving():
            every.append(level.without_codes_rows(rest))
            rest = rest - every[-1]
        return functools.reduce(torch.add, every)

    def estimate(self, step: Step) -> Tensor:
        is_once = self.gradient == "once"
        if is_once and not any(_carries_gradient(level) for level in self._serving()):
            return self.estimator.estimate(step.z, step.code, None)
        rest, every = step.z.detach() if is_once else step.z, []
        for level, inner in zip(self._serving(), step.levels, strict=True):
            rows = _zero_where_left_out(level.estimate_rows(rest, inner), inner.indices)
            every.append(rows)
            rest = rest - (rows.detach() if is_once else rows)
        total = functools.reduce(torch.add, every)
        if not is_once:
            return total
        return self.estimator.estimate(step.z, total.detach(), None) + (total - total.detach())

    def assign(self, z: Tensor) -> Tensor:
        if self._beam > 1:
            return self._search(z)
        indices, rest = [], z
        for number, level in enumerate(self._serving()):
            indices.append(columns(level.assign_rows(rest)))
            if number + 1 < self.num_parts:
                rest = rest - rows_of(level, indices[-1])
        return torch.cat(indices, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        every = []
        for level in self._serving():
            own, indices = indices[:, : level.num_quantizers], indices[:, level.num_quantizers :]
            every.append(rows_of(level, own))
            if indices.shape[1] == 0:
                break
        return functools.reduce(torch.add, every)

    # --- beam search ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _search(self, z: Tensor) -> Tensor:
        """Indices (n, levels) of the best of ``beam`` paths, or greedy ones where those are better."""
        step = max(1, _NUMBERS // (self._beam**2 * z.shape[1]))
        return torch.cat([self._search_part(part) for part in z.split(step)])

    def _search_part(self, z: Tensor) -> Tensor:
        rest, paths = z[:, None], z.new_zeros(len(z), 1, 0, dtype=torch.int64)  # (n, w, d), (n, w, level)
        greedy_rest, greedy = z, []
        error = z.new_zeros(len(z), 1)
        for level in self._serving():
            assert isinstance(level, VectorQuantizer)
            assert isinstance(level.assigner, Nearest)
            codes = level.codebook.current()
            rows = level.bound(level.transformed(rest.flatten(0, 1)))
            few = nearest_few(rows, codes, self._beam, distance=level.assigner.distance)
            found = few.unflatten(0, rest.shape[:2])  # (n, w, c)
            ends = rest[:, :, None] - level.lookup_rows(few.flatten()).unflatten(0, found.shape)
            errors = ends.square().sum(-1).flatten(1)
            error, kept = errors.topk(min(self._beam, errors.shape[1]), 1, largest=False)
            path, last = kept // found.shape[2], found.flatten(1).gather(1, kept)
            paths = torch.cat([paths.gather(1, path[..., None].expand(-1, -1, paths.shape[2])), last[..., None]], 2)
            rest = ends.flatten(1, 2).gather(1, kept[..., None].expand(-1, -1, z.shape[1]))
            greedy.append(level.assign_rows(greedy_rest))
            greedy_rest = greedy_rest - level.lookup_rows(greedy[-1])
        is_better = error[:, :1] < greedy_rest.square().sum(1, keepdim=True)
        return torch.where(is_better, paths[:, 0], torch.stack(greedy, 1))

    def extra_repr(self) -> str:
        return f"num_quantizers={self.num_quantizers}, gradient={self.gradient!r}, channel_dim={self.channel_dim}"


def _check_outer(gradient: Gradient, estimator: Estimator) -> None:
    if gradient == "per_level":
        raise InvalidValueError(
            "`ResidualQuantizer`: with gradient='per_level' the levels' estimators pass the gradient. "
            f"Got `estimator`, {type(estimator).__name__}, which would do nothing."
        )


def _zero_where_left_out(rows: Tensor, indices: Tensor) -> Tensor:
    return torch.where((columns(indices) >= 0).any(1, keepdim=True), rows, 0)


def _carries_gradient(level: Quantizer) -> bool:
    """Whether something inside takes the gradient of the task."""
    return level.is_composite or level.estimator.trains_codes or any(True for _ in level.transform.parameters())
