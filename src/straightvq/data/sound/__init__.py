"""Sound in, padded batches with lengths out: made vowels, local files, Parquet, the Hugging Face Hub."""

from straightvq.data.sound.decode import UnreadableSoundError
from straightvq.data.sound.module import Sound

__all__ = ["Sound", "UnreadableSoundError"]
