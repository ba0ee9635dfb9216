"""A trained autoencoder in its role as a tokenizer: frozen, loaded from its run, its codes remembered."""

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from straightvq.checkpoints import fingerprint
from straightvq.errors import InvalidValueError
from straightvq.io import replacing
from straightvq.models import AutoencoderBase
from straightvq.models.maskgit import MOST_CODES
from straightvq.nn.part import check_part
from straightvq.runs import load_weights, open_run

_BATCH = 256  # images that are encoded at once


class Tokenizer:
    """Images to grids of tokens and back, by an autoencoder that never changes.

    It is no ``nn.Module``, so that a task that holds one neither trains it, nor switches it to training mode, nor
    writes it into its checkpoints; these remember its fingerprint. Its quantizer may have a codebook or none.

    Args:
        model: the autoencoder; it is frozen and put into evaluation mode.
        cache: folder of remembered codes; None for none.

    Attributes:
        codebook_size: number of codes.
        in_channels: channels of the images.
        downsample: side of a token in pixels.
        fingerprint: hash of the network's class and all its weights.

    Raises:
        ValueError: if the model's quantizer gives several tokens per position, as composites do, or has more than
            16 million codes.

    Example:
        >>> import straightvq as svq
        >>> from straightvq.models import Autoencoder
        >>> tokenizer = Tokenizer(Autoencoder(svq.presets.vq_vae(4, 16, channel_dim=1), hidden=8))
        >>> tokens = tokenizer.encode(torch.rand(2, 3, 8, 8))
        >>> tokens.shape, tokenizer.decode(tokens).shape
        (torch.Size([2, 2, 2]), torch.Size([2, 3, 8, 8]))
    """

    def __init__(self, model: AutoencoderBase, cache: Path | None = None) -> None:
        self.model: AutoencoderBase = check_part(self, "model", model, AutoencoderBase)
        quantizer = model.quantizer
        if quantizer.is_composite:
            raise InvalidValueError(
                "`Tokenizer`: `model` must have a quantizer that gives one token per position. "
                f"Got {type(quantizer).__name__} with {quantizer.num_quantizers}. Train the autoencoder with a single "
                "quantizer, such as VectorQuantizer or FiniteScalarQuantizer; MaskGIT predicts no levels or groups."
            )
        if quantizer.codebook_size > MOST_CODES:
            raise InvalidValueError(
                f"`Tokenizer`: `model` must have a quantizer with at most {MOST_CODES:,} codes, because the "
                f"transformer has a row for each. Got {type(quantizer).__name__} with {quantizer.codebook_size:,}. "
                "Train the autoencoder with fewer bits or levels."
            )
        self.model.eval().requires_grad_(False)
        self.cache = cache
        self.codebook_size = quantizer.codebook_size
        self.in_channels, self.downsample = model.in_channels, model.downsample
        self.fingerprint = fingerprint(model)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The autoencoder of a run's folder (its best checkpoint, or else the last), or of one of its checkpoints.

        The folder's ``cache`` remembers codes. A ValueError refuses other runs, and files that cannot be read safely.
        """
        run, checkpoint = open_run(Path(path), "Tokenizer")
        folder = run.folder
        task = run.build_task()
        model = getattr(task, "model", None)
        if not isinstance(model, AutoencoderBase):
            raise InvalidValueError(
                f"`Tokenizer`: {str(folder)!r} is a run of {type(task).__name__}. Pass the run of an autoencoder, such "
                "as `straightvq fit --config digits` makes."
            )
        if not getattr(task, "quantize", True):
            raise InvalidValueError(
                f"`Tokenizer`: {str(folder)!r} was trained with `quantize: false`, so its codes mean nothing."
            )
        load_weights(task, checkpoint, run.owner)
        return cls(model, folder / "cache")

    def to(self, device: torch.device) -> "Tokenizer":
        """Moves the network; like ``nn.Module.to``, in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images, Float (B, C, H, W) in [0, 1] -> tokens, Int64 (B, h, w)."""
        with torch.autocast(images.device.type, enabled=False):
            return self.model.tokenize(images.float())

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens, Int (B, h, w) -> images, Float (B, C, H, W), clamped to [0, 1]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self.model.detokenize(tokens).clamp(0, 1)

    def encode_all(self, images: Tensor, device: torch.device) -> Tensor:
        """Images, UInt8 (n, C, H, W) -> tokens, Int32 (n, h, w) on the CPU, encoded on ``device`` or from the cache.

        A hash of network, weights and pixels is the cache's key, so that it cannot be stale. A damaged file is made
        anew; a folder that cannot be written is left alone.
        """
        if len(images) == 0:
            return torch.empty(0, 0, 0, dtype=torch.int32)
        file = self._cache_file(images)
        tokens = None if file is None else _read(file)
        if tokens is None or len(tokens) != len(images):
            self.to(device)
            parts = [self.encode(part.to(device).float() / 255).int().cpu() for part in images.split(_BATCH)]
            tokens = torch.cat(parts)
            if file is not None:
                # A folder that is read-only, or full: the next run encodes again.
                with contextlib.suppress(OSError, SafetensorError), replacing(file) as unfinished:
                    save_file({"tokens": tokens}, unfinished)
        return tokens

    def _cache_file(self, images: Tensor) -> Path | None:
        if self.cache is None:
            return None
        # Settings, such as the quantizer's distance, are not among the weights.
        key = hashlib.sha256(f"{self.fingerprint} {self.model} {tuple(images.shape)}".encode())
        key.update(images.contiguous().numpy().data)
        return self.cache / f"tokens-{key.hexdigest()[:32]}.safetensors"


def _read(file: Path) -> Tensor | None:
    """The tokens in a file, None if there are none."""
    try:
        tokens = load_file(file).get("tokens")
    except (SafetensorError, OSError):
        return None
    return tokens if tokens is not None and tokens.dtype == torch.int32 and tokens.ndim == 3 else None
