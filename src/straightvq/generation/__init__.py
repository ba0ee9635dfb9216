"""Images from tokens: a MaskGIT over the codes of a trained autoencoder."""

from straightvq.generation.task import Generation
from straightvq.generation.tokenizer import Tokenizer

__all__ = ["Generation", "Tokenizer"]
