"""`straightvq generate`: pictures from a trained generation run."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from PIL.Image import Image as Picture
from rich.console import Console
from rich.progress import track
from torch import Tensor

from straightvq.data.decode import UnreadableImageError, decode_image
from straightvq.errors import InvalidValueError
from straightvq.generation.task import Generation
from straightvq.io import write_text
from straightvq.nn.part import check_int, check_optional_float
from straightvq.runs import RunFolder, load_weights, pick_device, read_checkpoint

PathLike = str | os.PathLike[str]

SETTINGS = "samples.json"
_DECODING = ("steps", "temperature", "guidance")  # of `Sampling`, from the task by default
_BATCH = 64  # pictures that are drawn at once
_GRID_SIDE = 900  # pixels of the grid's longer side, about
_GREY = 128  # what the grid shows where a region was filled


@dataclass(frozen=True)
class Sampling:
    """What to draw, and how.

    Args:
        num: number of pictures, at least 1.
        classes: names or numbers of classes, in turn; "any" is the null class. None takes all of the network.
        steps: decoding steps, at least 1; None takes the task's, as for the next two.
        temperature: of the noise on the confidences, at least 0.
        guidance: weight of the class against the null class, at least 0.
        seed: random seed, below 2**63.
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
        check_optional_float("generate", "temperature", self.temperature, minimum=0)
        check_optional_float("generate", "guidance", self.guidance, minimum=0)


