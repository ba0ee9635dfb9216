"""What a task tells about itself without being disturbed: the error of its gradients, its reconstructions."""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from straightvq.diagnostics.functional import GradientGap, estimator_gap
from straightvq.nn import Quantizer

MAX_IMAGES = 12


@runtime_checkable
class HasHead(Protocol):
    """What a task offers so that the error of its straight-through gradient can be measured.

    Both are called in evaluation mode and must neither log nor change anything.
    """

    def latent(self, batch: Any) -> Tensor:
        """The embeddings of the batch as the quantizer gets them."""

    def head_loss(self, latent: Tensor, batch: Any) -> Tensor:
        """The task loss, a scalar, if the head got ``latent`` as the quantizer's output."""


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; every mode and the random-number state are as before afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=devices):
        try:
            module.eval()
            yield
        finally:
            for child, mode in modes:
                child.training = mode


def measure_gradient_gap(task: nn.Module, batch: Any) -> GradientGap | None:
    """Two passes of the head, with and without the quantization error, if the task offers one for its one quantizer."""
    quantizers = [quantizer for quantizer in _outermost(task) if not quantizer._is_bypassed]
    if not isinstance(task, HasHead) or len(quantizers) != 1:
        return None
    quantizer = quantizers[0]
    # Evaluation runs in inference mode, whose tensors no gradient can pass: work on copies made outside of it.
    with torch.inference_mode(False), undisturbed(task):
        batch = apply_to_collection(batch, Tensor, Tensor.clone)
        with torch.no_grad():
            z = task.latent(batch).detach()
            quantized = quantizer.decode(quantizer.encode(z)).to(z.dtype)
            exact = quantizer.unquantized(z)
        return estimator_gap(lambda latent: task.head_loss(latent, batch), exact, quantized)


def _outermost(module: nn.Module) -> list[Quantizer]:
    """Quantizers that are not part of another one."""
    found = [child for child in module.modules() if isinstance(child, Quantizer)]
    inner = {id(part) for child in found for part in child.modules() if part is not child}
    return [child for child in found if id(child) not in inner]


def first_images(batch: Any) -> Tensor | None:
    """The first images of a batch, copied, if it is a dictionary that has drawable ones."""
    images = batch.get("image") if isinstance(batch, dict) else None
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return None
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        return None
    return images[:MAX_IMAGES].detach().clone()


@torch.no_grad()
def reconstruct(task: nn.Module, images: Tensor) -> Tensor | None:
    """What the task's ``model`` makes of the images, if it is an autoencoder.

    That is: it has ``encode`` and ``decode``, and gives the reconstruction alone or as first item of a tuple.
    """
    model = getattr(task, "model", None)
    if not callable(model) or not all(callable(getattr(model, name, None)) for name in ("encode", "decode")):
        return None
    with undisturbed(task), torch.autocast(images.device.type, enabled=False):
        out = model(images.to(next(task.parameters(), images).device))
    first = out[0] if isinstance(out, tuple) else out
    return first if isinstance(first, Tensor) and first.shape == images.shape else None
