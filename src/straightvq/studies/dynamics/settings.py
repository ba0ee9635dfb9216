"""How large the study is run: what a size's ``config`` says, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_float, check_int
from straightvq.studies.settings import section


@dataclass(frozen=True)
class Training:
    """Direct simulations of one kind.

    Args:
        d: number of weights, at least 4 and even.
        end: in units of d steps, positive.
        runs: seeds, at least 1.
    """

    d: int
    end: float
    runs: int

    def __post_init__(self) -> None:
        check_int(self, "d", self.d, 4)
        if self.d % 2:
            raise InvalidValueError(f"`Training`: `d` must be even, since codes serve pairs. Got {self.d}.")
        check_float(self, "end", self.end, minimum=0, open_minimum=True)
        check_int(self, "runs", self.runs, 1)


@dataclass(frozen=True)
class Settings:
    """Of the whole study.

    Args:
        courses: simulations of all quantizers, the first of them for the tables.
        histogram: simulation whose weights are drawn; at a tenth, a quarter, a half and all of its end.
        plateau, rates, estimators, codes: simulations of these experiments.
        particles: of the mean field, at least 2.
        dt: step of the particles, positive.
        cells: of the density, at least 10.
    """

    courses: list[Training]
    histogram: Training
    plateau: Training
    rates: Training
    estimators: Training
    codes: Training
    particles: int
    dt: float
    cells: int

    def __post_init__(self) -> None:
        if not self.courses:
            raise InvalidValueError("`Settings`: `courses` must have at least one simulation. Got none.")
        check_int(self, "particles", self.particles, 2)
        check_float(self, "dt", self.dt, minimum=0, open_minimum=True)
        check_int(self, "cells", self.cells, 10)

    @classmethod
    def of(cls, config: Mapping[str, Any], runs: int) -> "Settings":
        """From the keys of a study file; a simulation that does not say its ``runs`` has as many as given here.

        Raises:
            ValueError, TypeError: for keys that are missing or that there are not, and for impossible values.
        """
        given = dict(section("Settings", cls, config))
        for name in ("histogram", "plateau", "rates", "estimators", "codes"):
            given[name] = _training(name, given[name], runs)
        if not isinstance(given["courses"], list):
            raise InvalidTypeError(f"`Settings`: `courses` must be a list. Got {given['courses']!r}.")
        given["courses"] = [_training("courses", one, runs) for one in given["courses"]]
        return cls(**given)


def _training(name: str, content: Any, runs: int) -> Training:
    given = {"runs": runs, **content} if isinstance(content, Mapping) else content
    return Training(**section(name, Training, given))
