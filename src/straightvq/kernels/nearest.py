"""Nearest-code search on CUDA: checks, configurations and the launch of the Triton kernel in `nearest_kernel.py`.

Shapes: G groups (independent searches in one launch), N vectors, K codes, D their width.
"""

import functools
import importlib.util
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from straightvq.errors import InvalidTypeError, InvalidValueError

Precision = Literal["float32", "tf32x3", "tf32", "half"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_WIDTH = 1024
_MOST_FEW = 16  # columns of the narrowest tile
# A configuration is chosen on at most so many vectors and codes: enough to fill the device, and milliseconds even
# where the search itself takes seconds.
_TUNING_VECTORS, _TUNING_CODES = 1 << 16, 1 << 13
_tuned: set[tuple[Any, ...]] = set()


class Tile(NamedTuple):
    """One way to cut the search: the tile of a program, the codes of a family, its warps and its copies in flight."""

    vectors: int
    codes: int
    width: int  # coordinates per product; 0: all of them, so that a program loads its vectors once
    fold: int
    warps: int
    stages: int


# By precision: (largest width, tiles to try). Found by reading registers, spills and shared memory off the kernels
# compiled for compute capability 9.0: a few registers spill at most. The last tile of a row needs the least shared
# memory, for smaller devices; the first is what the interpreter runs.
_TILES: dict[Precision, list[tuple[int, list[Tile]]]] = {
    "float32": [
        (64, [Tile(64, 64, 0, 1, 8, 2), Tile(128, 64, 16, 1, 8, 3), Tile(64, 128, 16, 1, 8, 3)]),
        (_MAX_WIDTH, [Tile(128, 64, 16, 1, 8, 3), Tile(64, 128, 16, 1, 8, 3), Tile(64, 64, 32, 1, 8, 2)]),
    ],
    "tf32x3": [
        (64, [Tile(64, 64, 0, 4, 4, 2), Tile(128, 64, 0, 4, 8, 2), Tile(64, 64, 32, 4, 4, 3)]),
        (_MAX_WIDTH, [Tile(128, 64, 32, 4, 8, 3), Tile(64, 64, 32, 4, 4, 3)]),
    ],
    "tf32": [
        (64, [Tile(64, 128, 0, 4, 4, 2), Tile(128, 128, 0, 4, 8, 2), Tile(128, 64, 0, 4, 8, 3)]),
        (128, [Tile(128, 64, 0, 4, 8, 2), Tile(128, 128, 0, 4, 8, 2), Tile(128, 128, 32, 4, 8, 3)]),
        (_MAX_WIDTH, [Tile(128, 128, 32, 4, 8, 3), Tile(128, 64, 64, 4, 8, 3), Tile(64, 64, 32, 4, 4, 3)]),
    ],
    "half": [
        (64, [Tile(64, 128, 0, 4, 4, 3), Tile(128, 128, 0, 4, 8, 3), Tile(64, 256, 0, 8, 4, 3)]),
        (128, [Tile(64, 128, 0, 4, 4, 2), Tile(128, 128, 0, 4, 8, 3), Tile(128, 128, 64, 4, 8, 3)]),
        (256, [Tile(128, 128, 0, 4, 8, 2), Tile(64, 128, 0, 4, 4, 2), Tile(128, 128, 64, 4, 8, 3)]),
        (_MAX_WIDTH, [Tile(128, 128, 64, 4, 8, 3), Tile(64, 128, 64, 4, 4, 3)]),
    ],
}


def search(z: Tensor, codes: Tensor, bias: Tensor, precision: Precision = "float32", few: int | None = None) -> Tensor:
    """``argmin_k bias_k - <z_n, c_k>`` for every vector, in one kernel that holds no matrix.

    With ``bias_k = ||c_k||^2 / 2`` this is the nearest code. Ties go to the lowest index. No gradient, no host
    synchronisation and no memory besides the result (and a half-precision copy of the codes in ``"half"``, and of
    inputs that are not contiguous). The first call for a width, a precision and a size class tries a few configurations
    and does synchronise: make it before capturing a CUDA graph.

    ``precision`` bounds the error of the compared values. As a fraction of ``sum_i |z_i c_i|``, and besides the
    rounding of a float32 sum of D terms (D * 2^-23 at worst):

    - ``"float32"``: products in float32, 2^-24;
    - ``"tf32x3"``: three TF32 products on tensor cores instead of one in float32, 2^-19;
    - ``"tf32"``: operands with 10 bits after the point on tensor cores, truncated: 2^-9;
    - ``"half"``: operands rounded to bfloat16, 2^-7; to float16 if ``z`` is float16, 2^-10.

    Args:
        z: vectors.
        codes: code vectors, at least one.
        bias: what is added to each code's value; infinity takes a code out.
        precision: see above.
        few: so many candidates for each vector instead of the nearest code alone, 1 to 16. The kernel keeps one code
            for each column of a tile, so they are the best of different columns: the first is the nearest, and the
            second nearest is missing where it shares its column. Where no column is left, some index in range.

    Shape:
        z: Float (n, d) or (g, n, d); codes: Float (k, d) or (g, k, d); bias: Float32 (k,) or (g, k). d up to 1024.
        result: Int64 (n,) or (g, n) in ``[0, k)``; with ``few`` one axis more, in the order of the values.

    Raises:
        RuntimeError: without Triton or off CUDA, and in a graph capture that no call of this kind came before.
        TypeError: for dtypes that the kernel does not take.
        ValueError: for shapes that do not fit, several devices, an unknown precision or a ``few`` out of range.
    """
    _check(z, codes, bias, precision, few)
    interpreted = _kernel_module().INTERPRETED
    if not z.is_cuda and not interpreted:
        raise RuntimeError(f"`search`: `z` must be on a CUDA device. Got {z.device}.")
    shape = z.shape[:-1] if few is None else (*z.shape[:-1], few)
    out = torch.empty(shape, dtype=torch.int64, device=z.device)
    if out.numel() == 0:
        return out
    if precision == "half":
        codes = codes.to(_half(z))
    if z.stride(-1) != 1:
        z = z.contiguous()
    z, codes, bias = z.detach(), codes.detach().contiguous(), bias.detach().contiguous()
    result = out
    if z.ndim == 2:
        z, codes, bias, out = z[None], codes[None], bias[None], out[None]
    if interpreted:
        launch(z, codes, bias, out, precision, tiles(precision, z.shape[2])[0])
        return result
    with torch.cuda.device(z.device):
        _tune(z, codes, bias, out, precision)
        launch(z, codes, bias, out, precision)
    return result


def can_search(z: Tensor, codes: Tensor, precision: Precision, few: int) -> bool:
    """Whether `search` takes these inputs here and now: on CUDA, with Triton, in a capture only what came before."""
    if not z.is_cuda or {z.dtype, codes.dtype} - set(_DTYPES) or not 1 <= z.shape[-1] <= _MAX_WIDTH:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    return not torch.cuda.is_current_stream_capturing() or _key(z, codes, precision, (few,)) in _tuned


def launch(z: Tensor, codes: Tensor, bias: Tensor, out: Tensor, precision: Precision, tile: Tile | None = None) -> None:
    """Runs the kernel on checked inputs with a group axis: with one tile, or with what the autotuner chose.

    ``out`` (g, n) takes the nearest, ``out`` (g, n, few) candidates.
    """
    module = _kernel_module()
    tl = module.tl
    groups, n, d = z.shape
    rounding = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[_half(z)] if precision == "half" else tl.float32
    constants = {
        "Z_ROW": z.stride(1), "C_ROW": codes.stride(1), "D": d, "ROUND": rounding,
        # NumPy, in which the interpreter multiplies, has no bfloat16.
        "DOT": tl.float32 if module.INTERPRETED else rounding,
        # Multiplications and additions are joined into one rounding; said here because Triton's default changes.
        "enable_fp_fusion": True,
        "PRECISION": precision if precision.startswith("tf32") else "ieee",
        "FEW": out.shape[2] if out.ndim == 3 else 1,
    }  # fmt: skip
    if tile is None:
        kernel = _autotuner(precision, d)
    else:
        kernel = module.nearest_kernel
        constants |= {**_blocks(tile), "num_warps": tile.warps, "num_stages": tile.stages}
    # From one group to the next. Triton loads several numbers at once only where every term of an address is known to
    # be divisible by 16. Of a single group torch says n * d, which may be odd; 0 always is divisible.
    strides = [x.stride(0) if groups > 1 else 0 for x in (z, codes, bias)]
    kernel[lambda meta: (groups * -(-n // meta["BLOCK_N"]),)](
        z, codes, bias, out, n, codes.shape[1], *strides, _bucket(n, codes.shape[1]), **constants
    )


def tiles(precision: Precision, width: int) -> list[Tile]:
    """The configurations that are tried for a width, smaller than 16 counting as 16: the least a product takes."""
    whole = max(16, 1 << (width - 1).bit_length())
    found = next(row for largest, row in _TILES[precision] if width <= largest)
    return [tile._replace(width=min(tile.width or whole, whole)) for tile in found]


def _tune(z: Tensor, codes: Tensor, bias: Tensor, out: Tensor, precision: Precision) -> None:
    """Lets the autotuner choose on a part of the problem, once for each kind of problem."""
    key = _key(z, codes, precision, out.shape[2:])
    if key in _tuned:
        return
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("`search` must be called once with such inputs before it is captured. Got a first call.")
    z, codes, bias = z[:1, :_TUNING_VECTORS], codes[:1, :_TUNING_CODES], bias[:1, :_TUNING_CODES]
    launch(z, codes, bias, out[:1, :_TUNING_VECTORS], precision)
    _tuned.add(key)


def _key(z: Tensor, codes: Tensor, precision: Precision, few: tuple[int, ...]) -> tuple[Any, ...]:
    """The kind of a problem, whose configuration is chosen once."""
    bucket = _bucket(z.shape[-2], codes.shape[-2])
    return z.device, z.dtype, codes.dtype, precision, z.shape[-1], tuple(few), bucket


@functools.cache
def _autotuner(precision: Precision, width: int) -> Any:
    """One tuner per precision and width; inside, it keeps a choice per size class and dtypes."""
    module = _kernel_module()
    configs = [
        module.triton.Config(_blocks(tile), num_warps=tile.warps, num_stages=tile.stages)
        for tile in tiles(precision, width)
    ]
    return module.triton.autotune(configs, key=["BUCKET"])(module.nearest_kernel)


def _blocks(tile: Tile) -> dict[str, int]:
    return {"BLOCK_N": tile.vectors, "BLOCK_K": tile.codes, "BLOCK_D": tile.width, "FOLD": tile.fold}


def _bucket(vectors: int, codes: int) -> int:
    """The size class for which a configuration is chosen; the part that is tuned on is in the class of the whole."""
    return 2 * ((codes > 512) + (codes > 4096)) + (vectors > 1 << 14)


def _half(z: Tensor) -> torch.dtype:
    """bfloat16 unless the vectors are float16 already: a float32 value may be too large for float16."""
    return torch.float16 if z.dtype == torch.float16 else torch.bfloat16


@functools.cache
def _kernel_module() -> ModuleType:
    try:
        return importlib.import_module("straightvq.kernels.nearest_kernel")
    except ImportError as error:
        raise RuntimeError(f"`search` needs Triton, which could not be imported. Got {error!r}.") from error


def _check(z: Tensor, codes: Tensor, bias: Tensor, precision: str, few: int | None) -> None:
    if precision not in get_args(Precision):
        raise InvalidValueError(f"`search`: `precision` must be one of {get_args(Precision)}. Got {precision!r}.")
    if few is not None and few not in range(1, _MOST_FEW + 1):
        raise InvalidValueError(f"`search`: `few` must be None or an integer in [1, {_MOST_FEW}]. Got {few!r}.")
    for name, value, dtypes in (("z", z, _DTYPES), ("codes", codes, _DTYPES), ("bias", bias, _DTYPES[:1])):
        if value.dtype not in dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InvalidTypeError(f"`search`: `{name}` must be of dtype {names}. Got {value.dtype}.")
    shapes = f"Got {tuple(z.shape)}, {tuple(codes.shape)} and {tuple(bias.shape)}."
    # Same number of axes, same groups in front, same width; one bias per code.
    fits = z.ndim in (2, 3) and z.ndim == codes.ndim and z.shape[:-2] == codes.shape[:-2]
    if not fits or z.shape[-1] != codes.shape[-1] or bias.shape != codes.shape[:-1]:
        raise InvalidValueError(
            "`search`: `z` must be (n, d), `codes` (k, d) and `bias` (k,), or all of them with the same groups "
            f"in front. {shapes}"
        )
    if codes.shape[-2] == 0 or not 1 <= z.shape[-1] <= _MAX_WIDTH:
        raise InvalidValueError(f"`search`: there must be a code, and the width must be in [1, {_MAX_WIDTH}]. {shapes}")
    if not z.device == codes.device == bias.device:
        devices = f"{z.device}, {codes.device} and {bias.device}"
        raise InvalidValueError(f"`search`: `z`, `codes` and `bias` must be on one device. Got {devices}.")
