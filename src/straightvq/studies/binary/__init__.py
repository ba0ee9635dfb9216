"""Estimators of signs in binary networks and in tokenizers of bits: accuracy, and what the estimator does meanwhile."""

from straightvq.studies.binary.report import run_binary

__all__ = ["run_binary"]
