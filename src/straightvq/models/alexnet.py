"""AlexNet with a quantizer slot."""

from torch import nn

from straightvq.models.base import ClassifierBase
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_choice, check_float, check_int

# Channels after each convolution, in units of the first one's.
_MULTIPLES = {"conv1": 1, "conv2": 3, "conv3": 6, "conv4": 4, "conv5": 4}


class AlexNet(ClassifierBase):
    """Five convolutions, three fully connected layers, and a quantizer after one of the convolutions.

    Training and evaluation differ in the quantizer and in the dropout before the first two fully connected layers.

    Args:
        quantizer: any quantizer with ``channel_dim=1`` and ``dim=AlexNet.dim_at(position, width)``; None for the
            network without quantization.
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        width: channels of the first convolution; all other layers grow with it. 64 is the published network,
            16 a quarter of it.
        small_images: the variant for images of about 32 x 32 pixels: a first convolution of 3 x 3 pixels with stride
            1 instead of 11 x 11 with stride 4, pooling that keeps exact halves, and a last grid of 4 x 4 instead of
            6 x 6. The quantizer then sees 8 x 8 vectors of a 32 x 32 image at the default position.
        position: "conv1" to "conv5": the quantizer gets the output of this convolution after its ReLU, and after its
            max-pooling where it has one (conv1, conv2, conv5). Where arXiv 2305.08842 put its quantizer is not known;
            "conv3" is the middle of the five, with 13 x 13 vectors of 384 channels at 224 pixels.
        dropout: probability of zeroing a feature in the classifier, in [0, 1).

    Shape:
        x: Float (B, in_channels, H, W), H and W at least 63, or at least 8 with ``small_images``; usually normalized
            to mean 0 and standard deviation 1.
        logits: Float (B, num_classes).
        indices: Int64 (B, h, w).

    Raises:
        TypeError, ValueError: for impossible sizes, an unknown position, a quantizer with another ``dim`` or
            ``channel_dim``, images of a wrong shape.

    Source: the one-tower network of arXiv 1404.5997 in the form that is in general use (ReLU, dropout, no local
    response normalization, adaptive pooling to 6 x 6): 61,100,840 parameters for 1,000 classes. Deviation:
    ``small_images`` is our adaptation.

    Example:
        >>> import straightvq as svq, torch
        >>> quantizer = svq.presets.vq_vae(AlexNet.dim_at("conv3", width=4), 16, channel_dim=1)
        >>> model = AlexNet(quantizer, num_classes=10, width=4, small_images=True)
        >>> out = model(torch.randn(2, 3, 32, 32))
        >>> out.logits.shape, out.z.shape
        (torch.Size([2, 10]), torch.Size([2, 24, 8, 8]))
    """

    POSITIONS = tuple(_MULTIPLES)

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        small_images: bool = False,
        position: str = "conv3",
        dropout: float = 0.5,
    ) -> None:
        dim = self.dim_at(position, width)
        in_channels = check_int(self, "in_channels", in_channels, 1)
        check_bool(self, "small_images", small_images)
        stages = _convolutions(in_channels, width, small_images)
        stages["classifier"] = _classifier(
            side=4 if small_images else 6,
            width=width,
            num_classes=check_int(self, "num_classes", num_classes, 1),
            dropout=check_float(self, "dropout", dropout, minimum=0, maximum=1, open_maximum=True),
        )
        super().__init__(
            quantizer,
            stages,
            position=position,
            dim=dim,
            channel_dim=1,
            in_channels=in_channels,
            min_size=8 if small_images else 63,
        )

    @classmethod
    def dim_at(cls, position: str = "conv3", width: int = 64) -> int:
        """Channels that the quantizer gets at a position.

        Example:
            >>> AlexNet.dim_at("conv3"), AlexNet.dim_at("conv2", width=16)
            (384, 48)
        """
        return _MULTIPLES[check_choice("AlexNet", "position", position, cls.POSITIONS)] * check_int(
            "AlexNet", "width", width, 1
        )


def _convolutions(in_channels: int, width: int, small_images: bool) -> dict[str, nn.Module]:
    one, two, three, four, five = (multiple * width for multiple in _MULTIPLES.values())
    if small_images:
        first, pad = nn.Conv2d(in_channels, one, 3, padding=1), 1
    else:
        first, pad = nn.Conv2d(in_channels, one, 11, stride=4, padding=2), 0

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, stride=2, padding=pad)

    return {
        "conv1": nn.Sequential(first, nn.ReLU(), pool()),
        "conv2": nn.Sequential(nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), pool()),
        "conv3": nn.Sequential(nn.Conv2d(two, three, 3, padding=1), nn.ReLU()),
        "conv4": nn.Sequential(nn.Conv2d(three, four, 3, padding=1), nn.ReLU()),
        "conv5": nn.Sequential(nn.Conv2d(four, five, 3, padding=1), nn.ReLU(), pool()),
    }


def _classifier(side: int, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    flat = _MULTIPLES["conv5"] * width * side**2
    hidden = 64 * width  # 4096 in the published network
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(side),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(flat, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
