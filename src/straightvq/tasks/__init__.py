"""What is trained and how: LightningModules and callbacks."""

from straightvq.tasks.alternated import alternated_step
from straightvq.tasks.monitor import CodebookMonitor, CodebookWarning, HasHead
from straightvq.tasks.reconstruction import Reconstruction
from straightvq.tasks.resume import ExactResume, LastCheckpoint

__all__ = [
    "CodebookMonitor",
    "CodebookWarning",
    "ExactResume",
    "HasHead",
    "LastCheckpoint",
    "Reconstruction",
    "alternated_step",
]
