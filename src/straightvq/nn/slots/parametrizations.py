"""Parametrizations: the map from the raw table to the effective codes, and its exact inverse.

Shapes: K codes of width D in G contiguous groups. Search, output and losses use effective codes; whoever writes codes
(init, reset, EMA, inner step, import) writes effective ones, and the inverse turns them into raw rows.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.functional.sums import code_sums
from straightvq.nn.batch import Batch, pool_moments
from straightvq.nn.part import Part, check_float, check_int, check_part, setting
from straightvq.nn.ranks import Message
from straightvq.nn.slots.inits import Init

# Between its inverse and this the size of a scale is left alone.
_LARGEST_SCALE = 1024.0
# Of a channel, relative to the mean over the channels: less counts as this.
_SMALLEST_VARIANCE = 1e-12
# A raw row below this length gets the gradient of this length from the normalisation.
_SHORTEST = 1e-2


class Parametrization(Part):
    """Required: ``forward``, and ``inverse`` if there is one; ``observe`` and ``remember`` if it follows the data;
    ``raw_shape`` and ``start_raw`` if the raw table has another shape than the codes.

    Without an inverse nobody can write codes: inits from data, resets, writing updates and ``set_codes`` are refused.
    """

    # Whether every table of codes has a raw table that gives it: what a later part of a chain may rely on.
    is_onto = False

    @property
    def has_inverse(self) -> bool:
        """Whether ``inverse`` is given."""
        return type(self).inverse is not Parametrization.inverse

    @property
    def is_learned(self) -> bool:
        """Whether it has parameters that need a gradient."""
        return any(True for _ in self.parameters())

    def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
        """Shape of the raw table for codes (size, dim)."""
        return size, dim

    def start_raw(self, size: int, dim: int) -> Tensor:
        """Raw table to start from where there is no inverse: normal numbers, of torch's global generator."""
        return torch.randn(self.raw_shape(size, dim))

    def start(self, init: Init, size: int, dim: int) -> Tensor:
        """Raw table to start from, before any data."""
        return self.inverse(init.start(size, dim)) if self.has_inverse else self.start_raw(size, dim)

    def bind(self, size: int, dim: int) -> None:
        self._check_size(size)
        self._bind_once()
        self._make(size, dim)

    def _check_size(self, size: int) -> None:
        """Refuses a size that the map cannot have, before anything is made."""

    def _make(self, size: int, dim: int) -> None:
        """Makes parameters and buffers; called once."""

    @abstractmethod
    def forward(self, raw: Tensor) -> Tensor:
        """Raw table -> effective codes (k, d), differentiable in the table and the parameters."""

    def inverse(self, codes: Tensor) -> Tensor:
        """Effective codes (k, d) -> the raw table that gives them, under the map now in force."""
        raise InvalidTypeError(f"`{type(self).__name__}` has no inverse.")

    def adopt(self, codes: Tensor) -> Tensor:
        """Raw table for a whole new set of codes (init, import); may change the map so that it fits them."""
        return self.inverse(codes)

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Raw table that gives the same codes, before ``rows``, Bool (k,), are written through the inverse.

        May change the map with it, if its inverse has become too steep.
        """
        return raw

    def observe(self, batch: Batch, raw: Tensor) -> None:
        """Sees the batch before the codes are read. Training only."""

    def remember(self, z: Tensor, indices: Tensor, message: Message) -> None:
        """Sees an assignment of the batch, for the next step; the last one of a step counts. Training only.

        What the ranks have to tell each other travels in ``message``, with the counts of the same assignment.
        """


class Direct(Parametrization):
    """The raw table is the codebook.

    Example:
        >>> import torch
        >>> Direct()(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    is_onto = True

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, codes: Tensor) -> Tensor:
        return codes


