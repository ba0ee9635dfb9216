"""What the tests of `straightvq encode` and `decode` share: runs as `fit` leaves them, and sources."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

import straightvq as svq
from straightvq.checkpoints import read_checkpoint
from straightvq.models.base import QuantizedNet
from straightvq.runs import RunFolder

PRESETS = "straightvq.presets"


def image_run(folder: Path, quantizer: dict[str, Any] | None = None, **data: Any) -> Path:
    """An autoencoder of grey pictures of 8 x 8 pixels, four codes for each."""
    quantizer = quantizer or {"class_path": f"{PRESETS}.vq_vae", "init_args": {"dim": 4, "codebook_size": 16}}
    quantizer["init_args"]["channel_dim"] = 1
    network = {"quantizer": quantizer, "in_channels": 1, "hidden": 4}
    sized = {"source": "digits", "size": 8, "channels": 1, "batch_size": 4, **data}
    return run(folder, "Reconstruction", "Autoencoder", network, "Images", sized)


def sound_run(folder: Path) -> Path:
    """A codec of clips at 8 kHz, three levels of codes, 80 samples for each frame."""
    levels = {"dim": 4, "codebook_size": 8, "num_quantizers": 3, "channel_dim": 1}
    quantizer = {"class_path": f"{PRESETS}.straight_residual", "init_args": levels}
    network = {"quantizer": quantizer, "hidden": 2, "strides": [8, 10], "dilations": [1]}
    return run(folder, "AudioReconstruction", "AudioCodec", network, "Sound", {"source": "vowels", "batch_size": 4})


def vector_run(folder: Path, quantizer: dict[str, Any] | None = None, width: int = 6) -> Path:
    """A quantizer of vectors of ``width`` numbers, by default of three levels; they are scaled before."""
    levels = {"dim": width, "codebook_size": 300, "num_quantizers": 3}
    quantizer = quantizer or {"class_path": f"{PRESETS}.rq_vae", "init_args": levels}
    state = {"mean": torch.arange(width) / 2, "scale": torch.full((width,), 2.0)}
    data = {"source": "digits", "batch_size": 4}
    network = {"quantizer": quantizer}
    return run(folder, "VectorReconstruction", "MLPAutoencoder", network, "Vectors", data, Vectors=state)


def run(
    folder: Path, task: str, network: str, of_network: dict[str, Any], kind: str, data: dict[str, Any], **state: Any
) -> Path:
    """A run's folder with a configuration and the checkpoint of step 7; codes are drawn at random."""
    model = {"class_path": f"straightvq.models.{network}", "init_args": of_network}
    config = {
        "model": {"class_path": f"straightvq.training.{task}", "init_args": {"model": model}},
        "data": {"class_path": f"straightvq.data.{kind}", "init_args": data},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "last.ckpt").touch()
    torch.manual_seed(0)
    task_of_run: Any = RunFolder(folder).build_task()
    if isinstance(task_of_run.model, QuantizedNet) and task_of_run.model.quantizer is not None:
        draw_codes(task_of_run.model.quantizer)
    content = {"state_dict": task_of_run.state_dict(), "global_step": 7, **state}
    torch.save(content, folder / "last.ckpt")
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 7
    return folder


def draw_codes(quantizer: svq.Quantizer) -> None:
    for book in quantizer.codebooks():
        book.set_codes(torch.randn_like(book.codes()))


def pictures(folder: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    """Grey pictures of 10 x 9 pixels in two classes; the bad ones are text."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, 9, 10), dtype=np.uint8)
    for number in range(count):
        file = folder / f"{'ab'[number * 2 // count]}" / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number in bad:
            file.write_text("no picture")
        else:
            Image.fromarray(drawn[number]).save(file)
    return folder


def vectors(file: Path, count: int, width: int = 6, bad: tuple[int, ...] = (), group: int = 7) -> Path:
    """Random vectors with names in a Parquet file; the bad ones have a NaN."""
    drawn = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    drawn[list(bad), 0] = np.nan
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [f"item {number}" for number in range(count)]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(drawn.ravel()), width)
    pq.write_table(pa.table({"name": names, "vector": lists}), file, row_group_size=group)
    return file


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their names."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def table(folder: Path) -> dict[str, list[Any]]:
    """The rows of all shards, by column."""
    shards = [pq.read_table(file) for file in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(shards).to_pydict()


def bad_rows(folder: Path) -> dict[str, str]:
    lines = (folder / "bad.jsonl").read_text().splitlines()
    return {row["key"]: row["reason"] for row in map(json.loads, lines)}
