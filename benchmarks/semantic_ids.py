"""Semantic IDs of one's own items by several quantizers: four levels of 256 codes, several seeds.

    python benchmarks/semantic_ids.py items.parquet                        # the table in results/semantic-ids.md
    python benchmarks/semantic_ids.py items.npy --arms kmeans straight     # some of the arms
    python benchmarks/semantic_ids.py --seeds 1                            # the digits that come with scikit-learn

Finished runs are kept in a CSV file and not repeated, so that a stopped benchmark goes on where it was.
"""

import argparse
import csv
import datetime
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from sklearn.cluster import KMeans
from tqdm import tqdm

import straightvq as svq
from straightvq import presets
from straightvq.data import Vectors
from straightvq.diagnostics import panels, save
from straightvq.models import MLPAutoencoder
from straightvq.nn import Quantizer
from straightvq.studies.results import hardware
from straightvq.training import OptimizerSettings, VectorReconstruction
from straightvq.training.command_line import quiet
from straightvq.training.semantic_ids import SemanticIds, make_ids

LEVELS, SIZE = 4, 256


@dataclass(frozen=True)
class Arm:
    """One way to IDs; the steps and the network are chosen once for all arms of a kind.

    Args:
        about: what the table calls it.
        quantizer: width -> a residual quantizer.
        hidden: layers of the network; none for the quantizer alone.
        skip: whether the network adds to its input.
        refine: rounds of joint refinement at the end.
        steps: optimizer steps.
        batch_size: vectors in a step.
    """

    about: str
    quantizer: Callable[[int], Quantizer]
    hidden: list[int] = field(default_factory=list)
    skip: bool = False
    refine: int = 0
    steps: int = 50
    batch_size: int = 16384


def gradient(dim: int) -> Quantizer:
    """TIGER's: each level a codebook of its own, k-means start, trained by gradient."""
    levels = [
        svq.VectorQuantizer(dim, svq.Codebook(SIZE, init=svq.KMeansInit(), update=svq.GradientUpdate()))
        for _ in range(LEVELS)
    ]
    return svq.ResidualQuantizer(dim, levels)


def preset(name: str, **settings: Any) -> Callable[[int], Quantizer]:
    return lambda dim: getattr(presets, name)(dim, SIZE, num_quantizers=LEVELS, **settings)


NETWORK: dict[str, Any] = {"hidden": [64], "steps": 600, "batch_size": 1024}
ARMS = {
    "kmeans": Arm("residual k-means, scikit-learn", gradient),
    "rq_vae": Arm("`rq_vae` (one EMA codebook for all levels) in a network", preset("rq_vae"), **NETWORK),
    "gradient": Arm("gradient codebooks in a network (TIGER's RQ-VAE)", gradient, **NETWORK),
    "soundstream": Arm("`soundstream` (EMA) in a network", preset("soundstream"), **NETWORK),
    "soundstream_alone": Arm("`soundstream` (EMA) alone", preset("soundstream"), steps=300),
    "straight": Arm("`straight_residual` alone", preset("straight_residual")),
    "straight_beam": Arm("`straight_residual` alone, beam 4", preset("straight_residual", beam=4)),
    "straight_refined": Arm(
        "`straight_residual` alone, beam 4, refined", preset("straight_residual", beam=4), refine=8
    ),
    "straight_network": Arm("`straight_residual` in a network", preset("straight_residual"), **NETWORK),
    "straight_skip": Arm(
        "`straight_residual` in a network with skips, beam 4, refined",
        preset("straight_residual", beam=4),
        refine=8,
        skip=True,
        **NETWORK,
    ),
}
RUN = ["arm", "seed", "items", "threads", "seconds"]
MEASURED = [
    *(f"error_{level}" for level in range(1, LEVELS + 1)),
    *(f"used_{level}" for level in range(1, LEVELS + 1)),
    "unique",
    "unique_after",
    "error_after",
    *(f"cosine_{level}" for level in range(1, LEVELS + 1)),
    "cosine_random",
]


def kmeans_levels(model: MLPAutoencoder, data: Vectors, seed: int) -> None:
    """The baseline: each level's codes are scikit-learn's k-means of what the levels before it leave."""
    rest = data.standard.apply(data.vectors)
    for level in model.quantizer.levels:
        found = KMeans(SIZE, n_init=1, random_state=seed).fit(rest.numpy())
        codes = torch.from_numpy(found.cluster_centers_)
        level.set_codes(codes)
        rest = rest - codes[torch.from_numpy(found.labels_).long()]


def run(name: str, seed: int, source: str) -> dict[str, Any]:
    arm = ARMS[name]
    data = Vectors(source, batch_size=arm.batch_size, seed=seed)
    data.setup()
    torch.manual_seed(seed)
    model = MLPAutoencoder(arm.quantizer(data.standard.width), hidden=arm.hidden, skip=arm.skip)
    start = time.perf_counter()
    if name == "kmeans":
        kmeans_levels(model, data, seed)
    else:
        task = VectorReconstruction(model, optimizer=OptimizerSettings(lr=2e-3, weight_decay=0.0))
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=arm.steps, max_epochs=-1, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[SemanticIds(refine=arm.refine)],
        )  # fmt: skip
        with quiet():
            trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - start
    _, _, report = make_ids(model, data, "assign")
    values = [
        *report.relative_error,
        *report.codes_used,
        *report.unique,
        report.relative_error_unique,
        *report.cosine,
        report.cosine_random,
    ]
    row = {"arm": name, "seed": seed, "items": report.num_items, "threads": torch.get_num_threads()}
    return row | {"seconds": round(seconds, 1)} | dict(zip(MEASURED, values, strict=True))


