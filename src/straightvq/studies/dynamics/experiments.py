"""What the study computes: quantizers, experiments, and the parts of each."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np
import torch

import straightvq as svq
from straightvq.studies.dynamics import closed_forms
from straightvq.studies.dynamics.codes import Rule
from straightvq.studies.dynamics.density import solve
from straightvq.studies.dynamics.model import Grid, Problem, mid_tread, uniform
from straightvq.studies.dynamics.particles import follow, follow_codes
from straightvq.studies.dynamics.settings import Settings, Training
from straightvq.studies.dynamics.simulation import Course, simulate, train_layer
from straightvq.studies.parts import Part, Values

SIMULATION, PARTICLES, DENSITY, CLOSED = "simulation", "particles", "density", "closed form"
COURSES, HISTOGRAM, PLATEAU, REST = "courses", "histogram", "plateau", "rest"
RATES, ESTIMATORS, CODES, STEADY = "rates", "estimators", "codes", "largest rate"

TIMES = (5.0, 10.0, 20.0, 60.0)  # of the tables
LEFT = 0.9  # a plateau ends where the error falls below this share of that at the start

QUANTIZERS = {
    "none": Problem(),
    "1 bit, range 1": Problem(weights=uniform(1, 1.0)),
    "2 bits, range 2": Problem(weights=uniform(2, 2.0)),
    "2 bits, range 4": Problem(weights=uniform(2, 4.0)),
    "3 bits, range 4": Problem(weights=uniform(3, 4.0)),
    "inputs 1 bit, range 1": Problem(inputs=uniform(1, 1.0)),
    "inputs 2 bits, range 2; weights 3 bits, range 4": Problem(weights=uniform(3, 4.0), inputs=uniform(2, 2.0)),
}
PICTURED = "2 bits, range 2"  # the paper's histogram

PLATEAU_BITS, PLATEAU_STEPS = 4, (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
PLATEAU_STEPS_TO_THE_END = 2 ** (PLATEAU_BITS - 1) - 1
REST_BITS, REST_REACHES = (1, 2, 3, 4), tuple(0.25 * n for n in range(2, 21))
NORMAL = 401  # targets that stand for a normal distribution, one for each of as many equal shares

SPEEDS = {
    "none": Problem(),
    "inputs 2 bits, range 1": Problem(inputs=uniform(2, 1.0)),
    "1 bit, range 1": Problem(weights=uniform(1, 1.0)),
    "2 bits, range 2": Problem(weights=uniform(2, 2.0)),
    "2 bits, range 4": Problem(weights=uniform(2, 4.0)),
    "3 bits, range 4": Problem(weights=uniform(3, 4.0)),
}
SPEED_RATES = (0.1, 0.5, 1.0, 1.5, 1.9, 2.1, 3.0)

PASSING = {
    "1 bit, straight-through": Problem(weights=uniform(1, 1.0)),
    "1 bit, rectified, power 1": Problem(weights=Grid(uniform(1, 1.0).codes, svq.ReSTE(power=1.0))),
    "1 bit, rectified, power 3": Problem(weights=Grid(uniform(1, 1.0).codes, svq.ReSTE(power=3.0))),
    "1 bit, rotation": Problem(weights=Grid(uniform(1, 1.0).codes, svq.RotationTrick())),
    "2 bits, straight-through": Problem(weights=uniform(2, 2.0)),
    "2 bits, rotation": Problem(weights=Grid(uniform(2, 2.0).codes, svq.RotationTrick())),
}

# Pairs of weights, nine codes on a square grid around 0, one teacher without and one with symmetry.
SPACING = 1.5
TEACHERS = {"one target": [[1.0, 1.0]], "four targets": [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]}
RULES = {
    "fixed": Rule("fixed"),
    "fixed, commitment 0.25": Rule("fixed", commitment=0.25),
    "gradient": Rule("gradient"),
    "gradient, commitment 0.25": Rule("gradient", commitment=0.25),
    "gradient, sync 1": Rule("gradient", sync=1.0),
    "EMA": Rule("EMA"),
    "alternated": Rule("alternated"),
    "alternated, sync 1": Rule("alternated", sync=1.0),
}


def plan(settings: Settings) -> list[Part]:
    """All parts of the study, the quick ones first."""
    parts: list[Part] = []
    for experiment in (_rest, _rates, _plateau, _estimators, _courses, _codes, _histogram):
        parts += experiment(settings)
    return parts


def teacher(name: str) -> Problem:
    """Of the experiment with codes that move."""
    return Problem(start=0.05, target=torch.tensor(TEACHERS[name], dtype=torch.float64))


def square_codes() -> torch.Tensor:
    """The nine codes at the start, Float64 (9, 2)."""
    line = SPACING * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def normal_target() -> torch.Tensor:
    """Targets that stand for a standard normal distribution, Float64 (n, 1)."""
    shares = (torch.arange(NORMAL, dtype=torch.float64) + 0.5) / NORMAL
    return torch.special.ndtri(shares)[:, None]


def left_plateau(times: Iterable[float], errors: Iterable[float]) -> float:
    """The time at which the error has fallen to `LEFT` of that at the start, between two times on a line; or infinity.

    Example:
        >>> left_plateau([0.0, 1.0, 2.0], [1.0, 1.0, 0.8])
        1.5
    """
    at, height = np.asarray(list(times), dtype=float), np.asarray(list(errors), dtype=float)
    below = np.flatnonzero(height < LEFT * height[0])
    if not len(below):
        return float("inf")
    last = below[0]
    share = (height[last - 1] - LEFT * height[0]) / (height[last - 1] - height[last])
    return float(at[last - 1] + share * (at[last] - at[last - 1]))


# --- the experiments --------------------------------------------------------------------------------------------------


def _courses(settings: Settings) -> Iterator[Part]:
    own = {training: _times(training.end) for training in settings.courses}
    every = sorted({time for times in own.values() for time in times})
    for row, problem in QUANTIZERS.items():
        yield from _limit(COURSES, row, problem, every, settings)
        for training, times in own.items():
            yield _simulation(COURSES, row, problem, training, times)


def _histogram(settings: Settings) -> Iterator[Part]:
    training, problem = settings.histogram, QUANTIZERS[PICTURED]
    times = [share * training.end for share in (0.1, 0.25, 0.5, 1.0)]
    edges = np.linspace(-4.0, 4.0, 161)

    def counted() -> Values:
        course = simulate(problem, training.d, times, runs=training.runs)
        rows: Values = []
        for time, weights in zip(times, course.weights, strict=True):
            heights, _ = np.histogram(weights.numpy(), edges, density=True)
            rows += [[time, float(at), float(height)] for at, height in zip(edges[:-1] + 0.025, heights, strict=True)]
        return rows

    def solved() -> Values:
        found = solve(problem, times, cells=settings.cells, reach=5.0)
        return [
            [time, float(at), float(height)]
            for time, heights in zip(times, found.heights, strict=True)
            for at, height in zip(found.centres, heights, strict=True)
            if height > 1e-4
        ]

    given = {"problem": problem.settings, "times": times, "runs": training.runs}
    yield Part(HISTOGRAM, PICTURED, DENSITY, 0, given | {"cells": settings.cells}, solved)
    yield Part(HISTOGRAM, PICTURED, SIMULATION, training.d, given, counted)


def _plateau(settings: Settings) -> Iterator[Part]:
    training = settings.plateau
    times = [training.end * n / 80 for n in range(81)]
    for step in PLATEAU_STEPS:
        reach = step * PLATEAU_STEPS_TO_THE_END
        problem = Problem(weights=mid_tread(PLATEAU_BITS, reach), rate=0.05, start=0.05)
        row = f"range {reach:g}"

        def ends(problem: Problem = problem, reach: float = reach, step: float = step) -> Values:
            return [[0, reach, closed_forms.plateau(problem, step)]]

        yield Part(PLATEAU, row, CLOSED, 0, {"problem": problem.settings}, ends)
        yield from _limit(PLATEAU, row, problem, times, settings, particles=False)
        yield _simulation(PLATEAU, row, problem, training, times)


def _rest(settings: Settings) -> Iterator[Part]:
    targets = {"target 1": torch.ones(1, 1, dtype=torch.float64), "normal targets": normal_target()}

    def at(bits: int, target: torch.Tensor, rate: float) -> Values:
        problems = {reach: Problem(weights=uniform(bits, reach), target=target) for reach in REST_REACHES}
        found = closed_forms.rest_of_slow if not rate else functools.partial(closed_forms.rest, rate=rate)
        return [[0, reach, found(problem)] for reach, problem in problems.items()]

    for name, target in targets.items():
        for bits in REST_BITS:
            for rate in (0.0, 0.5):
                row = f"{bits} bit{'s' * (bits > 1)}, {name}, rate {rate:g}"
                run = functools.partial(at, bits, target, rate)
                yield Part(REST, row, CLOSED, 0, {"reaches": REST_REACHES}, run)


def _rates(settings: Settings) -> Iterator[Part]:
    training = settings.rates

    def limit(problem: Problem) -> Values:
        free = problem.weights is None
        return [[0, 0, closed_forms.largest_unquantized_rate(problem) if free else closed_forms.largest_rate(problem)]]

    def ends(problem: Problem) -> Values:
        rows: Values = []
        for rate in SPEED_RATES:
            course = simulate(_at_rate(problem, rate), training.d, [training.end], runs=training.runs)
            rows += [[seed, rate, float(error)] for seed, error in enumerate(course.errors[:, 0])]
        return rows

    def rests(problem: Problem) -> Values:
        if problem.weights is None:
            end = torch.tensor([training.end])
            return [[0, rate, float(closed_forms.unquantized(_at_rate(problem, rate), end))] for rate in SPEED_RATES]
        return [[0, rate, closed_forms.rest(problem, rate)] for rate in SPEED_RATES]

    for row, problem in SPEEDS.items():
        yield Part(STEADY, row, CLOSED, 0, {}, functools.partial(limit, problem))
        given = {"problem": problem.settings, "rates": SPEED_RATES, "end": training.end}
        yield Part(RATES, row, CLOSED, 0, given, functools.partial(rests, problem))
        given = given | {"runs": training.runs}
        yield Part(RATES, row, SIMULATION, training.d, given, functools.partial(ends, problem))


def _at_rate(problem: Problem, rate: float) -> Problem:
    return Problem(weights=problem.weights, inputs=problem.inputs, rate=rate)


def _estimators(settings: Settings) -> Iterator[Part]:
    training = settings.estimators
    times = _times(training.end)
    for row, problem in PASSING.items():
        yield from _limit(ESTIMATORS, row, problem, times, settings, density=False)
        yield _simulation(ESTIMATORS, row, problem, training, times)


def _codes(settings: Settings) -> Iterator[Part]:
    training = settings.codes
    times = [training.end * n / 60 for n in range(61)]
    codes = square_codes()
    count = -(-settings.particles // 4)  # of pairs, whose nearest code takes longer to find
    for name in TEACHERS:
        problem = teacher(name)
        for title, rule in RULES.items():
            row = f"{title}; {name}"
            given = {"problem": problem.settings, "rule": asdict(rule), "spacing": SPACING, "times": times}
            size = {"particles": count, "dt": settings.dt, "like": training.d}

            def limit(problem: Problem = problem, rule: Rule = rule) -> Values:
                course = follow_codes(problem, rule, codes, training.d, times, count=count, dt=settings.dt)
                return _rows(times, course)

            def runs(problem: Problem = problem, rule: Rule = rule) -> Values:
                seeds = range(training.runs)
                courses = [train_layer(problem, rule, codes, training.d, times, seed=seed) for seed in seeds]
                return [[seed, *row[1:]] for seed, course in enumerate(courses) for row in _rows(times, course)]

            yield Part(CODES, row, PARTICLES, 0, given | size, limit)
            yield Part(CODES, row, SIMULATION, training.d, given | {"runs": training.runs}, runs)


# --- their parts ------------------------------------------------------------------------------------------------------


def _times(end: float) -> list[float]:
    """Evenly, and those of the tables."""
    return sorted({round(end * n / 24, 6) for n in range(25)} | {time for time in TIMES if time <= end})


def _limit(
    experiment: str,
    row: str,
    problem: Problem,
    times: Sequence[float],
    settings: Settings,
    *,
    particles: bool = True,
    density: bool = True,
) -> Iterator[Part]:
    """The mean field, and the closed form where there is one."""
    given = {"problem": problem.settings, "times": list(times)}
    if particles:
        size = {"count": settings.particles, "dt": settings.dt}

        def followed() -> Values:
            return _rows(times, follow(problem, times, count=settings.particles, dt=settings.dt))

        yield Part(experiment, row, PARTICLES, 0, given | size, followed)
    if density:

        def solved() -> Values:
            errors = solve(problem, times, cells=settings.cells, reach=5.0).errors
            return [[0, time, float(error)] for time, error in zip(times, errors, strict=True)]

        yield Part(experiment, row, DENSITY, 0, given | {"cells": settings.cells}, solved)
    if problem.weights is None:

        def known() -> Values:
            errors = closed_forms.unquantized(problem, torch.tensor(times, dtype=torch.float64)).tolist()
            return [[0, time, error] for time, error in zip(times, errors, strict=True)]

        yield Part(experiment, row, CLOSED, 0, given, known)


def _simulation(experiment: str, row: str, problem: Problem, training: Training, times: Sequence[float]) -> Part:
    given = {"problem": problem.settings, "times": list(times), "runs": training.runs}

    def run() -> Values:
        return _rows(times, simulate(problem, training.d, times, runs=training.runs))

    return Part(experiment, row, SIMULATION, training.d, given, run)


def _rows(times: Sequence[float], course: Course) -> Values:
    return [
        [seed, time, float(error)]
        for seed, errors in enumerate(course.errors)
        for time, error in zip(times, errors, strict=True)
    ]
