"""The picture at the top of the README: a whole photograph that neither network has seen, rebuilt by both.

    python benchmarks/picture.py                # about ten minutes on one core; draws docs/photograph.png
    python benchmarks/picture.py --steps 20     # seconds, to see that it runs

Two networks that differ only in their quantizer are trained on crops of two photographs, scikit-learn's ``flower.jpg``
and matplotlib's ``grace_hopper.jpg``. Both then rebuild scikit-learn's ``china.jpg``: the whole photograph passes the
network at once, because every layer is a convolution. Finished networks are kept in ``runs/picture`` and not trained
again.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from tqdm import tqdm

import straightvq as svq
from straightvq.diagnostics import panels
from straightvq.diagnostics.pictures import pixels
from straightvq.models import VQVAENet

ARMS = {"plain VQ": svq.presets.vq_vae, "straight": svq.presets.straight}
DIM, CODES, HIDDEN = 32, 512, 64
CROP, BATCH = 64, 16  # pixels, crops per step
LR, WARMUP = 2e-3, 50
DETAIL = 60, 150, 150, 100  # left, top, width and height in the photograph
WIDTH, GAP, MARGIN, LABEL = 4.0, 0.1, 0.15, 0.62  # inches: a column, between panels, around them, above a column
COLOURS = 256  # of the file's palette


def photographs() -> tuple[list[Image.Image], Image.Image]:
    """Those to train on, and the one that is held out."""
    china, flower = (Image.fromarray(array) for array in load_sample_images().images)
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as hopper:
        return [flower, hopper.convert("RGB")], china


def tensor(image: Image.Image) -> Tensor:
    """(3, height, width) in [0, 1]; sides that the network can halve twice."""
    array = np.asarray(image)[: image.height // 4 * 4, : image.width // 4 * 4]
    return torch.from_numpy(array.copy()).permute(2, 0, 1) / 255


def crops(images: list[Image.Image], generator: torch.Generator) -> Tensor:
    """A batch of squares: any photograph, place and scale down to a third, mirrored or not."""
    batch = []
    for _ in range(BATCH):
        which, scale, x, y, mirror = torch.rand(5, generator=generator).tolist()
        image = images[int(which * len(images))]
        side = int(CROP * 3**scale)
        left, top = int(x * (image.width - side + 1)), int(y * (image.height - side + 1))
        crop = image.resize((CROP, CROP), Image.Resampling.BOX, (left, top, left + side, top + side))
        batch.append(tensor(crop).flip(-1) if mirror < 0.5 else tensor(crop))
    return torch.stack(batch)


def train(name: str, images: list[Image.Image], steps: int, seed: int) -> VQVAENet:
    # Seeded twice: the networks start alike, however many numbers the quantizer draws for its codes.
    torch.manual_seed(seed)
    quantizer = ARMS[name](DIM, CODES, channel_dim=1)
    torch.manual_seed(seed)
    net = VQVAENet(quantizer, hidden=HIDDEN)
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, LR, 1e-4), betas=(0.9, 0.95))
    svq.attach_optimizer(optimizer, net)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in (progress := tqdm(range(steps), name)):
        x = crops(images, generator)
        out = net(x)
        error = (out.reconstruction - x).square().mean()
        optimizer.zero_grad()
        (16 * error + out.quantizer.loss).backward()  # 16 is about 1 / variance of the pixels
        optimizer.step()
        schedule.step()
        progress.set_postfix_str(f"pixel error {error.item():.4f}", refresh=False)
    return net.eval()


@torch.no_grad()
def rebuilt(net: VQVAENet, image: Tensor) -> tuple[Tensor, str]:
    """The photograph as the network gives it back, and what is said of it."""
    out = net(image[None])
    picture = out.reconstruction[0].clamp(0, 1)
    psnr = -10 * (picture - image).square().mean().log10().item()
    return picture, f"{out.quantizer.indices.unique().numel()} of {CODES} codes, {psnr:.1f} dB"


def draw(columns: list[tuple[str, str, Tensor]]) -> Figure:
    """Title, words and photograph of each column, and below each the same detail, enlarged."""
    _, height, width = columns[0][2].shape
    left, top, detail_width, detail_height = DETAIL
    heights = WIDTH * height / width, WIDTH * detail_height / detail_width
    page = len(columns) * (WIDTH + GAP) - GAP + 2 * MARGIN, LABEL + sum(heights) + GAP + MARGIN
    figure = panels.new_figure(*page)
    for number, (title, words, image) in enumerate(columns):
        x = MARGIN + number * (WIDTH + GAP)
        color = (panels.INK, *panels.PALETTE)[number]
        figure.text(x / page[0], 1 - 0.24 / page[1], title, size=15, weight="bold", color=color, va="center")
        figure.text(x / page[0], 1 - 0.48 / page[1], words, size=12, color=panels.FAINT_INK, va="center")
        array = image.permute(1, 2, 0).numpy()
        part = array[top : top + detail_height, left : left + detail_width]
        y = page[1] - LABEL
        for shown, tall in ((array, heights[0]), (part, heights[1])):
            y -= tall
            ax = figure.add_axes((x / page[0], y / page[1], WIDTH / page[0], tall / page[1]))
            ax.imshow(shown, aspect="auto", interpolation="antialiased" if shown is array else "nearest")
            ax.set_axis_off()
            y -= GAP
        frame = {"fill": False, "edgecolor": "white", "linewidth": 1.5}
        figure.axes[-2].add_patch(Rectangle((left, top), detail_width, detail_height, **frame))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/picture"))
    parser.add_argument("--out", type=Path, default=Path("docs/photograph.png"))
    args = parser.parse_args()
    images, held_out = photographs()
    original = tensor(held_out)
    columns = [("original", "a photograph that neither network has seen", original)]
    args.runs.mkdir(parents=True, exist_ok=True)
    for name in ARMS:
        file = args.runs / f"{name}, {args.steps} steps, seed {args.seed}.pt"
        if not file.exists():
            torch.save(train(name, images, args.steps, args.seed), file)
        picture, words = rebuilt(torch.load(file, weights_only=False), original)
        print(f"{name}: {words}")
        columns.append((name, words, picture))
    drawn = Image.fromarray(pixels(draw(columns)))
    # A palette makes the file a third as large; dithering keeps the sky smooth.
    few = drawn.quantize(palette=drawn.quantize(COLOURS), dither=Image.Dither.FLOYDSTEINBERG)
    few.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
