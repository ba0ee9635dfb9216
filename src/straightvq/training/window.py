"""Sums over the training forwards of one window, kept on the device, and one quantizer that is followed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from straightvq.diagnostics import functional
from straightvq.diagnostics.functional.vectors import merge_tables
from straightvq.functional import code_sums
from straightvq.nn import Codebook, Quantizer
from straightvq.nn.ranks import stack_over_ranks, sum_over_ranks


class Reading(NamedTuple):
    """What a window says: plain numbers, the same on all ranks.

    Attributes:
        vectors: number of unmasked vectors.
        usage: fraction of codes assigned at least once.
        perplexity: in codes.
        dead_codes: number of codes never assigned.
        commitment: mean (z - code)^2 over all elements, in squared units of the embeddings.
        error: quantization error over the variance of the embeddings.
    """

    vectors: int
    usage: float
    perplexity: float
    dead_codes: int
    commitment: float
    error: float


class Window:
    """Counts per code, and moments and squared errors per channel. ``add`` never waits for the device.

    Args:
        size: number of codes.
        dim: width of the vectors.
        device: where the sums live.
    """

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        # Apple's GPU has no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.counts = torch.zeros(size, dtype=torch.int64, device=device)
        # Rows: number of vectors, mean, squared deviations from it, squared errors. Sums of squares would cancel
        # for embeddings far from the origin.
        self.table = torch.zeros(4, dim, dtype=wide, device=device)

    def add(self, z: Tensor, code: Tensor, indices: Tensor) -> None:
        """Takes in vectors z (n, dim), their codes (n, dim) and indices (n,), negative where masked."""
        counts, _ = code_sums(z[:, :0], indices, len(self.counts))
        self.counts += counts.to(torch.int64)
        z, code = z.to(self.table.dtype), code.to(self.table.dtype)
        weight = (indices >= 0).to(z.dtype)[:, None]
        number = weight.sum()
        mean = (weight * z).sum(0) / number.clamp(min=1)
        deviations = (weight * (z - mean).square()).sum(0)
        errors = (weight * (z - code).square()).sum(0)
        self.table = merge_tables(self.table, torch.stack([number.expand_as(mean), mean, deviations, errors]))

    def read(self) -> tuple[Reading | None, Tensor]:
        """The window over all ranks, None if no vector was seen, and its counts (k,). Waits for the device once."""
        counts = sum_over_ranks(self.counts, None)
        first, *others = stack_over_ranks(self.table, None)
        for other in others:
            first = merge_tables(first, other)
        number, _, deviations, errors = first.sum(1) / first.shape[1]
        values = [
            number,
            functional.usage(counts),
            functional.perplexity(counts),
            functional.dead_codes(counts),
            errors / number.clamp(min=1),
            functional.ratio(errors, deviations),
        ]
        vectors, usage, perplexity, dead, commitment, error = torch.stack([v.to(first.dtype) for v in values]).tolist()
        if not vectors:
            return None, counts
        return Reading(int(vectors), usage, perplexity, int(dead), commitment, error), counts


Seen = Callable[["Followed", Tensor, Tensor, Tensor], None]


class Followed:
    """One quantizer and the hooks that report its forwards, in the codebook's space.

    Args:
        name: its path in the module.
        quantizer: a quantizer with a ``codebook_size`` and no other quantizer inside.
        seen: called after each forward with this object, vectors (n, codebook_dim), their codes and indices (n,).
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
        self.handles: list[RemovableHandle] = []
        if self.codebook is not None:
            transform = quantizer.get_submodule("transform")
            self.handles.append(transform.register_forward_hook(self._after_transform))
        self.handles.append(quantizer.register_forward_hook(self._after_forward, with_kwargs=True))

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    @property
    def is_frozen(self) -> bool:
        return self.codebook is not None and bool(self.codebook.is_frozen)

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
        if self.quantizer._is_bypassed:
            return
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
    """Hooks every quantizer of ``module`` that has codes of its own; composites are followed part by part."""
    found = []
    for name, child in module.named_modules():
        if not isinstance(child, Quantizer) or getattr(child, "codebook_size", None) is None:
            continue
        if any(isinstance(inner, Quantizer) for inner in child.modules() if inner is not child):
            continue
        found.append(Followed(name or type(child).__name__, child, seen))
    return found
