"""Does a quantizer need tuning? One grid of sizes, rates, batches, scales and means, without a network.

    python benchmarks/no_tuning.py                                          # about half an hour on 2 cores
    python benchmarks/no_tuning.py --methods straight --codes 512 --widths 32
    python benchmarks/no_tuning.py --robustness                             # starts of 13 scales, a minute

Vectors of width 4, 32 or 256 lie in up to 8 random directions, so that codes of width 8 can say all of them. During
120 steps their standard deviation goes from 1 to 3 and their mean moves by 8, both times the cell's scale; the mean
starts at the cell's, in standard deviations. A step trains the layer alone, with Adam at the cell's rate on
``mean((quantized - z)^2)`` and the layer's loss. A cell is the error on fresh vectors of the last distribution over
that of k-means fitted to others of it, and the share of codes that get any of 64 vectors per code.

With ``--robustness``: `NormalInit` of 13 standard deviations from 1e-3 to 1e3 in place of a preset's own start, on
standard normal vectors that do not move; the area under the curve of codes used.
"""

import argparse
import csv
import datetime
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import straightvq as svq
from straightvq.io import write_text
from straightvq.studies.results import hardware

METHODS = ("straight", "straight_narrow", "ema", "vq_ste_pp", "simvq", "vq_vae")
STEPS, DIRECTIONS, MOVE, GROWTH = 120, 8, 8.0, 2.0
RATES, SCALES, MEANS, SHARES = (1e-4, 1e-3, 1e-2), (1e-3, 1.0, 1e3), (0.0, 100.0), (4, 64)
LARGEST = 1 << 18  # vectors of a step
KEY = ["method", "codes", "width", "lr", "per_code", "scale", "mean", "seed"]
STARTS = np.logspace(-3, 3, 13)


