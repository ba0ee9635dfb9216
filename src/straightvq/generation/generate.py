"""`straightvq generate`: pictures from a trained generation run."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from straightvq.data.decode import UnreadableImageError, decode_image
from straightvq.errors import InvalidValueError
from straightvq.generation.task import Generation
from straightvq.io import write_text
from straightvq.nn.part import check_float, check_int
from straightvq.runs import RunFolder, load_weights, pick_device, read_checkpoint

__all__ = ["Sampling", "class_number", "generate", "image_grid", "tokens_in_box"]

SETTINGS = "samples.json"
# Grids that are decoded at once.
_BATCH = 64
# Pixels of the grid picture's longer side, about.
_GRID_SIDE = 900


@dataclass(frozen=True)
class Sampling:
    """What is drawn, and how.

    Args:
        num: pictures, at least 1.
        classes: names, or numbers that are no names, taken in turn; "any" is the null class. None takes all classes of
            the network.
        steps: of decoding; None takes the task's.
        temperature: of the noise on the confidences, at least 0; None takes the task's.
        guidance: weight of the class against the null class, at least 0; None takes the task's.
        seed: of all random numbers.
    """

    num: int = 64
    classes: Sequence[str] | None = None
    steps: int | None = None
    temperature: float | None = None
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("generate", "num", self.num, 1)
        check_int("generate", "seed", self.seed, 0)
        if self.seed >= 1 << 63:
            raise InvalidValueError(f"`generate`: `seed` must be below 2**63. Got {self.seed}.")
        if self.steps is not None:
            check_int("generate", "steps", self.steps, 1)
        for name in ("temperature", "guidance"):
            if getattr(self, name) is not None:
                check_float("generate", name, getattr(self, name), minimum=0)


def generate(
    run: str | os.PathLike[str],
    sampling: Sampling | None = None,
    *,
    inpaint: str | os.PathLike[str] | None = None,
    box: Sequence[int] | None = None,
    mask: str | os.PathLike[str] | None = None,
    tokenizer: str | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Samples from a trained generation run and writes the pictures.

    Writes ``grid.png`` (enlarged, one column per class), each sample as ``0000.png`` and so on, and ``samples.json``
    with all settings, in place of those of an earlier call. With ``inpaint`` the grid begins with the picture and with
    what was left of it. The data of the training are not needed.

    Args:
        run: folder that `straightvq fit` made with a `Generation` task; its best checkpoint is taken, or else the last.
        sampling: how many, of what, how; None takes the defaults.
        inpaint: a picture of which a region is filled anew; it is scaled and cut as the data of the run are.
        box: the region, (x0, y0, x1, y1) in pixels of the scaled picture, x1 and y1 not included. All tokens that it
            touches are drawn anew; all others stay.
        mask: the region as a picture, white where new; instead of ``box``.
        tokenizer: folder or checkpoint of the tokenizer, if it is no longer where it was in training.
        out: folder of the results; None takes ``samples`` in ``run``.
        device: "auto", "cpu" or "cuda".
        console: where progress goes; default the terminal.

    Returns:
        The file of the grid.

    Raises:
        ValueError, TypeError: for values out of range; if ``run`` is no run of a `Generation`, its files cannot be
            read safely, its tokenizer is gone or another one, there is no such class or picture, or a box is outside
            of the picture.
    """
    sampling = sampling or Sampling()
    console = console or Console()
    folder = RunFolder(Path(run), "generate")
    task, known, step = _load(folder, tokenizer, pick_device("generate", device, ("cpu", "cuda")))
    classes = _classes(sampling.classes, task, known)
    labels = None if classes is None else torch.tensor(classes, device=task.device).repeat(sampling.num)[: sampling.num]
    start, shown = _start(task, _shape(folder), inpaint, box, mask)
    images = _draw(task, start, labels, sampling, console)
    target = Path(run) / "samples" if out is None else Path(out)
    used = replace(
        sampling,
        classes=None if labels is None else [_word(label, known) for label in labels.tolist()],
        **{
            name: getattr(task, name)
            for name in ("steps", "temperature", "guidance")
            if getattr(sampling, name) is None
        },
    )
    region = {"inpaint": inpaint, "box": box, "mask": mask, "tokenizer": tokenizer}
    given = {name: value if name == "box" else str(value) for name, value in region.items() if value is not None}
    settings = {"run": str(run), "step": step, **asdict(used), **given}
    _write(target, images, shown, _columns(sampling.num, classes), settings)
    console.print(f"  {target / 'grid.png'}", soft_wrap=True, highlight=False)
    return target / "grid.png"


# --- the run ------------------------------------------------------------------------------------------------------


