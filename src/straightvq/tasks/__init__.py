"""What is trained and how: LightningModules and callbacks."""

from straightvq.tasks.alternated import alternated_step
from straightvq.tasks.reconstruction import Reconstruction
from straightvq.tasks.resume import ExactResume

__all__ = ["ExactResume", "Reconstruction", "alternated_step"]