def spread(rows: list[dict[str, Any]], key: str, digits: int, scale: float = 1) -> str:
    values = [scale * float(row[key]) for row in rows if row[key] not in ("", None)]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(rows: list[dict[str, Any]], arms: list[str]) -> str:
    head = ["arm", *(f"error, {n} code{'s' * (n > 1)}" for n in range(1, LEVELS + 1)), "codes used by level"]
    head += [
        "unique IDs %",
        "assigned %",
        "error, assigned",
        *(f"cosine, {n} shared" for n in range(1, LEVELS)),
        "seconds",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in arms:
        mine = [row for row in rows if row["arm"] == name]
        if not mine:
            continue
        used = ", ".join(spread(mine, f"used_{n}", 0).split(" ")[0] for n in range(1, LEVELS + 1))
        cells = [ARMS[name].about, *(spread(mine, f"error_{n}", 4) for n in range(1, LEVELS + 1)), used]
        cells += [
            spread(mine, "unique", 2, 100),
            spread(mine, "unique_after", 2, 100).split(" ")[0],
            spread(mine, "error_after", 4),
        ]
        cells += [spread(mine, f"cosine_{n}", 3) for n in range(1, LEVELS)]
        cells.append(spread(mine, "seconds", 0).split(" ")[0])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], arms: list[str]) -> Any:
    """The error of all codes of each arm, and how alike items of one first code are."""
    named = [name for name in arms if any(row["arm"] == name for row in rows)]
    figure = panels.new_figure(16.0, 1.9 + 0.52 * len(named), "Four codes per item: what is left, and what is shared")
    error, cosine = panels.grid(figure, 2, 2, top=0.8, above=0.5, below=0.75, left=4.6, between=0.5)
    short = [re.sub(r" \(.*?\)|`", "", ARMS[name].about) for name in named]
    for ax, key, title, unit in (
        (error, f"error_{LEVELS}", "Error of all four codes", "squared error / variance"),
        (cosine, "cosine_1", "Two items with the same first code", "mean cosine"),
    ):
        groups = [[float(row[key]) for row in rows if row["arm"] == name] for name in named]
        means = [statistics.mean(group) for group in groups]
        places = list(range(len(named)))[::-1]
        ours = [panels.PALETTE[1] if name.startswith("straight") else panels.POINT for name in named]
        bars = ax.barh(places, means, color=ours, height=0.62)
        ax.bar_label(bars, [f"{mean:.3f}" for mean in means], padding=4, fontsize=panels.TEXT_SIZE - 1)
        ax.set(yticks=places, xlabel=unit, xlim=(0, 1.15 * max(means)))
        ax.set_yticklabels(short if ax is error else [])
        ax.grid(axis="y", visible=False)
        panels.finish(ax, {}, title)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="digits", help="items, as `straightvq.data.Vectors` reads them")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, default=Path("runs/benchmarks/semantic-ids.csv"))
    parser.add_argument("--out", type=Path, help="Markdown file to write; a picture of the same name comes beside it")
    args = parser.parse_args()
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    if args.csv.exists():
        with args.csv.open(newline="") as file:
            done = list(csv.DictReader(file))
    progress = tqdm([(arm, seed) for seed in range(args.seeds) for arm in args.arms])
    for arm, seed in progress:
        progress.set_description(f"{arm}, seed {seed}")
        if any((row["arm"], str(row["seed"])) == (arm, str(seed)) for row in done):
            continue
        row = run(arm, seed, args.source)
        done.append(row)
        is_new = not args.csv.exists()
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, [*RUN, *MEASURED])
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        tqdm.write(
            f"{arm} seed {seed}: error {row[f'error_{LEVELS}']:.4f}, unique {row['unique']:.2%}, {row['seconds']} s"
        )
    wanted = [row for row in done if int(row["seed"]) < args.seeds]
    name = Path(args.source).name
    items = int(wanted[0]["items"])
    random = float(wanted[0]["cosine_random"])
    text = (
        f"# Semantic IDs\n\n{datetime.date.today()}, {hardware('cpu')}, torch {torch.__version__}; "
        f"`python benchmarks/semantic_ids.py {name} --seeds {args.seeds}`. {items:,} items, {LEVELS} levels of {SIZE} "
        f"codes, seeds 0 to {args.seeds - 1}; mean ± standard deviation over seeds, all on the items themselves. "
        "Error: squared distance of the items from what their first codes give, over that from their mean. Cosine: of "
        f"two items that share so many first codes; of any two items it is {random:.3f}. Codes used: means over seeds. "
        "Assigned: the last codes of items that shared an ID chosen anew (`assign_last`), so that four are enough. "
        f"Alone: {Arm('', gradient).steps} steps of all vectors, EMA {ARMS['soundstream_alone'].steps}; in a network "
        f"with one hidden layer of {NETWORK['hidden'][0]}: {NETWORK['steps']:,} steps of {NETWORK['batch_size']:,}, "
        "AdamW at 2e-3. Seconds are those of a busy machine.\n"
        "\n" + table(wanted, args.arms) + "\n"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save(picture(wanted, args.arms), args.out.with_suffix(".png"))
        text += f"\n![Error and similarity]({args.out.with_suffix('.png').name})\n"
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
