"""The presets on the demo's photographs: same network, data, steps and bits, several seeds.

    python benchmarks/photos.py                                          # the table in results/photos.md
    python benchmarks/photos.py --arms straight straight:fraction=0.1    # any preset with any of its settings
    python benchmarks/photos.py --arms ema@lr=3e-3 --seeds 1             # another learning rate

Finished runs are kept in a CSV file and not repeated, so that a stopped benchmark goes on where it was.
"""

import argparse
import ast
import csv
import datetime
import statistics
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from tqdm import tqdm

from straightvq import presets
from straightvq.data import Images
from straightvq.demo import DemoSettings
from straightvq.models import Autoencoder
from straightvq.studies.results import hardware
from straightvq.training import OptimizerSettings, Reconstruction
from straightvq.training.command_line import quiet

# Every preset as it is shipped, the baselines with narrow codes, `straight` with one setting changed, and its narrow
# form without running moments; EMA at two learning rates.
ARMS = [
    "vq_vae@lr=3e-3",
    "vq_vae:codebook_dim=8@lr=3e-3",
    "ema@lr=1e-3",
    "ema@lr=3e-3",
    "ema:codebook_dim=8@lr=3e-3",
    "vq_ste_pp@lr=3e-3",
    "straight@lr=3e-3",
    "straight:reassign=True@lr=3e-3",
    "straight:affine=False@lr=3e-3",
    "straight:codebook_dim=8@lr=3e-3",
    "straight:codebook_dim=8,affine=False@lr=3e-3",
    "straight:codebook_dim=16,affine=False@lr=3e-3",
    "straight:codebook_dim=8,affine=False,commitment=1.0@lr=3e-3",
    "straight:codebook_dim=8,affine=False,reassign=True@lr=3e-3",
    "straight:codebook_dim=8,affine=False,fraction=0.1@lr=3e-3",
    "straight:codebook_dim=8,affine=False,fraction=0.05@lr=3e-3",
    "straight:codebook_dim=8,affine=False,fraction=0.02@lr=3e-3",
]
FIELDS = ["arm", "seed", "steps", "threads", "mse", "psnr", "codes_used", "perplexity", "seconds"]


def parse_arm(text: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """ "preset:key=value,...@key=value,..." -> preset, its settings, those of the optimizer."""
    head, _, optimizer = text.partition("@")
    name, _, quantizer = head.partition(":")

    def pairs(part: str) -> dict[str, Any]:
        return {k: ast.literal_eval(v) for k, _, v in (item.partition("=") for item in part.split(",") if item)}

    return name, pairs(quantizer), pairs(optimizer)


def run(arm: str, seed: int, settings: DemoSettings) -> dict[str, Any]:
    name, quantizer_args, optimizer_args = parse_arm(arm)
    torch.manual_seed(seed)
    quantizer = getattr(presets, name)(settings.dim, settings.codebook_size, channel_dim=1, **quantizer_args)
    torch.manual_seed(seed)  # again: all arms start from the same network
    model = Autoencoder(quantizer, hidden=settings.hidden)
    optimizer = OptimizerSettings(**{"warmup_steps": 50, **optimizer_args})
    task = Reconstruction(model, optimizer=optimizer, loss_weight=16.0)
    data = Images(
        source="photos", size=settings.size, batch_size=settings.batch_size, num_train=settings.num_train,
        num_test=settings.num_test, seed=seed, flip=True,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=settings.steps, max_epochs=-1, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with quiet():
        start = time.perf_counter()
        trainer.fit(task, datamodule=data)
        seconds = time.perf_counter() - start
        (measured,) = trainer.test(task, datamodule=data, verbose=False)
    values = {key.removeprefix("test/"): round(value, 6) for key, value in measured.items()}
    row = {"arm": arm, "seed": seed, "steps": settings.steps, "threads": torch.get_num_threads()}
    return row | {k: values[k] for k in ("mse", "psnr", "codes_used", "perplexity")} | {"seconds": round(seconds, 1)}


def table(rows: list[dict[str, Any]], arms: list[str]) -> str:
    lines = ["| arm | test MSE x 1e-3 | PSNR dB | codes used | perplexity |", "|---" * 5 + "|"]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        cells = [arm]
        for key, scale, digits in (("mse", 1e3, 3), ("psnr", 1, 2), ("codes_used", 1, 0), ("perplexity", 1, 1)):
            values = [scale * float(row[key]) for row in mine]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--csv", type=Path, default=Path("runs/benchmarks/photos.csv"))
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    settings = DemoSettings(steps=args.steps)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    if args.csv.exists():
        with args.csv.open(newline="") as file:
            done = list(csv.DictReader(file))
    progress = tqdm([(arm, seed) for seed in range(args.seeds) for arm in args.arms])
    for arm, seed in progress:
        progress.set_description(f"{arm}, seed {seed}")
        key = (arm, str(seed), str(args.steps))
        if any((row["arm"], str(row["seed"]), str(row["steps"])) == key for row in done):
            continue
        row = run(arm, seed, settings)
        done.append(row)
        is_new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        tqdm.write(
            f"{arm} seed {seed}: MSE {1e3 * row['mse']:.3f}e-3, {row['codes_used']:.0f} codes, {row['seconds']} s"
        )
    wanted = [row for row in done if int(row["steps"]) == args.steps and int(row["seed"]) < args.seeds]
    text = (
        f"# Presets on photographs\n\n{datetime.date.today()}, {hardware('cpu')}, torch {torch.__version__}; "
        f"`python benchmarks/photos.py --seeds {args.seeds} --steps {args.steps}`. "
        f"Crops of two photographs, {settings.size} x {settings.size} pixels, "
        f"{settings.codebook_size} codes of width {settings.dim}, 64 tokens of 9 bits per image, {args.steps} steps of "
        f"{settings.batch_size} images, seeds 0 to {args.seeds - 1}; mean ± standard deviation over seeds, on crops of "
        "a region that is not in the training set.\n\n" + table(wanted, args.arms) + "\n\n"
        "Searches that round differently part ways within a few hundred steps; such runs differ by about the spread in "
        "the end.\n"
    )
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
