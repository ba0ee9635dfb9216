"""Recipes on several processes: Lightning's ddp through the command line, and fully sharded training."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from tests.ranks import run_on_ranks
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import straightvq as svq
from straightvq.cli import main
from straightvq.data import Images
from straightvq.models import Autoencoder
from straightvq.recipes import recipe_path
from straightvq.training import Reconstruction
from straightvq.training.command_line import TrainingCLI, quiet

# A few steps of a tiny network may well use few codes.
pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")


def command(runs: Path, *options: str) -> list[str]:
    """A toy size of the recipe, with 64 training images and a start that does not depend on the order of the vectors.

    In float64: of a gradient of rounding, as that of a pixel that is always black, AdamW makes a step of full length.
    """
    recipes = [word for name in ("digits", "plain_vq", "tiny") for word in ("--config", name)]
    return ["fit", *recipes, "--runs", str(runs), "--trainer.precision", "64-true", "--data.num_train", "72", *options]


def launch(words: list[str]) -> str:
    """What a command says, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    typed = [sys.executable, "-m", "straightvq", *words]
    done = subprocess.run(typed, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_a_recipe_like_one_with_the_doubled_batch(tmp_path: Path) -> None:
    said = launch(command(tmp_path / "two", "--data.batch_size", "8", *TWO))
    assert main(command(tmp_path / "one", "--data.batch_size", "16")) == 0
    name = "digits-plain_vq-tiny"
    assert [folder.name for folder in (tmp_path / "two").iterdir()] == [name], "one folder for all processes"
    assert said.count("last.ckpt") == 1, "the first process says where everything is"
    two, one = (torch.load(tmp_path / runs / name / "last.ckpt", weights_only=True) for runs in ("two", "one"))
    assert two["global_step"] == one["global_step"] == 8
    for key, value in one["state_dict"].items():
        if not key.endswith("seed"):  # each of them drew its own
            torch.testing.assert_close(two["state_dict"][key], value, msg=lambda m, k=key: f"{k}: {m}")


def test_two_processes_train_without_quantization(tmp_path: Path) -> None:
    """No parameter of a bypassed layer may leave the wrapper waiting for its gradient."""
    launch(command(tmp_path, "--data.batch_size", "8", "--model.quantize", "false", *TWO))


def _everything(rank: int, join: Callable[[], None], runs: str) -> dict[str, Any]:
    os.environ["LOCAL_RANK"] = str(rank)  # Lightning starts no processes of its own then
    join()
    return {"recipe": _recipe(runs), "sharded": _sharded(rank)}


def _recipe(runs: str) -> dict[str, Tensor]:
    recipes = [word for name in ("digits", "tiny") for word in ("--config", recipe_path(name))]
    with quiet():
        cli = TrainingCLI(["fit", *recipes, "--runs", runs, *TWO], "digits", "")
    return cli.model.state_dict()


class ShardedReconstruction(Reconstruction):
    """The autoencoder's own parameters in shards, the quantizer whole on every rank."""

    def configure_model(self) -> None:
        quantizer = self.model.quantizer
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.model, mesh=mesh, ignored_params=set(quantizer.parameters()))
        for parameter in quantizer.parameters():
            parameter.register_post_accumulate_grad_hook(_average_gradient)


def _average_gradient(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def _sharded(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    quantizer = svq.presets.straight(4, 16, channel_dim=1, codebook_dim=2, patience=2, sync=0.5)
    task = ShardedReconstruction(Autoencoder(quantizer, in_channels=1, hidden=8, blocks=1))
    written: list[Tensor] = []
    quantizer.register_forward_pre_hook(lambda layer, _: written.append(layer.codes()))
    quantizer.register_forward_hook(lambda layer, *_: written.append(layer.codes()))
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    with quiet():
        trainer.fit(task, Images(source="digits", channels=1, size=16, batch_size=8, num_train=64, num_test=16))
    state = task.model.state_dict()
    is_sharded = isinstance(state["encoder.0.weight"], DTensor)
    return {"is_sharded": is_sharded, "quantizer": quantizer.state_dict(), "written": written}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_on_ranks(functools.partial(_everything, runs=str(tmp_path_factory.mktemp("runs"))))


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between the processes"


def test_both_processes_end_with_the_same_network_and_codebook(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["recipe"] for rank in ranks)
    assert first["model.quantizer.clock.step"] == 8
    assert_equal(first, second)


def test_sharded_training_keeps_what_the_quantizer_writes(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["sharded"] for rank in ranks)
    assert first["is_sharded"]
    assert first["quantizer"]["clock.step"] == 6
    assert first["quantizer"]["codebook.is_ready"]
    assert_equal(first["quantizer"], second["quantizer"])
    before, after = first["written"][0::2], first["written"][1::2]
    for step in range(6):
        assert not torch.equal(before[step], after[step]), "every forward moves codes"
    for step in range(5):
        distance = (after[step] - before[step + 1]).abs().max()
        assert distance < 1e-2, "between two forwards only the optimizer moves them, by its rate"
