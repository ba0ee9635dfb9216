"""What is trained and how: LightningModules, callbacks, checkpoints, the training commands."""

from straightvq.checkpoints import LastCheckpoint
from straightvq.diagnostics.task import HasHead
from straightvq.training.alternated import alternated_step
from straightvq.training.audio import AudioReconstruction
from straightvq.training.base import Alternation, OptimizerSettings
from straightvq.training.classification import Classification
from straightvq.training.finite import NonFiniteError, StopOnNonFinite
from straightvq.training.monitor import CodebookMonitor, CodebookWarning
from straightvq.training.reconstruction import Reconstruction
from straightvq.training.resume import ExactResume
from straightvq.training.schedule import Anneal, Point, Schedule
from straightvq.training.semantic_ids import SemanticIds
from straightvq.training.vectors import VectorReconstruction

__all__ = [
    "Alternation",
    "Anneal",
    "AudioReconstruction",
    "Classification",
    "CodebookMonitor",
    "CodebookWarning",
    "ExactResume",
    "HasHead",
    "LastCheckpoint",
    "NonFiniteError",
    "OptimizerSettings",
    "Point",
    "Reconstruction",
    "Schedule",
    "SemanticIds",
    "StopOnNonFinite",
    "VectorReconstruction",
    "alternated_step",
]
