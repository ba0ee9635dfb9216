"""The peers' own examples with the import changed: their layer and ours in the same network, at equal steps.

    python benchmarks/peers.py --images fashion_mnist --items items.parquet

Needs the extra `bench`. The rows of vqtorch are left out where it is not installed: it is not on PyPI, install it from
github.com/minyoungg/vqtorch, with string-color==1.2.3 and setuptools<81. ``--images`` is a folder with train.parquet
and test.parquet of grey 28 x 28 pictures, ``--items`` a Parquet file with a column of equally long lists. Without one
of them its rows are left out.

What an example does is restated here: its network, optimizer, rate, batch and loss; its layer is imported. Ours takes
the layer's place with the arguments of a preset and no other change. Both start from the same network and see the same
batches in the same order. The error is that of test data: of pictures the mean absolute one, as in the examples' own
loss; of items and sound the mean squared one over the variance.
"""

import argparse
import datetime
import functools
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import vector_quantize_pytorch as vqp
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

import straightvq as svq
from straightvq.studies.results import hardware

try:
    import vqtorch.nn as vqt
except ImportError:
    vqt = None

TRAIN, TEST = 20_000, 2000
SHARE = 0.9  # of the items, to train on
TIED = 1e-3  # relative difference
SAMPLES, RATE, CLIPS = 4096, 8000, 512

Layer = Callable[[], nn.Module]
Passed = tuple[Tensor, Tensor]  # quantized, loss


class Case(NamedTuple):
    """One example: what trains its network with a layer and gives the test error, and the layers of both."""

    run: Callable[["Case", Any, int, Tensor, Tensor, int], float]
    theirs: Any
    ours: Any
    what: str
    by: str
    latent: int = 32
    weight: float = 1.0  # of the layer's loss
    times: int = 1  # as many steps as asked for: those of small networks are short
    is_normalised: bool = False


def passed(layer: nn.Module, z: Tensor) -> Passed:
    """Quantized vectors and loss, whatever the library's layer returns."""
    out = layer(z)
    if isinstance(out, svq.QuantizerOutput):
        return out.quantized, out.loss
    if isinstance(out[1], dict):
        return out[0], out[1]["loss"]
    return out[0], out[2].sum() if len(out) > 2 else z.new_zeros(())


