"""Vector-quantized layers that train.

import straightvq as svq

layer = svq.presets.straight(dim=64, codebook_size=1024, channel_dim=1)
out = layer(z)                  # z: (B, 64, H, W)
loss = task_loss(out.quantized) + out.loss
"""

from straightvq import functional, presets
from straightvq.nn import (
    Affine,
    AlternatedUpdate,
    Assigner,
    Chain,
    Codebook,
    CodebookLoss,
    CommitmentLoss,
    DeadCodeReset,
    Direct,
    EMAUpdate,
    Estimator,
    GradientUpdate,
    Identity,
    Init,
    KMeansInit,
    Loss,
    Nearest,
    NormalInit,
    Parametrization,
    Projection,
    Quantizer,
    QuantizerOutput,
    Reset,
    RunningAffine,
    SampleInit,
    StraightThrough,
    Transform,
    UniformInit,
    UnitNorm,
    UnitNormCodes,
    Update,
    VectorQuantizer,
    attach_optimizer,
    bypass,
    parameter_groups,
)

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "AlternatedUpdate",
    "Assigner",
    "Chain",
    "Codebook",
    "CodebookLoss",
    "CommitmentLoss",
    "DeadCodeReset",
    "Direct",
    "EMAUpdate",
    "Estimator",
    "GradientUpdate",
    "Identity",
    "Init",
    "KMeansInit",
    "Loss",
    "Nearest",
    "NormalInit",
    "Parametrization",
    "Projection",
    "Quantizer",
    "QuantizerOutput",
    "Reset",
    "RunningAffine",
    "SampleInit",
    "StraightThrough",
    "Transform",
    "UniformInit",
    "UnitNorm",
    "UnitNormCodes",
    "Update",
    "VectorQuantizer",
    "attach_optimizer",
    "bypass",
    "functional",
    "parameter_groups",
    "presets",
]