class Data:
    """Vectors of one cell, at a time from 0 to 1."""

    def __init__(self, width: int, scale: float, mean: float, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        some = torch.randn(width, min(width, DIRECTIONS), generator=self.generator)
        self.directions = torch.linalg.qr(some).Q.T
        self.scale, self.mean = scale, mean

    def draw(self, count: int, time: float) -> Tensor:
        rows = torch.randn(count, len(self.directions), generator=self.generator)
        rows = (1 + GROWTH * time) * rows + self.mean + MOVE * time
        return self.scale * (rows @ self.directions)


def layer_of(method: str, width: int, codes: int) -> svq.VectorQuantizer:
    """A preset; or `straight` with a projection to codes of width 8, and without the moments of the vectors."""
    if method == "straight_narrow":
        return svq.presets.straight(width, codes, codebook_dim=8, affine=False)
    layer: svq.VectorQuantizer = getattr(svq.presets, method)(width, codes)
    return layer


def train(layer: svq.VectorQuantizer, data: Data, count: int, lr: float) -> None:
    groups = svq.parameter_groups(layer, lr=lr, weight_decay=0.0)
    optimizer = torch.optim.Adam(groups) if groups else None
    if optimizer is not None:
        svq.attach_optimizer(optimizer, layer)
    for step in range(STEPS):
        z = data.draw(count, step / (STEPS - 1))
        out = layer(z)
        if optimizer is not None:
            optimizer.zero_grad()
            scale = data.scale**2  # Adam takes any, its epsilon does not
            (((out.quantized - z).square().mean() + out.loss) / scale).backward()
            optimizer.step()
    layer.eval()


def measure(layer: svq.VectorQuantizer, z: Tensor) -> tuple[float, float]:
    """Mean squared error per number, and the share of codes in use."""
    out = layer(z)
    error = (out.quantized.detach().double() - z.double()).square().mean().item()
    return error, len(out.indices.unique()) / layer.codebook_size


def best_error(width: int, codes: int, seed: int) -> float:
    """Of k-means on the last distribution at scale 1 and mean 0; the others are shifted and scaled copies."""
    data = Data(width, 1.0, 0.0, seed)
    fitted, fresh = data.draw(64 * codes, 1.0), data.draw(64 * codes, 1.0)
    axes = data.directions
    centres = svq.functional.kmeans(
        fitted @ axes.T, codes, iterations=30, trials=4 if codes <= 4096 else 1, generator=data.generator
    )
    rows = fresh @ axes.T
    nearest = svq.functional.nearest_code(rows, centres)
    return (rows - centres[nearest]).square().sum().item() / (len(rows) * width)


def cell(key: dict[str, Any], best: float) -> dict[str, Any]:
    torch.manual_seed(key["seed"])
    data = Data(key["width"], key["scale"], key["mean"], key["seed"])
    layer = layer_of(key["method"], key["width"], key["codes"])
    train(layer, data, min(key["per_code"] * key["codes"], LARGEST), key["lr"])
    error, used = measure(layer, data.draw(64 * key["codes"], 1.0))
    return key | {"error": error / key["scale"] ** 2 / best, "used": used}


def report(rows: pd.DataFrame, command: str) -> str:
    lines = [
        f"# No tuning\n\n{datetime.date.today()}, {hardware('cpu')}, torch {torch.__version__}; `{command}`, "
        f"{STEPS} steps. Cells with at least 95 % of the codes in use and at most 5 % more error than k-means, of all; "
        "then the median and the worst error relative to k-means, and the lowest use.\n",
        "| method | codes | width | vectors per code | cells that hold | median error | worst error | lowest use |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for names, some in rows.groupby(["method", "codes", "width", "per_code"], sort=False):
        holds = int(((some["error"] <= 1.05) & (some["used"] >= 0.95)).sum())
        method, codes, width, per_code = names
        lines.append(
            f"| {method} | {codes:,} | {width} | {per_code} | {holds} of {len(some)} | {some['error'].median():.3f} | "
            f"{some['error'].max():.3g} | {100 * some['used'].min():.1f} % |"
        )
    lines.append("\nWorst cell of each value, error relative to k-means / use:\n")
    values = [("lr", RATES), ("scale", SCALES), ("mean", MEANS)]
    lines.append("| method | " + " | ".join(f"{name} {value:g}" for name, every in values for value in every) + " |")
    lines.append("|---" * (1 + sum(len(every) for _, every in values)) + "|")
    for method, some in rows.groupby("method", sort=False):
        cells = []
        for name, every in values:
            for value in every:
                part = some[some[name] == value]
                cells.append(f"{part['error'].max():.3g} / {100 * part['used'].min():.0f} %" if len(part) else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def robustness(methods: list[str], codes: int, seed: int) -> str:
    lines = [
        f"# Starts of 13 scales\n\n{datetime.date.today()}, {hardware('cpu')}, torch {torch.__version__}; "
        f"`python benchmarks/no_tuning.py --robustness`, seed {seed}. {codes} codes of width 8 started from "
        f"`NormalInit(std)`, nothing else of the presets changed; {STEPS} steps of {16 * codes:,} standard normal "
        "vectors; share of codes used, and the area under its curve over the logarithm of the scale.\n",
        "| method | " + " | ".join(f"{std:.3g}" for std in STARTS) + " | area |",
        "|---" * (len(STARTS) + 2) + "|",
    ]
    for method in tqdm(methods, "Starts"):
        used = []
        for std in STARTS:
            torch.manual_seed(seed)
            layer = layer_of(method, 8, codes)
            layer.codebook.init = svq.NormalInit(float(std))
            start = layer.codebook.init.start(codes, layer.codebook.dim)
            if layer.codebook.parametrization.has_inverse:
                layer.codebook.set_codes(start)
            else:
                layer.codebook.raw.data.copy_(start)
            generator = torch.Generator().manual_seed(seed)
            groups = svq.parameter_groups(layer, lr=1e-3, weight_decay=0.0)
            optimizer = torch.optim.Adam(groups) if groups else None
            for _ in range(STEPS):
                z = torch.randn(16 * codes, 8, generator=generator)
                out = layer(z)
                if optimizer is not None:
                    optimizer.zero_grad()
                    ((out.quantized - z).square().mean() + out.loss).backward()
                    optimizer.step()
            used.append(measure(layer.eval(), torch.randn(64 * codes, 8, generator=generator))[1])
        area = np.trapezoid(used, np.log10(STARTS)) / np.log10(STARTS[-1] / STARTS[0])
        lines.append(f"| {method} | " + " | ".join(f"{100 * u:.0f}" for u in used) + f" | {100 * area:.1f} % |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="presets, or straight_narrow")
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 32, 256])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--shares", type=int, nargs="+", default=list(SHARES), help="vectors per code and step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--robustness", action="store_true", help="the starts of 13 scales instead of the grid")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/no-tuning.md"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.robustness:
        write_text(args.out, robustness(args.methods, args.codes[0], args.seed))
        print(args.out.read_text())
        return
    table = args.out.with_suffix(".csv")
    done = pd.read_csv(table) if table.is_file() else pd.DataFrame(columns=[*KEY, "error", "used"])
    keys = [
        dict(zip(KEY, (method, codes, width, lr, share, scale, mean, args.seed), strict=True))
        for codes, width, share, method, lr, scale, mean in itertools.product(
            args.codes, args.widths, args.shares, args.methods, args.rates, SCALES, MEANS
        )
    ]
    best: dict[tuple[int, int], float] = {}
    words = [word for word in sys.argv[1:] if word not in ("--out", str(args.out))]
    command = " ".join(["python benchmarks/no_tuning.py", *words])
    known = {tuple(row) for row in done[KEY].itertuples(index=False)}
    for key in tqdm(keys, "Cells"):
        if tuple(key.values()) in known:
            continue
        sizes = key["width"], key["codes"]
        best[sizes] = best.get(sizes) or best_error(*sizes, args.seed)
        done = pd.concat([done, pd.DataFrame([cell(key, best[sizes])])], ignore_index=True)
        write_text(table, done.to_csv(index=False, quoting=csv.QUOTE_MINIMAL))
        write_text(args.out, report(done, command))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