class Affine(Parametrization):
    """Learned scale and shift, shared by all codes of a group, so that unused codes move with the used ones.

    ``code = (1 + lr_scale * s) * raw + lr_scale * b``, with s and b zero at the start. Needs a loss or a
    synchronised estimator to train s and b, so it cannot be combined with ``EMAUpdate``.

    An optimizer may take the scale of a channel through zero: the codes then coincide in that channel and are mirrored
    beyond, but nothing can be written there. Before a write (init, reset, inner step, ``set_codes``) channels whose
    scale has left [1/1024, 1024] in size therefore start over with s = b = 0, and their raw rows become the codes.
    When a whole table is written, so do channels whose shift is more than 1024 times as large as the codes.

    Args:
        lr_scale: the paper's learning-rate multiplier for the map. It acts twice: one SGD step moves the effective
            scale by ``lr_scale**2``, one Adam step by ``lr_scale``. The authors use 2 to 10.
        groups: contiguous blocks of codes with a map of their own; must divide the codebook's size.

    Shape:
        scale s, shift b: Float (groups, codebook_dim).

    Source: arXiv 2305.08842, affine re-parameterisation (learned form).

    Example:
        >>> import torch
        >>> affine = Affine(lr_scale=2.0)
        >>> affine.bind(1, 1)
        >>> _ = affine.scale.data.fill_(0.5), affine.shift.data.fill_(0.25)
        >>> affine(torch.ones(1, 1)).item(), affine.inverse(torch.full((1, 1), 2.5)).item()
        (2.5, 1.0)
    """

    is_onto = True
    lr_scale: float = setting(check_float, minimum=0, open_minimum=True)
    groups: int = setting(check_int, minimum=1, keeps="all")

    def __init__(self, lr_scale: float = 1.0, groups: int = 1) -> None:
        super().__init__()
        self.lr_scale = lr_scale
        self.groups = groups

    @property
    def is_learned(self) -> bool:
        return True

    def _check_size(self, size: int) -> None:
        _check_groups(self, size, self.groups, smallest=1)

    def _make(self, size: int, dim: int) -> None:
        self.scale = nn.Parameter(torch.zeros(self.groups, dim))
        self.shift = nn.Parameter(torch.zeros(self.groups, dim))

    def _map(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Effective scale and shift, (groups, dim)."""
        return 1 + self.lr_scale * self.scale.to(dtype), self.lr_scale * self.shift.to(dtype)

    def forward(self, raw: Tensor) -> Tensor:
        scale, shift = self._map(raw.dtype)
        return (scale[:, None] * _by_group(raw, self.groups) + shift[:, None]).reshape(raw.shape)

    def inverse(self, codes: Tensor) -> Tensor:
        scale, shift = self._map(codes.dtype)
        return ((_by_group(codes, self.groups) - shift[:, None]) / scale[:, None]).reshape(codes.shape)

    @torch.no_grad()
    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Makes the map the identity in channels whose scale is too close to zero, or too large, to be inverted."""
        is_steep = _is_steep(self._map(raw.dtype)[0]) & rows.any()
        based = torch.where(is_steep[:, None], _by_group(self(raw), self.groups), _by_group(raw, self.groups))
        self._start_over(is_steep)
        return based.reshape(raw.shape)

    @torch.no_grad()
    def adopt(self, codes: Tensor) -> Tensor:
        scale, shift = self._map(codes.dtype)
        largest = _by_group(codes, self.groups).abs().amax(1)
        # A shift much larger than the codes would take their digits away.
        self._start_over(_is_steep(scale) | (shift.abs() > _LARGEST_SCALE * largest))
        return self.inverse(codes)

    def _start_over(self, channels: Tensor) -> None:
        self.scale.masked_fill_(channels, 0)
        self.shift.masked_fill_(channels, 0)

    def extra_repr(self) -> str:
        return f"lr_scale={self.lr_scale}, groups={self.groups}"


class RunningAffine(Parametrization):
    """Scale and shift from running statistics: the codes get the moments of the embeddings.

    ``code = sqrt(var_z / var_c) * (raw - mean_c) + mean_z``, per channel and group. All four moments run in training
    (never in evaluation): ``moment <- (1 - momentum) * moment + momentum * new``, the first batch copied. With one
    group the embedding moments are the batch's; with more, those of the vectors assigned to the group in the
    previous step (all vectors until then), by the update's last search where it makes one. A data-dependent init sets
    both sides to the centres' moments, so that the map starts as the identity. No gradient reaches the statistics.

    A variance counts as at least what float arithmetic resolves: a unit in the last place of the mean, and 1e-12 of the
    mean variance of the group's channels. Thus data and codes on another scale give the same map. Without any spread on
    one side (all vectors zero, or all codes) the scale is 1.

    Args:
        momentum: weight of the new value, as in batch normalisation.
        groups: contiguous blocks of codes with moments of their own; at least two codes each.
        shrink: factor on the embedding's running variance after each update, in (0, 1]. An over-estimated scale feeds
            on itself in networks without a normalised bottleneck; the authors' remedy is a slight under-estimate.

    Shape:
        mean_z, var_z, mean_c, var_c: Float (groups, codebook_dim), biased variances.

    Source: arXiv 2305.08842, affine re-parameterisation (running form). Deviations: the authors' code broadcasts one
    global statistic to all groups, here groups really differ; their remedy shrinks the mean too, which at mean 1,000
    and unit spread would put the codes two standard deviations beside the data.
    """

    is_onto = True
    momentum: float = setting(check_float, minimum=0, maximum=1, open_minimum=True)
    groups: int = setting(check_int, minimum=1, keeps="all")
    shrink: float = setting(check_float, minimum=0, maximum=1, open_minimum=True)

    def __init__(self, momentum: float = 0.1, groups: int = 1, shrink: float = 0.9998) -> None:
        super().__init__()
        self.momentum = momentum
        self.groups = groups
        self.shrink = shrink

    def _check_size(self, size: int) -> None:
        _check_groups(self, size, self.groups, smallest=2)

    def _make(self, size: int, dim: int) -> None:
        self.size = size
        for name in ("mean_z", "mean_c"):
            self.register_buffer(name, torch.zeros(self.groups, dim))
        for name in ("var_z", "var_c"):
            self.register_buffer(name, torch.ones(self.groups, dim))
        self.register_buffer("is_started", torch.zeros(()))
        # The previous step's assigned vectors per group: count, mean, biased variance.
        self.register_buffer("last_count", torch.zeros(self.groups, 1))
        self.register_buffer("last_mean", torch.zeros(self.groups, dim))
        self.register_buffer("last_var", torch.zeros(self.groups, dim))

    mean_z: Tensor
    mean_c: Tensor
    var_z: Tensor
    var_c: Tensor
    is_started: Tensor
    last_count: Tensor
    last_mean: Tensor
    last_var: Tensor

    def _scale(self) -> Tensor:
        """Of each channel, (groups, 1, dim)."""
        mean, var = torch.stack([self.mean_z, self.mean_c]), torch.stack([self.var_z, self.var_c])
        # What can be told from zero beside the other channels, and at this mean.
        least = _SMALLEST_VARIANCE * var.mean(-1, keepdim=True)
        least = torch.addcmul(least, mean, mean, value=torch.finfo(var.dtype).eps ** 2)
        z, c = torch.maximum(var, least).sqrt().unbind()
        return (z / c).masked_fill(torch.minimum(z, c) == 0, 1)[:, None]

    def forward(self, raw: Tensor) -> Tensor:
        return self._map(raw, self._scale()).reshape(raw.shape).to(raw.dtype)

    def _map(self, raw: Tensor, scale: Tensor) -> Tensor:
        return scale * (_by_group(raw, self.groups) - self.mean_c[:, None]) + self.mean_z[:, None]

    def inverse(self, codes: Tensor) -> Tensor:
        grouped = (_by_group(codes, self.groups) - self.mean_z[:, None]) / self._scale() + self.mean_c[:, None]
        return grouped.reshape(codes.shape).to(codes.dtype)

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Makes the map of a group the identity if a scale has left [1/1024, 1024]; the codes stay what they are.

        Codes that are written again and again, and have another variance than the embeddings, move the scale on with
        every step, and one written into a channel that is constant in the embeddings moves it by orders of magnitude:
        the raw table would overflow.
        """
        scale = self._scale()
        is_steep = _is_steep(scale).any(-1) & rows.any()  # (groups, 1)
        based = torch.where(is_steep[:, None], self._map(raw, scale), _by_group(raw, self.groups))
        # All channels together: what a variance is at least depends on the others'.
        self.mean_c.copy_(torch.where(is_steep, self.mean_z, self.mean_c))
        self.var_c.copy_(torch.where(is_steep, self.var_z, self.var_c))
        return based.reshape(raw.shape).to(raw.dtype)

    def adopt(self, codes: Tensor) -> Tensor:
        mean, var = _moments(_by_group(codes, self.groups))
        for running, new in ((self.mean_z, mean), (self.mean_c, mean), (self.var_z, var), (self.var_c, var)):
            running.copy_(new)
        self.is_started.fill_(1)
        self.last_count.zero_()
        return codes

    def observe(self, batch: Batch, raw: Tensor) -> None:
        count, mean, var = batch.moments()
        seen = count.sum() > 0
        if self.groups > 1:
            known = seen & (self.last_count.sum() > 0)
            count = torch.where(known, self.last_count.to(count.dtype), count)
            mean = torch.where(known, self.last_mean.to(mean.dtype), mean)
            var = torch.where(known, self.last_var.to(var.dtype), var)
        mean_c, var_c = _moments(_by_group(raw, self.groups))
        # A group without vectors keeps its statistics, and so does the whole map on an empty batch. The numbers are
        # tensors of the state's dtype: `where` on two Python floats would round them to float32.
        one, zero = torch.ones_like(self.var_z[0, 0]), torch.zeros_like(self.var_z[0, 0])
        rate = torch.where(self.is_started > 0, one * self.momentum, one)
        rate_z = torch.where(count > 0, rate, zero)
        rate_c = torch.where(seen, rate, zero)
        shrink = torch.where(count > 0, one * self.shrink, one)
        _run(self.mean_z, mean, rate_z)
        _run(self.var_z, var, rate_z, shrink)
        _run(self.mean_c, mean_c, rate_c)
        _run(self.var_c, var_c, rate_c)
        self.is_started.logical_or_(seen)

    def remember(self, z: Tensor, indices: Tensor, message: Message) -> None:
        if self.groups == 1:
            return
        owner = torch.where(indices < 0, -1, indices // (self.size // self.groups))
        rows = owner.clamp(min=0)
        # Differences, not vectors, are summed: they keep their digits when the data are far from the origin.
        about = self.mean_z.to(z.dtype)
        count, total = code_sums(z - about.index_select(0, rows), owner, self.groups)
        mean = about + total / count.clamp(min=1)[:, None]
        _, spread = code_sums((z - mean.index_select(0, rows)).square(), owner, self.groups)
        message.stack(torch.cat([count[:, None], mean, spread], 1), then=self._keep)

    def _keep(self, parts: Tensor) -> None:
        """Keeps the moments of the groups, from every rank's count, mean and spread."""
        count, mean, var = pool_moments(parts)
        seen = count.sum() > 0
        for buffer, new in ((self.last_count, count), (self.last_mean, mean), (self.last_var, var)):
            buffer.copy_(torch.where(seen, new.to(buffer.dtype), buffer))

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, groups={self.groups}, shrink={self.shrink}"


class UnitNormCodes(Parametrization):
    """Codes on the unit sphere: ``code = raw / ||raw||``. Written vectors are normalised.

    Use it with the ``UnitNorm`` transform, which does the same to the embeddings. A zero vector has no direction: its
    row gets one that no other row gets. A row that an optimizer drives below a length of 0.01 keeps its direction and
    gets the gradient of that length, instead of one that grows without bound.

    Source: Yu et al. 2021 (arXiv 2110.04627); "+ l2" in the tables of arXiv 2305.08842.

    Example:
        >>> import torch
        >>> UnitNormCodes()(torch.tensor([[3.0, 4.0]])).norm().item()
        1.0
    """

    def forward(self, raw: Tensor) -> Tensor:
        fixed = raw.detach()
        length = fixed.norm(dim=1, keepdim=True)
        lifted = torch.where(length > 0, fixed * (_SHORTEST / length).clamp(min=1), _own_directions(fixed))
        return F.normalize(raw + (lifted - fixed), dim=1)  # `raw` to the bit where it is not short

    def inverse(self, codes: Tensor) -> Tensor:
        # Squares of the largest coordinates neither vanish nor overflow then.
        largest = codes.abs().amax(1, keepdim=True)
        return F.normalize(torch.where(largest > 0, codes / largest, _own_directions(codes)), dim=1)


class Chain(Parametrization):
    """Several parametrizations one after the other: ``code = last(... first(raw))``.

    ``Chain([Affine(), UnitNormCodes()])`` is the paper's best row: the norm holds for the effective codes.

    Args:
        parts: at least one, in the order in which they act on the raw table. Only the last may be one that cannot give
            every vector, such as ``UnitNormCodes``: codes that are written would otherwise come back as others.

    Raises:
        TypeError, ValueError: for other parts than these.

    Example:
        >>> import torch
        >>> chain = Chain([Affine(), UnitNormCodes()])
        >>> chain.bind(2, 2)
        >>> chain(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).norm(dim=1).tolist()
        [1.0, 1.0]
    """

    def __init__(self, parts: list[Parametrization]) -> None:
        super().__init__()
        if not isinstance(parts, Sequence) or not parts:
            raise InvalidValueError(f"`Chain`: `parts` must be a list of at least one parametrization. Got {parts!r}.")
        self.parts = nn.ModuleList(check_part(self, "parts", part, Parametrization) for part in parts)
        for part in self._parts[:-1]:
            if self.has_inverse and not part.is_onto:
                raise InvalidValueError(
                    f"`Chain`: `parts` must have {type(part).__name__} last: it cannot give every vector, and codes "
                    "that are written through a later part would come back as others. "
                    f"Got [{', '.join(type(each).__name__ for each in self._parts)}]."
                )
        self.is_onto = self._parts[-1].is_onto

    @property
    def has_inverse(self) -> bool:
        return all(part.has_inverse for part in self._parts)

    @property
    def is_learned(self) -> bool:
        return any(part.is_learned for part in self._parts)

    def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
        return self._parts[0].raw_shape(size, self._dims(size, dim)[0])

    def start_raw(self, size: int, dim: int) -> Tensor:
        return self._parts[0].start_raw(size, self._dims(size, dim)[0])

    def _dims(self, size: int, dim: int) -> list[int]:
        """Width of what each part gives."""
        dims = [dim]
        for part in self._parts[:0:-1]:
            dims.insert(0, part.raw_shape(size, dims[0])[-1])
        return dims

    @property
    def _parts(self) -> list[Parametrization]:
        return [part for part in self.parts if isinstance(part, Parametrization)]

    def _check_size(self, size: int) -> None:
        for part in self._parts:
            part._check_size(size)

    def _make(self, size: int, dim: int) -> None:
        for part, width in zip(self._parts, self._dims(size, dim), strict=True):
            part.bind(size, width)

    def forward(self, raw: Tensor) -> Tensor:
        for part in self._parts:
            raw = part(raw)
        return raw

    def inverse(self, codes: Tensor) -> Tensor:
        for part in reversed(self._parts):
            codes = part.inverse(codes)
        return codes

    def adopt(self, codes: Tensor) -> Tensor:
        for part in reversed(self._parts):
            codes = part.adopt(codes)
        return codes

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        parts = self._parts
        tables = [raw]  # what each part maps
        for part in parts[:-1]:
            tables.append(part(tables[-1]))
        for last in range(len(parts)):  # the first one first: what the others move goes back through it
            based = parts[last].rebase(tables[last], rows)
            if based is tables[last]:
                continue
            # Rows that it leaves alone keep their digits; the others go back through the parts before it.
            moved = (based != tables[last]).any(1, keepdim=True)
            tables[last] = based
            for i in reversed(range(last)):
                based = parts[i].inverse(based)
                tables[i] = torch.where(moved, based, tables[i])
        return tables[0]

    def observe(self, batch: Batch, raw: Tensor) -> None:
        for part in self._parts:
            part.observe(batch, raw)
            raw = part(raw)

    def remember(self, z: Tensor, indices: Tensor, message: Message) -> None:
        for part in self._parts:
            part.remember(z, indices, message)


def _check_groups(owner: Parametrization, size: int, groups: int, *, smallest: int) -> None:
    if size % groups or size // groups < smallest:
        least = f" with at least {smallest} codes each" if smallest > 1 else ""
        raise InvalidValueError(
            f"`{type(owner).__name__}`: `groups` must divide the codebook's size {size}{least}. Got {groups}."
        )


def _by_group(table: Tensor, groups: int) -> Tensor:
    """(k, d) -> (groups, k / groups, d)."""
    return table.reshape(groups, -1, table.shape[1])


def _is_steep(scale: Tensor) -> Tensor:
    """Whether the map, or its inverse, would carry numbers or gradients away."""
    return scale.abs().log().abs() > math.log(_LARGEST_SCALE)


def _own_directions(rows: Tensor) -> Tensor:
    """A direction (k, d) for each of the rows, no two of them parallel: cosines of consecutive numbers."""
    return torch.arange(1, rows.numel() + 1, dtype=rows.dtype, device=rows.device).cos().view(rows.shape)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the codes of each group."""
    return x.mean(1), x.var(1, unbiased=False)


def _run(running: Tensor, new: Tensor, rate: Tensor, shrink: Tensor | float = 1.0) -> None:
    # `lerp` is exact at rate 1: `running + (new - running)` would round the first batch at the scale of the start.
    running.copy_(torch.lerp(running, new.to(running.dtype), rate.to(running.dtype)) * shrink)
