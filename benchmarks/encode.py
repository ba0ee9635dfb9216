"""What `straightvq encode` loses beside the network alone: both rates on the same pictures, 95 % are asked for.

    python benchmarks/encode.py                                    # 20,000 pictures of 32 x 32, a thread that reads
    python benchmarks/encode.py --readers 0 2 4 --batch-size 512   # processes that read, for a fast accelerator

The network is that of a recipe, trained for one step: weights do not change the speed. The pictures are PNG files.
"Network" is the encoder and the search on batches that lie ready on the device; "encode" is the whole command but for
loading the network and looking through the folder: files read and decoded, scaled, encoded, shards written. Each is
repeated in turn; the median of the rates counts, and of their ratios in each round the smallest and the largest are
shown. Run it on an idle machine.
"""

import argparse
import datetime
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from straightvq.cli import main as straightvq
from straightvq.data import Images
from straightvq.encoding.encoder import EncodeJob, Encoding
from straightvq.encoding.opening import Origin
from straightvq.encoding.rows import spans
from straightvq.io import write_text
from straightvq.studies.results import hardware

SIZE = 32


def trained(folder: Path, recipe: str, batch_size: int) -> Path:
    """A run of the recipe that has made one step on a few pictures."""
    few = ["--data.source", "photos", "--data.num_train", "64", "--data.num_test", "16", "--trainer.max_steps", "1"]
    words = ["fit", "--config", recipe, *few, "--data.batch_size", str(batch_size), "--data.size", str(SIZE)]
    quiet = ["--runs", str(folder), "--name", "run", "--trainer.accelerator", "cpu", "--monitor.pictures_every", "0"]
    if code := straightvq([*words, *quiet, "--trainer.enable_progress_bar", "false"]):
        raise SystemExit(code)
    return folder / "run"


def draw(folder: Path, count: int) -> Path:
    """Crops of photographs as PNG files, a thousand in a subfolder."""
    crops = Images("photos", size=SIZE, num_train=count).find().splits["train"]
    for number in tqdm(range(count), "drawing", disable=None):
        file = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = crops.decode(number % len(crops), SIZE, 3)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(file)
    return folder


def network_seconds(work: Encoding, batches: Sequence[dict[str, Tensor]]) -> float:
    """The encoder and the search, on what lies ready."""
    codec = work.codec
    with torch.no_grad():
        start = _now(codec.device)
        for batch in batches:
            codec.quantizer.encode(codec.task.latent(batch)).cpu()
        return _now(codec.device) - start


def encode_seconds(work: Encoding) -> float:
    """All shards of a new folder."""
    work.folder.prepare()
    start = _now(work.codec.device)
    work.do(range(len(work.folder.sizes)), lambda rows: None)
    return _now(work.codec.device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(folder: Path, run: Path, source: Path, readers: int, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Pictures per second of the network and of the command, in each round."""
    rates = []
    for number in range(args.repeats + 1):
        origin = Origin("encode", run=str(run), source=str(source), device=args.device)
        job = EncodeJob(origin, str(folder / f"codes {readers} {number}"), args.rows_per_shard, None, readers)
        work = job.open()
        count = len(work.rows)
        asked = itertools.islice(spans([(0, range(count))], work.codec.batch_size), args.most_batches)
        batches = [work.codec.batch(work.rows.read(*span).values) for span in asked]
        ready = sum(len(batch["image"]) for batch in batches)
        network_seconds(work, batches[:2])
        rates.append((ready / network_seconds(work, batches), count / encode_seconds(work)))
    return rates[1:]  # the first round warms up


def table(rows: dict[int, list[tuple[float, float]]]) -> str:
    """One row for each number of readers."""
    lines = [
        "| reading processes | network, pictures/s | encode, pictures/s | ratio | of each round |",
        "|---" * 5 + "|",
    ]
    for readers, rates in rows.items():
        network, command = (statistics.median(column) for column in zip(*rates, strict=True))
        ratios = [ours / alone for alone, ours in rates]
        spread = f"{min(ratios):.0%} to {max(ratios):.0%}"
        name = readers or "0 (a thread)"
        lines.append(f"| {name} | {network:,.0f} | {command:,.0f} | {statistics.median(ratios):.0%} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="photos", help="of an autoencoder of colour pictures")
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rows-per-shard", type=int, default=10_000)
    parser.add_argument("--readers", type=int, nargs="+", default=[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-batches", type=int, default=500, help="that lie ready for the network alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--page", type=Path, help="file for the table; by default it is only shown")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run, source = trained(folder / "runs", args.recipe, args.batch_size), draw(folder / "pictures", args.pictures)
        rows = {readers: measure(folder, run, source, readers, args) for readers in args.readers}
    what = f"{args.pictures:,} pictures of {SIZE} x {SIZE}, batches of {args.batch_size}, {args.repeats} rounds"
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    machine = f"{hardware('cpu' if device == 'cpu' else None)}, torch {torch.__version__}"
    head = f"# Encoding beside the network alone\n\n{datetime.date.today()}, {machine}: recipe {args.recipe}, {what}."
    page = f"{head}\n\n{table(rows)}\n"
    print(page)
    if args.page is not None:
        write_text(args.page, page)


if __name__ == "__main__":
    main()
