"""Networks with a quantizer slot."""

from straightvq.models.autoencoder import Autoencoder, AutoencoderOutput

__all__ = ["Autoencoder", "AutoencoderOutput"]
