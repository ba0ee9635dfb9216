"""One quantizer inside a network, followed by hooks that report what passes through it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from straightvq.nn import Codebook, Quantizer

Seen = Callable[["Followed", Tensor, Tensor, Tensor], None]


class Followed:
    """One quantizer, ``name`` its path in the module, and the hooks that report its forwards in the codebook's space.

    ``seen`` is called after each with this object, vectors (n, codebook_dim), their codes and indices (n,), all -1 for
    a bypassed forward.
    """

    def __init__(self, name: str, quantizer: Quantizer, seen: Seen) -> None:
        self.name = name
        self.quantizer = quantizer
        self.size = quantizer.codebook_size
        codebook = getattr(quantizer, "codebook", None)
        self.codebook: Codebook | None = codebook if isinstance(codebook, Codebook) else None
        self.dim = self.codebook.dim or quantizer.dim if self.codebook is not None else quantizer.dim
        self._seen = seen
        self._transformed: Tensor | None = None
        self._handles = [quantizer.register_forward_hook(self._after_forward, with_kwargs=True)]
        if self.codebook is not None:
            transform = quantizer.get_submodule("transform")
            self._handles.append(transform.register_forward_hook(self._after_transform))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def codes(self) -> Tensor | None:
        """Effective codes (k, codebook_dim), or None for a quantizer without a table. They may change in place."""
        return None if self.codebook is None else self.codebook.codes()

    def snapshot(self) -> Tensor | None:
        """A copy of the codes that stays as it is."""
        codes = self.codes()
        return None if codes is None else codes.clone()

    def _after_transform(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._transformed = output.detach()

    @torch.no_grad()
    def _after_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        z, self._transformed = self._transformed, None
        indices = output.indices.reshape(-1)
        codes = self.codes()
        if codes is None or z is None:
            inputs: Tensor = args[0] if args else kwargs["z"]
            axis = self.quantizer.channel_dim
            z, code = (x.detach().movedim(axis, -1).reshape(-1, self.dim) for x in (inputs, output.quantized))
        else:
            code = codes[indices.clamp(min=0)]
        self._seen(self, z, code, indices)


def follow(module: nn.Module, seen: Seen) -> list[Followed]:
    """Hook every quantizer of ``module`` that has codes of its own; composites are followed part by part."""
    return [
        Followed(name or type(child).__name__, child, seen)
        for name, child in module.named_modules()
        if isinstance(child, Quantizer)
        and getattr(child, "codebook_size", None) is not None
        and not any(isinstance(inner, Quantizer) for inner in child.modules() if inner is not child)
    ]
