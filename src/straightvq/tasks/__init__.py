"""What is trained and how: LightningModules and callbacks."""

from straightvq.tasks.alternated import alternated_step
from straightvq.tasks.classification import Classification
from straightvq.tasks.finite import NonFiniteError, StopOnNonFinite
from straightvq.tasks.generation import Generation
from straightvq.tasks.monitor import CodebookMonitor, CodebookWarning, HasHead
from straightvq.tasks.reconstruction import Reconstruction
from straightvq.tasks.resume import ExactResume, LastCheckpoint
from straightvq.tasks.tokenizer import Tokenizer

__all__ = [
    "Classification",
    "CodebookMonitor",
    "CodebookWarning",
    "ExactResume",
    "Generation",
    "HasHead",
    "LastCheckpoint",
    "NonFiniteError",
    "Reconstruction",
    "StopOnNonFinite",
    "Tokenizer",
    "alternated_step",
]
