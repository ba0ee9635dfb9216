"""What one evaluation says of a quantizer: exact totals, and the error of the straight-through gradient."""

from typing import Any, Protocol, runtime_checkable

import lightning
import torch
from torch import Tensor, nn

from straightvq.diagnostics import CodebookUsage, GradientGap, MomentDistance, QuantizationError, estimator_gap
from straightvq.nn import Quantizer
from straightvq.training.pictures import MAX_VECTORS, undisturbed
from straightvq.training.window import Followed


@runtime_checkable
class HasHead(Protocol):
    """What a task offers so that the error of its straight-through gradient can be measured.

    Both are called in evaluation mode and must neither log nor change anything.
    """

    def latent(self, batch: Any) -> Tensor:
        """The embeddings of the batch as the quantizer gets them."""

    def head_loss(self, latent: Tensor, batch: Any) -> Tensor:
        """The task loss, a scalar, if the head got ``latent`` as the quantizer's output."""


class Totals:
    """The metrics of one evaluation, exact over batches and ranks, and some embeddings to draw."""

    def __init__(self, followed: Followed, device: torch.device) -> None:
        self.usage = CodebookUsage(followed.size).to(device)
        self.error = QuantizationError().to(device)
        self.moments = MomentDistance().to(device)
        self._drawn: list[Tensor] = []
        self._room = MAX_VECTORS
        self._has_codes = followed.codebook is not None
        # Of no vectors: a rank that gets none computes with the others.
        none = torch.zeros(0, followed.dim, device=device)
        self.add(none, none, torch.zeros(0, dtype=torch.int64, device=device), followed.codes())

    @torch.compiler.disable  # metrics look at values, which a graph cannot
    def add(self, z: Tensor, code: Tensor, indices: Tensor, codes: Tensor | None) -> None:
        valid = indices >= 0
        self.usage.update(indices)
        self.error.update(z, code, valid)
        if codes is not None:
            self.moments.update(z, codes, valid)
        if self._room > 0:
            self._drawn.append(z[valid][: self._room].float().cpu())
            self._room -= len(self._drawn[-1])

    def compute(self) -> dict[str, Tensor]:
        """All values by their logged names; empty if no rank saw a vector."""
        usage = self.usage.compute()
        error = self.error.compute()
        gap = self.moments.compute() if self._has_codes else {}
        if not usage["usage"] > 0:
            return {}
        names = {"mean": "mean_distance", "std": "std_distance"}
        distances = {names.get(name, name): value for name, value in gap.items() if not value.isnan()}
        return {**usage, "error": error["normalized"], **distances}

    def vectors(self) -> Tensor | None:
        """Up to a few thousand of this rank's embeddings."""
        return torch.cat(self._drawn) if self._drawn else None


def measure_gradient_gap(pl_module: lightning.LightningModule, batch: Any) -> GradientGap | None:
    """Two passes of the head, with and without the quantization error, if the task offers one for its one quantizer."""
    quantizers = [m for m in _outermost(pl_module) if not m._is_bypassed]
    if not isinstance(pl_module, HasHead) or len(quantizers) != 1:
        return None
    quantizer = quantizers[0]
    # Evaluation runs in inference mode, whose tensors no gradient can pass: work on copies made outside of it.
    with torch.inference_mode(False), undisturbed(pl_module):
        batch = _copied(batch)
        with torch.no_grad():
            z = pl_module.latent(batch).detach()
            quantized = quantizer.decode(quantizer.encode(z)).to(z.dtype)
            exact = quantizer.unquantized(z)
        return estimator_gap(lambda latent: pl_module.head_loss(latent, batch), exact, quantized)


def _outermost(module: nn.Module) -> list[Quantizer]:
    """Quantizers that are not part of another one."""
    found = [child for child in module.modules() if isinstance(child, Quantizer)]
    inner = {id(part) for child in found for part in child.modules() if part is not child}
    return [child for child in found if id(child) not in inner]


def _copied(batch: Any) -> Any:
    """The batch with copies of its tensors."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, dict):
        return {key: _copied(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(_copied(value) for value in batch)
    if isinstance(batch, tuple):
        return type(batch)(*(_copied(value) for value in batch))
    return batch
