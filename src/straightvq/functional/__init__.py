"""Pure tensor functions: no state, no modules, nothing random unless a generator is passed."""

from straightvq.functional.draws import draw_distinct, draw_gumbel, draw_integers, draw_normal, draw_uniform
from straightvq.functional.few import nearest_codes, nearest_few
from straightvq.functional.kmeans import kmeans
from straightvq.functional.nearest import nearest_code
from straightvq.functional.straight_through import straight_through
from straightvq.functional.sums import code_sums

__all__ = [
    "code_sums",
    "draw_distinct",
    "draw_gumbel",
    "draw_integers",
    "draw_normal",
    "draw_uniform",
    "kmeans",
    "nearest_code",
    "nearest_codes",
    "nearest_few",
    "straight_through",
]
