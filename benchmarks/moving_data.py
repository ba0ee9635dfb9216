"""Codebook tracking without a network: where do the codes end up when the data are far away, or move?

    python benchmarks/moving_data.py                       # the whole table, about 15 minutes on 2 cores
    python benchmarks/moving_data.py --methods straight    # one row

Gaussian vectors, width 8, 1,024 codes, 4,096 vectors a step, 500 steps. Three arms: the data's mean at 0, 2, 5 or 8
with every method as it is shipped; the same with ``NormalInit()``, so that the codes start far from the data; and
drifting data, mean 0 to 8 and standard deviation 1 to 3 over the 500 steps. Error is the mean squared distance on
65,536 fresh vectors of the final distribution, divided by that of a long k-means fitted to 262,144 others; use is the
fraction of codes that get any of the 65,536.
"""

import argparse
import datetime
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import straightvq as svq
from straightvq.data.vectors.moving import drift, gaussian
from straightvq.studies.results import hardware

DIM, CODES, VECTORS, STEPS = 8, 1024, 4096, 500
FRESH, LONG = 65_536, 262_144
MEANS = (0.0, 2.0, 5.0, 8.0)
CODEBOOK_LR = 1e-2  # Adam, for the rows that are trained by gradient


def ema(init: svq.Init | None) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(DIM, svq.Codebook(CODES, init=init or svq.KMeansInit(), update=svq.EMAUpdate()))


def affine(init: svq.Init | None) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(DIM, svq.Codebook(CODES, init=init, parametrization=svq.Affine(lr_scale=10.0)))


def running_affine(init: svq.Init | None) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(DIM, svq.Codebook(CODES, init=init, parametrization=svq.RunningAffine()))


def alternated(init: svq.Init | None) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(DIM, svq.Codebook(CODES, init=init, update=svq.AlternatedUpdate()))


def preset(make: Callable[[int, int], svq.VectorQuantizer], init: svq.Init | None) -> svq.VectorQuantizer:
    layer = make(DIM, CODES)
    if init is not None:
        layer.codebook.init = init
        if layer.codebook.parametrization.has_inverse:
            layer.codebook.set_codes(init.start(CODES, DIM))
        else:  # it starts as the identity
            layer.codebook.raw.data.copy_(init.start(CODES, DIM))
    return layer


METHODS: dict[str, Callable[[svq.Init | None], svq.VectorQuantizer]] = {
    "plain VQ": lambda init: preset(svq.presets.vq_vae, init),
    "EMA": ema,
    "EMA + reset": lambda init: preset(svq.presets.ema, init),
    "affine": affine,
    "running affine": running_affine,
    "alternated": alternated,
    "vq_ste_pp": lambda init: preset(svq.presets.vq_ste_pp, init),
    "simvq": lambda init: preset(svq.presets.simvq, init),
    "fvq": lambda init: preset(svq.presets.fvq, init),
    "cvq": lambda init: preset(svq.presets.cvq, init),
    "straight": lambda init: preset(svq.presets.straight, init),
    "straight, no moments": lambda init: preset(partial(svq.presets.straight, affine=False), init),
    "straight, fraction 0.05": lambda init: preset(partial(svq.presets.straight, fraction=0.05), init),
}


def draw(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    return gaussian(count, DIM, mean, std, generator)


def error_and_use(codes: Tensor, z: Tensor) -> tuple[float, float]:
    indices = svq.functional.nearest_code(z, codes)
    error = (z - codes[indices]).square().sum(1).mean().item()
    return error, indices.unique().numel() / len(codes)


def run(layer: svq.VectorQuantizer, schedule: Callable[[int], tuple[float, float]], seed: int) -> Tensor:
    """Trains the layer alone and returns its codes after the last step."""
    generator = torch.Generator().manual_seed(seed)
    groups = svq.parameter_groups(layer, lr=CODEBOOK_LR, weight_decay=0.0)
    optimizer = torch.optim.Adam(groups) if groups else None
    if optimizer is not None:
        svq.attach_optimizer(optimizer, layer)
    for step in range(STEPS):
        out = layer(draw(VECTORS, *schedule(step), generator))
        if optimizer is not None:
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    return layer.codes()


def long_kmeans() -> Tensor:
    """Centres for the standard normal distribution; others are its shifted and scaled copies."""
    generator = torch.Generator().manual_seed(1)
    return svq.functional.kmeans(draw(LONG, 0, 1, generator), CODES, iterations=60, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()

    fresh = draw(FRESH, 0, 1, torch.Generator().manual_seed(2))
    best, _ = error_and_use(long_kmeans(), fresh)
    arms: list[tuple[str, bool, Callable[[int], tuple[float, float]]]] = []
    for far in (False, True):
        arms += [
            (f"mean {mean:g}" + (", far start" if far else ""), far, lambda _, mean=mean: (mean, 1.0)) for mean in MEANS
        ]
    arms.append(("drifting", False, lambda step: drift(step / (STEPS - 1))))

    lines = ["| method | " + " | ".join(name for name, _, _ in arms) + " |", "|---" * (len(arms) + 1) + "|"]
    progress = tqdm(total=len(args.methods) * len(arms) * args.seeds)
    for method in args.methods:
        cells = []
        for name, far, schedule in arms:
            results = []
            for seed in range(args.seeds):
                progress.set_description(f"{method}, {name}")
                torch.manual_seed(seed)
                codes = run(METHODS[method](svq.NormalInit() if far else None), schedule, seed)
                mean, std = schedule(STEPS - 1)
                # The same fresh vectors and the same k-means, moved to the final distribution.
                results.append(error_and_use((codes - mean) / std, fresh))
                progress.update()
            errors, uses = zip(*results, strict=True)
            cells.append(f"{statistics.mean(errors) / best:.3f} / {100 * statistics.mean(uses):.1f} %")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
        tqdm.write(lines[-1])
    progress.close()
    text = (
        f"# Moving data\n\n{datetime.date.today()}, {hardware('cpu')}, "
        f"torch {torch.__version__}; `python benchmarks/moving_data.py "
        f"--seeds {args.seeds}`, seeds 0 to {args.seeds - 1}. Cells: error relative to long k-means "
        f"({best:.4f} per unit variance) / use.\n\n" + "\n".join(lines) + "\n"
    )
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
