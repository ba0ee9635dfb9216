"""One call puts quantizers into one fair table: checks what is asked for, runs what is missing, writes the ranking."""

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from straightvq.executors import executor
from straightvq.nn.part import check_int
from straightvq.studies.comparing import methods as methods_of
from straightvq.studies.comparing.methods import BOUND, OWNER, Method
from straightvq.studies.comparing.page import PAGE, Ranking
from straightvq.studies.comparing.request import Request, read_request, settings
from straightvq.studies.comparing.targets import Scale, Target, scale, target
from straightvq.studies.engine import Engine, check
from straightvq.studies.plan import Plan
from straightvq.studies.reproduction import guarded
from straightvq.studies.results import Cell, Results
from straightvq.studies.study import Config, DataSet, Model, Row, Size, Study, Tuning, laid_over, slug

_NAMED = {"own": "its own", "kmeans": "k-means for all", "with": "the same for all", "without": "none"}


def compare_quantizers(
    config: Path | None = None,
    *,
    out: Path | None = None,
    workers: int = 1,
    dry_run: bool = False,
    keep: bool = False,
    rerun: bool = False,
    **request: Any,
) -> Path:
    """Trains quantizers under equal conditions, tunes each as much as the others, and ranks them.

    Finished runs are not repeated and a stopped one resumes, so the same call can be made until nothing is left. A run
    that diverges or crashes becomes a row that says so.

    Args:
        config: a YAML file with the keys of `Request`.
        out: folder of the results; None takes ``comparisons/<set>-<size>``.
        workers: runs at a time; more than one need Ray.
        dry_run: only lists the runs.
        keep: keeps the checkpoints of finished runs.
        rerun: repeats runs that failed, and those of other settings, which are refused otherwise.
        request: the arguments of `Request`, in place of the file's.

    Returns:
        The folder of the results: ``report.md``, ``ranking.csv``, ``ranking.png``, ``results.csv`` and ``runs``.

    Raises:
        TypeError, ValueError: for a mistake in what is asked for, before anything is trained; results of other
            settings; a folder that another process uses.
        KeyboardInterrupt: when stopped; says how to go on.

    Source: the protocol (equal bits, equal tuning, paired seeds) answers arXiv 2305.08842, whose baselines differ in
        these from paper to paper.
    """
    asked = read_request(config, request)
    check_int(OWNER, "workers", workers, 1)
    comparison = prepare(asked)
    study, size = comparison.study, next(iter(comparison.study.sizes.values()))
    name = comparison.target.name
    out = Path("comparisons") / f"{slug(name)}-{asked.size}" if out is None else out
    out = out.resolve() if workers > 1 else out  # which may be started elsewhere
    cells = [Cell(*names) for names in itertools.product([name], size.models, study.rows)]
    place = comparison.target.source
    source = str(Path(place).expanduser().resolve()) if place and Path(place).expanduser().exists() else place
    plan = Plan(study, size, Results(out), {name: source}, cells, cells, size.seeds, command=OWNER)
    if rerun:
        plan.repeat_failed()
    elif not dry_run:
        plan.refuse_stale()
    check(plan)
    if dry_run:
        sys.stdout.write(plan.listing())
        return out
    report = Ranking(
        plan,
        comparison.target,
        comparison.methods,
        comparison.codebook_size,
        comparison.steps,
        _command(config, request),
        comparison.conditions,
    )
    with executor(workers) as pool, guarded(plan.results, OWNER):
        Engine(plan, pool, workers, keep, report, goes_on=True).run()
    sys.stdout.write(f"{out / PAGE}\n")
    return out


@dataclass(frozen=True)
class Comparison:
    """A request that was looked at: its study, and what the report says of it."""

    study: Study
    target: Target
    methods: Mapping[str, Method]
    codebook_size: int
    steps: int
    conditions: str


