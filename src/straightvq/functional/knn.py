"""FAISS's flat search on the CPU, where `faiss-cpu` is installed."""

import functools
import sys
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError

# Up to this width FAISS has a kernel that writes no products; above, tiles in torch are as fast.
_WIDTH = 32
# FAISS 1.15 is up to twenty times slower for inputs of fewer numbers than this, and tiles in torch are faster.
_NUMBERS = 1 << 17


def is_preferred(z: Tensor) -> bool:
    """Whether it is there and faster; on macOS two OpenMP runtimes in one process can crash."""
    fits = z.dtype == torch.float32 and z.shape[1] <= _WIDTH and z.numel() >= _NUMBERS
    return fits and sys.platform != "darwin" and _faiss() is not None


def check_usable(z: Tensor) -> None:
    """Raises a `ValueError` that says what it needs."""
    if _faiss() is None or z.device.type != "cpu" or z.dtype != torch.float32:
        raise InvalidValueError(
            "`nearest_code`: `backend` 'faiss' needs the package faiss-cpu and float32 on the CPU. "
            f"Got {z.dtype} on {z.device}{'' if _faiss() else ', and faiss is not installed'}."
        )


@functools.cache
def _faiss() -> ModuleType | None:
    """FAISS, imported at first use; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its bindings announce deprecations of their own making
            import faiss
    except ImportError:
        return None
    return faiss


def knn(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance, Float32 (n,), and index, Int64 (n,), of the code found for each vector."""
    faiss: Any = _faiss()
    if not len(z):
        return z.new_empty(0), torch.empty(0, dtype=torch.int64, device=z.device)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        distances, indices = faiss.knn(z.contiguous().numpy(), codes.contiguous().numpy(), 1)
    finally:
        faiss.omp_set_num_threads(threads)  # of the calling thread; others have their own
    # -1 stands for "none": only where no distance is a number.
    return torch.from_numpy(distances[:, 0]), torch.from_numpy(indices[:, 0]).clamp(min=0)
