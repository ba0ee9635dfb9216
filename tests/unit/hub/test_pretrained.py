"""Networks and tasks come back as they were saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq import models, training
from straightvq.hub.describe import arguments, describe
from straightvq.models import Autoencoder, MLPAutoencoder
from straightvq.training import Alternation, OptimizerSettings


def layer(dim: int = 8, channel_dim: int = 1) -> svq.Quantizer:
    return svq.presets.ema(dim, 16, channel_dim=channel_dim)


def codec() -> models.AudioCodec:
    return models.AudioCodec(layer(), hidden=4, strides=(2, 5), dilations=(1, 3), activation="elu")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "AlexNet": (
        lambda: models.AlexNet(layer(8), num_classes=3, width=2, small_images=True, position="conv5", dropout=0.1),
        (2, 3, 32, 32),
    ),
    "AudioCodec": (codec, (2, 1, 200)),
    "Autoencoder": (lambda: Autoencoder(layer(), in_channels=1, hidden=16, downsample=2, blocks=1), (2, 1, 8, 8)),
    "BinaryNet": (
        lambda: models.BinaryNet(3, in_channels=1, width=2, blocks=2, estimator=svq.ReSTE(2.0, limit=1.25)),
        (2, 1, 8, 8),
    ),
    "MLPAutoencoder": (lambda: MLPAutoencoder(layer(channel_dim=-1), width=5, hidden=[7, 6]), (4, 5)),
    "ResNet18": (
        lambda: models.ResNet18(layer(16), num_classes=3, width=4, small_images=True, position="layer3"),
        (2, 3, 16, 16),
    ),
    "SQVAENet": (lambda: models.SQVAENet(layer(), variant="net_64", blocks=3), (2, 3, 16, 16)),
    "VQGANNet": (lambda: models.VQGANNet(layer(), hidden=32, multipliers=(1, 2), blocks=1), (2, 3, 16, 16)),
    "VQVAENet": (
        lambda: models.VQVAENet(layer(), hidden=12, residual=3, blocks=1, rectified_skip=True),
        (2, 3, 16, 16),
    ),
    "ViT": (
        lambda: models.ViT(
            layer(12, -1), num_classes=3, image_size=16, patch_size=8, layers=2, width=12, heads=2, class_token=False
        ),
        (2, 3, 16, 16),
    ),
}


WITHOUT = {"MaskGIT", "BinaryConv2d"}  # one has a test of its own, the other is a layer


def test_every_network_has_a_case() -> None:
    public = {name for name in models.__all__ if isinstance(getattr(models, name), type(nn.Module))}
    concrete = {name for name in public if not getattr(getattr(models, name), "__abstractmethods__", None)}
    assert {name for name in concrete if issubclass(getattr(models, name), nn.Module)} - WITHOUT == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_gives_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network: Any = make()
    x = torch.rand(shape)
    network(x)
    network.save_pretrained(tmp_path)
    again: Any = svq.from_pretrained(tmp_path)
    ours, theirs = network.eval()(x), again(x)
    assert torch.equal(ours[0], theirs[0])
    assert ours.quantizer is None or torch.equal(ours.quantizer.indices, theirs.quantizer.indices)
    assert repr(again) == repr(network)


def test_a_token_model_shares_its_tables_again(tmp_path: Path) -> None:
    network = models.MaskGIT(9, grid=(2, 3), num_classes=4, layers=1, width=8, heads=2, dropout=0.25)
    network.save_pretrained(tmp_path)
    again = models.MaskGIT.from_pretrained(tmp_path)
    tokens = torch.tensor([[[1, 2, -1], [-1, 0, 8]]])
    assert torch.equal(network.eval()(tokens, torch.tensor([3])), again(tokens, torch.tensor([3])))
    assert again.dropout.p == 0.25
    assert again.grid == (2, 3)


OPTIMIZER = OptimizerSettings("sgd", lr=0.5, betas=(0.5, 0.75), momentum=0.25)
TASKS: dict[str, Callable[[], Any]] = {
    "Reconstruction": lambda: training.Reconstruction(
        Autoencoder(svq.presets.vq_vae(4, 8, channel_dim=1), hidden=8),
        optimizer=OPTIMIZER,
        loss="l1",
        loss_weight=3.0,
        alternate=Alternation("codebook", 2),
    ),
    "Classification": lambda: training.Classification(
        models.ResNet18(layer(8), num_classes=3, width=4, small_images=True), mixup=0.2, pixel_mean=0.25
    ),
    "VectorReconstruction": lambda: training.VectorReconstruction(MLPAutoencoder(layer(channel_dim=-1))),
    "AudioReconstruction": lambda: training.AudioReconstruction(codec(), windows=(64,), num_mels=(8,), curve_clips=3),
}


def test_every_task_has_a_case() -> None:
    public = [getattr(training, name) for name in training.__all__]
    assert {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, nn.Module)} == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_loaded_task_has_the_same_arguments_and_weights(name: str, tmp_path: Path) -> None:
    task = TASKS[name]()
    task.save_pretrained(tmp_path)
    again = type(task).from_pretrained(tmp_path)
    assert describe(again) == describe(task)
    for name, value in arguments(task).items():
        assert isinstance(value, nn.Module) or arguments(again)[name] == value
    assert all(torch.equal(a, b) for a, b in zip(task.state_dict().values(), again.state_dict().values(), strict=True))
