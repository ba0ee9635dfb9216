"""What `straightvq analyze` measures, as data: report, curves and comparison are made from this one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from straightvq.diagnostics import CurvePanel

Values = Mapping[str, float]


@dataclass(frozen=True)
class Concern:
    """When a quantity is not as it should be."""

    is_bad: Callable[[Values, int], bool]  # of all numbers of one checkpoint and the number of codes
    cure: str  # what to try then, and the page that explains it


@dataclass(frozen=True)
class Curve:
    """How a quantity is drawn over the steps of training."""

    panel: CurvePanel  # without lines; curves with the same title share it in the picture of one run
    line: str = "probe"  # what the curve is called there
    log: str = ""  # column of the run's own log that is drawn beside it
    is_compared: bool = False  # whether it is drawn in the picture of several runs
    is_of_a_step: bool = False  # whether it says what a step does, and so nothing where the learning rate is 0


@dataclass(frozen=True)
class Quantity:
    """One measured number: its key in ``analysis.json``, its name on pages, one sentence with unit and normal range."""

    name: str
    label: str
    meaning: str
    concern: Concern | None = None
    curve: Curve | None = None


_COLLAPSE = (
    "docs/collapse.md: revive dead codes, start on the data, let the codes follow by themselves; where there is no "
    "codebook, docs/codebook_free.md"
)
_REACH = "docs/collapse.md, cures 1 to 3; or a shared map, svq.Affine or svq.RunningAffine (docs/presets.md)"
_GAP = "docs/tuning.md: lower the quantization error first, to which the gap is proportional; then docs/gradients.md"
_NARROW = (
    "docs/tuning.md: more or narrower codes, an update that follows faster; where there is no codebook, "
    "docs/codebook_free.md"
)
_DELAY = "docs/gradients.md: a synchronised update, svq.StraightThrough(sync=0.2); or a lower learning rate"

_USAGE = CurvePanel("Usage", "codes used (%)", is_share=True)
_PERPLEXITY = CurvePanel("Perplexity", "codes")
_ERROR = CurvePanel("Quantization error", "variance of P")
_DISTANCE = CurvePanel("Wasserstein, P to C", "deviations of P")
_GRADIENT_GAP = CurvePanel("Gradient gap", "relative", reference=1.0)
_COSINE = CurvePanel("Gradient cosine", "1: exact", reference=0.0)
_REACHED = CurvePanel("Codes that a step reaches", "codes (%)", is_share=True)
_ESTIMATE = CurvePanel("Estimating error of signs", "mean square")
_INSTABILITY = CurvePanel("Gradient instability", "squared gradient")
_STEP = CurvePanel("Error in one step", "variance of P", reference=0.0)

LEARNING_RATE = "learning_rate"
QUANTITIES = (
    Quantity("usage", "usage",
        "fraction of codes assigned at least once; 0.9 and more is normal, below 0.1 is a collapse",
        Concern(lambda v, size: v["usage"] < 0.1, _COLLAPSE),
        Curve(_USAGE, log="codebook/usage", is_compared=True)),
    Quantity("perplexity", "perplexity",
        "effective number of codes; a third to nine tenths of the codebook is normal",
        Concern(lambda v, size: v["perplexity"] < size / 10, _COLLAPSE),
        Curve(_PERPLEXITY, log="codebook/perplexity")),
    Quantity("error", "quantization error",
        "over the variance of the embeddings; 0 is perfect, 1 is as good as a single code",
        Concern(lambda v, size: v["error"] >= 0.9, _NARROW),
        Curve(_ERROR, log="codebook/error", is_compared=True)),
    Quantity("mean_distance", "distance of the means",
        "of embeddings and codebook, in standard deviations of the embeddings; well below 1 is normal",
        Concern(lambda v, size: v["mean_distance"] > 1, _REACH)),
    Quantity("wasserstein", "Wasserstein, diagonal",
        "2-Wasserstein distance of P and C as Gaussians without correlations, in standard deviations of P",
        Concern(lambda v, size: v["wasserstein"] > 1, _REACH),
        Curve(_DISTANCE, "diagonal")),
    Quantity("wasserstein_full", "Wasserstein, full",
        "the same with correlations (Bures); much more than the diagonal one means another orientation",
        Concern(lambda v, size: v["wasserstein_full"] > 1, _REACH),
        Curve(_DISTANCE, "full", is_compared=True)),
    Quantity("effective_dimension", "effective dimension",
        "directions that the embeddings use; a `codebook_dim` much above it is wasted"),
    Quantity("gradient_gap", "gradient gap",
        "error of the straight-through gradient over the gradient without quantizer; 0 is exact, below 1 is normal",
        Concern(lambda v, size: v["gradient_gap"] > 1, _GAP),
        Curve(_GRADIENT_GAP, log="val/codebook/gradient_gap", is_compared=True)),
    Quantity("gradient_cosine", "gradient cosine",
        "between the two gradients; 1 is exact, clearly positive is normal",
        Concern(lambda v, size: v["gradient_cosine"] < 0.1, _GAP),
        Curve(_COSINE, log="val/codebook/gradient_cosine", is_compared=True)),
    Quantity("estimating_error", "estimating error",
        "of signs: mean square of the sign less the function whose gradient is used; 0 is the sign itself",
        curve=Curve(_ESTIMATE, is_compared=True)),
    Quantity("gradient_instability", "gradient instability",
        "of signs: variance of the size of a step's gradients; compare it between estimators, not between networks",
        curve=Curve(_INSTABILITY, is_compared=True, is_of_a_step=True)),
    Quantity("gradient_sparsity", "codes with a gradient",
        "fraction of the raw table's rows that get one in a step; none is listed where the update takes none",
        Concern(lambda v, size: v["gradient_sparsity"] < 0.1 and v.get("codes_moved", 1) < 0.1, _REACH),
        Curve(_REACHED, "with a gradient")),
    Quantity("codes_moved", "codes moved by a step",
        "fraction of the effective codes, by whatever rule; what stays still falls behind the embeddings",
        Concern(lambda v, size: v["codes_moved"] < 0.1 and v[LEARNING_RATE] > 0, _REACH),
        Curve(_REACHED, "moved", is_compared=True, is_of_a_step=True)),
    Quantity("codebook_gain", "gain of the codebook",
        "quantization error that the codebook's part of a step removes, over the variance of P",
        curve=Curve(_STEP, "gain of codes", is_compared=True, is_of_a_step=True)),
    Quantity("update_delay", "update delay",
        "quantization error that the encoder's part of a step adds, over the variance of P; near 0 is normal",
        Concern(lambda v, size: v["update_delay"] > max(0.01, v["codebook_gain"]), _DELAY),
        Curve(_STEP, "delay", is_compared=True, is_of_a_step=True)),
    Quantity(LEARNING_RATE, "learning rate", "of that step; schedules end at 0, where nothing moves by gradient"),
)  # fmt: skip


def concerns(values: Values, size: int) -> list[tuple[Quantity, str]]:
    """What is not as it should be in the numbers of one checkpoint of ``size`` codes, each with its cure."""
    return [
        (q, q.concern.cure) for q in QUANTITIES if q.concern and q.name in values and q.concern.is_bad(values, size)
    ]
