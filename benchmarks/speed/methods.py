"""What is measured: ours and its peers, each as a function that does its work once."""

import copy
import importlib.resources
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Kind = Literal["search", "query", "sums", "step", "residual", "product", "start", "growth", "share"]

# Levels of the residual quantizers, groups of the product quantizers.
LEVELS = 8


class Problem(NamedTuple):
    """One size of the grid. Vectors and codes are standard normal: the hard case for a search that prunes."""

    vectors: int
    codes: int
    width: int
    device: str

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(self.vectors, self.width, generator=generator)
        return z.to(self.device), torch.randn(self.codes, self.width, generator=generator).to(self.device)


Once = Callable[[], Any]  # a float that it returns stands for the seconds that the clock would give


@dataclass(frozen=True)
class Method:
    """``make`` does all that is not to be measured, and gives what is."""

    make: Callable[[Problem], Once]
    devices: tuple[str, ...] = ("cpu", "cuda")
    package: str | None = None  # whose version belongs in the report
    is_warm: bool = False  # ``make`` has done the work already


# --- the search alone -------------------------------------------------------------------------------------------------


def _ours(backend: str) -> Callable[[Problem], Once]:
    def make(problem: Problem) -> Once:
        from straightvq.functional import nearest_code

        z, codes = problem.data()
        return lambda: nearest_code(z, codes, backend=backend)

    return make


def _faiss(problem: Problem) -> Once:
    import faiss

    z, codes = (x.numpy() for x in problem.data())
    faiss.omp_set_num_threads(torch.get_num_threads())
    return lambda: faiss.knn(z, codes, 1)


def _cdist(problem: Problem) -> Once:
    z, codes = problem.data()
    return lambda: torch.cdist(z, codes).argmin(1)


def _product(problem: Problem) -> Once:
    z, codes = problem.data()
    return lambda: z @ codes.T


def _flash_kmeans(problem: Problem) -> Once:
    from benchmarks.gpu_search import flash_kmeans

    z, codes = problem.data()
    assign = flash_kmeans(torch.float32)
    if assign is None:
        raise ModuleNotFoundError("No module named 'flash_kmeans'")
    return lambda: assign(z, codes, codes.square().sum(1) / 2)


# --- counts and sums per code -----------------------------------------------------------------------------------------


def _assigned(problem: Problem, collapsed: bool) -> tuple[Tensor, Tensor]:
    """Vectors, and a code for each: any, or the same one for all, where sums by atomic additions queue up."""
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(1 if collapsed else problem.codes, (problem.vectors,), generator=generator)
    return problem.data()[0], indices.to(problem.device)


def _our_sums(collapsed: bool) -> Callable[[Problem], Once]:
    def make(problem: Problem) -> Once:
        from straightvq.functional import code_sums

        z, indices = _assigned(problem, collapsed)
        return lambda: code_sums(z, indices, problem.codes)

    return make


def _segments(collapsed: bool) -> Callable[[Problem], Once]:
    def make(problem: Problem) -> Once:
        z, indices = _assigned(problem, collapsed)

        def once() -> Tensor:
            order = indices.argsort(stable=True)
            counts = torch.zeros(problem.codes, dtype=torch.int64, device=z.device)
            counts = counts.scatter_add(0, indices, torch.ones_like(indices))
            return torch.segment_reduce(z[order], "sum", lengths=counts, axis=0, unsafe=True)

        return once

    return make


def _one_hot(problem: Problem) -> Once:
    z, indices = _assigned(problem, collapsed=False)
    return lambda: torch.nn.functional.one_hot(indices, problem.codes).to(z.dtype).T @ z


# --- one training step of the layer: forward, loss, backward ----------------------------------------------------------


def _step(layer: nn.Module, problem: Problem, call: Callable[[Tensor], tuple[Tensor, Tensor]], past: int = 0) -> Once:
    """A training step, after ``past`` of them."""
    layer.to(problem.device).train()
    z = problem.data()[0].requires_grad_()

    def forget() -> None:
        z.grad = None
        layer.zero_grad(set_to_none=True)

    def once() -> None:
        forget()
        quantized, loss = call(z)
        (quantized.sum() + loss.sum()).backward()

    for _ in range(past):
        once()
    forget()
    return once


def _our_step(update: str, **options: Any) -> Callable[[Problem], Once]:
    def make(problem: Problem) -> Once:
        import straightvq as svq

        codebook = svq.Codebook(problem.codes, update=getattr(svq, update)(**options))
        return _step_of(svq.VectorQuantizer(problem.width, codebook), problem)

    return make


