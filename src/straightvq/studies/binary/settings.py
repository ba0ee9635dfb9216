"""How large the study is run: what a size's ``config`` says, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_bool, check_float, check_int
from straightvq.studies.settings import section


@dataclass(frozen=True)
class Classifier:
    """A binary network and its training on one set.

    Args:
        pixels: side of the images, at least 4.
        channels: 1 for grey, 3 for RGB.
        images: most for training and validation together; 0 for all.
        augment: whether training images are shifted by up to 4 pixels and mirrored.
        width: channels of the first stage.
        blocks: binary convolutions in each of three stages.
        batch: images in a step.
        epochs: of training, at least 1.
        warmup: first of them, in which the learning rate rises from 0; fewer than ``epochs``.
        lr: largest learning rate, positive.
    """

    pixels: int
    channels: int
    images: int
    augment: bool
    width: int
    blocks: int
    batch: int
    epochs: int
    warmup: int
    lr: float

    def __post_init__(self) -> None:
        least = {"pixels": 4, "channels": 1, "images": 0, "width": 1, "blocks": 1, "batch": 2, "epochs": 1, "warmup": 0}
        for name, minimum in least.items():
            check_int(self, name, getattr(self, name), minimum)
        check_bool(self, "augment", self.augment)
        check_float(self, "lr", self.lr, minimum=0, open_minimum=True)
        if self.warmup >= self.epochs:
            raise InvalidValueError(f"`Classifier`: `warmup` must be below epochs={self.epochs}. Got {self.warmup}.")


@dataclass(frozen=True)
class Tokenizer:
    """An autoencoder with one-bit or few-level codes, and its training on the digits.

    Args:
        hidden: channels inside the network, at least 2.
        bits: of a code, at least 2 and even.
        steps: of training, at least 1.
        batch: images in a step.
        lr: largest learning rate, positive.
    """

    hidden: int
    bits: int
    steps: int
    batch: int
    lr: float

    def __post_init__(self) -> None:
        for name, minimum in {"hidden": 2, "bits": 2, "steps": 1, "batch": 1}.items():
            check_int(self, name, getattr(self, name), minimum)
        if self.bits % 2:
            raise InvalidValueError(f"`Tokenizer`: `bits` must be even, for channels of four levels. Got {self.bits}.")
        check_float(self, "lr", self.lr, minimum=0, open_minimum=True)


@dataclass(frozen=True)
class Settings:
    """Of the whole study.

    Args:
        classifiers: by set.
        tokenizer: that of all quantizers.
        seeds: of each row, at least 1.
    """

    classifiers: dict[str, Classifier]
    tokenizer: Tokenizer
    seeds: int

    def __post_init__(self) -> None:
        check_int(self, "seeds", self.seeds, 1)

    @classmethod
    def of(cls, config: Mapping[str, Any], seeds: int) -> "Settings":
        """From the keys of a study file: a section for each set in ``classifiers``, and ``tokenizer``.

        Raises:
            ValueError, TypeError: for keys that are missing or that there are not, and for impossible values.
        """
        given = dict(section("Settings", cls, {"seeds": seeds, **config}))
        if not isinstance(given["classifiers"], Mapping):
            raise InvalidTypeError(f"`Settings`: `classifiers` must be sections by set. Got {given['classifiers']!r}.")
        classifiers = {
            name: Classifier(**section(f"classifiers.{name}", Classifier, one))
            for name, one in given["classifiers"].items()
        }
        tokenizer = Tokenizer(**section("tokenizer", Tokenizer, given["tokenizer"]))
        return cls(classifiers, tokenizer, given["seeds"])
