"""How weights learn through a straight-through estimator: simulation, its limit for many weights, closed forms."""

from straightvq.studies.dynamics.report import run_dynamics

__all__ = ["run_dynamics"]