def _step_of(layer: nn.Module, problem: Problem, past: int = 0) -> Once:
    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(z)
        return out.quantized, out.loss

    return _step(layer, problem, call, past)


def _start_step(problem: Problem) -> Once:
    """The second step of an init by k-means that lasts, because a batch is smaller than the codebook: always the same.

    Gives the seconds of the step without those of going back to where it began.
    """
    import straightvq as svq

    codebook = svq.Codebook(problem.codes, init=svq.KMeansInit(), update=svq.EMAUpdate())
    layer = svq.VectorQuantizer(problem.width, codebook)
    step = _step_of(layer, problem)
    layer(torch.randn(problem.vectors, problem.width, generator=torch.Generator().manual_seed(1)))
    begun = copy.deepcopy(layer.state_dict())

    def once() -> float:
        layer.load_state_dict(begun)
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return once


def _peer_step(problem: Problem) -> Once:
    from vector_quantize_pytorch import VectorQuantize

    layer = VectorQuantize(dim=problem.width, codebook_size=problem.codes)

    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = layer(z[None])
        return quantized, loss

    return _step(layer, problem, call)


# --- several codes per vector -----------------------------------------------------------------------------------------

# Steps before the first that is measured: the first of ours is the init by k-means, which takes as long as ten.
_PAST = 2


def _composite_step(family: str, preset: str, **options: Any) -> Callable[[Problem], Once]:
    def make(problem: Problem) -> Once:
        import straightvq as svq

        width = problem.width // LEVELS if family == "ProductQuantizer" else problem.width
        parts = [getattr(svq.presets, preset)(width, problem.codes, **options) for _ in range(LEVELS)]
        return _step_of(getattr(svq, family)(problem.width, parts), problem, _PAST)

    return make


def _peer_residual(problem: Problem) -> Once:
    from vector_quantize_pytorch import ResidualVQ

    layer = ResidualVQ(dim=problem.width, num_quantizers=LEVELS, codebook_size=problem.codes)

    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, loss = layer(z[None])
        return quantized, loss

    return _step(layer, problem, call, _PAST)


