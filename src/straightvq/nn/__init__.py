"""Quantizers and the parts that fill their slots."""

from straightvq.nn.batch import Batch, Context
from straightvq.nn.codebook import Codebook
from straightvq.nn.families.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from straightvq.nn.families.finite_scalar import FiniteScalarQuantizer
from straightvq.nn.families.product import ProductQuantizer
from straightvq.nn.families.random_projection import RandomProjectionQuantizer
from straightvq.nn.families.refine import refine_residual
from straightvq.nn.families.residual import ResidualQuantizer
from straightvq.nn.optimizers import attach_optimizer, parameter_groups
from straightvq.nn.quantizer import Quantizer, QuantizerOutput, Step, bypass
from straightvq.nn.resize import resize_codebooks
from straightvq.nn.slots.anchors import AnchoredReset
from straightvq.nn.slots.assigners import Assigner, LargestProduct, Nearest, Sinkhorn, Stochastic
from straightvq.nn.slots.estimators import (
    NSVQ,
    DiVeQ,
    DynamicStraightThrough,
    ErrorDecay,
    Estimator,
    Gumbel,
    IndexBackpropagation,
    ReinMax,
    ReSTE,
    RotationTrick,
    SignEstimator,
    SpaceFillingDiVeQ,
    StraightThrough,
    error_decay_sharpness,
    reste_power,
)
from straightvq.nn.slots.inits import Init, KMeansInit, NormalInit, SampleInit, UniformInit
from straightvq.nn.slots.losses import (
    CodebookLoss,
    CommitmentLoss,
    EntropyLoss,
    Loss,
    MMDLoss,
    MomentLoss,
    OrthogonalityLoss,
    RegionLoss,
    WassersteinLoss,
)
from straightvq.nn.slots.parametrizations import (
    MLP,
    Affine,
    Bridge,
    Chain,
    Direct,
    Linear,
    Parametrization,
    RunningAffine,
    UnitNormCodes,
)
from straightvq.nn.slots.resets import DeadCodeReset, Reset
from straightvq.nn.slots.transforms import Identity, Projection, Transform, UnitNorm
from straightvq.nn.slots.updates import AlternatedUpdate, EMAUpdate, GradientUpdate, Trains, Update
from straightvq.nn.vector_quantizer import VectorQuantizer

__all__ = [
    "MLP",
    "NSVQ",
    "Affine",
    "AlternatedUpdate",
    "AnchoredReset",
    "Assigner",
    "Batch",
    "BinarySphericalQuantizer",
    "Bridge",
    "Chain",
    "Codebook",
    "CodebookLoss",
    "CommitmentLoss",
    "Context",
    "DeadCodeReset",
    "DiVeQ",
    "Direct",
    "DynamicStraightThrough",
    "EMAUpdate",
    "EntropyLoss",
    "ErrorDecay",
    "Estimator",
    "FiniteScalarQuantizer",
    "GradientUpdate",
    "Gumbel",
    "Identity",
    "IndexBackpropagation",
    "Init",
    "KMeansInit",
    "LargestProduct",
    "Linear",
    "LookupFreeQuantizer",
    "Loss",
    "MMDLoss",
    "MomentLoss",
    "Nearest",
    "NormalInit",
    "OrthogonalityLoss",
    "Parametrization",
    "ProductQuantizer",
    "Projection",
    "Quantizer",
    "QuantizerOutput",
    "RandomProjectionQuantizer",
    "ReSTE",
    "RegionLoss",
    "ReinMax",
    "Reset",
    "ResidualQuantizer",
    "RotationTrick",
    "RunningAffine",
    "SampleInit",
    "SignEstimator",
    "Sinkhorn",
    "SpaceFillingDiVeQ",
    "Step",
    "Stochastic",
    "StraightThrough",
    "Trains",
    "Transform",
    "UniformInit",
    "UnitNorm",
    "UnitNormCodes",
    "Update",
    "VectorQuantizer",
    "WassersteinLoss",
    "attach_optimizer",
    "bypass",
    "error_decay_sharpness",
    "parameter_groups",
    "refine_residual",
    "resize_codebooks",
    "reste_power",
]
