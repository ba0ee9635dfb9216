"""Behind the interfaces of VQGAN's quantizers, in diffusers and taming-transformers, and of VQ-VAE's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.interop.convert import import_module
from straightvq.interop.live.adapter import Adapter, refuse_calls, set_weights
from straightvq.interop.source import Imported


class VQGANQuantizer(Adapter):
    """Called as the libraries': ``z_q, loss, (None, None, indices) = layer(z)``, channels on axis 1."""

    def __init__(self, imported: Imported, *, is_flat: bool) -> None:
        super().__init__(imported)
        self._is_flat = is_flat
        self.n_e = self.re_embed = imported.quantizer.codebook_size

    @classmethod
    def of(cls, module: Any) -> "VQGANQuantizer":
        imported = import_module("diffusers", module.state_dict(), channel_dim=1, unit_norm=False)
        weights = (1.0, module.beta) if module.legacy else (module.beta, 1.0)
        set_weights(imported.quantizer, dict(zip(("commitment", "codebook"), weights, strict=True)))
        return cls(imported, is_flat=not module.sane_index_shape)

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """Codes of flat indices; with a shape (b, h, w, c) as (b, c, h, w)."""
        if shape is None:
            return self.quantizer.decode(indices.reshape(-1, 1)).squeeze(2)
        return self.quantizer.decode(indices.reshape(tuple(shape)[:-1]))

    def forward(self, z: Tensor, **options: Any) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        refuse_calls(self, options)
        out = self.quantizer(z)
        indices = out.indices.flatten() if self._is_flat else out.indices
        return out.quantized, out.loss, (None, None, indices)


class VQVAEQuantizer(Adapter):
    """Called as in zalandoresearch's notebook: ``loss, quantized, perplexity, encodings = layer(z)``, NCHW.

    Perplexity is that of the batch, and encodings are one-hot rows (n, codes), as there.
    """

    @classmethod
    def of(cls, module: Any) -> "VQVAEQuantizer":
        decay = getattr(module, "_decay", None)
        imported = import_module("vqvae", module.state_dict(), channel_dim=1, decay=decay)
        set_weights(imported.quantizer, {"commitment": module._commitment_cost})
        return cls(imported)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out = self.quantizer(z)
        encodings = F.one_hot(out.indices.flatten(), self.quantizer.codebook_size).to(z.dtype)
        perplexity = torch.special.entr(encodings.mean(0)).sum().exp()
        return out.loss, out.quantized, perplexity, encodings
