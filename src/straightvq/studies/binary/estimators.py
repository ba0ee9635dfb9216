"""The estimators that the study compares, each with its setting over the training."""

from collections.abc import Callable
from dataclasses import dataclass

import straightvq as svq
from straightvq.nn.slots.estimators.reste import Secant

CLIPPED, TANH = "straight-through", "tanh"
ENDS = (1, 2, 3, 5, 10)  # of the rectified estimator: powers at the end of training
SECANTS: tuple[Secant, ...] = ("continuous", "authors")


@dataclass(frozen=True)
class Method:
    """An estimator and its schedule.

    Args:
        make: a new estimator, with the setting of the start.
        setting: name of what the schedule sets; "" for an estimator that stays as it is.
        at: the setting at a share of the training that is done, 0 to 1.
    """

    make: Callable[[], svq.SignEstimator]
    setting: str = ""
    at: Callable[[float], float] = float

    def follow(self, estimator: svq.SignEstimator, progress: float) -> None:
        """Sets the estimator to where its schedule is."""
        if self.setting:
            setattr(estimator, self.setting, self.at(progress))


def rectified(end: int, secant: Secant = "continuous") -> str:
    """Name of the rectified estimator whose power is ``end`` at the end of training.

    With power 1 both secants are the same.
    """
    name = "rectified" if secant == "continuous" or end == 1 else "authors' secant"
    return f"{name} (o_end {end})"


def _to(end: int, secant: Secant = "continuous") -> Method:
    return Method(lambda: svq.ReSTE(secant=secant), "power", lambda progress: svq.reste_power(progress, end))


METHODS = {
    CLIPPED: Method(lambda: svq.ReSTE(power=1.0, limit=1.0)),
    TANH: Method(lambda: svq.ErrorDecay(svq.error_decay_sharpness(0.0)), "sharpness", svq.error_decay_sharpness),
    **{rectified(end): _to(end) for end in ENDS},
    **{rectified(end, "authors"): _to(end, "authors") for end in (3, 10)},
}
