"""What a comparison is asked for: from the command line, a file, or both, the command line last."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from straightvq.errors import InvalidTypeError, InvalidValueError, did_you_mean
from straightvq.nn.part import check_choice, check_float, check_int
from straightvq.studies.comparing.methods import ALL, BOUND, OWNER, Choice, Method
from straightvq.studies.study import Config, slug

_QUANTIZER = "model.init_args.model.init_args.quantizer.init_args"
_OPTIMIZER = "model.init_args.optimizer"
AXES = {
    "lr": f"{_OPTIMIZER}.lr",
    "codebook_lr": f"{_OPTIMIZER}.codebook_lr",
    "commitment": f"{_QUANTIZER}.commitment",
}


@dataclass(frozen=True)
class Request:
    """All that decides the results of a comparison; also the keys of a file for ``--config``.

    Args:
        presets: names of presets, or "all".
        quantizers: others, by the name of their row, as a recipe writes them: ``class_path`` and ``init_args``.
        data: "moving" (Gaussian vectors that drift, no network), "digits" or "photos" (embedded images), a folder of
            images, a .parquet file or a folder of them, or owner/name on the Hugging Face Hub.
        size: "small", or "tiny" to see that everything works.
        codebook_size: number of codes of every quantizer, or nearly; None takes the size's.
        steps: optimizer steps of a run, at least 2; None takes the size's.
        seeds: runs of every row, at least 1; None takes the size's.
        grid: values that tuning tries, by axis: "lr", "codebook_lr", "commitment"; None takes the size's rates.
        init: "kmeans" starts every codebook from k-means; "own" leaves each its own start.
        reset: "with" gives every codebook the same reset of dead codes, "without" none; "own" leaves each its own.
        pixels: side of the images; None takes 16 for digits, 32 for others.
        accelerator: of the Trainer: "auto" takes the GPU where there is one.

    Raises:
        TypeError, ValueError: for values out of range or of the wrong type, naming the key.
    """

    presets: Sequence[str] = ()
    quantizers: Mapping[str, Config] = field(default_factory=dict)
    data: str = "moving"
    size: str = "small"
    codebook_size: int | None = None
    steps: int | None = None
    seeds: int | None = None
    grid: Mapping[str, Sequence[float]] | None = None
    init: Literal["own", "kmeans"] = "own"
    reset: Choice = "own"
    pixels: int | None = None
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        if self.presets == ALL:
            object.__setattr__(self, "presets", [ALL])
        _check_list("presets", self.presets, str)
        for name, least in (("codebook_size", 2), ("steps", 2), ("seeds", 1), ("pixels", 8)):
            if getattr(self, name) is not None:
                check_int(OWNER, name, getattr(self, name), least)
        for name in ("data", "size", "accelerator"):
            if not isinstance(getattr(self, name), str):
                raise InvalidTypeError(f"`{OWNER}`: `{name}` must be a text. Got {getattr(self, name)!r}.")
        check_choice(OWNER, "init", self.init, ("own", "kmeans"))
        check_choice(OWNER, "reset", self.reset, ("own", "with", "without"))
        self._check_quantizers()
        if self.grid is not None:
            _check_grid(self.grid)

    def _check_quantizers(self) -> None:
        if not isinstance(self.quantizers, Mapping):
            raise InvalidTypeError(
                f"`{OWNER}`: `quantizers` must be a section of quantizers by name. Got {self.quantizers!r}."
            )
        names = [*dict.fromkeys(self.presets), *self.quantizers]
        if not names:
            raise InvalidValueError(
                f"`{OWNER}`: there must be something to compare: name presets (--presets straight ema vq_vae, or all), "
                "or quantizers in a file (--config). Got none."
            )
        slugs: dict[str, str] = {slug(BOUND): BOUND}
        for name in names:
            if not isinstance(name, str) or not slug(name).strip("."):
                raise InvalidValueError(f"`{OWNER}`: the name {name!r} must have letters or digits, to name a folder.")
            if slug(name) in slugs:
                raise InvalidValueError(
                    f"`{OWNER}`: rows must have names that differ in letters or digits. Got {slugs[slug(name)]!r} "
                    f"and {name!r}."
                )
            slugs[slug(name)] = name
        for name, config in self.quantizers.items():
            if not isinstance(config, Mapping):
                raise InvalidTypeError(
                    f"`{OWNER}`: the quantizer {name!r} must be a section with `class_path`. Got {config!r}."
                )


def read_request(file: Path | None, given: Mapping[str, Any]) -> Request:
    """What a file says, with what is ``given`` in its place.

    Raises:
        TypeError, ValueError: for a file that cannot be read, a key that is none, or a bad value.
    """
    content: dict[str, Any] = {}
    if file is not None:
        try:
            # JSON's kinds of values: names are texts, even where YAML reads numbers.
            content = json.loads(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8"))))
        except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
            words = " ".join(str(error).split())
            raise InvalidValueError(f"`{OWNER}`: {str(file)!r} cannot be read as YAML: {words}.") from error
        if not isinstance(content, dict):
            raise InvalidValueError(f"`{OWNER}`: {str(file)!r} must be a section with keys. Got {content!r}.")
    keys = [one.name for one in fields(Request)]
    for key in content:
        if key not in keys:
            raise InvalidValueError(
                f"`{OWNER}`: {str(file)!r} has no key {key!r}.{did_you_mean(key, keys)} It takes {', '.join(keys)}."
            )
    return Request(**{key: value for key, value in {**content, **given}.items() if value is not None})


def read_grid(words: Sequence[str]) -> dict[str, list[float]]:
    """Axes of the command line, such as ``lr=1e-3,3e-3``.

    Example:
        >>> read_grid(["lr=1e-3,3e-3", "commitment=0.25"])
        {'lr': [0.001, 0.003], 'commitment': [0.25]}
    """
    grid: dict[str, list[float]] = {}
    for word in words:
        axis, _, values = word.partition("=")
        if axis in grid:
            raise InvalidValueError(f"`--grid` must have an axis once, as {axis}=VALUE,VALUE. Got {axis!r} twice.")
        try:
            grid[axis] = [float(value) for value in values.split(",")]
        except ValueError:
            raise InvalidValueError(f"`--grid` must be AXIS=VALUE,VALUE, such as lr=1e-3,3e-3. Got {word!r}.") from None
    return grid


def settings(method: Method | None, grid: Mapping[str, Sequence[float]], rate: float) -> dict[str, Config]:
    """What one row tries in tuning, by name: as many settings as every other row.

    An axis that does nothing to a row (no commitment loss, no codebook that is trained by gradient) is made up for by
    as many more learning rates, evenly spaced from half the lowest to twice the highest.

    Args:
        method: None for the network without a quantizer.
        grid: values by axis.
        rate: the learning rate where the grid has none.
    """
    useful = {"lr": True, "codebook_lr": bool(method and method.trains_codes)}
    useful["commitment"] = bool(method and method.has_commitment)
    axes: dict[str, Sequence[float]] = {"lr": [rate], **grid}
    lost = math.prod(len(values) for axis, values in axes.items() if not useful[axis])
    axes = {axis: values for axis, values in axes.items() if useful[axis]}
    axes["lr"] = _spaced(axes["lr"], lost)
    combined: list[dict[str, float]] = [{}]
    for axis, values in axes.items():
        combined = [{**one, axis: value} for one in combined for value in values]
    return {
        ", ".join(f"{axis} {value:.3g}" for axis, value in one.items()): Config(
            {AXES[axis]: value for axis, value in one.items()}
        )
        for one in combined
    }


def _spaced(rates: Sequence[float], times: int) -> list[float]:
    """As many times as many rates; the same ones for once."""
    if times == 1:
        return list(rates)
    low, high, count = min(rates) / 2, max(rates) * 2, len(rates) * times
    return [float(f"{low * (high / low) ** (i / (count - 1)):.4g}") for i in range(count)]


def _check_list(name: str, values: Any, kind: type) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, kind) for v in values):
        raise InvalidTypeError(f"`{OWNER}`: `{name}` must be a list of names. Got {values!r}.")


def _check_grid(grid: Any) -> None:
    if not isinstance(grid, Mapping):
        raise InvalidTypeError(f"`{OWNER}`: `grid` must be a section of lists by axis. Got {grid!r}.")
    for axis, values in grid.items():
        if axis not in AXES:
            raise InvalidValueError(
                f"`{OWNER}`: `grid` has no axis {axis!r}.{did_you_mean(str(axis), list(AXES))} "
                f"It takes {', '.join(AXES)}."
            )
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise InvalidTypeError(f"`{OWNER}`: `grid` must give {axis!r} a list of numbers. Got {values!r}.")
        for value in values:
            check_float(OWNER, f"grid.{axis}", value, minimum=0, open_minimum=True)
        if len(set(values)) < len(values):
            raise InvalidValueError(f"`{OWNER}`: `grid` must give {axis!r} different values. Got {values!r}.")
