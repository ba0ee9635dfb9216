"""What is added up of one followed quantizer: over a window of training, and over an evaluation."""

import torch
from torch import Tensor

from straightvq.diagnostics import functional
from straightvq.diagnostics.following import Followed
from straightvq.diagnostics.functional.vectors import merge_tables, wide_dtype
from straightvq.diagnostics.metrics import CodebookUsage, MomentDistance, QuantizationError
from straightvq.functional import code_sums
from straightvq.nn.ranks import stack_over_ranks, sum_over_ranks

# Embeddings that a scatter plot draws.
MAX_VECTORS = 2000


class Window:
    """Counts per code, and moments and squared errors per channel. Only ``close`` waits for the device.

    Where there are too many codes there are no counts, and no values made of them; so it is with `Totals`.
    """

    def __init__(self, followed: Followed, device: torch.device) -> None:
        self.counts = torch.zeros(followed.num_counters, dtype=torch.int64, device=device)
        # Rows as in `merge_tables`, and squared errors. Sums of squares would cancel far from the origin.
        self.table = torch.zeros(4, followed.dim, dtype=wide_dtype(self.counts), device=device)

    def add(self, z: Tensor, code: Tensor, indices: Tensor) -> None:
        """Add vectors z (n, dim), their codes (n, dim) and indices (n,), negative where masked."""
        if len(self.counts):
            self.counts += code_sums(z[:, :0], indices, len(self.counts))[0]
        z, code = z.to(self.table.dtype), code.to(self.table.dtype)
        weight = (indices >= 0).to(z.dtype)[:, None]
        number = weight.sum()
        mean = (weight * z).sum(0) / number.clamp(min=1)
        squares = ((weight * (z - other).square()).sum(0) for other in (mean, code))
        added = torch.stack([number.expand_as(mean), mean, *squares])
        self.table = merge_tables(torch.stack([self.table, added]))

    def close(self) -> tuple[dict[str, float], Tensor]:
        """Values over all ranks by their logged names, none if no vector was seen, and counts (k,). Then start anew.

        ``usage``, ``perplexity``, ``dead_codes``, ``commitment`` and ``error``, as `CodebookMonitor` explains them.
        """
        counts = sum_over_ranks(self.counts, None)
        table = merge_tables(stack_over_ranks(self.table, None))
        self.counts, self.table = torch.zeros_like(self.counts), torch.zeros_like(self.table)
        number, _, deviations, errors = table.sum(1) / table.shape[1]
        values = {"vectors": number}
        if len(counts):
            values |= {
                "usage": functional.usage(counts),
                "perplexity": functional.perplexity(counts),
                "dead_codes": functional.dead_codes(counts),
            }
        values |= {"commitment": errors / number.clamp(min=1), "error": functional.ratio(errors, deviations)}
        on_host = torch.stack([value.to(table.dtype) for value in values.values()]).tolist()
        plain = dict(zip(values, on_host, strict=True))
        if not plain.pop("vectors"):
            return {}, counts
        if len(counts):
            plain["dead_codes"] = int(plain["dead_codes"])
        return plain, counts


class Totals:
    """The metrics of one evaluation, exact over batches and ranks, and some embeddings to draw."""

    def __init__(self, followed: Followed, device: torch.device) -> None:
        self.usage = CodebookUsage(followed.size).to(device) if followed.num_counters else None
        self.error = QuantizationError().to(device)
        self.moments = MomentDistance().to(device)
        self._has_codes = followed.codebook is not None
        self._drawn: list[Tensor] = []
        self._room = MAX_VECTORS
        # Of no vectors: a rank that gets none computes with the others.
        none = torch.zeros(0, followed.dim, device=device)
        self.add(none, none, torch.zeros(0, dtype=torch.int64, device=device), followed.codes())

    @torch.compiler.disable  # metrics look at values, which a graph cannot
    def add(self, z: Tensor, code: Tensor, indices: Tensor, codes: Tensor | None) -> None:
        """Add vectors z (n, dim), their codes (n, dim) and indices (n,), and the codes (k, dim) in force."""
        valid = indices >= 0
        if self.usage is not None:
            self.usage.update(indices)
        self.error.update(z, code, valid)
        if codes is not None:
            self.moments.update(z, codes, valid)
        if self._room > 0:
            self._drawn.append(z[valid][: self._room].float().cpu())
            self._room -= len(self._drawn[-1])

    def compute(self) -> dict[str, Tensor]:
        """All values by their logged names; none if no rank saw a vector."""
        usage = {} if self.usage is None else self.usage.compute()
        error = self.error.compute()
        gap = self.moments.compute() if self._has_codes else {}
        if error["mse"].isnan():
            return {}
        names = {"mean": "mean_distance", "std": "std_distance"}
        distances = {names.get(name, name): value for name, value in gap.items() if not value.isnan()}
        return {**usage, "error": error["normalized"], **distances}

    @property
    def counts(self) -> Tensor:
        """How often this rank has seen each code, Int64 (k,); (0,) where they are too many."""
        none = torch.zeros(0, dtype=torch.int64, device=self.error.table.device)
        return none if self.usage is None else self.usage.counts

    def vectors(self) -> Tensor:
        """At most `MAX_VECTORS` of this rank's embeddings, Float (n, dim)."""
        return torch.cat(self._drawn)