def generate(
    run: PathLike,
    sampling: Sampling | None = None,
    *,
    inpaint: PathLike | None = None,
    box: Sequence[int] | None = None,
    mask: PathLike | None = None,
    tokenizer: str | None = None,
    out: PathLike | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Draws pictures from a trained generation run, without its training data.

    Writes ``grid.png`` (enlarged, one column per class), the pictures as ``0000.png`` and so on, and ``samples.json``
    with all settings, over those of an earlier call. With ``inpaint`` the grid begins with the given picture and the
    part of it that stays.

    Args:
        run: folder of a `Generation` run; its best checkpoint is used, or else the last.
        sampling: what to draw, and how; None takes the defaults.
        inpaint: a picture with a region to fill, scaled and cut as the training data were.
        box: the region, (x0, y0, x1, y1) in pixels of the scaled picture, x1 and y1 excluded. Tokens that it touches
            are drawn, all others stay.
        mask: the region as a picture, white where new; instead of ``box``.
        tokenizer: folder or checkpoint of the tokenizer, if it has moved since the training.
        out: folder of the results; None takes ``samples`` in ``run``.
        device: "auto", "cpu" or "cuda".
        console: shows the progress; None takes the terminal.

    Returns:
        The file of the grid.

    Raises:
        ValueError, TypeError: for values out of range, a run of another task, files that cannot be read safely, a
            tokenizer that is missing or another one, an unknown class or picture, a box outside the picture.
    """
    sampling, console = sampling or Sampling(), console or Console()
    task, names, step = _load(RunFolder(Path(run), "generate"), tokenizer, device)
    classes = chosen_classes(sampling.classes, task.model.num_classes, names)
    turns = list(islice(cycle(classes), sampling.num))
    labels = torch.tensor([label for _, label in turns], device=task.device) if turns else None
    start, given = _start(task, inpaint, box, mask)
    options: dict[str, Any] = {name: getattr(task, name) for name in _DECODING if getattr(sampling, name) is None}
    sampling = replace(sampling, classes=[word for word, _ in turns] or None, **options)
    pictures = _draw(task, start, labels, sampling, console)
    # One column per class if there are a few, else about a square. The given pictures have a row of their own.
    columns = len(classes) if 2 <= len(classes) <= 20 else math.ceil(math.sqrt(sampling.num))
    blank = Image.new(pictures[0].mode, pictures[0].size, "white")
    grid = image_grid([*given, *[blank] * (-len(given) % columns), *pictures], columns)
    region = {"inpaint": inpaint, "box": box, "mask": mask, "tokenizer": tokenizer}
    asked = {name: value if name == "box" else str(value) for name, value in region.items() if value is not None}
    folder = Path(run) / "samples" if out is None else Path(out)
    _write(folder, pictures, grid, {"run": str(run), "step": step, **asdict(sampling), **asked})
    console.print(f"  {folder / 'grid.png'}", soft_wrap=True, highlight=False, markup=False)
    return folder / "grid.png"


def _load(run: RunFolder, tokenizer: str | None, device: str) -> tuple[Generation, list[str], int]:
    """The trained task, the names of its classes, and its training steps."""
    place = pick_device("generate", device, ("cpu", "cuda"))
    arguments = run.config["model"].get("init_args") or {}
    if tokenizer is not None and "tokenizer" in arguments:
        arguments["tokenizer"] = tokenizer
    task = run.build_task()
    if not isinstance(task, Generation):
        raise InvalidValueError(
            f"`generate`: {str(run.folder)!r} is a run of {type(task).__name__}. Pass the folder of a run that trained "
            "a `Generation`, such as runs/maskgit_digits."
        )
    checkpoint = run.checkpoint()
    content = read_checkpoint(checkpoint.path, run.owner)
    task.on_load_checkpoint(content)
    load_weights(task, checkpoint, run.owner)
    task.eval().to(place)
    task.tokenizer.to(place)
    return task, list(content.get("class_names") or []), checkpoint.step


def chosen_classes(words: Sequence[str] | None, number: int | None, names: Sequence[str]) -> list[tuple[str, int]]:
    """The classes to draw in turn, each a word and its label; none in a network without classes.

    A word is one of the ``names``, a number in [0, ``number``), or "any", whose label is -1. A name wins over a number:
    a class may be called 10 and be the second one. Without words all classes are chosen. A ValueError refuses other
    words, and words where there are no classes.
    """
    if number is None:
        if words:
            given = ",".join(words)
            raise InvalidValueError(f"`generate`: `classes` must be left out: the network has none. Got {given}.")
        return []
    names = names[:number]
    labels = {str(label): label for label in range(number)} | {name: label for label, name in enumerate(names)}
    labels["any"] = -1
    words = words or [*names, *map(str, range(len(names), number))]
    for word in words:
        if word not in labels:
            known = f" The names are {', '.join(names)}." if names else ""
            raise InvalidValueError(f"`generate`: a class must be in [0, {number}), a name, or any. Got {word}.{known}")
    return [(word, labels[word]) for word in words]


def _start(
    task: Generation, file: PathLike | None, box: Sequence[int] | None, mask: PathLike | None
) -> tuple[Tensor, list[Picture]]:
    """The tokens (h, w) that are given, -1 elsewhere, and the pictures that show them."""
    if file is None:
        if box is not None or mask is not None:
            raise InvalidValueError("`generate`: `box` and `mask` belong to `inpaint`. Pass a picture, or omit them.")
        return torch.full(task.model.grid, -1, device=task.device), []
    if (box is None) == (mask is None):
        raise InvalidValueError("`generate`: `inpaint` needs a region: either `box` or `mask`.")
    cell = task.tokenizer.downsample
    size = cell * task.model.grid[0]
    pixels = _read(file, size, task.tokenizer.in_channels)
    new = _touched(_read(mask, size, 1)[0] > 127, cell) if mask is not None else tokens_in_box(box or (), size, cell)
    if not new.any():
        raise InvalidValueError(
            f"`generate`: `mask` must be white where the picture is new. Got {str(mask)!r}, all dark once it is "
            f"scaled and cut to {size} x {size} pixels as the picture is."
        )
    tokens = task.tokenizer.encode(pixels[None].to(task.device).float() / 255)[0]
    hidden = new.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    shown = [_as_picture(pixels), _as_picture(pixels.masked_fill(hidden, _GREY))]
    return tokens.masked_fill(new.to(task.device), -1), shown


def tokens_in_box(box: Sequence[int], size: int, cell: int) -> Tensor:
    """Which tokens the box (x0, y0, x1, y1) of pixels touches, Bool (size / cell, size / cell); x1, y1 are excluded.

    The side of the picture is ``size`` pixels, that of a token ``cell``.

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
    return _touched(pixels, cell)


def _touched(pixels: Tensor, cell: int) -> Tensor:
    """Bool (H, W) -> Bool (H / cell, W / cell): the cells with at least one True."""
    return F.max_pool2d(pixels[None].float(), cell)[0] > 0


def _draw(
    task: Generation, start: Tensor, labels: Tensor | None, sampling: Sampling, console: Console
) -> list[Picture]:
    """One picture per sample, each filling the grid ``start`` (h, w)."""
    generator = torch.Generator().manual_seed(sampling.seed)
    options: dict[str, Any] = {name: getattr(sampling, name) for name in _DECODING}
    pictures = []
    for part in track(torch.arange(sampling.num).split(_BATCH), "drawing", console=console):
        given, classes = start.expand(len(part), -1, -1), None if labels is None else labels[part]
        tokens = task.fill(given, classes, generator=generator, **options)
        pixels = (task.tokenizer.decode(tokens).float() * 255).round().byte().cpu()
        pictures += [_as_picture(image) for image in pixels]
    return pictures


def image_grid(pictures: Sequence[Picture], columns: int) -> Picture:
    """Pictures of one size side by side in rows, with white lines between them, enlarged by a whole factor.

    Example:
        >>> image_grid([Image.new("L", (8, 8))] * 3, columns=2).size        # 2 x 2 of 9 + 1, enlarged
        (893, 893)
    """
    width, height = (side + 1 for side in pictures[0].size)
    rows = math.ceil(len(pictures) / columns)
    page = Image.new(pictures[0].mode, (columns * width + 1, rows * height + 1), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        page.paste(picture, (column * width + 1, row * height + 1))
    return ImageOps.scale(page, max(1, _GRID_SIDE // max(page.size)), Image.Resampling.NEAREST)


def _read(file: PathLike, size: int, channels: int) -> Tensor:
    """A picture, scaled and cut: UInt8 (channels, size, size)."""
    try:
        return torch.from_numpy(decode_image(Path(file).read_bytes(), size, channels))
    except OSError as error:
        raise InvalidValueError(f"`generate`: there is no picture {str(file)!r} that can be opened.") from error
    except UnreadableImageError as error:
        raise InvalidValueError(f"`generate`: {str(file)!r} cannot be read as a picture: {error}.") from error


def _as_picture(pixels: Tensor) -> Picture:
    """UInt8 (1 or 3, H, W) -> a Pillow image."""
    return Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy())


def _write(folder: Path, pictures: Sequence[Picture], grid: Picture, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SETTINGS).is_file():  # the pictures there are those of an earlier call
        for old in folder.glob("[0-9]*.png"):
            if old.stem.isdecimal():
                old.unlink()
    digits = max(4, len(str(len(pictures) - 1)))
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:0{digits}d}.png")
    grid.save(folder / "grid.png")
    write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