def _peer_product(problem: Problem) -> Once:
    """A loop over its layers, which is what its users write for separate codebooks."""
    from vector_quantize_pytorch import VectorQuantize

    layers = nn.ModuleList(
        VectorQuantize(dim=problem.width // LEVELS, codebook_size=problem.codes) for _ in range(LEVELS)
    )

    def call(z: Tensor) -> tuple[Tensor, Tensor]:
        outs = [layer(part[None]) for layer, part in zip(layers, z.chunk(LEVELS, 1), strict=True)]
        return torch.cat([out[0] for out in outs], 2), torch.stack([out[2].sum() for out in outs])

    return _step(layers, problem, call, _PAST)


# --- the quantizer's share of a whole network's step ------------------------------------------------------------------


def _share(part: bool) -> Callable[[Problem], Once]:
    """A whole training step of an autoencoder; with ``part`` it gives the seconds that the quantizer took of it.

    On the CPU that of the recipe `photos`, on a GPU VQGAN's network on 8 images of 256 x 256 pixels.
    """

    def make(problem: Problem) -> Once:
        network, batches, weight = _photos() if problem.device == "cpu" else _large(problem)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        watch = _Stopwatch(network.quantizer, problem.device)

        def once() -> float | None:
            x = next(batches)
            optimizer.zero_grad()
            out = network(x)
            (weight * (out.reconstruction - x).square().mean() + out.quantizer.loss).backward()
            optimizer.step()
            return watch.seconds if part else None

        for _ in range(24):  # past the init, with a codebook in use
            once()
        return once

    return make


def _photos() -> tuple[Any, Iterator[Tensor], float]:
    """Network, batches and weight of the reconstruction error, as the recipe has them."""
    import lightning
    from lightning.pytorch.cli import LightningCLI

    from straightvq.data import Images
    from straightvq.training import Reconstruction

    lightning.seed_everything(0, verbose=False)
    config = str(importlib.resources.files("straightvq.recipes") / "photos.yaml")
    cli = LightningCLI(Reconstruction, Images, args=["--config", config], run=False, subclass_mode_model=True,
                       subclass_mode_data=True, save_config_callback=None)  # fmt: skip
    task, data = cli.model, cli.datamodule
    data.prepare_data()
    data.setup("fit")
    loader = itertools.islice(data.train_dataloader(), 16)
    images = [data.on_after_batch_transfer(batch, 0)["image"] for batch in loader]
    return task.model, itertools.cycle(images), task.loss_weight


def _large(problem: Problem) -> tuple[Any, Iterator[Tensor], float]:
    import straightvq as svq
    from straightvq.models import VQGANNet

    torch.manual_seed(0)
    layer = svq.presets.straight(256, problem.codes, channel_dim=1, codebook_dim=8, affine=False)
    network = VQGANNet(layer).to(problem.device)
    return network, itertools.repeat(torch.rand(8, 3, 256, 256, device=problem.device)), 1.0


class _Stopwatch:
    """Seconds of a module's last forward, and of its backward: from the gradient of its output to that of its input."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self.on_cuda = device == "cuda"
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _now(self) -> float:
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _begin(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].register_hook(lambda grad: self._add())
        self.seconds, self.start = 0.0, self._now()

    def _end(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
        self._add()
        out.quantized.register_hook(lambda grad: self._restart())

    def _restart(self) -> None:
        self.start = self._now()

    def _add(self) -> None:
        self.seconds += self._now() - self.start


def _growing(make: Callable[[Problem], Once], what: str) -> dict[str, Method]:
    """The same work at one, two and four times the vectors or codes: rows that take turns."""

    def scaled(vectors: int, codes: int) -> Method:
        return Method(lambda p: make(p._replace(vectors=p.vectors * vectors, codes=p.codes * codes)))

    sizes = {"": (1, 1), ", 2 x vectors": (2, 1), ", 4 x vectors": (4, 1), ", 2 x codes": (1, 2), ", 4 x codes": (1, 4)}
    return {what + name: scaled(*size) for name, size in sizes.items()}


METHODS: dict[Kind, dict[str, Method]] = {
    "search": {
        "straightvq": Method(_ours("auto"), package="straightvq"),
        "straightvq, torch only": Method(_ours("tiled")),
        "straightvq, Triton": Method(_ours("triton"), devices=("cuda",), package="triton"),
        "FAISS": Method(_faiss, devices=("cpu",), package="faiss-cpu"),
        "flash-kmeans": Method(_flash_kmeans, devices=("cuda",), package="flash-kmeans"),
        "cdist + argmin": Method(_cdist, package="torch"),
        "matrix product alone": Method(_product),
    },
    # One vector, as a decoder that writes one token after the other asks.
    "query": {
        "straightvq": Method(_ours("auto")),
        "cdist + argmin": Method(_cdist),
    },
    "sums": {
        "straightvq": Method(_our_sums(collapsed=False)),
        "straightvq, one code for all": Method(_our_sums(collapsed=True)),
        "sort + segment_reduce": Method(_segments(collapsed=False)),
        "sort + segment_reduce, one code for all": Method(_segments(collapsed=True)),
        "one-hot matrix product": Method(_one_hot),
    },
    "step": {
        "straightvq, EMA": Method(_our_step("EMAUpdate")),
        "straightvq, gradient": Method(_our_step("GradientUpdate")),
        "straightvq, alternated": Method(_our_step("AlternatedUpdate")),
        "vector-quantize-pytorch": Method(_peer_step, package="vector-quantize-pytorch"),
    },
    "residual": {
        "straightvq, EMA": Method(_composite_step("ResidualQuantizer", "ema"), is_warm=True),
        "straightvq, alternated": Method(_composite_step("ResidualQuantizer", "straight", affine=False), is_warm=True),
        "vector-quantize-pytorch": Method(_peer_residual, is_warm=True),
    },
    "product": {
        "straightvq, EMA": Method(_composite_step("ProductQuantizer", "ema"), is_warm=True),
        "straightvq, alternated": Method(_composite_step("ProductQuantizer", "straight", affine=False), is_warm=True),
        "vector-quantize-pytorch": Method(_peer_product, is_warm=True),
    },
    "start": {
        "straightvq, EMA": Method(_our_step("EMAUpdate"), devices=("cpu",)),
        "straightvq, EMA, during k-means init": Method(_start_step, devices=("cpu",)),
    },
    "growth": {**_growing(_ours("auto"), "search"), **_growing(_our_step("EMAUpdate"), "step")},
    "share": {
        "step": Method(_share(part=False), is_warm=True),
        "quantizer in it": Method(_share(part=True), is_warm=True),
    },
}
