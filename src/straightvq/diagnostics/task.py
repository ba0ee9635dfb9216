"""What a task tells about itself without being disturbed: the error of its gradients, its reconstructions."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from straightvq.diagnostics.following import outermost
from straightvq.diagnostics.functional import GradientGap, estimator_gap
from straightvq.nn import Identity, ProductQuantizer, Quantizer, ResidualQuantizer

MAX_IMAGES = 12
# What logs and tables call the three numbers of a `GradientGap`, in its order.
GAP_NAMES = ("gradient_gap_norm", "gradient_gap", "gradient_cosine")


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
    return _measure_gaps(task, batch, lambda *_: {}).get("")


def measure_gradient_gaps(task: nn.Module, batch: Any) -> dict[str, GradientGap]:
    """As `measure_gradient_gap`, by the name ``""``, and the gaps of the quantizer's outermost parts.

    ``"level 0"`` and so on: the gap with the levels up to this one. ``"group 0"`` and so on: the gap of the gradient of
    the group's channels if it alone were quantized; there is none behind a transform, which mixes channels. Nor is
    there one of a quantizer that serves several times.
    """
    return _measure_gaps(task, batch, _gaps_of_parts)


def _measure_gaps(task: nn.Module, batch: Any, of_parts: "_OfParts") -> dict[str, GradientGap]:
    found = [quantizer for quantizer in outermost(task).values() if not quantizer._is_bypassed]
    if not isinstance(task, HasHead) or len(found) != 1:
        return {}
    (quantizer,) = found
    # Evaluation runs in inference mode, whose tensors no gradient can pass: work on copies made outside of it.
    with torch.inference_mode(False), undisturbed(task):
        batch = apply_to_collection(batch, Tensor, Tensor.clone)
        with torch.no_grad():
            z = task.latent(batch).detach()
            indices, exact = quantizer.encode(z), quantizer.unquantized(z)
            quantized = quantizer.decode(indices).to(z.dtype)

        def head(latent: Tensor) -> Tensor:
            return task.head_loss(latent, batch)

        return {"": estimator_gap(head, exact, quantized), **of_parts(quantizer, head, indices, exact)}


_Head = Callable[[Tensor], Tensor]
_OfParts = Callable[[Quantizer, _Head, Tensor, Tensor], dict[str, GradientGap]]


def _gaps_of_parts(quantizer: Quantizer, head: _Head, indices: Tensor, exact: Tensor) -> dict[str, GradientGap]:
    gaps: dict[str, GradientGap] = {}
    if isinstance(quantizer, ResidualQuantizer) and not quantizer.is_shared:
        kept = 0
        for number, level in enumerate(quantizer.levels):
            kept += level.num_quantizers
            with torch.no_grad():
                quantized = quantizer.decode(indices[..., :kept]).to(exact.dtype)
            gaps[f"level {number}"] = estimator_gap(head, exact, quantized)
    if isinstance(quantizer, ProductQuantizer) and not quantizer.is_shared and type(quantizer.transform) is Identity:
        axis = quantizer.channel_dim
        with torch.no_grad():
            quantized = quantizer.decode(indices).to(exact.dtype)
        parts = exact.split(quantizer.widths, axis)
        for number, (own, coded) in enumerate(zip(parts, quantized.split(quantizer.widths, axis), strict=True)):
            before, after = parts[:number], parts[number + 1 :]
            gaps[f"group {number}"] = estimator_gap(partial(_head_of_part, head, before, after, axis), own, coded)
    return gaps


def _head_of_part(head: _Head, before: Sequence[Tensor], after: Sequence[Tensor], axis: int, part: Tensor) -> Tensor:
    """The head's loss as a function of some channels alone."""
    return head(torch.cat([*before, part, *after], axis))


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
