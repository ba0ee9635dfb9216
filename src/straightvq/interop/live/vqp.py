"""Behind the interfaces of vector-quantize-pytorch 1.32."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from straightvq.interop.convert import import_module
from straightvq.interop.live.adapter import (
    Adapter,
    refuse,
    refuse_calls,
    set_weights,
    watching,
    zero_in_evaluation,
)
from straightvq.interop.source import Imported
from straightvq.nn import DeadCodeReset, KMeansInit, QuantizerOutput, ResidualQuantizer, RotationTrick

# What has no part here, of `VectorQuantize`, of its codebook and of `ResidualVQ`.
_OFF = (
    "directional_reparam", "has_codebook_orthogonal_loss", "has_codebook_diversity_loss", "in_place_codebook_optimizer",
    "commitment_use_cross_entropy_loss", "sync_update_v",
)  # fmt: skip
_OFF_CODEBOOK = ("affine_param", "vq_bridge")
_OFF_RESIDUAL = ("implicit_neural_codebook", "diveq", "beam_size", "quant_grad_frac")
_RESET = (
    "codes whose weight falls below the threshold are replaced there; here those are that were not used in 20 steps."
)


def _import(layout: str, module: Any, layers: Sequence[Any], **settings: Any) -> Imported:
    """The quantizer of a module that holds these `VectorQuantize` layers, with their settings."""
    first, book = layers[0], layers[0]._codebook
    for layer in layers:
        sampling = layer._codebook.gumbel_sample.keywords
        refuse(layer, {name: getattr(layer, name) for name in _OFF} | sampling)
        refuse(layer, {name: getattr(layer._codebook, name) for name in _OFF_CODEBOOK})
    # A codebook that waits for its first batch has no codes yet: any will do until the init.
    waits = not bool(book.initted)
    state = {name: torch.ones_like(v) if name.endswith("initted") else v for name, v in module.state_dict().items()}
    by_gradient = book.learnable_codebook
    imported = import_module(
        layout, state, unit_norm=first.use_cosine_sim, by_gradient=by_gradient, decay=book.decay, **settings
    )
    weight = first.commitment_weight if first.has_commitment_loss else 0.0
    set_weights(imported.quantizer, {"commitment": weight} | ({"codebook": weight} if by_gradient else {}))
    for own in imported.quantizer.codebooks():
        if waits:
            own.init = KMeansInit(book.kmeans_iters)
            own.filled.zero_()
        if book.threshold_ema_dead_code > 0:
            own.reset = DeadCodeReset()
            own.reset.bind(*own.codes().shape)
    if first.freeze_codebook:
        imported.quantizer.freeze()
    notes = (*imported.notes, _RESET) if book.threshold_ema_dead_code > 0 else imported.notes
    return replace(imported, notes=notes)


class VectorQuantize(Adapter):
    """Called as the library's: ``quantize, indices, loss = layer(x, mask=None)``; the loss is 0 in evaluation."""

    def __init__(self, imported: Imported, *, dim: int, heads: int) -> None:
        super().__init__(imported)
        self.dim, self.heads, self.codebook_size = dim, heads, imported.quantizer.codebook_size

    @classmethod
    def of(cls, module: Any) -> "VectorQuantize":
        refuse(module, {"accept_3d_fmap": module.accept_3d_fmap})
        is_told = module.has_projections or module.separate_codebook_per_head
        channel_dim = 1 if module.accept_image_fmap or not module.channel_last else -1
        settings = {"dim": None if is_told else module.dim, "rotation_trick": module.rotation_trick}
        imported = _import("vqp", module, [module], channel_dim=channel_dim, **settings)
        return cls(imported, dim=module.dim, heads=module.heads)

    @property
    def codebook(self) -> Tensor:
        codes = [book.codes() for book in self.quantizer.codebooks()]
        return codes[0] if len(codes) == 1 else torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        return self.quantizer.decode(indices)

    def forward(self, x: Tensor, mask: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        refuse_calls(self, options)
        out: QuantizerOutput = self.quantizer(x, mask)
        return out.quantized, out.indices, zero_in_evaluation(self, out.loss)


class ResidualVQ(Adapter):
    """Called as the library's: ``quantized, indices, losses = layer(x, mask=None)``, a loss for each level."""

    quantizer: ResidualQuantizer

    def __init__(self, imported: Imported, *, dropout: tuple[int, int] | None) -> None:
        super().__init__(imported)
        self._dropout = dropout
        self.num_quantizers = self.quantizer.num_quantizers
        self.codebook_size = self.quantizer.codebook_size

    @classmethod
    def of(cls, module: Any) -> "ResidualVQ":
        refuse(module, {name: getattr(module, name) for name in _OFF_RESIDUAL}, (None, False, 0, 0.0, 1))
        channel_dim = 1 if module.accept_image_fmap else -1
        imported = _import("vqp.residual", module, module.layers, channel_dim=channel_dim)
        cut = module.quantize_dropout_cutoff_index, module.quantize_dropout_multiple_of
        return cls(imported, dropout=cut if module.quantize_dropout else None)

    @property
    def codebooks(self) -> Tensor:
        return torch.stack([book.codes() for book in self.quantizer.codebooks()])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        return self.quantizer.decode(indices)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        refuse_calls(self, options)
        kept = self._kept(rand_quantize_dropout_fixed_seed) if self.training and self._dropout else None
        with watching(self.quantizer.levels) as steps:
            out = self.quantizer(x, mask, kept)
        losses = torch.stack([step.loss for step in steps])
        return out.quantized, out.indices, zero_in_evaluation(self, losses)

    def _kept(self, seed: int | None) -> int | None:
        """How many levels the whole batch keeps, drawn as in the library; None for all."""
        lowest, multiple = self._dropout or (0, 1)
        seed = int(torch.randint(0, 10_000, ())) if seed is None else seed
        last = random.Random(seed).randrange(lowest, self.num_quantizers)
        kept = -(-(last + 1) // multiple) * multiple
        return None if kept >= self.num_quantizers else kept


class SimVQ(Adapter):
    """Called as the library's: ``quantized, indices, loss = layer(x)``, the loss in evaluation too."""

    @classmethod
    def of(cls, module: Any) -> "SimVQ":
        channel_dim = 1 if module.channel_first else -1
        imported = import_module("vqp.simvq", module.state_dict(), channel_dim=channel_dim)
        weight = module.commitment_weight
        terms = {"commitment": weight * module.input_to_quantize_commit_loss_weight, "codebook": weight}
        set_weights(imported.quantizer, terms)
        if module.rotation_trick:
            imported.quantizer.estimator = RotationTrick(max_gain=None)
        return cls(imported)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        return self.quantizer.decode(indices)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out: QuantizerOutput = self.quantizer(x)
        return out.quantized, out.indices, out.loss


class FSQ(Adapter):
    """Called as the library's: ``quantized, indices = layer(z)``; images and video have their channels on axis 1."""

    def __init__(self, imported: Imported, *, channel_first: bool) -> None:
        super().__init__(imported)
        self.channel_first = channel_first
        self.dim, self.codebook_size = imported.quantizer.dim, imported.quantizer.codebook_size

    @classmethod
    def of(cls, module: Any) -> "FSQ":
        names = ("noise_dropout", "bound_hard_clamp", "orthogonal_rotation")
        refuse(module, {name: getattr(module, name) for name in names})
        levels, symmetric = module._levels.tolist(), module.preserve_symmetry
        dim = None if module.has_projections else module.dim
        imported = import_module("vqp.fsq", module.state_dict(), levels=levels, symmetric=symmetric, dim=dim)
        return cls(imported, channel_first=module.channel_first)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Vectors of the indices, their channels on axis 1 where the forward has them there."""
        rows = self.quantizer.decode(indices)
        return rows.movedim(-1, 1) if self.channel_first or rows.ndim >= 4 else rows

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        out = _channels_moved(self.quantizer, z, self.channel_first or z.ndim >= 4)
        return out.quantized, out.indices.int()


class LFQReturn(NamedTuple):
    """What the library's ``LFQ`` returns."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LFQ(Adapter):
    """Called as the library's: ``quantized, indices, entropy_aux_loss = layer(x)``; the loss is 0 in evaluation."""

    def __init__(self, imported: Imported, *, channel_first: bool | None) -> None:
        super().__init__(imported)
        self.channel_first = channel_first
        self.dim, self.codebook_size = imported.quantizer.dim, imported.quantizer.codebook_size

    @classmethod
    def of(cls, module: Any) -> "LFQ":
        names = ("soft_clamp_input_value", "experimental_softplus_entropy_loss", "orthogonal_rotation")
        refuse(module, {name: getattr(module, name) for name in names})
        refuse(module, {"cosine_sim_project_in": hasattr(module.project_in, "scale")})
        refuse(module, {"straight_through_activation": type(module.activation) is not torch.nn.Identity})
        refuse(module, {"codebook_scale": module.codebook_scale}, (1.0,))
        dim = None if module.has_projections else module.dim
        layout = "vqp.bsq" if module.spherical else "vqp.lfq"
        imported = import_module(layout, module.state_dict(), dim=dim, commitment=module.commitment_loss_weight)
        set_weights(imported.quantizer, {"entropy": module.entropy_loss_weight})
        for part in imported.quantizer.modules():
            if hasattr(part, "diversity"):
                part.diversity = module.diversity_gamma
        return cls(imported, channel_first=module.channel_first)

    def forward(self, x: Tensor, **options: Any) -> LFQReturn:
        refuse_calls(self, options)
        is_first = x.ndim >= 4 if self.channel_first is None else self.channel_first
        out = _channels_moved(self.quantizer, x, is_first)
        return LFQReturn(out.quantized, out.indices, zero_in_evaluation(self, out.loss))


def _channels_moved(quantizer: Any, z: Tensor, is_first: bool) -> QuantizerOutput:
    out: QuantizerOutput = quantizer(z.movedim(1, -1) if is_first else z)
    return out._replace(quantized=out.quantized.movedim(-1, 1).contiguous()) if is_first else out
