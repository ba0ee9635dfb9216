"""Weights of other libraries' quantizers in, and ours out."""

from straightvq.interop.bare import Bare
from straightvq.interop.convert import LAYOUTS, find_quantizers, from_file, from_state_dict, to_state_dict
from straightvq.interop.files import read_state
from straightvq.interop.layouts.vqvae import network_weights
from straightvq.interop.live.replace import replace
from straightvq.interop.source import Imported
from straightvq.interop.split import SplitQuantizer
from straightvq.interop.transforms import Reversed, Steps

__all__ = [
    "LAYOUTS",
    "Bare",
    "Imported",
    "Reversed",
    "SplitQuantizer",
    "Steps",
    "find_quantizers",
    "from_file",
    "from_state_dict",
    "network_weights",
    "read_state",
    "replace",
    "to_state_dict",
]
