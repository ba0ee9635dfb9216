"""The laws, one file for each chapter or two. Importing them fills ``LAWS``."""

from straightvq.testing.laws import (
    bad_input,
    evaluation,
    gradients,
    graphs,
    masks,
    precision,
    ranks,
    round_trip,
    state,
    switches,
    training,
)

__all__ = [
    "bad_input",
    "evaluation",
    "gradients",
    "graphs",
    "masks",
    "precision",
    "ranks",
    "round_trip",
    "state",
    "switches",
    "training",
]
