"""AlexNet with a quantizer slot."""

from torch import nn

from straightvq.models.base import ConvClassifier
from straightvq.models.blocks import conv3
from straightvq.nn import Quantizer
from straightvq.nn.part import check_bool, check_float, check_int


class AlexNet(ConvClassifier):
    """Five convolutions, three fully connected layers, and a quantizer after one of the convolutions.

    Training and evaluation differ in the quantizer and in the dropout before the first two fully connected layers.
    Shapes and errors are those of `ClassifierBase`; height and width are at least 63, or 8 with ``small_images``.

    Args:
        quantizer: any quantizer with ``channel_dim=1`` and ``dim=AlexNet.dim_at(position, width)``, or None.
        num_classes: number of logits.
        in_channels: 3 for RGB, 1 for grey.
        width: channels of the first convolution, with which all layers grow; 64 in the published network.
        small_images: our variant for about 32 x 32 pixels: a first convolution of 3 x 3 pixels with stride 1 instead of
            11 x 11 with stride 4, pooling that keeps exact halves, and a last grid of 4 x 4 instead of 6 x 6.
        position: "conv1" to "conv5": the quantizer gets the output of this convolution after its ReLU, and after its
            max-pooling where it has one (conv1, conv2, conv5). "conv3" is the middle, with 13 x 13 vectors of 384
            channels at 224 pixels; where arXiv 2305.08842 put its quantizer is not known.
        dropout: probability of zeroing a feature in the classifier, in [0, 1).

    Source: the one-tower network of arXiv 1404.5997 in the form in general use (ReLU, dropout, no local response
    normalization, adaptive pooling to 6 x 6): 61,100,840 parameters for 1,000 classes.

    Example:
        >>> import straightvq as svq, torch
        >>> quantizer = svq.presets.vq_vae(AlexNet.dim_at("conv3", width=4), 16, channel_dim=1)
        >>> model = AlexNet(quantizer, num_classes=10, width=4, small_images=True)
        >>> model(torch.randn(2, 3, 32, 32)).quantizer.indices.shape
        torch.Size([2, 8, 8])
    """

    POSITIONS = {"conv1": 1, "conv2": 3, "conv3": 6, "conv4": 4, "conv5": 4}  # noqa: RUF012
    DEFAULT_POSITION = "conv3"

    def __init__(
        self,
        quantizer: Quantizer | None,
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        small_images: bool = False,
        position: str = DEFAULT_POSITION,
        dropout: float = 0.5,
    ) -> None:
        dim = self.dim_at(position, width)
        check_int(self, "num_classes", num_classes, 1)
        check_int(self, "in_channels", in_channels, 1)
        check_bool(self, "small_images", small_images)
        check_float(self, "dropout", dropout, minimum=0, maximum=1, open_maximum=True)
        one, two, three, four, five = (multiple * width for multiple in self.POSITIONS.values())
        side, units = 4 if small_images else 6, 64 * width  # 4096 hidden units in the published network

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, stride=2, padding=1 if small_images else 0)

        first = conv3(in_channels, one) if small_images else nn.Conv2d(in_channels, one, 11, stride=4, padding=2)
        stages = {
            "conv1": nn.Sequential(first, nn.ReLU(), pool()),
            "conv2": nn.Sequential(nn.Conv2d(one, two, 5, padding=2), nn.ReLU(), pool()),
            "conv3": nn.Sequential(conv3(two, three), nn.ReLU()),
            "conv4": nn.Sequential(conv3(three, four), nn.ReLU()),
            "conv5": nn.Sequential(conv3(four, five), nn.ReLU(), pool()),
        }
        dense = [nn.Linear(five * side**2, units), nn.ReLU(), nn.Dropout(dropout), nn.Linear(units, units), nn.ReLU()]
        stages["classifier"] = nn.Sequential(
            nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Dropout(dropout), *dense, nn.Linear(units, num_classes)
        )
        size = 8 if small_images else 63
        super().__init__(
            quantizer, stages, position=position, dim=dim, channel_dim=1, in_channels=in_channels, min_size=size
        )
        self.num_classes, self.width, self.small_images, self.dropout = num_classes, width, small_images, dropout
