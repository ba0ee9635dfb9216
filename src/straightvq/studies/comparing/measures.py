"""What a comparison measures of the layer itself on the test set, beside what the task logs."""

import copy
import statistics
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from straightvq.diagnostics import CodebookUsage, QuantizationError
from straightvq.diagnostics.task import measure_gradient_gap, undisturbed
from straightvq.nn import Quantizer, QuantizerOutput

REPEATS = 5  # timed training steps of the layer
MIB = 1 << 20


class LayerMeasures(Callback):
    """Measures the quantizer of a network on the test set, in the space of the layer's input.

    Logged per test, over the whole set:

    - ``test/distortion``: mean ||z - q||^2 / mean ||z - mean z||^2 between the layer's input and its output;
    - ``test/usage``: share of the codes that were assigned at least once, the mean over several codebooks;
    - ``test/effective_dim``: (tr C)^2 / tr(C^2) of the covariance C of the layer's output: the number of directions
      that carry its variance, 1 to the width;
    - ``test/gradient_gap``: error of the straight-through gradient relative to the gradient without quantizer, on the
      first batch, for tasks that offer `HasHead`;
    - ``test/layer_ms``: milliseconds of a training step of the layer alone, forward and backward, on the first batch;
    - ``test/layer_mib``: MiB that the layer holds for it: its parameters, its buffers, and what it keeps for backward.

    Does nothing in training, and with a network whose quantizer is bypassed.

    Source: arXiv 2305.08842, section 3, for the gradient gap.
    """

    def __init__(self) -> None:
        self._quantizer: Quantizer | None = None
        self._handle: Any = None
        self._values: dict[str, float] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()
        found = next((part for part in pl_module.modules() if isinstance(part, Quantizer)), None)
        self._quantizer, self._values = found, {}
        if found is None:
            return
        sizes = found.codebook_sizes
        self._usage = CodebookUsage(sizes if found.is_composite else sizes[0]).to(pl_module.device)
        self._error = QuantizationError().to(pl_module.device)
        self._moments = Moments(found.dim)
        self._first: Tensor | None = None
        self._handle = found.register_forward_hook(self._seen)

    def _seen(self, quantizer: Quantizer, args: tuple[Tensor, ...], out: QuantizerOutput) -> None:
        if (out.indices < 0).all():  # bypassed
            return
        z, quantized = (x.movedim(quantizer.channel_dim, -1).reshape(-1, quantizer.dim) for x in (args[0], out[0]))
        self._error.update(z, quantized)
        self._usage.update(out.indices)
        self._moments.add(quantized)
        self._first = args[0] if self._first is None else self._first

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *numbers: int
    ) -> None:
        if self._quantizer is None or self._first is None or any(numbers):
            return
        self._handle.remove()  # the passes below count for nothing
        gap = measure_gradient_gap(pl_module, batch)
        if gap is not None and gap.relative.isfinite():  # without a network there is no gradient to miss
            self._values["gradient_gap"] = float(gap.relative)
        with torch.inference_mode(False), torch.enable_grad(), undisturbed(pl_module):
            self._values |= cost(self._quantizer, self._first.clone())
        self._handle = self._quantizer.register_forward_hook(self._seen)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()
        if self._quantizer is None or self._first is None:
            return
        self._values["distortion"] = float(self._error.compute()["normalized"])
        self._values["usage"] = float(self._usage.compute()["usage"].float().mean())
        self._values["effective_dim"] = self._moments.effective_dim()
        pl_module.log_dict({f"test/{name}": value for name, value in self._values.items()})

    def _remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class Moments:
    """Count, mean and centred second moments of vectors that come in batches, in double precision on the CPU."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.squares = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean)(x - mean)'

    def add(self, x: Tensor) -> None:
        """Add vectors, Float (n, dim)."""
        x = x.detach().cpu().double()
        mean = x.mean(0)
        off, total = mean - self.mean, self.count + len(x)
        self.squares += (x - mean).T @ (x - mean) + torch.outer(off, off) * (self.count * len(x) / total)
        self.mean, self.count = self.mean + off * (len(x) / total), total

    def effective_dim(self) -> float:
        """(tr C)^2 / tr(C^2); 0 if all vectors are the same.

        Example:
            >>> moments = Moments(2)
            >>> moments.add(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
            >>> moments.add(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
            >>> moments.effective_dim()
            2.0
        """
        spread = self.squares.square().sum()
        return float(self.squares.trace().square() / spread) if spread > 0 else 0.0


def cost(quantizer: Quantizer, z: Tensor) -> dict[str, float]:
    """Milliseconds and MiB of a training step of a copy of the layer on ``z``, forward and backward, without optimizer.

    The time is the median of five steps, after one that is not counted.
    """
    layer, kept = copy.deepcopy(quantizer).train(), dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        x = z.clone().requires_grad_()
        out = layer(x)
        (out.quantized.sum() + out.loss).backward()

    state = [*layer.parameters(), *layer.buffers()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    size = sum(tensor.untyped_storage().nbytes() for tensor in state)
    known = {tensor.untyped_storage().data_ptr() for tensor in state}
    size += sum(nbytes for place, nbytes in kept.items() if place not in known)
    times = []
    for _ in range(REPEATS):
        _wait(z)
        start = time.perf_counter()
        step()
        _wait(z)
        times.append(time.perf_counter() - start)
    return {"layer_ms": 1e3 * statistics.median(times), "layer_mib": size / MIB}


def _wait(z: Tensor) -> None:
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
