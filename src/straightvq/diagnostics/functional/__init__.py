"""What is measured on a quantizer, as pure functions of tensors.

Vectors are channels-last: every `(*batch, dim)` below is flattened to `(n, dim)`. All are differences and ratios of
sums over many vectors, and so are computed in float64 where the device has it; they come back in float32 (float64 for
float64 vectors). For a data set, sum counts over it or use the accumulators in `metrics.py`: a mean of per-batch values
depends on the batch size.
"""

from straightvq.diagnostics.functional.counts import dead_codes, perplexity, sliding_usage, usage, usage_counts
from straightvq.diagnostics.functional.divergence import (
    MomentGap,
    compare_moments,
    covariance,
    gaussian_symmetric_kl_diagonal,
    gaussian_w2,
    gaussian_w2_diagonal,
    moment_distance,
    moments,
    normalized_quantization_error,
)
from straightvq.diagnostics.functional.gradients import (
    GradientGap,
    UpdateDelay,
    estimator_gap,
    gradient_gap,
    gradient_sparsity,
    update_delay,
)
from straightvq.diagnostics.functional.signs import estimating_error, gradient_instability
from straightvq.diagnostics.functional.spectrum import effective_dimension, principal_plane
from straightvq.diagnostics.functional.vectors import ratio

__all__ = [
    "GradientGap",
    "MomentGap",
    "UpdateDelay",
    "compare_moments",
    "covariance",
    "dead_codes",
    "effective_dimension",
    "estimating_error",
    "estimator_gap",
    "gaussian_symmetric_kl_diagonal",
    "gaussian_w2",
    "gaussian_w2_diagonal",
    "gradient_gap",
    "gradient_instability",
    "gradient_sparsity",
    "moment_distance",
    "moments",
    "normalized_quantization_error",
    "perplexity",
    "principal_plane",
    "ratio",
    "sliding_usage",
    "update_delay",
    "usage",
    "usage_counts",
]