def batches(x: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield x[torch.randint(len(x), (size,), generator=generator)]


# --- pictures: the autoencoder of vector-quantize-pytorch and vqtorch ------------------------------------------------


def convolution(inner: int, outer: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, size, padding=size // 2)


def picture_network(case: Case) -> tuple[nn.Module, nn.Module]:
    """The small autoencoder of both peers' examples; narrow latents have convolutions of their own, as there."""
    encoder = [convolution(1, 16), nn.MaxPool2d(2), nn.GELU(), convolution(16, 32), nn.MaxPool2d(2)]
    decoder = [nn.Upsample(scale_factor=2), convolution(32, 16), nn.GELU(), nn.Upsample(scale_factor=2)]
    if case.latent != 32:
        encoder += [nn.GroupNorm(4, 32, affine=False)] if case.is_normalised else []
        encoder.append(convolution(32, case.latent, 1))
        decoder.insert(0, convolution(case.latent, 32))
    return nn.Sequential(*encoder), nn.Sequential(*decoder, convolution(16, 1))


def pictures(case: Case, make: Layer, seed: int, train: Tensor, test: Tensor, steps: int) -> float:
    torch.manual_seed(seed)
    encoder, decoder = picture_network(case)
    layer = make()
    optimizer = torch.optim.AdamW([p for m in (encoder, decoder, layer) for p in m.parameters()], lr=3e-4)
    for x in batches(train, 256, steps, seed):
        optimizer.zero_grad()
        quantized, loss = passed(layer, encoder(x))
        (error(decoder(quantized), x) + case.weight * loss).backward()
        optimizer.step()
    layer.eval()
    with torch.no_grad():
        return error(decoder(passed(layer, encoder(test))[0]), test).item()


def error(out: Tensor, x: Tensor) -> Tensor:
    return (out.clamp(-1, 1) - x).abs().mean()


# --- items: an autoencoder with residual codes, RQ-VAE ---------------------------------------------------------------


def items(case: Case, make: Layer, seed: int, train: Tensor, test: Tensor, steps: int) -> float:
    torch.manual_seed(seed)
    wide, hidden = train.shape[1], 128
    encoder = nn.Sequential(nn.Linear(wide, hidden), nn.ReLU(), nn.Linear(hidden, case.latent))
    decoder = nn.Sequential(nn.Linear(case.latent, hidden), nn.ReLU(), nn.Linear(hidden, wide))
    layer = make()
    optimizer = torch.optim.AdamW([p for m in (encoder, decoder, layer) for p in m.parameters()], lr=1e-3)
    for x in batches(train, 1024, steps, seed):
        optimizer.zero_grad()
        quantized, loss = passed(layer, encoder(x[None]))
        ((decoder(quantized) - x).square().mean() + case.weight * loss).backward()
        optimizer.step()
    layer.eval()
    with torch.no_grad():
        return ((decoder(passed(layer, encoder(test[None]))[0]) - test).square().mean() / test.var()).item()


# --- sound: DAC and EnCodec of transformers, their quantizers replaced -----------------------------------------------


def tones(seed: int, number: int) -> Tensor:
    """Clips (number, 1, SAMPLES) of a decaying tone with harmonics and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    time_ = torch.arange(SAMPLES) / RATE
    pitch = 80 + 320 * torch.rand(number, 1, 1, generator=generator)
    shares = torch.rand(number, 4, 1, generator=generator)
    harmonics = torch.arange(1, 5)[:, None]
    waves = (shares * torch.sin(2 * torch.pi * pitch * harmonics * time_)).sum(1, keepdim=True)
    decay = torch.exp(-time_ * 6 * torch.rand(number, 1, 1, generator=generator))
    return 0.2 * decay * waves + 0.005 * torch.randn(number, 1, SAMPLES, generator=generator)


def dac() -> nn.Module:
    config = DacConfig(
        encoder_hidden_size=8, decoder_hidden_size=64, downsampling_ratios=[2, 4, 4], upsampling_ratios=[4, 4, 2],
        n_codebooks=4, codebook_size=64, codebook_dim=4, sampling_rate=RATE, quantizer_dropout=0.0,
    )  # fmt: skip
    return DacModel(config)


def encodec() -> nn.Module:
    config = EncodecConfig(
        target_bandwidths=[6.0], sampling_rate=RATE, num_filters=8, hidden_size=16, codebook_dim=16, codebook_size=64,
        upsampling_ratios=[4, 4, 2], num_lstm_layers=1,
    )  # fmt: skip
    model = EncodecModel(config)
    # Its tables are zeros before weights are loaded: they start on what the untrained encoder gives.
    with torch.no_grad():
        rest = model.encoder(tones(99, 16)).movedim(1, -1).flatten(0, -2)
        for level in model.quantizer.layers:
            chosen = torch.randperm(len(rest))[: len(level.codebook.embed)]
            level.codebook.embed.copy_(rest[chosen])
            rest = rest - level.codebook.embed[torch.cdist(rest, level.codebook.embed).argmin(1)]
    return model


def sound(case: Case, change: Any, seed: int, train: Tensor, test: Tensor, steps: int) -> float:
    torch.manual_seed(seed)
    model = change(dac() if case.what.startswith("transformers DAC") else encodec()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for x in batches(train, 8, steps, seed):
        optimizer.zero_grad()
        out = model(x)
        # The loss of DAC is that of its quantizer; EnCodec has none, and passes no gradient to its encoder.
        loss = out.loss.mean() if getattr(out, "loss", None) is not None else 0.0
        (heard(out.audio_values, x) + 0.01 * loss).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return (heard(model(test).audio_values, test) / test.var()).item()


def heard(out: Tensor, x: Tensor) -> Tensor:
    out = out.reshape(len(x), -1)
    return (out - x[:, 0, : out.shape[1]]).square().mean()


# --- the cases -------------------------------------------------------------------------------------------------------


def straight() -> nn.Module:
    return svq.presets.straight(32, 256, channel_dim=1)


def straight_residual() -> nn.Module:
    return svq.presets.straight_residual(32, 256, num_quantizers=3)


def their_residual(**given: Any) -> nn.Module:
    return vqp.ResidualVQ(dim=32, codebook_size=256, num_quantizers=3, **given)


def their_simvq() -> nn.Module:
    mlp = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))
    return vqp.SimVQ(dim=32, codebook_size=256, channel_first=True, codebook_transform=mlp)


def cases() -> list[Case]:
    library, presets = "vector-quantize-pytorch", svq.presets
    found = [
        Case(
            pictures, lambda: vqp.VectorQuantize(dim=32, codebook_size=256, accept_image_fmap=True), straight,
            f"{library} `VectorQuantize`", "`straight`", weight=10.0,
        ),
        Case(
            pictures, lambda: vqp.FSQ([8, 6, 5]), lambda: presets.fsq(3, [8, 6, 5], channel_dim=1),
            f"{library} `FSQ`", "`fsq`", latent=3,
        ),
        Case(
            pictures, lambda: vqp.LFQ(dim=8, entropy_loss_weight=0.02, diversity_gamma=1.0, spherical=True),
            lambda: presets.bsq(8, 8, channel_dim=1), f"{library} `LFQ`, spherical", "`bsq`",
            latent=8, is_normalised=True,
        ),
        Case(
            pictures, their_simvq, lambda: presets.simvq(32, 256, channel_dim=1), f"{library} `SimVQ`", "`simvq`",
        ),
        Case(items, their_residual, straight_residual,
             f"RQ-VAE with {library} `ResidualVQ`", "`straight_residual`", times=5),
        Case(items, lambda: their_residual(kmeans_init=True), straight_residual,
             f"RQ-VAE with {library} `ResidualVQ(kmeans_init=True)`", "`straight_residual`", times=5),
        Case(sound, lambda net: net, svq.replace, "transformers DAC", "`svq.replace`"),
        Case(sound, lambda net: net, svq.replace, "transformers EnCodec", "`svq.replace`"),
    ]  # fmt: skip
    if vqt is not None:
        for name, given in (("`VectorQuant`", {}), ("affine and synchronised", {"sync_nu": 2.0, "affine_lr": 2.0})):
            make = functools.partial(vqt.VectorQuant, 32, num_codes=256, **given)
            found.append(Case(pictures, make, straight, f"vqtorch {name}", "`straight`", weight=10.0))
    return found


def read_pictures(file: Path, number: int) -> Tensor:
    """The first pictures of a file, (number, 1, 28, 28), in [-1, 1]."""
    rows = pq.read_table(file, columns=["image"]).slice(0, number)["image"].to_pylist()
    arrays = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L"), dtype=np.float32) for row in rows]
    return torch.from_numpy(np.stack(arrays))[:, None] / 127.5 - 1


def read_items(file: Path, column: str) -> tuple[Tensor, Tensor]:
    """Standardised vectors in a fixed order of chance: those to train on, those to test on."""
    vectors = torch.from_numpy(np.stack(pq.read_table(file)[column].to_numpy()).astype(np.float32))
    vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))]
    vectors = (vectors - vectors.mean(0)) / vectors.std(0)
    cut = int(SHARE * len(vectors))
    return vectors[:cut], vectors[cut:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--column", default="embedding", help="of the items")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="of pictures and sound; items take five times as many")
    parser.add_argument("--only", default="", help="part of the name of a case")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="vqtorch")
    data: dict[Any, tuple[Tensor, Tensor]] = {sound: (tones(0, CLIPS), tones(1, 64))}
    if options.images is not None:
        train, test = options.images / "train.parquet", options.images / "test.parquet"
        data[pictures] = read_pictures(train, TRAIN), read_pictures(test, TEST)
    if options.items is not None:
        data[items] = read_items(options.items, options.column)
    chosen = [case for case in cases() if case.run in data and options.only in case.what]
    lines, started = [], time.process_time()
    for case in tqdm(chosen):
        both = []
        for layer in (case.theirs, case.ours):
            values = [
                case.run(case, layer, seed, *data[case.run], case.times * options.steps)
                for seed in range(options.seeds)
            ]
            both.append((statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0))
        (theirs, theirs_spread), (ours, ours_spread) = both
        holds = "tied" if abs(ours / theirs - 1) < TIED else "holds" if ours < theirs else "**does not hold**"
        lines.append(
            f"| {case.what} | {theirs:.4f} ± {theirs_spread:.4f} | {case.by} | {ours:.4f} ± {ours_spread:.4f} | "
            f"{ours / theirs - 1:+.1%} | {holds} |"
        )
        tqdm.write(lines[-1])
    write(options, lines, time.process_time() - started)


def write(options: argparse.Namespace, rows: list[str], seconds: float) -> None:
    given = [f"--images {options.images.name}"] if options.images else []
    given += [f"--items {options.items.name}"] if options.items else []
    given += [f"--steps {options.steps}"]
    page = [
        "# The peers' own examples, and ours in the layer's place\n",
        f"{datetime.date.today()}, {hardware()}. `python benchmarks/peers.py {' '.join(given)}`, "
        f"seeds: {options.seeds}, {seconds / 60:.0f} CPU minutes; torch {torch.__version__.partition('+')[0]}.\n",
        "Error on test data after the same steps from the same network, mean ± standard deviation over the seeds; "
        "lower is better. What must hold: ours is not above theirs; below a difference of 0.1 % they are tied.\n",
        "| example | theirs | ours | error | difference | |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "peers.md"
    file.write_text("\n".join(page) + "\n", encoding="utf-8")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
