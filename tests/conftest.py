"""One thread: the tensors here are tiny, and threads that wait for each other only slow them down."""

import os
from collections.abc import Iterator

import pytest
import torch

# On processors with AVX2 and no AVX-512 the convolutions of torch 2.13 (oneDNN) write past their memory in the weight
# gradient of layers with very few channels, such as those of the tests, and the process may abort. Read at first use.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
