"""What is measured on a quantizer: pure functions, accumulators for whole data sets, and pictures."""

from straightvq.diagnostics import functional
from straightvq.diagnostics.codebooks import codebook_scatter, usage_histogram
from straightvq.diagnostics.curves import CurvePanel, curves_over_time, usage_over_time
from straightvq.diagnostics.evolution import Snapshot, divergence_of_parts, divergence_over_time, joint_tsne, tsne_map
from straightvq.diagnostics.functional import *  # noqa: F403
from straightvq.diagnostics.metrics import (
    CodebookDelay,
    CodebookUsage,
    EstimatingError,
    EstimatorGap,
    GradientInstability,
    GradientSparsity,
    MomentDistance,
    QuantizationError,
    SlidingUsage,
)
from straightvq.diagnostics.pictures import Arm, comparison, reconstruction_grid, save

__all__ = [
    *functional.__all__,
    "Arm",
    "CodebookDelay",
    "CodebookUsage",
    "CurvePanel",
    "EstimatingError",
    "EstimatorGap",
    "GradientInstability",
    "GradientSparsity",
    "MomentDistance",
    "QuantizationError",
    "SlidingUsage",
    "Snapshot",
    "codebook_scatter",
    "comparison",
    "curves_over_time",
    "divergence_of_parts",
    "divergence_over_time",
    "joint_tsne",
    "reconstruction_grid",
    "save",
    "tsne_map",
    "usage_histogram",
    "usage_over_time",
]
