"""With what, where and when a result was made."""

import contextlib
import platform
import re
from pathlib import Path

import torch

import straightvq


def hardware(device: str | None = None, threads: int | None = None) -> str:
    """The GPU's name, or the processor's and the number of threads.

    Args:
        device: "cuda" or "cpu"; None is the GPU where there is one.
        threads: on the CPU; None is torch's.
    """
    if (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux; elsewhere the processor's own word must do
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    threads = threads or torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def versions() -> str:
    """Of this package and of torch."""
    return f"straightvq {straightvq.__version__}, torch {torch.__version__}"
