"""Law 4: all ranks hold the same codebook, and p processes do what one does with the whole batch.

Real processes with gloo on this machine. Each case runs once in one process on whole batches and once in two
processes on uneven shards (one of them empty at times, some vectors masked), and the codebooks are compared.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import straightvq as svq

DIM, SIZE, STEPS = 6, 24, 12


def _recipe(parametrization: svq.Parametrization, update: svq.Update, init: svq.Init) -> svq.VectorQuantizer:
    book = svq.Codebook(
        SIZE, parametrization=parametrization, init=init, update=update, reset=svq.DeadCodeReset(patience=2)
    )
    return svq.VectorQuantizer(DIM, book)


CASES: dict[str, Callable[[], svq.VectorQuantizer]] = {
    "ema, k-means": lambda: svq.presets.ema(DIM, SIZE, patience=2),
    "alternated with momentum, sample": lambda: _recipe(
        svq.Direct(), svq.AlternatedUpdate(steps=2, momentum=0.5), svq.SampleInit()
    ),
    "alternated sgd, running affine in groups": lambda: _recipe(
        svq.RunningAffine(groups=3), svq.AlternatedUpdate(lr=2.0, reassign=False), svq.KMeansInit()
    ),
    "ema, running affine": lambda: _recipe(svq.RunningAffine(), svq.EMAUpdate(0.9), svq.NormalInit()),
    "gradient, affine": lambda: _recipe(svq.Affine(groups=2), svq.GradientUpdate(), svq.KMeansInit()),
}


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    z = 5 + torch.randn(120, DIM, generator=generator) * (1 + step / 10)
    return z, torch.rand(120, generator=generator) > 0.2


def _cut(step: int) -> int:
    """Rows of the first rank: uneven, and nothing at all in every fourth step."""
    return (0, 75, 31, 120)[step % 4]


def _train(layer: svq.VectorQuantizer, shard: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """Training forwards, no optimizer: everything that a forward changes, after each step."""
    tables = []
    for step in range(STEPS):
        z, mask = _batch(step)
        layer(shard(step, z), mask=shard(step, mask))
        tables.append(layer.codes())
    return tables


def _worker(rank: int, port: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.manual_seed(rank)  # different on purpose: the first training step makes the ranks equal
    layer = CASES[case]()  # before the group exists
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))

    def shard(step: int, x: Tensor) -> Tensor:
        return x[: _cut(step)] if rank == 0 else x[_cut(step) :]

    tables = _train(layer, shard)
    torch.save({"tables": tables, "state": layer.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("case", list(CASES))
def test_two_uneven_ranks_do_what_one_process_does(case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(_free_port(), case, folder), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    for name, value in first["state"].items():
        torch.testing.assert_close(value, second["state"][name], rtol=0, atol=0, msg=f"{name} differs between ranks")
    torch.manual_seed(0)
    alone = _train(CASES[case](), lambda step, x: x)
    for step, (table, other) in enumerate(zip(first["tables"], alone, strict=True)):
        torch.testing.assert_close(table, other, rtol=1e-4, atol=1e-4, msg=f"step {step} differs from one process")


def _one_sided(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=20))
    layer = svq.presets.straight(DIM, SIZE)
    layer.codebook.process_group = False
    if rank == 0:
        layer(_batch(0)[0])  # would wait for the other rank
    dist.destroy_process_group()


def test_synchronisation_can_be_switched_off() -> None:
    mp.spawn(_one_sided, args=(_free_port(),), nprocs=2)
