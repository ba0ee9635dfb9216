"""Behind the interfaces of the quantizers of EnCodec, DAC and Mimi in transformers."""

import math
from typing import Any

import torch
from torch import Tensor

from straightvq.interop.convert import import_module
from straightvq.interop.live.adapter import Adapter, watching
from straightvq.interop.source import Imported
from straightvq.nn import ResidualQuantizer


class EncodecQuantizer(Adapter):
    """``encode`` of (b, c, t) to codes (levels, b, t), ``decode`` back; levels by bandwidth."""

    def __init__(self, imported: Imported, frame_rate: float) -> None:
        super().__init__(imported)
        self.frame_rate = frame_rate
        self.codebook_size = imported.quantizer.codebook_size
        self.num_quantizers = imported.quantizer.num_quantizers

    @classmethod
    def of(cls, module: Any) -> "EncodecQuantizer":
        return cls(import_module("encodec", module.state_dict(), channel_dim=1), module.frame_rate)

    def get_num_quantizers_for_bandwidth(self, bandwidth: float | None = None) -> int:
        """Levels that fit into so many kilobits a second; all for None and for 0."""
        if not bandwidth or bandwidth < 0:
            return self.num_quantizers
        return max(1, math.floor(bandwidth * 1000 / (math.log2(self.codebook_size) * self.frame_rate)))

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        indices = self.quantizer.encode(embeddings)
        return indices[..., : self.get_num_quantizers_for_bandwidth(bandwidth)].movedim(-1, 0)

    def decode(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes.movedim(0, -1))


class MimiQuantizer(Adapter):
    """``encode`` of (b, c, t) to codes (levels, b, t), ``decode`` of codes (b, levels, t)."""

    def __init__(self, imported: Imported, num_semantic_quantizers: int, frame_rate: float) -> None:
        super().__init__(imported)
        self.num_semantic_quantizers = num_semantic_quantizers
        self.max_num_quantizers = imported.quantizer.num_quantizers
        self.num_acoustic_quantizers = self.max_num_quantizers - num_semantic_quantizers
        self.codebook_size, self.frame_rate = imported.quantizer.codebook_size, frame_rate

    @classmethod
    def of(cls, module: Any) -> "MimiQuantizer":
        imported = import_module("mimi", module.state_dict(), channel_dim=1)
        return cls(imported, module.num_semantic_quantizers, module.frame_rate)

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        return self.quantizer.encode(embeddings)[..., :num_quantizers].movedim(-1, 0)

    def decode(self, codes: Tensor) -> Tensor:
        return self.quantizer.decode(codes.movedim(1, -1))


class DacQuantizer(Adapter):
    """``quantized, codes, latents, commitment, codebook = layer(x, n_quantizers=None)``, codes (b, levels, t).

    In training a share of the samples keeps some levels only, as there; levels left out have code -1 and no loss.
    """

    quantizer: ResidualQuantizer

    def __init__(self, imported: Imported, dropout: float) -> None:
        super().__init__(imported)
        self.quantizer_dropout = dropout
        self.n_codebooks = imported.quantizer.num_quantizers

    @classmethod
    def of(cls, module: Any) -> "DacQuantizer":
        return cls(import_module("dac", module.state_dict(), channel_dim=1), float(module.quantizer_dropout))

    def from_codes(self, audio_codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized (b, c, t), the codes' own vectors (b, levels * width, t), and the codes again."""
        levels = zip(self.quantizer.codebooks(), audio_codes.unbind(1), strict=False)
        latents = torch.cat([book.codes()[indices].movedim(-1, 1) for book, indices in levels], 1)
        return self.quantizer.decode(audio_codes.movedim(1, -1)), latents, audio_codes

    def forward(
        self, hidden_state: Tensor, n_quantizers: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        batch, _, time = hidden_state.shape
        number = self.n_codebooks if self.training or n_quantizers is None else min(n_quantizers, self.n_codebooks)
        kept: Tensor | int | None = None if number == self.n_codebooks else number
        if self.training and (dropped := int(batch * self.quantizer_dropout)):
            kept = torch.full((batch,), self.n_codebooks)
            kept[:dropped] = torch.randint(1, self.n_codebooks + 1, (dropped,))
            kept = kept.to(hidden_state.device)
        with watching(self.quantizer.levels) as steps:
            out = self.quantizer(hidden_state, None, kept)
        latents = torch.cat([step.z.view(batch, time, -1) for step in steps[:number]], 2).movedim(-1, 1)
        losses = (out.terms[name].expand(batch) for name in ("commitment", "codebook"))
        return out.quantized, out.indices[..., :number].movedim(-1, 1), latents, *losses
