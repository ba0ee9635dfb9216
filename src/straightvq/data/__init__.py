"""Images and sound in, batches out: embedded photographs and digits, local files, the Hugging Face Hub."""

from straightvq.data.decode import UnreadableImageError
from straightvq.data.loader import EpochSampler
from straightvq.data.module import Images
from straightvq.data.sound import Sound, UnreadableSoundError
from straightvq.data.tokens import Tokens
from straightvq.data.vectors.module import Vectors
from straightvq.data.vectors.moving import MovingVectors

__all__ = [
    "EpochSampler",
    "Images",
    "MovingVectors",
    "Sound",
    "Tokens",
    "UnreadableImageError",
    "UnreadableSoundError",
    "Vectors",
]