def _load(run: RunFolder, tokenizer: str | None, device: torch.device) -> tuple[Generation, list[str], int]:
    """The trained task, the names of its classes, and the number of training steps."""
    hint = "Pass the folder of a run that trained a `Generation`, such as runs/maskgit_digits."
    if not str(run.config["model"].get("class_path", "")).endswith("Generation"):
        raise InvalidValueError(
            f"`generate`: {str(run.folder)!r} is a run of {run.config['model'].get('class_path')}. {hint}"
        )
    if tokenizer is not None:
        run.config["model"].setdefault("init_args", {})["tokenizer"] = tokenizer
    task = run.build_task()
    if not isinstance(task, Generation):
        raise InvalidValueError(f"`generate`: {str(run.folder)!r} is a run of {type(task).__name__}. {hint}")
    checkpoint = run.checkpoint()
    content = read_checkpoint(checkpoint.path, run.owner)
    task.on_load_checkpoint(content)
    load_weights(task, checkpoint, run.owner)
    task.eval().to(device)
    task.tokenizer.to(device)
    return task, list(content.get("class_names") or []), checkpoint.step


def _shape(run: RunFolder) -> tuple[int, int]:
    """Side in pixels and channels of the pictures of the training."""
    data = run.config["data"].get("init_args") or {}
    size, channels = data.get("size"), data.get("channels")
    if not isinstance(size, int) or not isinstance(channels, int):
        raise InvalidValueError(
            f"`generate`: {str(run.folder)!r} does not say the `size` and `channels` of its pictures."
        )
    return size, channels


def _word(label: int, known: list[str]) -> str:
    """What `class_number` takes for this label."""
    if label < 0:
        return "any"
    return known[label] if label < len(known) else str(label)


def _classes(names: Sequence[str] | None, task: Generation, known: list[str]) -> list[int] | None:
    """Class numbers, -1 for the null class; None in a network without classes."""
    number = task.model.num_classes
    if number is None:
        if names is not None:
            raise InvalidValueError(
                f"`generate`: `classes` must be left out: the network has none. Got {','.join(names)}."
            )
        return None
    if names is None:
        return list(range(number))
    return [class_number(name, number, known) for name in names]


def class_number(name: str, number: int, known: list[str]) -> int:
    """Label of a class that is given by its name, by its number in [0, ``number``), or as "any" (-1).

    Raises:
        ValueError: for what is none of them.
    """
    if name == "any":
        return -1
    if name in known:  # first: a class may be called 10 and be the second one
        return known.index(name)
    if not name.removeprefix("-").isdecimal():
        raise InvalidValueError(
            f"`generate`: there is no class {name!r}. The data have {', '.join(known) or 'numbers'}."
        )
    if not 0 <= int(name) < number:
        raise InvalidValueError(f"`generate`: a class must be in [0, {number}), a name, or any. Got {name}.")
    return int(name)


# --- drawing ------------------------------------------------------------------------------------------------------


def _draw(
    task: Generation, start: Tensor, labels: Tensor | None, sampling: Sampling, console: Console
) -> NDArray[np.uint8]:
    """Samples as UInt8 (num, C, H, W), filling the grid ``start`` (h, w)."""
    generator = torch.Generator().manual_seed(sampling.seed)
    options = {"steps": sampling.steps, "temperature": sampling.temperature, "guidance": sampling.guidance}
    images = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("drawing", total=sampling.num)
        for first in range(0, sampling.num, _BATCH):
            size = min(_BATCH, sampling.num - first)
            part = None if labels is None else labels[first : first + size]
            tokens = task.fill(start.expand(size, -1, -1), part, generator=generator, **options)  # type: ignore[arg-type]
            images.append(_to_bytes(task.tokenizer.decode(tokens)))
            progress.advance(bar, size)
    return np.concatenate(images)


def _to_bytes(images: Tensor) -> NDArray[np.uint8]:
    return (images.float().clamp(0, 1) * 255).round().byte().cpu().numpy()


