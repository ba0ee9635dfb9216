"""Trains one network, and says what came of it: a binary classifier, or a tokenizer of digits."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import straightvq as svq
from straightvq.data import Images
from straightvq.models import Autoencoder, BinaryNet
from straightvq.studies.binary.estimators import METHODS
from straightvq.studies.binary.settings import Classifier, Tokenizer
from straightvq.studies.binary.watching import Indicators
from straightvq.studies.parts import Values

ACCURACY, VALIDATION, MSE, USED = "test accuracy", "validation accuracy", "test error", "codes used"
ERROR, WEIGHTS, ACTIVATIONS = "estimating error", "estimating error of the weights", "estimating error of the inputs"
SETTING = "setting"
READINGS = 10  # of a tokenizer's indicators

MOMENTUM, DECAY = 0.9, 1e-4  # of SGD, as in the paper
BATCH = 500  # images of a step in evaluation

QUANTIZERS: dict[str, Callable[[int, int, svq.SignEstimator], svq.Quantizer]] = {
    "LFQ": lambda dim, bits, estimator: svq.LookupFreeQuantizer(
        dim, bits, transform=svq.Projection(bits), estimator=estimator, channel_dim=1
    ),
    "BSQ": lambda dim, bits, estimator: svq.BinarySphericalQuantizer(
        dim, bits, transform=svq.Projection(bits), estimator=estimator, channel_dim=1
    ),
    "FSQ": lambda dim, bits, estimator: svq.FiniteScalarQuantizer(
        dim, [4] * (bits // 2), transform=svq.Projection(bits // 2), estimator=estimator, channel_dim=1
    ),
}


def train_classifier(settings: Classifier, source: str, name: str, seed: int) -> Values:
    """Rows of the series, the epoch and the value; the accuracy on the test set is that of the last epoch alone.

    Args:
        settings: network and training.
        source: of the images, as `straightvq.data.Images` takes it.
        name: of one of `METHODS`.
        seed: of start, order and validation split; networks of one seed differ in the estimator alone.
    """
    method, estimator = METHODS[name], METHODS[name].make()
    data = Images(
        source,
        settings.pixels,
        settings.batch,
        settings.images or None,
        seed=seed,
        channels=settings.channels,
        flip=settings.augment,
        crop_padding=4 if settings.augment else 0,
    )
    train, validation, test = data.train_dataloader(), _all(data, "val"), _all(data, "test")
    torch.manual_seed(seed)
    net = BinaryNet(
        data.num_classes, in_channels=settings.channels, width=settings.width, blocks=settings.blocks,
        estimator=estimator,
    )  # fmt: skip
    convolutions = net.convolutions()
    indicators = Indicators(
        {
            WEIGHTS: [conv.weight_signs for conv in convolutions],
            ACTIVATIONS: [conv.input_signs for conv in convolutions],
        },
        [conv.weight for conv in convolutions],
    )
    optimizer = torch.optim.SGD(net.parameters(), settings.lr, MOMENTUM, weight_decay=DECAY)
    steps = settings.epochs * len(train)
    schedule = _warm_cosine(optimizer, settings.warmup * len(train), steps)
    done, values = 0, []
    for epoch in range(1, settings.epochs + 1):
        for given in train:
            batch = data.on_after_batch_transfer(given, 0)
            method.follow(estimator, done / steps)
            optimizer.zero_grad()
            F.cross_entropy(net(_centred(batch["image"])).logits, batch["label"]).backward()
            indicators.see_gradients()
            optimizer.step()
            schedule.step()
            done += 1
        values += _rows(indicators.read(), epoch)
        values += _rows({VALIDATION: _accuracy(net, validation), SETTING: _setting(name, estimator)}, epoch)
    return [*values, [ACCURACY, settings.epochs, _accuracy(net, test)]]


def train_tokenizer(settings: Tokenizer, quantizer: str, name: str, seed: int) -> Values:
    """Rows of the series, the step and the value; the error on the test set, in units of its variance, is the last."""
    method, estimator = METHODS[name], METHODS[name].make()
    data = Images("digits", 8, BATCH, seed=seed, channels=1)
    train, test = (_all(data, split)["image"] for split in ("train", "test"))
    torch.manual_seed(seed)
    layer = QUANTIZERS[quantizer](settings.hidden, settings.bits, estimator)
    net = Autoencoder(layer, in_channels=1, hidden=settings.hidden, downsample=2, blocks=1)
    indicators = Indicators({ERROR: [layer]}, net.encoder.parameters())
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, settings.lr, DECAY))
    schedule = _warm_cosine(optimizer, settings.steps // 20, settings.steps)
    order = torch.Generator().manual_seed(seed)
    reading, values, unit = max(settings.steps // READINGS, 1), [], 1 / float(train.var())
    for step in range(settings.steps):
        method.follow(estimator, step / settings.steps)
        x = train[torch.randint(len(train), (settings.batch,), generator=order)]
        out = net(x)
        optimizer.zero_grad()
        (unit * F.mse_loss(out.reconstruction, x) + out.quantizer.loss).backward()
        indicators.see_gradients()
        optimizer.step()
        schedule.step()
        if (step + 1) % reading == 0:
            values += _rows({**indicators.read(), SETTING: _setting(name, estimator)}, step + 1)
    with torch.no_grad():
        out = net.eval()(test)
    used = len(out.quantizer.indices.unique()) / layer.codebook_size
    error = float(F.mse_loss(out.reconstruction, test) / test.var())
    return [*values, *_rows({MSE: error, USED: used}, settings.steps)]


def _all(data: Images, split: str) -> dict[str, Tensor]:
    loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
    batches = [data.on_after_batch_transfer({k: v for k, v in b.items() if k != "epoch"}, 0) for b in loader]
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("image", "label")}


def _centred(image: Tensor) -> Tensor:
    return (image - 0.5) / 0.25


@torch.no_grad()
def _accuracy(net: BinaryNet, split: dict[str, Tensor]) -> float:
    net.eval()
    logits = torch.cat([net(_centred(part)).logits for part in split["image"].split(BATCH)])
    net.train()
    return float((logits.argmax(1) == split["label"]).double().mean())


def _warm_cosine(optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
    """A rate that rises for the first steps and falls along a cosine to 0."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    return LambdaLR(optimizer, share)


def _setting(name: str, estimator: svq.SignEstimator) -> float:
    return float(getattr(estimator, METHODS[name].setting or "power"))


def _rows(values: dict[str, float], at: int) -> Values:
    return [[name, at, value] for name, value in values.items()]
