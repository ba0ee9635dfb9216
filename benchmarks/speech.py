"""Residual quantizers in one codec for sound at equal bits: same network, data and steps, several seeds.

    python benchmarks/speech.py --source /path/to/fsdd                       # 8 levels of 256 codes, three seeds
    python benchmarks/speech.py --source /path/to/fsdd --codebook-size 1024  # 8 levels of 1,024
    python benchmarks/speech.py --arms dac --seeds 0 --tiny                  # seconds, to see that it runs

A run is `straightvq fit --config speech` with the overlay of its arm, then `straightvq test`. A finished one is a row
of the CSV file and is not repeated; a stopped one goes on from its last checkpoint. The page and the picture beside the
CSV file are written anew after each run.
"""

import argparse
import csv
import datetime
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from straightvq.checkpoints import read_checkpoint
from straightvq.cli import main as straightvq
from straightvq.diagnostics import save
from straightvq.diagnostics.sound import rate_distortion
from straightvq.io import write_text
from straightvq.studies.results import hardware

OVERLAYS = {"straight_residual": [], "soundstream": ["soundstream"], "dac": ["dac"], "dac_reset": ["dac"]}
PATIENCE = {"dac_reset": 20}  # k-means start and reset of dead codes, which the other two have
QUANTIZER = "--model.init_args.model.init_args.quantizer.init_args"
WHOLE = ["mel", "l1", "si_sdr", "stoi", "pesq", "bits_per_second", "entropy_bits_per_second", "codes_used"]
KEY = ["arm", "codebook_size", "seed", "steps", "source"]
SHOWN = (1, 2, 4, 8)


def run(key: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Trains and tests one codec; what it gives is its row."""
    name = "-".join(str(key[part]) for part in ("arm", "codebook_size", "seed", "steps"))
    folder = args.runs / name
    recipes = ["speech", *OVERLAYS[key["arm"]], *(["tiny_speech"] if args.tiny else [])]
    options = [word for recipe in recipes for word in ("--config", recipe)]
    options += ["--runs", str(args.runs), "--name", name, "--seed_everything", str(key["seed"])]
    options += ["--data.source", args.source, "--data.seed", str(key["seed"]), "--trainer.max_steps", str(key["steps"])]
    options += [f"{QUANTIZER}.codebook_size", str(key["codebook_size"]), "--trainer.enable_progress_bar", "false"]
    if patience := PATIENCE.get(key["arm"]):
        options += [f"{QUANTIZER}.patience", str(patience)]
    last, clock = folder / "last.ckpt", folder / "seconds.json"
    steps = read_checkpoint(last, "speech")["global_step"] if last.is_file() else 0
    if steps < key["steps"]:
        seconds = json.loads(clock.read_text()) if clock.is_file() else 0.0
        start = time.perf_counter()
        try:
            _call("fit", *options, *(["--ckpt_path", "last"] if steps else []))
        finally:
            if folder.is_dir():
                write_text(clock, json.dumps(seconds + time.perf_counter() - start))
    _call("test", *options, "--ckpt_path", "last")
    curve = pd.read_csv(folder / "rate_distortion.csv")
    row = key | {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware("cpu" if args.tiny else None),
        "torch": torch.__version__,
    }
    row |= {"threads": torch.get_num_threads(), "seconds": round(json.loads(clock.read_text()))}
    row |= _tested(folder)
    for each in curve.to_dict("records"):
        row |= {f"{name}_{each['levels']:.0f}": each[name] for name in ("bits_per_second", "si_sdr", "mel")}
    return row


def _call(*words: str) -> None:
    if code := straightvq(words):
        raise SystemExit(code)


def _tested(folder: Path) -> dict[str, float]:
    """The values of the newest test, from the run's log."""
    logs = sorted(folder.glob("metrics/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    values = pd.concat([pd.read_csv(log) for log in logs]).filter(like="test/").dropna(how="all").iloc[-1]
    values.index = [name.removeprefix("test/") for name in values.index]
    values["codes_used"] = values.filter(like="codes_used_").sum()
    return {name: float(values[name]) for name in WHOLE if name in values}


def report(rows: pd.DataFrame, path: Path, command: str) -> None:
    """The page, and the picture with error bars of one standard deviation over seeds."""
    arms = [arm for arm in OVERLAYS if arm in set(rows["arm"])]
    columns = [f"{name}_{level}" for level in SHOWN for name in ("si_sdr", "mel") if f"{name}_{level}" in rows]
    columns += [name for name in WHOLE[3:] if name in rows]
    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    curves = {}
    for arm in arms:
        mine = rows[rows["arm"] == arm]
        mean, spread = mine[columns].mean(), mine[columns].std()
        cells = [f"{mean[name]:.4g}" + (f" ± {spread[name]:.2g}" if len(mine) > 1 else "") for name in columns]
        lines.append("| " + " | ".join([arm, *cells]) + " |")
        levels = [name.removeprefix("si_sdr_") for name in mine if name.startswith("si_sdr_")]
        names = {"bits_per_second", "si_sdr", "mel"}
        curves[arm] = [
            {name: mine[f"{name}_{level}"].mean() for name in names}
            | {f"{name}_std": np.nan_to_num(mine[f"{name}_{level}"].std()) for name in names}
            for level in levels
        ]
    first = rows.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(rows["seed"].unique()))
    head = (
        f"# Residual quantizers in a codec for sound\n\n{rows['date'].max()}, {first['hardware']}, "
        f"torch {first['torch']}; `{command}`. {len(levels)} levels of {first['codebook_size']} codes, "
        f"{first['steps']} steps, seeds {seeds}; "
        "mean ± standard deviation over seeds, on the test clips at the last step. The networks of one seed start from "
        "different draws, because the quantizer is built first. SI-SDR in dB (more is better), mel distance in factors "
        "of ten (less is better); the number behind a name is that of the levels kept.\n\n"
    )
    write_text(path.with_suffix(".md"), head + "\n".join(lines) + "\n")
    save(rate_distortion(curves, "What each level buys", "_std"), path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="vowels", help="folder or Parquet file of clips")
    parser.add_argument("--arms", nargs="+", choices=OVERLAYS, default=list(OVERLAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="the overlay tiny_speech, with its sizes")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/speech"), help="folder of the runs")
    parser.add_argument("--csv", type=Path, default=Path("runs/benchmarks/speech.csv"))
    args = parser.parse_args()
    if args.tiny:
        args.codebook_size, args.steps = min(args.codebook_size, 8), min(args.steps, 8)
    source = Path(args.source).name  # where it lies is nobody's business
    command = f"python benchmarks/speech.py --steps {args.steps}"
    command += f" --codebook-size {args.codebook_size} --source {source}"
    for seed in args.seeds:
        for arm in args.arms:
            key = {"arm": arm, "codebook_size": args.codebook_size, "seed": seed, "steps": args.steps, "source": source}
            done = pd.read_csv(args.csv) if args.csv.is_file() else pd.DataFrame(columns=KEY)
            if not (done[KEY].astype(str) == pd.Series(key).astype(str)).all(axis=1).any():
                row = run(key, args)
                done = pd.concat([done, pd.DataFrame([row])], ignore_index=True)
                write_text(args.csv, done.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))
            same = done[
                (done[KEY[1:2] + KEY[3:]].astype(str) == [str(key[part]) for part in KEY[1:2] + KEY[3:]]).all(axis=1)
            ]
            report(same, args.csv, command)


if __name__ == "__main__":
    main()
