"""Methods of other papers as parts of one's own: each class is shown in the documentation's page on extending.

They pass ``straightvq.testing.check_quantizer`` with the exceptions that ``layers()`` names:

    python examples/extensions.py
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import straightvq as svq
from straightvq.nn.losses import masked_mean


class Rotation(svq.Estimator):
    """Carries the gradient through the rotation and scaling that maps z to its code (arXiv 2410.06424)."""

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        with torch.no_grad():
            a, b = F.normalize(z, dim=1), F.normalize(code, dim=1)
            w = F.normalize(a + b, dim=1)
            scale = code.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-6)
        rotated = z - 2 * w * (w * z).sum(1, keepdim=True) + 2 * b * (a * z).sum(1, keepdim=True)
        return code.detach() + scale * (rotated - rotated.detach())


def gumbel_logits(z: Tensor, codes: Tensor, batch: svq.Batch | None) -> Tensor:
    """Minus the squared distances (n, k); in training with Gumbel noise, the same for all who ask in this step."""
    logits = -torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist").square()
    if batch is None:
        return logits
    return logits + batch.draws.gumbel("gumbel", tuple(logits.shape), logits.dtype, rows=batch.rows())


class GumbelSample(svq.Assigner):
    """In training a code with the probability softmax(-||z - c||^2) by the Gumbel-max trick, else the nearest."""

    is_random = True

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return svq.functional.nearest_code(z, codes)

    def training_rule(self, batch: svq.Batch, codes: Tensor) -> Tensor:
        return gumbel_logits(batch.z, codes, batch).argmax(1)


class GumbelStraightThrough(svq.Estimator):
    """The sampled code, with the gradient of the softmax of the same noise at a temperature (arXiv 1611.01144)."""

    takes_context = True
    trains_codes = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, code: Tensor, context: svq.Context) -> Tensor:
        logits = gumbel_logits(z, context.codes, context.batch)
        soft = (logits / self.temperature).softmax(1) @ context.codes
        return code.detach() + (soft - soft.detach())


class Entropy(svq.Loss):
    """Few codes for each vector, all codes for the batch: ``mean H(p_i) - H(mean p_i)``, ``p_i`` soft assignments."""

    name = "entropy"
    trains = "both"
    takes_context = True

    def __init__(self, weight: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: svq.Context) -> Tensor:
        logits = (2 * z @ context.codes.T - context.codes.square().sum(1)) / self.temperature
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        single = masked_mean(-(p * log_p).sum(1, keepdim=True), valid)
        share = torch.stack([masked_mean(column[:, None], valid) for column in p.unbind(1)])
        return single + (share * (share + 1e-9).log()).sum()


class Residual(svq.Quantizer):
    """Each level quantizes what the levels before it left over; the gradient passes once."""

    is_composite = True

    def __init__(self, levels: list[svq.VectorQuantizer], channel_dim: int = -1) -> None:
        super().__init__(levels[0].dim, estimator=copy.deepcopy(levels[0].estimator), channel_dim=channel_dim)
        self.levels, self.num_quantizers = nn.ModuleList(levels), len(levels)
        self.codebook_size = max(level.codebook_size for level in levels)

    def step(self, x: Tensor, valid: Tensor | None) -> svq.Step:
        rest, steps = x, []
        for level in self.levels:
            steps.append(level.step(rest, valid))
            rest = rest - steps[-1].code.detach()
        return svq.Step.sum(x, steps)

    def assign(self, z: Tensor) -> Tensor:
        indices = []
        for level in self.levels:
            indices.append(level.assign(z))
            z = z - level.lookup(indices[-1])
        return torch.stack(indices, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return sum((i >= 0)[:, None] * level.lookup(i) for i, level in zip(indices.T, self.levels, strict=False))


class SharedResidual(svq.Quantizer):
    """Residual levels that share one codebook, which adapts once per forward, to the vectors of all levels."""

    is_composite = True

    def __init__(self, level: svq.VectorQuantizer, num_quantizers: int, channel_dim: int = -1) -> None:
        super().__init__(level.dim, estimator=copy.deepcopy(level.estimator), channel_dim=channel_dim)
        self.level, self.num_quantizers, self.codebook_size = level, num_quantizers, level.codebook_size

    def step(self, x: Tensor, valid: Tensor | None) -> svq.Step:
        level, rest, steps = self.level, x, []
        every = None if valid is None else valid[:, None].expand(-1, self.num_quantizers).flatten()
        if self.training:
            level.adapt(level.batch(x, valid), lambda: level.batch(self.rests(x).flatten(0, 1), every))
        for number in range(self.num_quantizers):
            steps.append(level.choose(rest, valid, level.batch(rest, valid, number) if self.training else None))
            rest = rest - steps[-1].code.detach()
        out = svq.Step.sum(x, steps)
        if self.training:
            rests = torch.stack([step.z for step in steps], 1)
            level.settle(level.batch(rests.flatten(0, 1), every), out.indices.flatten())
        return out

    def rests(self, x: Tensor) -> Tensor:
        """What each level is to quantize, by the codes as they are: (n, num_quantizers, d)."""
        rests = [x.detach()]
        for _ in range(1, self.num_quantizers):
            rests.append(rests[-1] - self.level.lookup(self.level.assign(rests[-1])))
        return torch.stack(rests, 1)

    def assign(self, z: Tensor) -> Tensor:
        return torch.stack([self.level.assign(rest) for rest in self.rests(z).unbind(1)], 1)

    def lookup(self, indices: Tensor) -> Tensor:
        return sum((i >= 0)[:, None] * self.level.lookup(i) for i in indices.T)


class FiniteScalar(svq.Quantizer):
    """FSQ (arXiv 2309.15505) for odd levels: channel i is bounded to (-L_i / 2, L_i / 2) and rounded."""

    def __init__(self, levels: list[int], channel_dim: int = -1) -> None:
        super().__init__(len(levels), channel_dim=channel_dim)
        self.levels, self.codebook_size = levels, math.prod(levels)

    def bound(self, x: Tensor) -> Tensor:
        return torch.stack([(levels - 1) / 2 * c.tanh() for levels, c in zip(self.levels, x.unbind(1), strict=True)], 1)

    def assign(self, z: Tensor) -> Tensor:
        indices = torch.zeros_like(z[:, 0], dtype=torch.int64)
        for levels, channel in zip(self.levels, z.unbind(1), strict=True):
            indices = indices * levels + channel.round().long() + levels // 2
        return indices

    def lookup(self, indices: Tensor) -> Tensor:
        channels = []
        for levels in reversed(self.levels):
            channels.insert(0, indices % levels - levels // 2)
            indices = indices // levels
        return torch.stack(channels, 1).float()


class LinearMap(svq.Parametrization):
    """Codes are a learned linear map of the raw table, which starts as N(0, 1 / d): SimVQ (arXiv 2411.02038)."""

    has_inverse = False
    is_learned = True

    def _make(self, size: int, dim: int) -> None:
        self.map = nn.Parameter(torch.eye(dim))

    def start_raw(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim) / dim**0.5

    def forward(self, raw: Tensor) -> Tensor:
        return raw @ self.map.to(raw.dtype)


class FrozenBasis(svq.Update):
    """The raw table stays as it starts; the losses and the task gradient train the parametrization alone."""

    loss = task = svq.Trains(raw=False, parametrization=True)
    writes = False

    def step(self, table, batch, search) -> None:
        return None


class Network(svq.Parametrization):
    """Codes come out of a small network, from a raw table of another width."""

    has_inverse = False
    is_learned = True

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width

    def raw_shape(self, size: int, dim: int) -> tuple[int, int]:
        return size, self.width

    def _make(self, size: int, dim: int) -> None:
        self.network = nn.Sequential(nn.Linear(self.width, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, raw: Tensor) -> Tensor:
        return self.network(raw)