def prepare(asked: Request) -> Comparison:
    """The study that answers a request; builds every quantizer once and looks at the data, and trains nothing.

    Raises:
        TypeError, ValueError: for names that are not there, quantizers that cannot be made or have other bits than the
            others, and data that cannot be read.
    """
    usual = scale(asked.data, asked.size)
    codebook_size, steps = asked.codebook_size or usual.codebook_size, asked.steps or usual.steps
    grid = dict(asked.grid) if asked.grid is not None else {"lr": usual.rates}
    configs = {**methods_of.of_presets(asked.presets), **asked.quantizers}
    on = target(asked.data, asked.size, steps, asked.pixels, asked.accelerator)
    shared: dict[str, Any] = {} if asked.init == "own" else {"init": asked.init}
    shared |= {} if asked.reset == "own" else {"reset": asked.reset}
    shared |= {"commitment": None} if "commitment" in grid else {}
    methods = {
        name: methods_of.described(name, Config(config), on.dim, codebook_size, on.channel_dim, **shared)
        for name, config in configs.items()
    }
    methods_of.refuse_unequal(list(methods.values()))
    study = _study(asked, usual, on, methods, grid, codebook_size)
    conditions = _conditions(asked, usual, on, codebook_size, steps)
    return Comparison(study, on, methods, codebook_size, steps, conditions)


def _study(
    asked: Request,
    usual: Scale,
    on: Target,
    methods: Mapping[str, Method],
    grid: Mapping[str, Sequence[float]],
    codebook_size: int,
) -> Study:
    place = "model.init_args.model.init_args.quantizer"
    tried = {name: settings(method, grid, usual.rates[-1]) for name, method in methods.items()}
    configs = {name: Config({place: method.config}) for name, method in methods.items()}
    if on.has_bound:
        # Plain VQ, which is the identity without its codes.
        plain = {"dim": on.dim, "codebook_size": codebook_size, "channel_dim": on.channel_dim}
        quantizer = {"class_path": "straightvq.presets.vq_vae", "init_args": plain}
        tried[BOUND] = settings(None, grid, usual.rates[-1])
        configs[BOUND] = Config({place: quantizer, "model.init_args.quantize": False})
    is_tuned = max(map(len, tried.values())) > 1
    if not is_tuned:  # the only setting is that of every run
        configs = {name: laid_over(config, *tried[name].values()) for name, config in configs.items()}
        tried = {name: {} for name in tried}
    rows = {name: Row(name, config, settings=tried[name], bound=name == BOUND) for name, config in configs.items()}
    size = Size(
        asked.size,
        sets=[on.name],
        models={on.network: Model(on.network, Config())},
        seeds=asked.seeds or usual.seeds,
        config=Config(),
        tune=on.tuning if is_tuned else None,
    )
    number = f"{len(methods)} quantizers" if len(methods) > 1 else "One quantizer"
    return Study(
        OWNER,
        f"{number} on {on.name}",
        measures=on.measures,
        tune=Tuning("val/mse", next(iter(tried.values()))),
        base=on.base,
        sets={on.name: DataSet(on.name, Config())},
        rows=rows,
        sizes={asked.size: size},
    )


def _conditions(asked: Request, usual: Scale, on: Target, codebook_size: int, steps: int) -> str:
    network = "without a network" if on.network == "no network" else f"in one {on.network} for all"
    return (
        f"Size `{asked.size}`: {usual.about} {steps:,} steps {network}; {codebook_size:,} codes, or as near as a "
        f"quantizer without a codebook comes. Start of the codes: {_NAMED[asked.init]}. Reset of dead codes: "
        f"{_NAMED[asked.reset]}."
    )


def _command(config: Path | None, request: Mapping[str, Any]) -> str:
    """How a reader would ask for the same."""
    words = ["straightvq", "compare", *(["--config", str(config)] if config else [])]
    for name, value in request.items():
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping):
            words += [f"{axis}={','.join(f'{number:g}' for number in numbers)}" for axis, numbers in value.items()]
        else:
            words += [str(value)] if isinstance(value, str | int) else list(map(str, value))
    return shlex.join(words)
