"""One quantizer inside a network, followed by hooks that report what passes through it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from straightvq.nn import Codebook, Quantizer, Step

Seen = Callable[["Followed", Tensor, Tensor, Tensor], None]

# Codes of which each has a counter.
MOST_COUNTED = 1 << 24


class Followed:
    """One quantizer, ``name`` its path in the module, and the hook that reports its steps in the codebook's space.

    ``seen`` is called after each with this object, vectors (n, codebook_dim), their codes and indices (n,), all -1 for
    a bypassed forward. Parts of a composite are reported as it steps them. Of a quantizer that has several codebooks
    and no parts, ``column`` is the one whose indices are reported.

    Attributes:
        size: number of codes.
        num_counters: the same, or 0 where they are too many to be counted one by one.
    """

    def __init__(self, name: str, quantizer: Quantizer, seen: Seen, column: int | None = None) -> None:
        self.name = name
        self.quantizer = quantizer
        self.column = column
        self.size = quantizer.codebook_size
        self.num_counters = self.size if self.size <= MOST_COUNTED else 0
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
        indices = step.indices if self.column is None else step.indices[:, self.column]
        self._seen(self, step.z.detach(), step.code.detach(), indices)


def follow(module: nn.Module, seen: Seen) -> list[Followed]:
    """Hook every quantizer of ``module`` that has codes of its own; composites are followed part by part."""
    found = []
    for path, child in module.named_modules():
        if not isinstance(child, Quantizer) or _parts(child):
            continue
        name = path or type(child).__name__
        if child.is_composite:
            found += [Followed(f"{name}.{column}", child, seen, column) for column in range(child.num_quantizers)]
        else:
            found.append(Followed(name, child, seen))
    return found


def outermost(module: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of ``module`` that are no part of another one, by their paths."""
    found = {path: child for path, child in module.named_modules() if isinstance(child, Quantizer)}
    inner = {part for child in found.values() for part in _parts(child)}
    return {path: child for path, child in found.items() if child not in inner}


def _parts(quantizer: Quantizer) -> list[Quantizer]:
    return [part for part in quantizer.modules() if isinstance(part, Quantizer) and part is not quantizer]
