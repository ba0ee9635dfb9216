"""Fréchet distances between sets of images, in the features of a network that is named."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from straightvq.errors import InvalidValueError
from straightvq.models import ClassifierBase
from straightvq.nn.ranks import sum_over_ranks
from straightvq.runs import RunFolder, load_weights

MAX_WIDTH = 128  # the covariance of wider features needs more images than small test sets have
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class FeatureNetwork(nn.Module):
    """Base of the networks whose features are compared: images (B, C, H, W) in [0, 1] -> Float (B, num_features).

    Always in evaluation mode. Reports give ``name``: distances in different features cannot be compared.
    """

    name: str
    num_features: int

    def train(self, mode: bool = True) -> "FeatureNetwork":
        return super().train(False)


class ClassifierFeatures(FeatureNetwork):
    """The input of a trained classifier's last linear layer.

    ``classify`` takes images (B, C, H, W) in [0, 1] and calls ``model``, the classifier.

    Raises: ValueError if the features are wider than ``MAX_WIDTH``.

    Example:
        >>> from straightvq.models import ResNet18
        >>> model = ResNet18(None, num_classes=10, width=4, small_images=True)
        >>> ClassifierFeatures(model, model, "untrained")(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 32])
    """

    def __init__(self, classify: nn.Module, model: ClassifierBase, name: str) -> None:
        super().__init__()
        self.classify, self.name = classify, name
        self._last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        self.num_features = self._last.in_features
        if self.num_features > MAX_WIDTH:
            raise InvalidValueError(
                f"`ClassifierFeatures`: the last layer of `model` must have at most {MAX_WIDTH} inputs, so that their "
                f"covariance can be estimated. Got {self.num_features}; train a narrower {type(model).__name__}."
            )
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, run: str | os.PathLike[str]) -> "ClassifierFeatures":
        """The classifier in the best checkpoint, or else the last, of a run that `straightvq fit` made.

        Raises: ValueError if there is no such run, or none of a classifier, or its files cannot be read safely.
        """
        folder = RunFolder(Path(run), "FID")
        checkpoint = folder.checkpoint()
        task = folder.build_task()
        model = getattr(task, "model", None)
        if not isinstance(model, ClassifierBase):
            raise InvalidValueError(
                f'`FID`: {str(run)!r} is a run of {type(task).__name__}. Pass the run of a classifier, or "inception".'
            )
        load_weights(task, checkpoint, folder.owner)
        return cls(task, model, f"{type(model).__name__} of {folder.folder}")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with self._last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            self.classify(images)
        return seen[-1].flatten(1)


class InceptionFeatures(FeatureNetwork):
    """The 2,048 features of Inception v3 that published FIDs are computed in. Never downloads anything.

    Raises: ValueError if torch-fidelity is not installed or the weights are not in torch's cache.
    Source: arXiv 1706.08500, in the port of torch-fidelity that torchmetrics uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name, self.num_features = "Inception v3", 2048
        metric = FrechetInceptionDistance(self.num_features, feature_extractor_weights_path=str(self.file()))
        self.network = metric.inception
        self.eval().requires_grad_(False)

    @staticmethod
    def file() -> Path:
        """The file of the weights; raises if it or torch-fidelity is missing."""
        file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        has_port = find_spec("torch_fidelity") is not None
        if has_port and file.is_file():
            return file
        missing = f"there is no {file}" if has_port else "torch-fidelity is not installed"
        raise InvalidValueError(
            "`FID`: there are no features to compare images in. Pass the run of a classifier as `features`, such as "
            f"runs/features_digits; or provide Inception: {missing}."
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return cast(Tensor, self.network((images * 255).round().byte())).flatten(1)


def load_features(source: str | None) -> FeatureNetwork:
    """The features of the classifier whose run is in this folder; of Inception v3 for "inception" and None."""
    return InceptionFeatures() if source in (None, "inception") else ClassifierFeatures.load(source)


class FrechetDistances:
    """Distances of several named sets of images from one reference set: ``|m - n|^2 + tr(S + T - 2 (S T)^(1/2))``.

    m, n and S, T are means and covariances of the features, summed in float64 over batches and ranks (arXiv
    1706.08500, equation 6, by torchmetrics).

    Example:
        >>> class Mean(FeatureNetwork):
        ...     name, num_features = "mean colour", 1
        ...     def forward(self, images):
        ...         return images.mean((1, 2, 3))[:, None]
        >>> distances = FrechetDistances(Mean(), ["shifted"], torch.device("cpu"))
        >>> images = torch.linspace(0, 0.5, 11).view(-1, 1, 1, 1)
        >>> distances.add_reference(images)
        >>> distances.add("shifted", images + 0.5)
        >>> round(distances.compute()["shifted"].item(), 4)
        0.25
    """

    def __init__(self, features: FeatureNetwork, names: Iterable[str], device: torch.device) -> None:
        self.features = features.to(device)
        given = _Given(features.num_features)
        self._metrics = {name: FrechetInceptionDistance(given).to(device) for name in names}

    def add_reference(self, images: Tensor) -> None:
        """Add images of the reference set, Float (B, C, H, W) in [0, 1]."""
        found = self.features(images).double()
        for metric in self._metrics.values():
            metric.update(found, real=True)

    def add(self, name: str, images: Tensor) -> None:
        """Add images of the set of that name, Float (B, C, H, W) in [0, 1]."""
        self._metrics[name].update(self.features(images).double(), real=False)

    def compute(self) -> dict[str, Tensor]:
        """The distances by name, float64 scalars, the same on all ranks.

        Raises: ValueError for fewer than two images, which have no covariance.
        """
        for metric in cast(dict[str, Any], self._metrics).values():
            seen = torch.stack([metric.real_features_num_samples, metric.fake_features_num_samples])
            if sum_over_ranks(seen, None).min() < 2:
                raise InvalidValueError("`FID`: there must be at least two test images to compare. Got fewer.")
        # Rounding takes the distance of equal sets a little below 0.
        return {name: metric.compute().clamp(min=0) for name, metric in self._metrics.items()}


class _Given(nn.Identity):
    """Features that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
