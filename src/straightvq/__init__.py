"""Vector-quantized layers that train.

import straightvq as svq

layer = svq.presets.straight(dim=64, codebook_size=1024, channel_dim=1)
out = layer(z)                  # z: (B, 64, H, W)
loss = task_loss(out.quantized) + out.loss
"""

from straightvq import functional, interop, nn, presets
from straightvq.interop import replace
from straightvq.nn import *

__version__ = "0.1.0"

__all__ = ["functional", "interop", "presets", "replace"]
__all__ += nn.__all__
