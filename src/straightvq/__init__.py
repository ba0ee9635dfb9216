"""Vector-quantized layers that train.

import straightvq as svq

layer = svq.presets.straight(dim=64, codebook_size=1024, channel_dim=1)
out = layer(z)                  # z: (B, 64, H, W)
loss = task_loss(out.quantized) + out.loss
"""

from straightvq import functional, interop, nn, presets
from straightvq.hub.pretrained import from_pretrained
from straightvq.interop import replace
from straightvq.nn import *
from straightvq.version import __version__ as __version__

__all__ = ["from_pretrained", "functional", "interop", "presets", "replace"]
__all__ += nn.__all__
