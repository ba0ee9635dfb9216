"""Comparisons of methods that run by themselves: study files, the runner, the report."""

from straightvq.studies.methods import ablation
from straightvq.studies.runner import reproduce
from straightvq.studies.study import Study, study_names
from straightvq.studies.study_file import load_study

__all__ = ["Study", "ablation", "load_study", "reproduce", "study_names"]
