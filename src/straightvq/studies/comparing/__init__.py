"""A fair comparison of quantizers: equal bits, network, data, budget and tuning, one ranked table."""

from straightvq.studies.comparing.comparing import compare_quantizers
from straightvq.studies.comparing.measures import LayerMeasures
from straightvq.studies.comparing.methods import adjusted

__all__ = ["LayerMeasures", "adjusted", "compare_quantizers"]
