"""What is measured on sound, and its pictures."""

from straightvq.diagnostics.sound.distances import MelDistance, mel_filters, waveform_distance
from straightvq.diagnostics.sound.pictures import rate_distortion, spectrograms

__all__ = ["MelDistance", "mel_filters", "rate_distortion", "spectrograms", "waveform_distance"]
