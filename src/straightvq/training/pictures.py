"""The monitor's pictures of a network and of one codebook: as PNG files, and on TensorBoard where it listens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from straightvq.diagnostics import codebook_scatter, reconstruction_grid, save, usage_histogram

MAX_IMAGES = 12
# Embeddings that a scatter plot draws.
MAX_VECTORS = 2000


@contextlib.contextmanager
def undisturbed(module: lightning.LightningModule) -> Iterator[None]:
    """Evaluation mode while it lasts; every mode and the random-number state are as before afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            module.eval()
            yield
        finally:
            for child, mode in modes:
                child.training = mode


def images_of(batch: Any) -> Tensor | None:
    """The first images of a batch, copied, if it is a dictionary that has drawable ones."""
    images = batch.get("image") if isinstance(batch, dict) else None
    if not isinstance(images, Tensor) or not images.is_floating_point():
        return None
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3):
        return None
    return images[:MAX_IMAGES].detach().clone()


@torch.no_grad()
def reconstruct(module: lightning.LightningModule, images: Tensor) -> Tensor | None:
    """What the module's ``model`` makes of the images, if it is an autoencoder.

    That is: it has ``encode`` and ``decode``, and gives the reconstruction alone or as first item of a tuple.
    """
    model = getattr(module, "model", None)
    if not callable(model) or not all(callable(getattr(model, name, None)) for name in ("encode", "decode")):
        return None
    with undisturbed(module), torch.autocast(images.device.type, enabled=False):
        out = model(images.to(module.device))
    first = out[0] if isinstance(out, tuple) else out
    return first if isinstance(first, Tensor) and first.shape == images.shape else None


class Album:
    """Where pictures go.

    Args:
        trainer: whose loggers get them.
        folder: where the PNG files are written.
        step: training step of the pictures.
    """

    def __init__(self, trainer: lightning.Trainer, folder: Path, step: int) -> None:
        self.trainer = trainer
        self.folder = folder
        self.step = step

    def reconstructions(self, images: Tensor, reconstructed: Tensor) -> None:
        figure = reconstruction_grid(
            images.float(), ("reconstruction", reconstructed.float()), title=f"Reconstructions at step {self.step:,}"
        )
        self._add("reconstructions", figure)

    def codebook(self, name: str, z: Tensor, codes: Tensor | None, counts: Tensor) -> None:
        """Embeddings (n, d) beside codes (k, d), where there is a table, and the counts (k,) of all embeddings."""
        title = f"{name} at step {self.step:,}"
        if codes is not None and len(z):
            self._add(f"codebook-{name}", codebook_scatter(None, z, codes, counts, title=title))
        self._add(f"usage-{name}", usage_histogram(None, counts, title=title))

    def _add(self, name: str, figure: Any) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        save(figure, self.folder / f"{name}-{self.step:08d}.png")
        boards = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards:
            return
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # A picture, not a figure: TensorBoard's own conversion of figures imports pyplot.
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        for board in boards:
            board.experiment.add_image(f"pictures/{name}", pixels, self.step, dataformats="HWC")
