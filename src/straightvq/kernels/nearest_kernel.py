# mypy: disable-error-code="no-untyped-def"
# A kernel's arguments are device values that only Triton's compiler types; annotations other than constexpr would
# be read by it as types of its own.
"""The Triton kernel of the nearest-code search. Importing this file imports Triton; `nearest.py` is the way in.

One program owns BLOCK_N vectors and walks over the codes in tiles of BLOCK_K. What bounds such a search on tensor
cores is the arg-min after the matrix product, so the kernel spends few instructions per (vector, code) pair:

- Column c of a tile competes with column c of the earlier tiles, element by element in registers; columns are reduced
  to one winner per vector once, after the last tile.
- FOLD neighbouring codes form a family. Only its minimum takes part in the comparison, so the instructions and
  registers for the running minimum shrink by FOLD; the member is found at the end, for the winning family only, by
  FOLD products per vector.

Ties go to the lowest index: a family's codes are consecutive, a later tile must be strictly better, and of equal
columns the lowest family wins.
"""

import triton
import triton.language as tl


@triton.jit
def _vectors(z, rows, in_rows, d, ROW: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Coordinates d, d + 1, ... of the program's vectors, (BLOCK_N, BLOCK_D); zero past the width."""
    at = d + tl.arange(0, BLOCK_D)
    return tl.load(z + rows[:, None] * ROW + at[None, :], mask=in_rows[:, None] & (at < D)[None, :], other=0.0)


@triton.jit
def _codes(tile, within, in_codes, d, ROW: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Coordinates d, d + 1, ... of a tile's codes, transposed: (BLOCK_D, BLOCK_K); zero past the width."""
    at = d + tl.arange(0, BLOCK_D)
    return tl.load(tile + within[None, :] * ROW + at[:, None], mask=in_codes[None, :] & (at < D)[:, None], other=0.0)


@triton.jit
def _first_nearest(
    z, codes, bias, family, rows, in_rows, K,
    Z_ROW: tl.constexpr, C_ROW: tl.constexpr, D: tl.constexpr, ROUND: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """Index of the nearest code of each vector's family, in float32 arithmetic, Int32 (BLOCK_N,)."""
    nearest = family * FOLD
    lowest = tl.full((BLOCK_N,), float("inf"), tl.float32)
    for member in tl.static_range(FOLD):
        index = family * FOLD + member
        exists = index < K
        product = tl.zeros((BLOCK_N,), tl.float32)
        for d in range(0, D, BLOCK_D):
            at = d + tl.arange(0, BLOCK_D)
            zs = _vectors(z, rows, in_rows, d, Z_ROW, D, BLOCK_D).to(ROUND).to(tl.float32)
            place = codes + index.to(tl.int64)[:, None] * C_ROW + at[None, :]
            cs = tl.load(place, mask=exists[:, None] & (at < D)[None, :], other=0.0).to(ROUND).to(tl.float32)
            product += tl.sum(zs * cs, 1)
        score = tl.load(bias + index, mask=exists, other=float("inf")) - product
        nearest = tl.where(score < lowest, index, nearest)
        lowest = tl.minimum(score, lowest)
    return nearest


@triton.jit(do_not_specialize=["N", "BUCKET"])
def nearest_kernel(
    z, codes, bias, out, N, K, z_group, codes_group, bias_group, BUCKET,
    Z_ROW: tl.constexpr, C_ROW: tl.constexpr, D: tl.constexpr, ROUND: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, FEW: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    """``out[g, n, 0] = argmin_k bias[g, k] - <z[g, n], codes[g, k]>``, one program per group and BLOCK_N vectors.

    ``out[g, n, 1:FEW]`` are the best of other columns, in the order of their values; some index in range where no
    column is left.

    Rows of ``z`` and ``codes`` are Z_ROW and C_ROW elements apart, groups ``*_group``. Operands are rounded to ROUND
    and multiplied as DOT; BUCKET is there for the autotuner alone.
    """
    families: tl.constexpr = BLOCK_K // FOLD
    # Whatever is multiplied by a number of vectors or codes is 64 bits wide.
    programs = tl.cdiv(N, BLOCK_N)  # of one group
    group = (tl.program_id(0) // programs).to(tl.int64)
    rows = (tl.program_id(0) % programs).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows = rows < N
    z, codes, bias = z + group * z_group, codes + group * codes_group, bias + group * bias_group
    # The members of family f stand in columns f, f + families, ...: a thread then holds all of them (on tensor cores
    # it holds every eighth pair of columns), and folding moves nothing between threads.
    column = tl.arange(0, BLOCK_K)
    within = (column % families) * FOLD + column // families
    lowest = tl.full((BLOCK_N, families), float("inf"), tl.float32)
    lowest_at = tl.zeros((BLOCK_N, families), tl.int32)
    if D <= BLOCK_D:
        zs = _vectors(z, rows, in_rows, 0, Z_ROW, D, BLOCK_D).to(ROUND).to(DOT)
    tile = codes
    for first in range(0, K, BLOCK_K):
        in_codes = within < K - first
        if D <= BLOCK_D:
            cs = _codes(tile, within, in_codes, 0, C_ROW, D, BLOCK_D).to(ROUND).to(DOT)
            product = tl.dot(zs, cs, input_precision=PRECISION)
        else:
            product = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
            for d in range(0, D, BLOCK_D):
                part = _vectors(z, rows, in_rows, d, Z_ROW, D, BLOCK_D).to(ROUND).to(DOT)
                cs = _codes(tile, within, in_codes, d, C_ROW, D, BLOCK_D).to(ROUND).to(DOT)
                product = tl.dot(part, cs, product, input_precision=PRECISION)
        score = tl.load(bias + first + within, mask=in_codes, other=float("inf"))[None, :] - product
        if FOLD > 1:
            score = tl.min(tl.reshape(score, (BLOCK_N, FOLD, families)), 1)
        closer = score < lowest  # strictly: a tie stays with the earlier tile
        lowest = tl.where(closer, score, lowest)
        lowest_at = tl.where(closer, first, lowest_at)
        tile += BLOCK_K * C_ROW
    family = lowest_at // FOLD + tl.arange(0, families)[None, :]
    for place in tl.static_range(FEW):
        nearest = tl.min(tl.where(lowest == tl.min(lowest, 1)[:, None], family, K), 1)
        lowest = tl.where(family == nearest[:, None], float("inf"), lowest)
        if FOLD > 1:
            nearest = _first_nearest(
                z, codes, bias, nearest, rows, in_rows, K, Z_ROW, C_ROW, D, ROUND, BLOCK_N, min(BLOCK_D, 32), FOLD
            )
        tl.store(out + (group * N + rows) * FEW + place, nearest.to(tl.int64), mask=in_rows)


# With TRITON_INTERPRET=1 in the environment when Triton was imported, kernels run on the CPU.
INTERPRETED = not isinstance(nearest_kernel, triton.JITFunction)
