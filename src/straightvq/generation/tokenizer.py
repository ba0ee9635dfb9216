"""A trained autoencoder in its role as a tokenizer: frozen, loaded from its run, its codes remembered."""

import contextlib
import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.io import replacing
from straightvq.models import AutoencoderBase
from straightvq.nn.part import check_part
from straightvq.runs import KEPT, RunFolder, load_weights

__all__ = ["Tokenizer"]

# Images that are encoded at once.
_BATCH = 256


class Tokenizer:
    """Images to grids of tokens and back, by an autoencoder that never changes.

    No ``nn.Module``, on purpose: a task that holds one neither trains it, nor switches it to training mode, nor
    writes it into its checkpoints. ``fingerprint`` in a checkpoint tells whether a tokenizer is the one it was
    trained with.

    Args:
        model: the autoencoder, with one quantizer of one level. It is frozen and put into evaluation mode.
        cache: folder of remembered codes; None for none.

    Attributes:
        codebook_size: number of codes.
        in_channels: of the images.
        downsample: pixels of a token's side.
        fingerprint: hash of the class of the network and all its weights.

    Raises:
        ValueError: if the quantizer has no codebook or several levels.

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
        size = getattr(model.quantizer, "codebook_size", None)
        if not isinstance(size, int) or getattr(model.quantizer, "is_composite", False):
            raise InvalidValueError(
                "`Tokenizer`: `model` must have a quantizer with one codebook, one token per position. "
                f"Got {type(model.quantizer).__name__}."
            )
        self.model.eval().requires_grad_(False)
        self.cache = cache
        self.codebook_size = size
        self.in_channels, self.downsample = model.in_channels, model.downsample
        self.fingerprint = _fingerprint(model)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The autoencoder of a run that `straightvq fit` made.

        Args:
            path: the run's folder, for its best checkpoint or else its last; or one of its checkpoints. Codes are
                remembered in the folder's ``cache``.

        Raises:
            ValueError: if there is no run, or none of an autoencoder, or its files cannot be read safely.
        """
        folder, name = Path(path), None
        if folder.suffix == ".ckpt":
            folder, name = folder.parent, folder.stem
            folder = folder.parent if folder.name == KEPT else folder
        run = RunFolder(folder, "Tokenizer")
        checkpoint = run.checkpoint(name)
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
        load_weights(task, checkpoint, "Tokenizer")
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
        """Tokens of a whole set, from the cache if these very images were encoded by these very weights.

        The cache's key is a hash of network, weights and pixels, so that it cannot be stale. A file that is damaged is
        made anew, a folder that cannot be written is done without.

        Args:
            images: UInt8 (n, C, H, W).
            device: where to encode.

        Returns:
            Int32 (n, h, w), on the CPU.
        """
        if len(images) == 0:
            return torch.empty(0, 0, 0, dtype=torch.int32)
        file = self._cache_file(images)
        if file is not None and (tokens := _read(file, len(images))) is not None:
            return tokens
        self.to(device)
        parts = [self.encode(part.to(device).float() / 255).int().cpu() for part in images.split(_BATCH)]
        tokens = torch.cat(parts)
        if file is not None:
            _write(file, tokens)
        return tokens

    def _cache_file(self, images: Tensor) -> Path | None:
        if self.cache is None:
            return None
        # The weights alone do not say all: a quantizer's distance, for one, is a setting.
        key = hashlib.sha256(f"{self.fingerprint} {self.model} {tuple(images.shape)}".encode())
        key.update(images.contiguous().numpy().data)
        return self.cache / f"tokens-{key.hexdigest()[:32]}.safetensors"


def _fingerprint(model: AutoencoderBase) -> str:
    """Of the class and all weights, bit by bit."""
    key = hashlib.sha256(type(model).__qualname__.encode())
    for name, value in sorted(model.state_dict().items()):
        key.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        key.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return key.hexdigest()


def _read(file: Path, number: int) -> Tensor | None:
    if not file.is_file():
        return None
    try:
        tokens = load_file(file).get("tokens")
    except (SafetensorError, OSError):
        return None
    sound = tokens is not None and tokens.dtype == torch.int32 and tokens.ndim == 3 and len(tokens) == number
    return tokens if sound else None


def _write(file: Path, tokens: Tensor) -> None:
    """All or nothing: under another name first, then renamed."""
    # Read-only, or full: the next run encodes again.
    with contextlib.suppress(OSError, SafetensorError), replacing(file) as unfinished:
        save_file({"tokens": tokens.contiguous()}, unfinished)
