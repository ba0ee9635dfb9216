"""Fréchet distances: the formula, and which network's features."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from straightvq.diagnostics.fid import (
    INCEPTION_FILE,
    ClassifierFeatures,
    FeatureNetwork,
    FrechetDistances,
    InceptionFeatures,
    load_features,
)
from straightvq.models import AlexNet, ResNet18


class Pixels(FeatureNetwork):
    """The pixels themselves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.name, self.num_features = "pixels", num_features

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it stands, with scipy's matrix root."""
    s, t = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    root = scipy.linalg.sqrtm(s @ t).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s + t - 2 * root))


def draw(rng: np.random.Generator, number: int, width: int, shift: float, scale: float) -> np.ndarray:
    return rng.normal(size=(number, width)) @ (scale * rng.normal(size=(width, width))) + shift


def as_images(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x)[:, None, None]


def between(reference: Tensor, images: Tensor) -> float:
    """The distance of two sets in their pixels."""
    distances = FrechetDistances(Pixels(images[0].numel()), ["set"], torch.device("cpu"))
    distances.add_reference(reference)
    distances.add("set", images)
    return distances.compute()["set"].item()


@pytest.mark.parametrize("width", [1, 4, 16])
def test_distance_is_the_formula(width: int) -> None:
    rng = np.random.default_rng(0)
    reference = draw(rng, 500, width, 0.0, 1.0)
    sets = {"near": draw(rng, 300, width, 0.1, 1.0), "far": draw(rng, 400, width, 5.0, 3.0)}
    distances = FrechetDistances(Pixels(width), sets, torch.device("cpu"))
    for part in as_images(reference).split(64):
        distances.add_reference(part)
    for name, x in sets.items():
        for part in as_images(x).split(100):
            distances.add(name, part)
    for name, value in distances.compute().items():
        assert value.item() == pytest.approx(frechet(reference, sets[name]), rel=1e-6)


def test_known_gaussians() -> None:
    """Diagonal covariances: |m - n|^2 + sum (s - t)^2 = 4 + (1 - 3)^2 + (2 - 2)^2 = 8, in the limit."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(200_000, 2)) * [1, 2]
    other = rng.normal(size=(200_000, 2)) * [3, 2] + [2, 0]
    assert between(as_images(reference), as_images(other)) == pytest.approx(8, rel=0.02)


def test_a_set_is_at_no_distance_from_itself() -> None:
    images = as_images(np.random.default_rng(0).normal(size=(50, 8)))
    assert 0 <= between(images, images) < 1e-6


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match="`FID`: there must be at least two test images to compare"):
        between(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1))


def test_features_are_what_the_last_layer_gets() -> None:
    torch.manual_seed(0)
    model = ResNet18(None, num_classes=3, width=4, small_images=True)
    features = ClassifierFeatures(model, model, "mine").train()
    x = torch.rand(4, 3, 16, 16)
    found = features(x)
    assert found.shape == (4, 32)
    last = model.stages.classifier[-1]
    assert torch.allclose(last(found), model.eval()(x).logits)
    assert not features.training
    assert not any(p.requires_grad for p in features.parameters())


def test_wide_features_are_refused() -> None:
    model = AlexNet(None, num_classes=3, width=4, small_images=True)
    with pytest.raises(ValueError, match=r"at most 128 inputs.* Got 256; train a narrower AlexNet"):
        ClassifierFeatures(model, model, "mine")


def test_inception_is_found_or_asked_for_but_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("straightvq.diagnostics.fid.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`FID`: there are no features .* Pass the run of a classifier as `features`"):
        load_features(None)
    with pytest.raises(ValueError, match=r"torch-fidelity is not installed"):
        InceptionFeatures.file()
    monkeypatch.setattr("straightvq.diagnostics.fid.find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"there is no .*weights-inception"):
        load_features("inception")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / INCEPTION_FILE).touch()
    assert InceptionFeatures.file() == tmp_path / "checkpoints" / INCEPTION_FILE


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`FID`: there is no folder '.*nowhere'"):
        load_features(str(tmp_path / "nowhere"))
