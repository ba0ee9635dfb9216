"""Naive twins of the library's rules: loops in float64, written to be read next to the papers, not to be fast.

All take and return NumPy arrays; vectors ``z`` (n, d), codes (k, d), indices (n,) with -1 for masked positions.
"""

import itertools
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


def nearest_code(z: Array, codes: Array, distance: str = "euclidean") -> Indices:
    """The first code of the smallest distance."""
    out = np.empty(len(z), dtype=np.int64)
    for i, vector in enumerate(z):
        best = np.inf
        for k, code in enumerate(codes):
            if distance == "cosine":
                length = np.sqrt((code * code).sum())
                value = -(vector * code).sum() / max(length, 1e-12)
            else:
                value = ((vector - code) ** 2).sum()
            if value < best:
                best, out[i] = value, k
    return out


def code_sums(z: Array, indices: Indices, num_codes: int) -> tuple[Array, Array]:
    counts, sums = np.zeros(num_codes), np.zeros((num_codes, z.shape[1]))
    for vector, k in zip(z, indices, strict=True):
        if k >= 0:
            counts[k] += 1
            sums[k] += vector
    return counts, sums


def lloyd(z: Array, centres: Array, iterations: int) -> Array:
    """Plain Lloyd iterations; every centre must keep at least one vector."""
    for _ in range(iterations):
        counts, sums = code_sums(z, nearest_code(z, centres), len(centres))
        assert (counts > 0).all(), "this twin does not relocate empty centres"
        centres = sums / counts[:, None]
    return centres


def mini_batches(batches: list[Array], centres: Array) -> Array:
    """Mini-batch k-means, Sculley 2010, algorithm 1: one vector after the other, all assigned beforehand."""
    centres, seen = centres.copy(), np.zeros(len(centres))
    for batch in batches:
        for vector, k in zip(batch, nearest_code(batch, centres), strict=True):
            seen[k] += 1
            centres[k] += (vector - centres[k]) / seen[k]
    return centres


def seeding_law(z: Array, num: int, trials: int = 1) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of seeds (places in z) under k-means++, Arthur and Vassilvitskii 2007.

    With several trials the drawn place that leaves the smallest error is kept, of equals the first drawn.
    """
    law: dict[tuple[int, ...], float] = {(i,): 1 / len(z) for i in range(len(z))}
    for _ in range(num - 1):
        longer: dict[tuple[int, ...], float] = {}
        for seeds, chance in law.items():
            error = np.array([((vector - z[list(seeds)]) ** 2).sum(1).min() for vector in z])
            left = [np.minimum(error, ((z - vector) ** 2).sum(1)).sum() for vector in z]
            for drawn in itertools.product(error.nonzero()[0].tolist(), repeat=trials):
                kept = (*seeds, min(drawn, key=lambda i: left[i]))
                longer[kept] = longer.get(kept, 0.0) + chance * float(np.prod(error[list(drawn)] / error.sum()))
        law = longer
    return law


def ema_step(
    codes: Array, counts: Array, sums: Array, z: Array, indices: Indices, decay: float
) -> tuple[Array, Array, Array]:
    """Two moving averages and their ratio, as in arXiv 1711.00937 A.1 without smoothing: codes, counts, sums."""
    new_counts, new_sums = code_sums(z, indices, len(codes))
    counts = decay * counts + (1 - decay) * new_counts
    sums = decay * sums + (1 - decay) * new_sums
    codes = codes.copy()
    for k in range(len(codes)):
        if counts[k] > 0:
            codes[k] = sums[k] / counts[k]
    return codes, counts, sums


def alternated_step(codes: Array, z: Array, indices: Indices, fraction: float) -> Array:
    """Every code with vectors goes ``fraction`` of the way to their mean."""
    counts, sums = code_sums(z, indices, len(codes))
    codes = codes.copy()
    for k in range(len(codes)):
        if counts[k]:
            codes[k] += fraction * (sums[k] / counts[k] - codes[k])
    return codes


class RunningMoments:
    """The running affine map, group by group; batch vectors belong to the group that they were last assigned to."""

    def __init__(self, momentum: float, groups: int, shrink: float) -> None:
        self.momentum, self.groups, self.shrink = momentum, groups, shrink
        self.z: list[tuple[Array, Array] | None] = [None] * groups  # mean and variance of the embeddings
        self.c: list[tuple[Array, Array] | None] = [None] * groups  # and of the raw codes
        self.last: list[Array] | None = None  # the previous step's vectors per group

    def observe(self, z: Array, raw: Array) -> None:
        if len(z) == 0:
            return
        for group in range(self.groups):
            seen = z if self.groups == 1 or self.last is None else self.last[group]
            rows = np.split(raw, self.groups)[group]
            if len(seen):
                mean, variance = self._run(self.z[group], seen.mean(0), seen.var(0))
                self.z[group] = (mean, variance * self.shrink)
            self.c[group] = self._run(self.c[group], rows.mean(0), rows.var(0))

    def _run(self, old: tuple[Array, Array] | None, mean: Array, variance: Array) -> tuple[Array, Array]:
        if old is None:
            return mean, variance
        m = self.momentum
        return (1 - m) * old[0] + m * mean, (1 - m) * old[1] + m * variance

    def remember(self, z: Array, indices: Indices, size: int) -> None:
        owner = [int(k) // (size // self.groups) if k >= 0 else -1 for k in indices]
        self.last = [z[[i for i, o in enumerate(owner) if o == group]] for group in range(self.groups)]

    def codes(self, raw: Array) -> Array:
        out = []
        for rows, stats_z, stats_c in zip(np.split(raw, self.groups), self.z, self.c, strict=True):
            assert stats_z is not None
            assert stats_c is not None
            out.append(np.sqrt(stats_z[1] / stats_c[1]) * (rows - stats_c[0]) + stats_z[0])
        return np.concatenate(out)


class IdleCounter:
    """Book-keeping of a dead-code reset: steps without use, a small batch counting as N/K of a step."""

    def __init__(self, size: int, patience: int) -> None:
        self.size, self.patience = size, patience
        self.idle = [0.0] * size

    def record(self, indices: Indices) -> None:
        valid = [int(k) for k in indices if k >= 0]
        step = min(1.0, len(valid) / self.size)
        for k in range(self.size):
            self.idle[k] = 0.0 if k in valid else self.idle[k] + step

    def due(self, num_vectors: int) -> list[int]:
        """Codes to rewrite, oldest first, the lower index first among equals; at most one per vector."""
        dead = [k for k in range(self.size) if self.idle[k] >= self.patience - 1e-3]
        dead.sort(key=lambda k: -self.idle[k])
        return dead[:num_vectors]

    def forget(self, rows: list[int]) -> None:
        for k in rows:
            self.idle[k] = 0.0
