"""Comparisons of methods that run by themselves: study files, the engine, the report."""

from straightvq.studies.comparing import LayerMeasures, adjusted, compare_quantizers
from straightvq.studies.methods import ablation
from straightvq.studies.reproduction import reproduce
from straightvq.studies.study import Study, load_study, study_names

__all__ = [
    "LayerMeasures",
    "Study",
    "ablation",
    "adjusted",
    "compare_quantizers",
    "load_study",
    "reproduce",
    "study_names",
]