def _start(
    task: Generation,
    shape: tuple[int, int],
    picture: str | os.PathLike[str] | None,
    box: Sequence[int] | None,
    mask: str | os.PathLike[str] | None,
) -> tuple[Tensor, list[NDArray[np.uint8]]]:
    """The tokens that are given, -1 elsewhere, and what the grid shows of them."""
    if picture is None:
        if box is not None or mask is not None:
            raise InvalidValueError(
                "`generate`: `box` and `mask` belong to `inpaint`. Pass a picture, or leave them out."
            )
        return torch.full(task.model.grid, -1, device=task.device), []
    if (box is None) == (mask is None):
        raise InvalidValueError("`generate`: `inpaint` needs a region: either `box` or `mask`.")
    size, channels = shape
    image = _read(picture, size, channels)
    if box is not None:
        new = tokens_in_box(box, size, task.tokenizer.downsample)
    else:
        assert mask is not None
        cell = task.tokenizer.downsample
        new = _blocks(torch.from_numpy(_read(mask, size, 1)[0]) > 127, cell).any(-1)
        if not new.any():
            raise InvalidValueError(
                f"`generate`: `mask` must be white where the picture is new. Got {str(mask)!r}, all dark once it is "
                f"scaled and cut to {size} x {size} pixels as the picture is."
            )
    pixels = torch.from_numpy(image)[None].to(task.device).float() / 255
    tokens = task.tokenizer.encode(pixels)[0].masked_fill(new.to(task.device), -1)
    hidden = new.repeat_interleave(task.tokenizer.downsample, 0).repeat_interleave(task.tokenizer.downsample, 1)
    return tokens, [image, np.where(hidden.numpy(), np.uint8(128), image)]


def _read(file: str | os.PathLike[str], size: int, channels: int) -> NDArray[np.uint8]:
    try:
        return decode_image(Path(file).read_bytes(), size, channels)
    except OSError as error:
        raise InvalidValueError(f"`generate`: there is no picture {str(file)!r} that can be opened.") from error
    except UnreadableImageError as error:
        raise InvalidValueError(f"`generate`: {str(file)!r} cannot be read as a picture: {error}.") from error


def tokens_in_box(box: Sequence[int], size: int, cell: int) -> Tensor:
    """Which tokens a box of pixels touches, Bool (size / cell, size / cell).

    Args:
        box: (x0, y0, x1, y1), x1 and y1 not included, inside the picture.
        size: side of the picture in pixels.
        cell: side of a token in pixels.

    Example:
        >>> tokens_in_box((0, 0, 5, 4), size=8, cell=4)
        tensor([[ True,  True],
                [False, False]])
    """
    if len(box) != 4:
        raise InvalidValueError(f"`generate`: `box` must be four numbers x0,y0,x1,y1. Got {len(box)}.")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size):
        raise InvalidValueError(
            f"`generate`: `box` must be inside the picture of {size} x {size} pixels, with x0 < x1 and y0 < y1. "
            f"Got {x0},{y0},{x1},{y1}."
        )
    pixels = torch.zeros(size, size, dtype=torch.bool)
    pixels[y0:y1, x0:x1] = True
    return _blocks(pixels, cell).any(-1)


def _blocks(pixels: Tensor, cell: int) -> Tensor:
    """(H, W) -> (H / cell, W / cell, cell^2), the pixels of each token."""
    return pixels.unfold(0, cell, cell).unfold(1, cell, cell).flatten(2)


# --- files --------------------------------------------------------------------------------------------------------


def _columns(num: int, classes: list[int] | None) -> int:
    """One per class if there are a few, else about a square."""
    if classes is not None and 2 <= len(classes) <= 20:
        return len(classes)
    return math.ceil(math.sqrt(num))


def image_grid(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Pictures side by side in rows, with white lines between them, enlarged by a whole factor.

    Shape:
        images: UInt8 (C, H, W) each.
        returns: UInt8 (C, rows, columns), in pixels.

    Example:
        >>> image_grid([np.zeros((1, 8, 8), dtype=np.uint8)] * 3, columns=2).shape         # 2 x 2 of 9 + 1, enlarged
        (1, 893, 893)
    """
    channels, height, width = images[0].shape
    rows = math.ceil(len(images) / columns)
    gap = 1
    page = np.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        page[:, top : top + height, left : left + width] = image
    factor = max(1, _GRID_SIDE // max(page.shape))
    return page.repeat(factor, 1).repeat(factor, 2)


def _write(
    target: Path,
    images: NDArray[np.uint8],
    shown: list[NDArray[np.uint8]],
    columns: int,
    settings: dict[str, Any],
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if (target / SETTINGS).is_file():
        for old in target.glob("[0-9]*.png"):
            if old.stem.isdecimal():
                old.unlink()
    digits = max(4, len(str(len(images) - 1)))
    for number, image in enumerate(images):
        _save(image, target / f"{number:0{digits}d}.png")
    # In a row of their own, so that the columns below stay those of the classes.
    above = [*shown, *[np.full_like(images[0], 255)] * (-len(shown) % columns)]
    _save(image_grid([*above, *images], columns), target / "grid.png")
    write_text(target / SETTINGS, json.dumps(settings, indent=2) + "\n")


def _save(image: NDArray[np.uint8], file: Path) -> None:
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file)
