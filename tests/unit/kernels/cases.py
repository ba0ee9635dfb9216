"""Checks of the nearest-code kernel, by name, against float64 brute force.

They run on a CUDA device, or on the CPU in Triton's interpreter. The latter must be chosen before Triton is imported,
so it has a process of its own: ``TRITON_INTERPRET=1 python -m tests.unit.kernels.cases`` prints ``{name: error}``.
"""

import contextlib
import functools
import json
import sys
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from straightvq.functional import nearest_code
from straightvq.kernels import nearest as module
from straightvq.kernels.nearest import Precision, Tile, search

ERROR = {"float32": 2.0**-24, "tf32x3": 2.0**-19, "tf32": 2.0**-9, "half": 2.0**-7, "float16": 2.0**-10}
# Several tiles each way, families of one and of several codes, the width whole and in parts.
SMALL_TILES = [Tile(16, 16, 0, 1, 4, 1), Tile(16, 32, 16, 4, 4, 1), Tile(32, 16, 32, 2, 4, 1), Tile(16, 64, 0, 8, 4, 1)]

Check = Callable[[str], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


def inputs(n: int, k: int, d: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + n * k + d)
    z, codes = (torch.randn(rows, d, generator=generator).to(device) for rows in (n, k))
    return z, codes, codes.square().sum(1) / 2


def integers(n: int, k: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers that no precision rounds, so that many different codes tie."""
    generator = torch.Generator().manual_seed(0)
    z, codes = (torch.randint(-2, 3, (rows, 3), generator=generator).float().to(device) for rows in (n, k))
    return z, codes, codes.square().sum(1) / 2


def assert_nearest(got: Tensor, z: Tensor, codes: Tensor, bias: Tensor, error: float) -> None:
    """The code found is the nearest wherever the float64 margin exceeds what the precision allows."""
    assert got.dtype == torch.int64
    assert got.shape == z.shape[:-1]
    assert got.device == z.device
    z, codes, bias = z.double(), codes.double(), bias.double()
    values = bias.unsqueeze(-2) - z @ codes.mT
    # Both values compared are off by so much at most; sums and the difference are float32 in every mode.
    sizes = (z.abs() @ codes.abs().mT).amax(-1) + bias.abs().amax(-1, keepdim=True)
    allowed = 2 * sizes * (error + (z.shape[-1] + 2) * 2.0**-23)
    margin = values.gather(-1, got.unsqueeze(-1)).squeeze(-1) - values.amin(-1)
    assert (margin <= allowed).all(), f"{int((margin > allowed).sum())} of {margin.numel()} beyond the rounding"


def run(
    z: Tensor, codes: Tensor, bias: Tensor, precision: Precision, tile: Tile, shape: tuple[int, ...] = ()
) -> Tensor:
    out = torch.full((*z.shape[:-1], *shape), -1, dtype=torch.int64, device=z.device)
    tile = tile._replace(width=tile.width or max(16, 1 << (z.shape[-1] - 1).bit_length()))
    module.launch(z[None], codes[None], bias[None], out[None], precision, tile)
    return out


def _sizes(device: str, precision: Precision) -> None:
    exact = precision == "float32"  # the others differ from it in the product alone
    for n in (1, 63, 130) if exact else (63,):
        for k in (1, 5, 100, 257) if exact else (5, 257):
            for d in (1, 7, 32, 65, 200):
                case = inputs(n, k, d, device)
                assert_nearest(search(*case, precision), *case, ERROR[precision])


for _precision in ("float32", "tf32x3", "tf32", "half"):
    CHECKS[f"sizes_{_precision}"] = functools.partial(_sizes, precision=_precision)


@check
def every_configuration(device: str) -> None:
    from triton.runtime.errors import OutOfResources

    for precision, rows in module._TILES.items():
        for width, _ in rows:
            d = min(width, 290)  # parts of every width, the last one not full
            case = inputs(70, 260, d, device)
            *others, smallest = module.tiles(precision, d)
            for tile in others:
                with contextlib.suppress(OutOfResources):  # which the tuner leaves out, as on a smaller device
                    assert_nearest(run(*case, precision, tile), *case, ERROR[precision])
            assert_nearest(run(*case, precision, smallest), *case, ERROR[precision])


@check
def small_tiles(device: str) -> None:
    for tile in SMALL_TILES:
        for n, k, d in ((1, 1, 1), (17, 16, 16), (33, 131, 40), (50, 257, 7)):
            case = inputs(n, k, d, device)
            assert_nearest(run(*case, "float32", tile), *case, ERROR["float32"])


@check
def ties_go_to_the_lowest_index(device: str) -> None:
    for tile in SMALL_TILES:
        for precision in ("float32", "half"):
            for half in (1, 3, 8, 33):
                z, codes, _ = inputs(20, half, 5, device)
                if device == "cpu":
                    # The interpreter multiplies in NumPy, which rounds equal columns differently: nothing to round.
                    z, codes = z.mul(8).round() / 8, codes.mul(8).round() / 8
                # The second half repeats the first in another order; all the same comes last.
                order = torch.randperm(half, generator=torch.Generator().manual_seed(half))
                twice = torch.cat([codes, codes[order.to(device)], codes])
                got = run(z, twice, twice.square().sum(1) / 2, precision, tile)
                assert (got < half).all(), (tile, precision, half)
                same = codes[:1].expand(3 * half, -1).contiguous()
                assert (run(z, same, same.square().sum(1) / 2, precision, tile) == 0).all(), (tile, precision, half)


@check
def ties_of_integers_as_in_torch(device: str) -> None:
    z, codes, bias = integers(60, 150, device)
    values = bias - z @ codes.T
    want = torch.where(values == values.amin(1, keepdim=True), torch.arange(150, device=device), 150).amin(1)
    for tile in SMALL_TILES:
        for precision in ("float32", "tf32x3", "tf32", "half"):
            assert torch.equal(run(z, codes, bias, precision, tile), want), (tile, precision)


def naive_few(values: Tensor, tile: Tile, few: int) -> Tensor:
    """The best code of each column, and of those the best few: (n, few) from values (n, k), by loops."""
    found = []
    for row in values.tolist():
        columns: dict[int, tuple[float, int]] = {}
        for code, value in enumerate(row):
            column = code // tile.fold % (tile.codes // tile.fold)
            columns[column] = min(columns.get(column, (value, code)), (value, code))
        found.append([code for _, code in sorted(columns.values())[:few]])
    return torch.tensor(found, device=values.device)


@check
def few_are_the_best_of_different_columns(device: str) -> None:
    z, codes, bias = integers(37, 150, device)
    for tile in SMALL_TILES:
        for few in (4, 8):
            got = run(z, codes, bias, "half", tile, (few,))
            assert torch.equal(got, naive_few(bias - z @ codes.T, tile, few)), (tile, few)


@check
def few_of_fewer_codes_are_in_range_and_begin_with_the_nearest(device: str) -> None:
    for k in (1, 2, 3, 40):
        z, codes, bias = inputs(33, k, 6, device)
        got = search(z, codes, bias, few=4)
        assert got.shape == (33, 4)
        assert ((got >= 0) & (got < k)).all()
        assert torch.equal(got[:, 0], search(z, codes, bias))
        assert torch.equal(search(z[None], codes[None], bias[None], few=4)[0], got)
        assert all(len(set(row)) == min(k, 4) for row in got.tolist())


@check
def nearest_code_compares_the_candidates(device: str) -> None:
    """The function whose backend this is: far from the origin, with equal codes, for both distances."""
    z, codes, _ = inputs(70, 45, 12, device)
    z, codes = z + 1000, torch.cat([codes, codes]) + 1000
    for distance in ("euclidean", "cosine"):
        want = nearest_code(z.double(), codes.double(), distance=distance, backend="tiled")
        assert torch.equal(nearest_code(z, codes, distance=distance, backend="triton"), want), distance


@check
def groups_are_separate_searches(device: str) -> None:
    cases = [inputs(70, 45, 9, device, seed) for seed in range(3)]
    z, codes, bias = (torch.stack(parts) for parts in zip(*cases, strict=True))
    got = search(z, codes, bias)
    assert torch.equal(got, torch.stack([search(*case) for case in cases]))
    # As a product quantizer holds them: parts of one wide vector, not moved.
    apart = z.transpose(0, 1).contiguous().transpose(0, 1)
    assert not apart.is_contiguous()
    assert torch.equal(search(apart, codes, bias), got)


@check
def layouts_do_not_matter(device: str) -> None:
    z, codes, bias = inputs(60, 50, 12, device)
    want = search(z, codes, bias)
    wide = torch.zeros(60, 40, device=device)
    wide[:, 5:17] = z
    assert torch.equal(search(wide[:, 5:17], codes, bias), want)
    assert torch.equal(search(z.T.contiguous().T, codes.T.contiguous().T, bias), want)
    assert torch.equal(search(z, codes, torch.stack([bias, bias], 1)[:, 0]), want)
    assert torch.equal(search(z[:1].expand(5, -1), codes, bias), want[:1].expand(5))
    assert search(z[:0], codes, bias).shape == (0,)


@check
def bias_decides(device: str) -> None:
    z, codes, bias = inputs(50, 40, 6, device)
    assert_nearest(search(z, codes, -3 * bias), z, codes, -3 * bias, ERROR["float32"])
    assert (search(z, codes, torch.zeros_like(bias).index_fill(0, torch.tensor([7], device=device), -1e4)) == 7).all()
    closed = bias.clone()
    closed[search(z, codes, bias).unique()] = float("inf")
    assert torch.isfinite(closed[search(z, codes, closed)]).all()


@check
def far_data_centred_by_the_caller(device: str) -> None:
    z, codes, _ = (x + 1000 for x in inputs(120, 90, 16, device))
    exact = torch.cdist(z.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    z, codes = z - 1000, codes - 1000
    assert torch.equal(search(z, codes, codes.square().sum(1) / 2), exact)


@check
def half_inputs(device: str) -> None:
    for dtype, name in ((torch.bfloat16, "half"), (torch.float16, "float16")):
        z, codes, bias = inputs(70, 100, 33, device)
        z, codes = z.to(dtype), codes.to(dtype)
        assert_nearest(search(z, codes, bias), z, codes, bias, ERROR["float32"])
        assert_nearest(search(z, codes, bias, "half"), z, codes, bias, ERROR[name])


@check
def values_that_are_no_numbers_give_indices_in_range(device: str) -> None:
    z, codes, bias = inputs(40, 37, 8, device)
    z[3], z[5] = float("nan"), float("inf")
    for tile in SMALL_TILES:
        got = run(z, codes, bias, "float32", tile)
        assert ((got >= 0) & (got < 37)).all()
        assert torch.equal(got[6:], run(z[6:], codes, bias, "float32", tile))


def main() -> None:
    torch.set_num_threads(1)
    errors = {}
    for name, function in CHECKS.items():
        try:
            function("cpu")
            errors[name] = None
        except Exception:
            errors[name] = traceback.format_exc()
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
