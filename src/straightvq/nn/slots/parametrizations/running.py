"""A scale and shift from running statistics."""

import torch
from torch import Tensor

from straightvq.functional.sums import code_sums
from straightvq.nn.batch import Batch, pool_moments
from straightvq.nn.part import check_float, check_int, setting
from straightvq.nn.ranks import Message
from straightvq.nn.slots.parametrizations.base import Parametrization
from straightvq.nn.slots.parametrizations.groups import by_group, check_groups, is_steep

# Of a channel, relative to the mean over the channels: less counts as this.
_SMALLEST_VARIANCE = 1e-12


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
    and unit spread would put the codes two standard deviations away from the data.
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
        check_groups(self, size, self.groups, smallest=2)

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
        return scale * (by_group(raw, self.groups) - self.mean_c[:, None]) + self.mean_z[:, None]

    def inverse(self, codes: Tensor) -> Tensor:
        grouped = (by_group(codes, self.groups) - self.mean_z[:, None]) / self._scale() + self.mean_c[:, None]
        return grouped.reshape(codes.shape).to(codes.dtype)

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Makes the map of a group the identity if a scale has left [1/1024, 1024]; the codes stay what they are.

        Codes that are written again and again, and have another variance than the embeddings, move the scale on with
        every step, and one written into a channel that is constant in the embeddings moves it by orders of magnitude:
        the raw table would overflow.
        """
        scale = self._scale()
        steep = is_steep(scale).any(-1) & rows.any()  # (groups, 1)
        based = torch.where(steep[:, None], self._map(raw, scale), by_group(raw, self.groups))
        # All channels together: what a variance is at least depends on the others'.
        self.mean_c.copy_(torch.where(steep, self.mean_z, self.mean_c))
        self.var_c.copy_(torch.where(steep, self.var_z, self.var_c))
        return based.reshape(raw.shape).to(raw.dtype)

    def adopt(self, codes: Tensor) -> Tensor:
        mean, var = _moments(by_group(codes, self.groups))
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
        mean_c, var_c = _moments(by_group(raw, self.groups))
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


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the codes of each group."""
    return x.mean(1), x.var(1, unbiased=False)


def _run(running: Tensor, new: Tensor, rate: Tensor, shrink: Tensor | float = 1.0) -> None:
    # `lerp` is exact at rate 1: `running + (new - running)` would round the first batch at the scale of the start.
    running.copy_(torch.lerp(running, new.to(running.dtype), rate.to(running.dtype)) * shrink)
