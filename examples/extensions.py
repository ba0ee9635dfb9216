"""Methods of other papers as parts of one's own: what the page on extending shows, each on real vectors.

python examples/extensions.py
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import straightvq as svq
from straightvq.nn.slots.losses import masked_mean


class Rotation(svq.Estimator):
    """The gradient passes through the rotation and scaling that maps z to its code (arXiv 2410.06424)."""

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        with torch.no_grad():
            a, b = F.normalize(z, dim=1), F.normalize(code, dim=1)
            w = F.normalize(a + b, dim=1)
            scale = code.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True).clamp(min=1e-6)
        rotated = z - 2 * w * (w * z).sum(1, keepdim=True) + 2 * b * (a * z).sum(1, keepdim=True)
        return code.detach() + scale * (rotated - rotated.detach())


def noisy_logits(z: Tensor, codes: Tensor, batch: svq.Batch | None) -> Tensor:
    logits = -torch.cdist(z, codes).square()
    if batch is not None:
        logits = logits + batch.draws.gumbel("gumbel", tuple(logits.shape), logits.dtype, rows=batch.rows())
    return logits


class GumbelSample(svq.Assigner):
    is_random = True

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return svq.functional.nearest_code(z, codes)

    def training_rule(self, batch: svq.Batch, codes: Tensor) -> Tensor:
        return noisy_logits(batch.z, codes, batch).argmax(1)


class GumbelStraightThrough(svq.Estimator):
    takes_context = trains_codes = True

    def forward(self, z: Tensor, code: Tensor, context: svq.Context) -> Tensor:
        soft = noisy_logits(z, context.codes, context.batch).softmax(1) @ context.codes
        return code.detach() + (soft - soft.detach())


class Entropy(svq.Loss):
    """``mean H(p_i) - H(mean p_i)``: few codes for each vector, all codes for the batch; ``p_i`` soft assignments."""

    name = "entropy"
    trains = "both"
    takes_context = True

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: svq.Context) -> Tensor:
        logits = 2 * z @ context.codes.T - context.codes.square().sum(1)
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        single = masked_mean(-(p * log_p).sum(1, keepdim=True), valid)
        share = torch.stack([masked_mean(column[:, None], valid) for column in p.unbind(1)])
        return single + (share * (share + 1e-9).log()).sum()


class Residual(svq.Quantizer):
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
    is_composite = True

    def __init__(self, level: svq.VectorQuantizer, num_quantizers: int, channel_dim: int = -1) -> None:
        super().__init__(level.dim, estimator=copy.deepcopy(level.estimator), channel_dim=channel_dim)
        self.level, self.num_quantizers, self.codebook_size = level, num_quantizers, level.codebook_size

    def levels(self, x: Tensor, valid: Tensor | None) -> list[svq.Step]:
        steps = []
        for number in range(self.num_quantizers):
            batch = self.level.batch(x, valid, number) if self.training else None
            steps.append(self.level.choose(x, valid, batch))
            x = x - steps[-1].code.detach()
        return steps

    def step(self, x: Tensor, valid: Tensor | None) -> svq.Step:
        level = self.level
        if self.training:
            level.adapt(level.batch(x, valid), lambda: level.gather(self.levels(x, valid), valid))
        steps = self.levels(x, valid)
        out = svq.Step.sum(x, steps)
        if self.training:
            level.settle(level.gather(steps, valid), out.indices.flatten())
        return out

    def assign(self, z: Tensor) -> Tensor:
        return svq.Step.sum(z, self.levels(z, None)).indices

    def lookup(self, indices: Tensor) -> Tensor:
        return sum((i >= 0)[:, None] * self.level.lookup(i) for i in indices.T)


class FiniteScalar(svq.Quantizer):
    def __init__(self, levels: list[int], channel_dim: int = -1) -> None:
        super().__init__(len(levels), channel_dim=channel_dim)
        self.codebook_size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("basis", torch.tensor([1, *levels[:-1]]).cumprod(0))

    def bound(self, x: Tensor) -> Tensor:
        return (self.levels - 1) / 2 * x.tanh()

    def assign(self, z: Tensor) -> Tensor:
        return ((z.round().long() + self.levels // 2) * self.basis).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        return (indices[:, None] // self.basis % self.levels - self.levels // 2).float()


class LinearMap(svq.Parametrization):
    is_learned = True

    def _make(self, size: int, dim: int) -> None:
        self.map = nn.Parameter(torch.eye(dim))

    def start_raw(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim) / dim**0.5

    def forward(self, raw: Tensor) -> Tensor:
        return raw @ self.map.to(raw.dtype)


class FrozenBasis(svq.Update):
    loss = task = svq.Trains(raw=False, parametrization=True)
    writes = False

    def step(self, table, batch, search) -> None:
        return None


class Network(svq.Parametrization):
    is_learned = True

    def raw_shape(self, size: int, dim: int) -> tuple[int, int]:
        return size, 8

    def _make(self, size: int, dim: int) -> None:
        self.network = nn.Sequential(nn.Linear(8, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, raw: Tensor) -> Tensor:
        return self.network(raw)


def layers(dim: int = 6, size: int = 16, levels: int = 3) -> dict[str, svq.Quantizer]:
    """Every example in a layer of its own."""

    def book(**slots: svq.Init | svq.Update | svq.Parametrization) -> svq.Codebook:
        return svq.Codebook(size, **slots)

    def ema() -> svq.Codebook:
        return svq.Codebook(size, init=svq.KMeansInit(), update=svq.EMAUpdate(), reset=svq.DeadCodeReset(4))

    losses = [svq.CommitmentLoss(), svq.CodebookLoss(), Entropy(0.1)]
    return {
        "rotation": svq.VectorQuantizer(dim, ema(), estimator=Rotation()),
        "gumbel": svq.VectorQuantizer(dim, book(), assigner=GumbelSample(), estimator=GumbelStraightThrough()),
        "entropy": svq.VectorQuantizer(dim, book(), losses=losses),
        "residual": Residual([svq.VectorQuantizer(dim, ema()) for _ in range(levels)]),
        "residual, synchronised": Residual(
            [svq.VectorQuantizer(dim, book(), estimator=svq.StraightThrough(0.5)) for _ in range(levels)]
        ),
        "shared": SharedResidual(svq.VectorQuantizer(dim, ema()), levels),
        "shared, synchronised": SharedResidual(
            svq.VectorQuantizer(dim, book(), estimator=svq.StraightThrough(0.5)), levels
        ),
        "finite scalar": FiniteScalar([5] * dim),
        "linear map": svq.VectorQuantizer(
            dim, book(parametrization=LinearMap(), update=FrozenBasis()), estimator=svq.StraightThrough(0.2)
        ),
        "network": svq.VectorQuantizer(dim, book(parametrization=Network())),
    }


def main() -> None:
    torch.manual_seed(0)
    z = torch.randn(2048, 6)
    print(f"{'layer':24}{'codes per vector':>18}{'error of 20 steps':>20}")
    for name, layer in layers().items():
        optimizer = torch.optim.Adam([*layer.parameters(), nn.Parameter(torch.zeros(1))], 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            layer(z.clone().requires_grad_()).loss.backward()
            optimizer.step()
        error = (layer.eval()(z).quantized - layer.unquantized(z)).square().mean()
        print(f"{name:24}{layer.num_quantizers:>18}{error.item():>20.3f}")


if __name__ == "__main__":
    main()
