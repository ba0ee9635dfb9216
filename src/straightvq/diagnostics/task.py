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
    """Evaluation mode; afterwards every mode and the random state are as before."""
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
    """`estimator_gap` of the task's head, if it has one and exactly one quantizer, which may be a composite."""
    found = [child for child in task.modules() if isinstance(child, Quantizer)]
    inner = {part for child in found for part in child.modules() if part is not child}
    outermost = [child for child in found if child not in inner and not child._is_bypassed]
    if not isinstance(task, HasHead) or len(outermost) != 1:
        return None
    (quantizer,) = outermost
    # Evaluation runs in inference mode, whose tensors no gradient can pass: work on copies made outside of it.
    with torch.inference_mode(False), undisturbed(task):
        batch = apply_to_collection(batch, Tensor, Tensor.clone)
        with torch.no_grad():
            z = task.latent(batch).detach()
            quantized = quantizer.decode(quantizer.encode(z)).to(z.dtype)
            exact = quantizer.unquantized(z)
        return estimator_gap(lambda latent: task.head_loss(latent, batch), exact, quantized)


def first_images(batch: Any) -> Tensor | None:
    """The first images of a batch, copied, if it is a dictionary that has drawable ones."""
    images = batch.get("image") if isinstance(batch, dict) else None
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        return None
    return images[:MAX_IMAGES].detach().clone() if len(images) and images.shape[1] in (1, 3) else None


@torch.no_grad()
def reconstruct(task: nn.Module, images: Tensor) -> Tensor | None:
    """What the task's ``model`` makes of the images, alone or first in a tuple, if it can ``encode`` and ``decode``."""
    model = getattr(task, "model", None)
    if not callable(model) or not all(callable(getattr(model, name, None)) for name in ("encode", "decode")):
        return None
    with undisturbed(task), torch.autocast(images.device.type, enabled=False):
        out = model(images.to(next(task.parameters(), images).device))
    first = out[0] if isinstance(out, tuple) else out
    return first if isinstance(first, Tensor) and first.shape == images.shape else None
