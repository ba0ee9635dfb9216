"""What quantizers are compared on: moving vectors without a network, or images in an autoencoder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from straightvq.data import Images
from straightvq.data.module import EMBEDDED
from straightvq.errors import InvalidValueError
from straightvq.studies.study import Config, Measure

MOVING = "moving"
_QUANTIZER = "model.init_args.model.init_args.quantizer"
_MEASURES = "straightvq.studies.LayerMeasures"

_DISTORTION = Measure("test/distortion", "distortion", "lower", "ratio", digits=4)
_MSE = Measure("test/mse", "MSE", "lower", "ratio", scale=1000, digits=3, unit="x 1e-3")
_PSNR = Measure("test/psnr", "PSNR", "higher", digits=2, unit="dB")
_GAP = Measure("test/gradient_gap", "gradient gap", "lower", digits=3)
_LAYER = (
    Measure("test/usage", "codes used", "higher", scale=100, unit="%"),
    Measure("test/perplexity", "perplexity", "higher"),
    Measure("test/effective_dim", "effective dim", "higher"),
    Measure("test/layer_ms", "layer", "lower", digits=1, unit="ms"),
    Measure("test/layer_mib", "layer", "lower", digits=1, unit="MiB"),
)


@dataclass(frozen=True)
class Scale:
    """How large a comparison is, unless it is told otherwise."""

    about: str
    seeds: int
    codebook_size: int
    steps: int
    rates: tuple[float, ...]  # learning rates that are tried


@dataclass(frozen=True)
class Target:
    """The data, the network and what is measured, the same for all rows."""

    name: str  # of the set
    network: str
    dim: int  # channels of the layer's input
    channel_dim: int
    tokens: int  # vectors of the test set, at most
    base: Config
    tuning: Config  # laid over for the runs of tuning, half as long
    measures: dict[str, Measure]  # by label; the first one ranks
    pictured: tuple[Measure, ...]
    source: str | None = None  # a place on this machine
    has_bound: bool = True  # whether the network can be trained without its quantizer


SCALES = {
    MOVING: {
        "tiny": Scale("To see that everything works; the numbers mean nothing.", 1, 16, 10, (1e-2, 1e-1)),
        "small": Scale(
            "4,096 vectors of width 8 a step, whose mean goes from 0 to 8 and standard deviation from 1 to 3.",
            3,
            1024,
            500,
            (1e-3, 1e-2, 1e-1),
        ),
    },
    "images": {
        "tiny": Scale("To see that everything works; the numbers mean nothing.", 1, 16, 10, (1e-3, 3e-3)),
        "small": Scale("A small autoencoder, made for two CPU cores.", 3, 256, 1000, (3e-4, 1e-3, 3e-3)),
    },
}


def scale(data: str, size: str) -> Scale:
    """That of a size, "small" or "tiny"."""
    sizes = SCALES[MOVING if data == MOVING else "images"]
    if size not in sizes:
        raise InvalidValueError(f"`compare`: `size` must be one of {', '.join(sizes)}. Got {size!r}.")
    return sizes[size]


def target(data: str, size: str, steps: int, pixels: int | None, accelerator: str) -> Target:
    """What is compared on.

    Args:
        data: "moving", or a source of `straightvq.data.Images`.
        size: "small" or "tiny": how many data.
        steps: optimizer steps of a run.
        pixels: side of the images; None takes 16 for digits and 32 for others.
        accelerator: of the Trainer.

    Raises:
        ValueError: for data that are not there or cannot be read, and impossible sizes.
    """
    shared: dict[str, Any] = {
        "trainer": {
            "accelerator": accelerator,
            "devices": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 50,
            "callbacks": [{"class_path": _MEASURES}],
        },
        "checkpoint": {"monitor": None, "save_top_k": 0},  # the last state is measured, not the best one
        "monitor": {"pictures_every": 0},
        "save_every": 100,
    }
    if data == MOVING:
        if pixels is not None:
            raise InvalidValueError(
                f"`compare`: `pixels` is the side of images, and {MOVING!r} has none. Got {pixels}."
            )
        return _moving(size, steps, shared)
    return _images(data, size, steps, pixels, shared)


def _moving(size: str, steps: int, shared: Mapping[str, Any]) -> Target:
    batch, test = (4096, 65_536) if size == "small" else (256, 1024)
    dim = 8
    base = {
        **shared,
        "model": {
            "class_path": "straightvq.training.VectorReconstruction",
            "init_args": {
                "optimizer": {"warmup_steps": 0, "schedule": "constant"},
                "model": {"class_path": "straightvq.models.MLPAutoencoder"},
            },
        },
        "data": {
            "class_path": "straightvq.data.MovingVectors",
            "init_args": {"dim": dim, "steps": steps, "batch_size": batch, "num_val": test // 4, "num_test": test},
        },
        "trainer.max_epochs": 1,
    }
    # The data of all steps are the point: tuning sees the whole drift, with half as many vectors a step.
    tuning = Config({"data.init_args.batch_size": batch // 2})
    measures = {measure.heading: measure for measure in (_DISTORTION, *_LAYER)}
    name = "no network"
    return Target(MOVING, name, dim, -1, test, Config(base), tuning, measures, (_DISTORTION,), has_bound=False)


def _images(data: str, size: str, steps: int, pixels: int | None, shared: Mapping[str, Any]) -> Target:
    is_digits, is_small = data == "digits", size == "small"
    side = (16 if is_digits else 32) if pixels is None else pixels
    most: dict[str, Any] = {"num_train": 10_000, "num_test": 2_000} if is_small else {"num_train": 320, "num_test": 64}
    channels = 1 if is_digits else 3
    settings: dict[str, Any] = {"size": side, "channels": channels, "on_error": "raise", **most}
    images = Images(source=data, **settings)
    downsample = _downsample(side)
    images.setup("validate")
    images.setup("test")
    pictures = sum(len(batch["label"]) for batch in images.test_dataloader())
    variance = _variance(images)
    hidden, dim = ((64, 32) if side > 16 else (32, 16)) if is_small else (16, 8)
    place = None if data in EMBEDDED else data
    base = {
        **shared,
        "model": {
            "class_path": "straightvq.training.Reconstruction",
            "init_args": {
                "optimizer": {"warmup_steps": min(50, steps // 4)},
                "loss_weight": float(f"{1 / variance:.3g}"),  # balances pixels in [0, 1] and z of size 1
                "model": {
                    "class_path": "straightvq.models.Autoencoder",
                    "init_args": {"in_channels": channels, "hidden": hidden, "downsample": downsample},
                },
            },
        },
        "data": {
            "class_path": "straightvq.data.Images",
            "init_args": settings if place else {"source": data, **settings},
        },
        "trainer.max_steps": steps,
        "trainer.max_epochs": -1,
        "trainer.val_check_interval": steps,
        "trainer.check_val_every_n_epoch": None,
    }
    half = max(1, steps // 2)
    tuning = Config({"trainer": {"max_steps": half, "val_check_interval": half}})
    measures = {measure.heading: measure for measure in (_MSE, _DISTORTION, _PSNR, *_LAYER[:2], _GAP, *_LAYER[2:])}
    return Target(
        _set_name(data),
        "autoencoder",
        dim,
        1,
        pictures * (side // downsample) ** 2,
        Config(base),
        tuning,
        measures,
        (_DISTORTION, _PSNR),
        place,
    )


def _downsample(side: int) -> int:
    """A power of two, at least 4, that leaves a grid of 8 x 8 vectors or a little more."""
    factor = 4
    while side // (2 * factor) >= 8:
        factor *= 2
    if side % factor:
        raise InvalidValueError(
            f"`compare`: `pixels` must be a multiple of {factor}, by which the network divides it. Got {side}."
        )
    return factor


def _variance(images: Images) -> float:
    """Of the pixels of the validation set, in [0, 1], around the mean of their channel."""
    batches = [batch["image"].numpy() for batch in images.val_dataloader()]
    variance = float(np.var(np.concatenate(batches) / 255, axis=(0, 2, 3)).mean()) if batches else 0.0
    if variance == 0:
        raise InvalidValueError(
            f"`compare`: `data` must have validation images that are not all of one colour. {images.source!r} has "
            f"{sum(map(len, batches))}."
        )
    return variance


def _set_name(data: str) -> str:
    """Of a folder or file its name, of a set on the Hub its last word."""
    name = Path(data).expanduser().resolve().name if Path(data).expanduser().exists() else data.rpartition("/")[2]
    return re.sub(r"\.parquet$", "", name) or "images"
