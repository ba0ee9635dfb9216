"""A vision transformer with a quantizer slot."""

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.models.base import ClassifierBase
from straightvq.models.transformer import TransformerBlock, check_heads, init_transformer_
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_choice, check_int


class ViT(ClassifierBase):
    """Patches to tokens, transformer blocks, and a quantizer after one of the blocks.

    The quantizer gets the tokens of the patches, in rows from the top left. The class token joins them after the
    quantizer, also in the network without one, so that nothing reaches the logits around the quantizer. Training and
    evaluation differ in the quantizer only. Shapes and errors are those of `ClassifierBase`, with tokens =
    (image_size / patch_size)^2.

    The defaults are ViT-Tiny with patches of 16 pixels. For 32 x 32 pixels: ``image_size=32, patch_size=4, layers=6,
    width=96``, with 8 x 8 tokens.

    Args:
        quantizer: any quantizer with ``channel_dim=-1`` and ``dim=width``, or None.
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        image_size: height and width of the images in pixels; the learned positions fit no other.
        patch_size: height and width of a patch in pixels; a divisor of ``image_size``.
        layers: transformer blocks, at least 1.
        width: channels of a token.
        heads: attention heads; a divisor of ``width``.
        position: "patches", or "block1" and so on: the quantizer gets the tokens after the patch embedding, or after
            this block. None is block ``layers // 2``; where arXiv 2305.08842 put its quantizer is not known.
        class_token: whether to classify from a class token, or from the mean of the tokens.

    Source: arXiv 2010.11929, in the size Ti of arXiv 2012.12877: 5,717,416 parameters for 1,000 classes at 224
    pixels. Deviations: the class token joins after the quantizer ("patches" without a quantizer is the published
    network); no dropout and no stochastic depth.

    Example:
        >>> import straightvq as svq, torch
        >>> model = ViT(svq.presets.vq_vae(24, 16), num_classes=10, image_size=32, patch_size=8, layers=2, width=24)
        >>> model.position, model(torch.randn(2, 3, 32, 32)).z.shape
        ('block1', torch.Size([2, 16, 24]))
    """

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 16,
        layers: int = 12,
        width: int = 192,
        heads: int = 3,
        position: str | None = None,
        class_token: bool = True,
    ) -> None:
        check_int(self, "num_classes", num_classes, 1)
        check_int(self, "in_channels", in_channels, 1)
        if check_int(self, "image_size", image_size, 1) % check_int(self, "patch_size", patch_size, 1):
            raise InvalidValueError(f"`ViT`: `patch_size` must divide image_size={image_size}. Got {patch_size}.")
        dim = self.dim_at(position, width, layers)
        check_heads(self, width, heads)
        check_bool(self, "class_token", class_token)
        position = _positions(layers)[layers // 2] if position is None else position

        stages: dict[str, nn.Module] = {}
        for name in _positions(layers):
            if name == "patches":
                stages[name] = _Patches(in_channels, image_size, patch_size, width)
            else:
                stages[name] = TransformerBlock(width, heads, norm_first=True)
            if class_token and name == position:
                stages["class_token"] = _ClassToken(width)
        stages["classifier"] = nn.Sequential(
            _First() if class_token else _Mean(), nn.LayerNorm(width, 1e-6), nn.Linear(width, num_classes)
        )
        super().__init__(quantizer, stages, position=position, dim=dim, channel_dim=-1, in_channels=in_channels)
        self.num_classes, self.layers, self.width, self.heads = num_classes, layers, width, heads
        self.image_size, self.patch_size, self.class_token = image_size, patch_size, class_token
        init_transformer_(self.stages)

    @classmethod
    def dim_at(cls, position: str | None = None, width: int = 192, layers: int = 12) -> int:
        """Channels that the quantizer gets at a position: ``width`` at all of them."""
        positions = _positions(check_int("ViT", "layers", layers, 1))
        if position is not None:
            check_choice("ViT", "position", position, positions)
        return check_int("ViT", "width", width, 1)


class _Patches(nn.Module):
    """Images -> tokens (B, tokens, width): a linear map of each patch, plus a learned position."""

    def __init__(self, in_channels: int, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.to_tokens = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.empty((image_size // patch_size) ** 2, width))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.image_size, self.image_size):
            raise InvalidValueError(
                f"`ViT`: height and width of `x` must be image_size={self.image_size}. Got {tuple(x.shape)}."
            )
        return self.to_tokens(x).flatten(2).transpose(1, 2) + self.positions


class _ClassToken(nn.Module):
    """Puts a learned token before all others. Like them it has a position of its own, as in the source."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(self.token + self.position).to(x.dtype).expand(len(x), 1, -1), x], dim=1)


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _positions(layers: int) -> list[str]:
    return ["patches", *(f"block{number}" for number in range(1, layers + 1))]
