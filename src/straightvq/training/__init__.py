"""What is trained and how: LightningModules, callbacks, checkpoints, the training commands."""

from straightvq.checkpoints import LastCheckpoint
from straightvq.training.alternated import alternated_step
from straightvq.training.classification import Classification
from straightvq.training.finite import NonFiniteError, StopOnNonFinite
from straightvq.training.monitor import CodebookMonitor, CodebookWarning, HasHead
from straightvq.training.reconstruction import Reconstruction
from straightvq.training.resume import ExactResume

__all__ = [
    "Classification",
    "CodebookMonitor",
    "CodebookWarning",
    "ExactResume",
    "HasHead",
    "LastCheckpoint",
    "NonFiniteError",
    "Reconstruction",
    "StopOnNonFinite",
    "alternated_step",
]
