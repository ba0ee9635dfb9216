"""Networks with a quantizer slot, and the transformer that generates their tokens."""

from straightvq.models.alexnet import AlexNet
from straightvq.models.autoencoder import Autoencoder
from straightvq.models.base import AutoencoderBase, AutoencoderOutput, ClassifierBase, ClassifierOutput
from straightvq.models.binary.conv import BinaryConv2d
from straightvq.models.binary.net import BinaryNet
from straightvq.models.maskgit import MaskGIT
from straightvq.models.mlp import MLPAutoencoder
from straightvq.models.resnet import ResNet18
from straightvq.models.sound.codec import AudioCodec
from straightvq.models.sqvae import SQVAENet
from straightvq.models.vit import ViT
from straightvq.models.vqgan import VQGANNet
from straightvq.models.vqvae import VQVAENet

__all__ = [
    "AlexNet",
    "AudioCodec",
    "Autoencoder",
    "AutoencoderBase",
    "AutoencoderOutput",
    "BinaryConv2d",
    "BinaryNet",
    "ClassifierBase",
    "ClassifierOutput",
    "MLPAutoencoder",
    "MaskGIT",
    "ResNet18",
    "SQVAENet",
    "VQGANNet",
    "VQVAENet",
    "ViT",
]
