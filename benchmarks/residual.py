"""Several codes per vector without a network: our presets beside residual k-means fitted offline.

    python benchmarks/residual.py                                  # a Gaussian, about 15 minutes on 2 cores
    python benchmarks/residual.py --vectors items.parquet          # one's own vectors, one per row
    python benchmarks/residual.py --moving                         # data whose mean and spread move, about 5 minutes

8 levels of 256 codes. Every method sees the same vectors: 16,384 normal ones of width 32, or those of the file. The
presets take whole-batch steps; k-means is scikit-learn's, level by level, until it converges. The error is the mean
squared distance relative to that of the vectors from their mean, at each number of levels, greedy and by beam search,
on the vectors themselves and, for the Gaussian, on as many new ones. Mean and standard deviation over the seeds.

With ``--moving`` the mean goes from 0 to 8 and the standard deviation from 1 to 3 over 500 steps of 4,096 vectors;
the error is that of new vectors of the last distribution, and k-means is fitted to others of it.
"""

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from tqdm import tqdm

import straightvq as svq
from straightvq.studies.results import hardware

LEVELS, CODES, GAUSSIAN = 8, 256, (16_384, 32)
BEAMS = (1, 4, 16)
MOVES, BATCH = 500, 4096


def kmeans(x: Tensor, seed: int, steps: int) -> svq.ResidualQuantizer:
    """Residual k-means, in a quantizer that holds its centres."""
    levels, rest = [], x
    for _ in range(LEVELS):
        fitted = KMeans(CODES, n_init=1, max_iter=300, random_state=seed).fit(rest.numpy())
        centres = torch.from_numpy(fitted.cluster_centers_).to(x.dtype)
        level = svq.presets.vq_vae(x.shape[1], CODES)
        level.set_codes(centres)
        levels.append(level)
        rest = rest - centres[svq.functional.nearest_code(rest, centres)]
    return svq.ResidualQuantizer(x.shape[1], levels).eval()


def preset(name: str) -> Callable[[Tensor, int, int], svq.ResidualQuantizer]:
    def fit(x: Tensor, seed: int, steps: int) -> svq.ResidualQuantizer:
        torch.manual_seed(seed)
        q = getattr(svq.presets, name)(x.shape[1], CODES, num_quantizers=LEVELS)
        for _ in range(steps):
            q(x)
        return q.eval()

    return fit


def moving(name: str) -> Callable[[Tensor, int, int], svq.ResidualQuantizer]:
    """As ``preset``, on data that move to the distribution of ``x``."""

    def fit(x: Tensor, seed: int, steps: int) -> svq.ResidualQuantizer:
        torch.manual_seed(seed)
        q = getattr(svq.presets, name)(x.shape[1], CODES, num_quantizers=LEVELS)
        for step in range(MOVES):
            q(draw(BATCH, step / (MOVES - 1), None))
        return q.eval()

    return fit


def draw(count: int, time: float, generator: torch.Generator | None) -> Tensor:
    """Vectors of the moving data at a time from 0 to 1."""
    return 8 * time + (1 + 2 * time) * torch.randn(count, GAUSSIAN[1], generator=generator)


PRESETS = ("straight_residual", "soundstream", "rq_vae")


def errors(q: svq.ResidualQuantizer, x: Tensor) -> tuple[list[float], list[int]]:
    """Relative error after each level, and codes used at each."""
    indices, whole = q.encode(x), (x - x.mean(0)).square().sum()
    error = [((x - q.decode(indices[:, :k])).square().sum() / whole).item() for k in range(1, LEVELS + 1)]
    return error, [len(column.unique()) for column in indices.T]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, help="Parquet with a column of equally long lists; a Gaussian if none")
    parser.add_argument("--moving", action="store_true")
    parser.add_argument("--column", default="embedding")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    name = "moving" if options.moving else "gaussian" if options.vectors is None else options.vectors.stem
    fitting, beams = (moving, (1,)) if options.moving else (preset, BEAMS)
    methods = {"residual k-means": kmeans} | {each: fitting(each) for each in PRESETS}
    if options.vectors is not None:
        column = pq.read_table(options.vectors)[options.column]
        given = torch.from_numpy(np.stack(column.to_numpy()).astype(np.float32))

    results: dict[tuple[str, int, str], list[list[float]]] = {}
    used: dict[str, list[int]] = {}
    for seed in tqdm(range(options.seeds), "Seeds"):
        generator = torch.Generator().manual_seed(seed)
        if options.vectors:
            sets = {"fitted": given}
        elif options.moving:
            sets = {which: draw(GAUSSIAN[0], 1.0, generator) for which in ("fitted", "new")}
        else:
            sets = {which: torch.randn(GAUSSIAN, generator=generator) for which in ("fitted", "new")}
        for method, fit in methods.items():
            q = fit(sets["fitted"], seed, options.steps)
            for beam in beams:
                q.beam = beam
                for which, x in sets.items():
                    error, codes = errors(q, x)
                    results.setdefault((method, beam, which), []).append(error)
                    if beam == 1 and which == "fitted":
                        used.setdefault(method, []).append(min(codes))

    given_words = [word for word in sys.argv[1:] if word not in ("--out", str(options.out))]
    arguments = " ".join(Path(word).name if Path(word) == options.vectors else word for word in given_words)
    lines = [
        f"# Residual quantization without a network: {name}\n",
        f"{datetime.date.today()}, {hardware()}. `python benchmarks/residual.py {arguments}`, "
        f"{options.seeds} seeds, "
        f"{f'{MOVES} steps of {BATCH:,} vectors' if options.moving else f'{options.steps} whole-batch steps'}.\n",
        "Error relative to the variance of the vectors, mean ± standard deviation over the seeds.\n",
        "| method | beam | vectors | 1 level | 2 | 4 | 8 | fewest codes used |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (method, beam, which), runs in results.items():
        cells = []
        for level in (1, 2, 4, 8):
            values = [run[level - 1] for run in runs]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{spread}")
        codes = f"{min(used[method])} of {CODES}" if beam == 1 and which == "fitted" else ""
        lines.append(f"| {method} | {beam} | {which} | {' | '.join(cells)} | {codes} |")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"residual-{name}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
