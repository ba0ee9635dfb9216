"""Training on from another library's weights: a VQ-VAE file as imported, and with the settings of ``straight``.

    python benchmarks/fine_tune.py --weights cifar10_vqvae_ema.pth --pictures cifar10_png      # minutes on one core

``--weights`` are files in the layout ``vqvae`` whose network is the usual one for CIFAR-10, ``--pictures`` is a folder
with train.parquet and test.parquet. All arms start from the same weights and codes and see the same batches; one keeps
the imported layer (moving averages, if the file has them), the others have ``svq.presets.straight`` with the same
codes, and train everything or the codes and the decoder. The loss is that of the file's authors: squared error over the
variance of the pictures, plus the layer's; Adam, whose rate rises for 20 steps and then falls to 0.
"""

import argparse
import datetime
import io
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import straightvq as svq
from straightvq import interop
from straightvq.diagnostics import perplexity, usage_counts
from straightvq.models import VQVAENet
from straightvq.studies.results import hardware

FRACTION = 0.02  # of the way to the mean: a step has few vectors per code, and the codes are nearly right
WARMUP = 20


class Arm(NamedTuple):
    title: str
    straight: bool  # its settings around the imported codes, or the imported layer
    encoder: bool  # whether the encoder is trained


ARMS = (
    Arm("the imported layer", straight=False, encoder=True),
    Arm("`straight` around its codes", straight=True, encoder=True),
    Arm("the same, encoder as it is", straight=True, encoder=False),
)


def read_pictures(file: Path) -> Tensor:
    """(n, 3, h, w) in [0, 1]."""
    rows = pq.read_table(file, columns=["image"])["image"].to_pylist()
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def network(weights: Path, half_range: float, arm: Arm) -> VQVAENet:
    state = interop.read_state(weights)
    layer = interop.from_state_dict(state, "vqvae", channel_dim=1).quantizer
    if arm.straight:
        (book,) = layer.codebooks()
        layer = svq.presets.straight(layer.dim, layer.codebook_size, channel_dim=1, fraction=FRACTION, affine=False)
        layer.set_codes(book.codes())
    net = VQVAENet(layer, rectified_skip=True)
    net.load_state_dict(interop.network_weights(state, half_range=half_range), strict=False)
    net.encoder.requires_grad_(arm.encoder)
    return net


@torch.no_grad()
def measured(net: VQVAENet, pictures: Tensor) -> tuple[float, float, int]:
    """Squared error, perplexity of summed counts, codes that nothing chose."""
    net.eval()
    outs = [net(part) for part in pictures.split(128)]
    error = torch.cat([out.reconstruction for out in outs]) - pictures
    counts = usage_counts(torch.cat([out.quantizer.indices for out in outs]), net.quantizer.codebook_size)
    return error.square().mean().item(), perplexity(counts).item(), int((counts == 0).sum())


def fine_tune(net: VQVAENet, pictures: Tensor, steps: int, batch: int, lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    net.train()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / WARMUP) * (1 - i / steps))
    variance = pictures.var()
    for _ in tqdm(range(steps), leave=False):
        x = pictures[torch.randint(len(pictures), (batch,))]
        out = net(x)
        optimizer.zero_grad()
        ((out.reconstruction - x).square().mean() / variance + out.quantizer.loss).backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--half-range", type=float, default=1.0, help="0.5 if the file's pictures were x - 0.5")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    train, test = (read_pictures(options.pictures / f"{split}.parquet") for split in ("train", "test"))
    names = " ".join(file.name for file in options.weights)
    lines = [
        "# Training on from imported weights\n",
        f"{datetime.date.today()}, {hardware()}. `python benchmarks/fine_tune.py --weights {names} --pictures "
        f"{options.pictures.name} --steps {options.steps}`, seeds of the batches: {options.seeds}. {options.steps} "
        f"steps of {options.batch} of {len(train):,} pictures, Adam at {options.lr:g}, falling to 0.\n",
        f"On {len(test):,} test pictures in [0, 1], mean ± standard deviation over the seeds.\n",
        "| file | layer | steps | test MSE | perplexity | unused codes |",
        "|---|---|---|---|---|---|",
    ]
    for weights in options.weights:
        for arm in ARMS:
            if arm == ARMS[0]:
                lines.append(row(weights, arm, 0, [measured(network(weights, options.half_range, arm), test)]))
            found = []
            for seed in range(options.seeds):
                net = network(weights, options.half_range, arm)
                fine_tune(net, train, options.steps, options.batch, options.lr, seed)
                found.append(measured(net, test))
            lines.append(row(weights, arm, options.steps, found))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "fine-tune.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {file}")


def row(weights: Path, arm: Arm, steps: int, found: list[tuple[float, float, int]]) -> str:
    errors, perplexities, unused = (list(column) for column in zip(*found, strict=True))
    spread = f" ± {1e3 * statistics.stdev(errors):.3f}" if len(errors) > 1 else ""
    line = (
        f"| {weights.stem} | {arm.title} | {steps} | {1e3 * statistics.mean(errors):.3f}{spread} e-3 | "
        f"{statistics.mean(perplexities):.0f} | {statistics.mean(unused):.0f} |"
    )
    tqdm.write(line)
    return line


if __name__ == "__main__":
    main()
