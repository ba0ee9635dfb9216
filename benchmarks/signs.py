"""LFQ and BSQ with the straight-through and the rectified estimator: one autoencoder, several seeds.

    python benchmarks/signs.py                                        # handwritten digits, minutes on one core
    python benchmarks/signs.py --source fashion_mnist --size 28       # a folder or Parquet file of images
    python benchmarks/signs.py --seeds 0 --steps 20                   # seconds, to see that it runs

The rectified estimator follows the schedule of its paper, ``reste_power``, up to each of ``--ends``; end 1 is the
straight-through estimator that passes nothing beyond 1.5 half-widths. Networks of one seed start alike and see the same
batches. Mean squared error of the test images; the two indicators of the paper at the last training batch.
"""

import argparse
import csv
import datetime
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import straightvq as svq
from straightvq.data import Images
from straightvq.diagnostics.functional import estimating_error, gradient_instability
from straightvq.io import write_text
from straightvq.models import Autoencoder
from straightvq.studies.results import hardware

LAYERS = {"LFQ": svq.LookupFreeQuantizer, "BSQ": svq.BinarySphericalQuantizer}
KEY = ["layer", "estimator", "seed", "steps", "bits", "source"]


def images(args: argparse.Namespace, seed: int) -> tuple[Tensor, Tensor]:
    data = Images(args.source, args.size, batch_size=1000, num_train=20_000, num_test=2000, channels=1, seed=seed)
    loaders = data.train_dataloader(), data.test_dataloader()
    train, test = ([data.on_after_batch_transfer(batch, 0)["image"] for batch in loader] for loader in loaders)
    return torch.cat(train), torch.cat(test)


def run(key: dict[str, Any], end: float | None, args: argparse.Namespace) -> dict[str, Any]:
    """Trains one network; what it gives is its row."""
    train, test = images(args, key["seed"])
    torch.manual_seed(key["seed"])
    transform = svq.Projection(args.bits)
    estimator = svq.StraightThrough() if end is None else svq.ReSTE()
    layer = LAYERS[key["layer"]](32, args.bits, transform=transform, estimator=estimator, channel_dim=1)
    net = Autoencoder(layer, in_channels=1, hidden=32)
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, args.lr, 1e-4))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, (1 + math.cos(math.pi * step / args.steps)) / 2)
    )
    order = torch.Generator().manual_seed(key["seed"])
    scale = 1 / train.var()
    for step in range(args.steps):
        if end is not None:
            estimator.power = svq.reste_power(step / args.steps, end)
        x = train[torch.randint(len(train), (args.batch,), generator=order)]
        out = net(x)
        out.z.retain_grad()
        optimizer.zero_grad()
        (scale * (out.reconstruction - x).square().mean() + out.quantizer.loss).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        signs = layer.bound(layer.transformed(out.z.detach().movedim(1, -1).flatten(0, -2))) / layer.half_width
        surrogate = signs if end is None else estimator.surrogate(signs)
    net.eval()
    with torch.no_grad():
        outs = [net(part) for part in test.split(500)]
    error = torch.cat(
        [(o.reconstruction - x).square().mean((1, 2, 3)) for o, x in zip(outs, test.split(500), strict=True)]
    )
    used = torch.cat([o.quantizer.indices.flatten() for o in outs]).unique()
    return key | {
        "mse": error.mean().item(), "codes_used": len(used) / 2**args.bits,
        "estimating_error": estimating_error(signs, surrogate).item(),
        "gradient_instability": gradient_instability(out.z.grad).item(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def report(rows: list[dict[str, Any]], path: Path, command: str) -> None:
    lines = [
        "# Estimators of signs", "",
        f"{max(str(row['date']) for row in rows)}, {hardware('cpu')}, torch {torch.__version__}; `{command}`. "
        "Mean ± standard deviation over the seeds; the difference to the straight-through estimator is paired by seed, "
        "± its standard error. MSE x 1e-3 of the test images.", "",
        "| layer | estimator | MSE | difference | codes used | estimating error | gradient instability |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for layer, estimator in dict.fromkeys((row["layer"], row["estimator"]) for row in rows):
        mine = {row["seed"]: row for row in rows if (row["layer"], row["estimator"]) == (layer, estimator)}
        plain = {r["seed"]: r for r in rows if (r["layer"], r["estimator"]) == (layer, "straight-through")}
        cells = [f"{mean(mine, 'mse', 1e3):.2f} ± {spread(mine, 'mse', 1e3):.2f}"]
        gaps = [1e3 * (float(row["mse"]) - float(plain[seed]["mse"])) for seed, row in mine.items() if seed in plain]
        shown = estimator != "straight-through" and len(gaps) > 1
        cells.append(f"{statistics.mean(gaps):+.2f} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.2f}" if shown else "")
        cells.append(f"{mean(mine, 'codes_used', 100):.0f} %")
        cells += [f"{mean(mine, name):.3g}" for name in ("estimating_error", "gradient_instability")]
        lines.append("| " + " | ".join([layer, estimator, *cells]) + " |")
    write_text(path.with_suffix(".md"), "\n".join(lines) + "\n")


def mean(rows: dict[Any, dict[str, Any]], name: str, factor: float = 1) -> float:
    return factor * statistics.mean(float(row[name]) for row in rows.values())


def spread(rows: dict[Any, dict[str, Any]], name: str, factor: float = 1) -> float:
    return factor * statistics.stdev(float(row[name]) for row in rows.values()) if len(rows) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="digits", help="digits, a folder or a Parquet file of images")
    parser.add_argument("--size", type=int, default=16, help="side in pixels, a multiple of 4")
    parser.add_argument("--bits", type=int, default=10)
    parser.add_argument("--ends", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="powers at the end of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--csv", type=Path, default=Path("runs/benchmarks/signs.csv"))
    args = parser.parse_args()
    rows = list(csv.DictReader(args.csv.read_text().splitlines())) if args.csv.is_file() else []
    ends = [None, *args.ends]
    source = Path(args.source).name
    command = f"python benchmarks/signs.py --source {source} --size {args.size} --steps {args.steps}"
    for seed, layer, end in tqdm(list(itertools.product(args.seeds, LAYERS, ends)), unit="run"):
        name = "straight-through" if end is None else f"rectified, up to {end:g}"
        key = {
            "layer": layer,
            "estimator": name,
            "seed": seed,
            "steps": args.steps,
            "bits": args.bits,
            "source": source,
        }
        if any(all(str(row[part]) == str(key[part]) for part in KEY) for row in rows):
            continue
        rows.append({name: str(value) for name, value in run(key, end, args).items()})
        write_text(
            args.csv, "\n".join([",".join(rows[0]), *(",".join(f'"{v}"' for v in row.values()) for row in rows), ""])
        )
        report([r for r in rows if r["steps"] == str(args.steps) and r["source"] == source], args.csv, command)


if __name__ == "__main__":
    main()
