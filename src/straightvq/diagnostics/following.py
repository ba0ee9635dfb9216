"""One quantizer inside a network, followed by hooks that report what passes through it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from straightvq.nn import Codebook, Quantizer, Step

Seen = Callable[["Followed", Tensor, Tensor, Tensor], None]


class Followed:
    """One quantizer, ``name`` its path in the module, and the hook that reports its steps in the codebook's space.

    ``seen`` is called after each with this object, vectors (n, codebook_dim), their codes and indices (n,), all -1 for
    a bypassed forward. Parts of a composite are reported as it steps them.
    """

    def __init__(self, name: str, quantizer: Quantizer, seen: Seen) -> None:
        self.name = name
        self.quantizer = quantizer
        self.size = quantizer.codebook_size
        codebook = getattr(quantizer, "codebook", None)
        self.codebook: Codebook | None = codebook if isinstance(codebook, Codebook) else None
        self.dim = quantizer.transform.codebook_dim(quantizer.dim)
        self._seen = seen
        self._handle = quantizer.register_step_hook(self._after_step)

    def remove(self) -> None:
        """Take the hook away."""
        self._handle.remove()

    def codes(self) -> Tensor | None:
        """Effective codes (k, codebook_dim), or None for a quantizer without a table. They may change in place."""
        return None if self.codebook is None else self.codebook.codes()

    def snapshot(self) -> Tensor | None:
        """A copy of the codes that stays as it is."""
        codes = self.codes()
        return None if codes is None else codes.clone()

    @torch.no_grad()
    def _after_step(self, quantizer: Quantizer, step: Step) -> None:
        self._seen(self, step.z.detach(), step.code.detach(), step.indices)


def follow(module: nn.Module, seen: Seen) -> list[Followed]:
    """Hook every quantizer of ``module`` that has codes of its own; composites are followed part by part."""
    return [
        Followed(name or type(child).__name__, child, seen)
        for name, child in module.named_modules()
        if isinstance(child, Quantizer) and not child.is_composite
    ]
