"""The command `straightvq`."""

import argparse
import contextlib
import difflib
import importlib
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

__all__ = ["main", "recipe_names", "recipe_path"]

TRAINING = {
    "fit": "train, with validation and checkpoints",
    "validate": "measure a checkpoint on the validation set",
    "test": "measure a checkpoint on the test set",
    "predict": "write indices and reconstructions of the test set",
}
OTHERS = {
    "demo": "plain VQ against ours on two photographs: minutes on a CPU, no download",
    "recipes": "list the packaged recipes, or show one",
    "analyze": "measure a run's checkpoints: divergence, gradients, pictures, a report; or several side by side",
    "reproduce": "run a comparison of methods, small on a CPU or full on a GPU, and write its report",
    "generate": "draw pictures from a trained generation run, or fill a region of one",
}
USAGE = "straightvq <command> [options]"
EXAMPLES = """\
examples:
  straightvq demo
  straightvq fit --config photos
  straightvq fit --config photos --config plain_vq --model.lr 3e-4
  straightvq fit --config folder --data.source /path/to/images
  straightvq test --config photos --ckpt_path best
  straightvq analyze runs/photos
  straightvq reproduce toy
  straightvq generate --run runs/maskgit_digits
`straightvq <command> --help` lists the options of a command."""


class UsageError(Exception):
    """A mistake on the command line; its text is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0; 2 for a mistake on the command line or in a configuration, which is explained on the
        standard error stream; 130 when stopped by Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if args[0] == "--version":
        import straightvq

        sys.stdout.write(f"straightvq {straightvq.__version__}\n")
        return 0
    command, rest = args[0], args[1:]
    runners: dict[str, Callable[[list[str]], None]] = {
        "demo": _demo,
        "recipes": _recipes,
        "analyze": _analyze,
        "reproduce": _reproduce,
        "generate": _generate,
    }
    try:
        if command in TRAINING:
            _train(command, rest)
        elif command in runners:
            runners[command](rest)
        else:
            raise UsageError(
                f"there is no command {command!r}.{_did_you_mean(command, [*TRAINING, *OTHERS])}\n{_help()}"
            )
    except UsageError as error:
        sys.stderr.write(f"straightvq: {error}\n")
        return 2
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"straightvq: {str(stop) or 'stopped'}\n")
        return 130
    except BrokenPipeError:  # who reads along has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# --- recipes ------------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Names of the packaged recipes.

    Example:
        >>> "photos" in recipe_names()
        True
    """
    folder = resources.files("straightvq.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_path(name: str) -> str:
    """File of a packaged recipe; what looks like a file of one's own is returned as it is.

    Raises:
        UsageError: if there is neither.
    """
    if Path(name).is_file():
        return name
    if name in recipe_names():
        return str(resources.files("straightvq.recipes") / f"{name}.yaml")
    if name.endswith((".yaml", ".yml", ".json")) or "/" in name:
        raise UsageError(f"`--config`: there is no file {name!r}.")
    raise UsageError(
        f"`--config`: there is no recipe {name!r}.{_did_you_mean(name, recipe_names())} "
        f"Packaged: {', '.join(recipe_names())}; or pass the path of a YAML file."
    )


def _recipes(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="straightvq recipes", description=OTHERS["recipes"])
    parser.add_argument("--show", metavar="NAME", help="write this recipe to the terminal, to be copied and changed")
    options = parser.parse_args(args)
    if options.show is not None:
        sys.stdout.write(Path(recipe_path(options.show)).read_text(encoding="utf-8"))
        return
    width = 2 + max(map(len, recipe_names()))
    for name in recipe_names():
        first = Path(recipe_path(name)).read_text(encoding="utf-8").partition("\n")[0]
        sys.stdout.write(f"  {name:<{width}}{first.removeprefix('# ')}\n")


# --- training -----------------------------------------------------------------------------------------------------


def _train(command: str, args: list[str]) -> None:
    typed = shlex.join(["straightvq", command, *args])
    args, names = _with_recipes(args)
    is_verbose, args = _VERBOSE in args, [arg for arg in args if arg != _VERBOSE]
    asks_only = any(arg in ("-h", "--help") or arg.startswith(("--help.", "--print_config")) for arg in args)
    if not names and not asks_only:
        raise UsageError(
            f"`straightvq {command}` needs a configuration: --config NAME or FILE. "
            f"Packaged: {', '.join(recipe_names())}."
        )
    try:
        from straightvq.training.command_line import TrainingCLI, quiet
    except ImportError as error:
        raise UsageError(f'{error}. Training needs the extra: pip install "straightvq[train]"') from error
    with quiet(), _explained(is_verbose):
        cli = TrainingCLI([command, *args], "-".join(names) or "run", typed)
    sys.stdout.write(cli.summary())


@contextlib.contextmanager
def _explained(is_verbose: bool = False) -> Iterator[None]:
    """Turns mistakes in a configuration into usage errors."""
    from jsonargparse import ArgumentError

    try:
        yield
    except ArgumentError as error:
        text = str(error) if is_verbose else _shortened(str(error))
        raise UsageError("\n".join([text, *getattr(error, "__notes__", [])])) from error
    except (ValueError, TypeError) as error:
        # The library's own sentences name their owner first; anything else is a fault and needs its traceback.
        sentence = next((text for text in reversed(_chain(error)) if text.startswith("`")), None)
        if is_verbose or sentence is None:
            raise
        raise UsageError("\n".join([sentence, *getattr(error, "__notes__", [])])) from error
    except BrokenPipeError:  # is no mistake
        raise
    except OSError as error:
        if is_verbose or error.errno is None:
            raise
        what = "read or write" if error.filename is None else f"use {str(error.filename)!r}"
        raise UsageError(f"cannot {what}: {error.strerror}.") from error


_VERBOSE = "--verbose_errors"
_MORE = f"Add {_VERBOSE} to see the whole message."


def _chain(error: BaseException | None) -> list[str]:
    """What this error says, and the one that led to it, and so on."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    return texts


def _with_recipes(args: list[str]) -> tuple[list[str], list[str]]:
    """Replaces the names of packaged recipes after ``--config`` by their files; returns the run's name in parts."""
    result, names, follows = [], [], False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if follows:
            names.append(_stem(arg))
            arg = recipe_path(arg)
        elif equals and flag in ("--config", "-c"):
            names.append(_stem(value))
            arg = f"{flag}={recipe_path(value)}"
        follows = not follows and arg in ("--config", "-c")
        result.append(arg)
    return result, names


def _stem(config: str) -> str:
    """`photos` for photos and photos.yaml, and for the config.yaml of a run that is called so."""
    path = Path(config)
    if path.name == "config.yaml" and path.parent.name:
        return path.parent.name
    return path.stem


def _shortened(message: str) -> str:
    """Leads with the innermost line of jsonargparse's nested message, which is the one that says what is wrong."""
    lines = [line for line in message.splitlines() if line.strip()]
    ends = [n for n, line in enumerate(lines) if re.match(r" *Given value( type)?:", line)]
    nested = lines[: ends[0]] if ends else lines
    if len(nested) < 2:
        return message
    depth = [len(line) - len(line.lstrip()) for line in nested]
    # What a union's other members would have accepted is noise, and so is the place in a nameless text.
    noise = ("<class 'NoneType'>", 'in "<unicode string>"')
    depth = [0 if any(word in line for word in noise) else d for line, d in zip(nested, depth, strict=True)]
    deepest = depth.index(max(depth))
    where = [m.group(1) for line in nested[:deepest] if (m := re.search(r"Parser key \"([^\"]+)\"", line))]
    owner = [m.group(1) for line in nested[:deepest] if (m := re.search(r"class_path '([^']+)'", line))]
    place = f" (in {' > '.join(where)}" + (f", {owner[-1]})" if owner else ")") if where else ""
    text = nested[deepest].strip().removeprefix("- ")
    return f"{text}{place}{_accepted(text, owner)}\n{_MORE}"


def _accepted(text: str, owner: list[str]) -> str:
    """For a misspelt option: what its owner accepts."""
    wrong = re.search(r"Option '([^']+)' is not accepted", text)
    if wrong is None or not owner:
        return ""
    module, _, name = owner[-1].rpartition(".")
    names = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    return f".{_did_you_mean(wrong.group(1), names)} It accepts {', '.join(names)}."


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# --- demo ---------------------------------------------------------------------------------------------------------


def _demo(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="straightvq demo",
        description="Trains plain VQ and our recommendation from one seed on two photographs, and compares them.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps of each arm")
    parser.add_argument("--codebook-size", type=int, default=None, help="codes of each arm")
    parser.add_argument("--seed", type=int, default=0, help="of weights, codes and data (default: %(default)s)")
    options = parser.parse_args(args)
    try:
        from straightvq.demo import DemoSettings, run_demo
    except ImportError as error:
        raise UsageError(f'{error}. The demo needs the extra: pip install "straightvq[train]"') from error
    given = {"steps": options.steps, "codebook_size": options.codebook_size, "seed": options.seed}
    try:
        settings = DemoSettings(**{name: value for name, value in given.items() if value is not None})
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    with _explained():
        run_demo(options.out, settings)


# --- analysis -----------------------------------------------------------------------------------------------------


def _analyze(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="straightvq analyze",
        description="Measures the checkpoints of a run on a fixed part of its test split: usage, divergence of "
        "embeddings and codes, gradients, update delay. Writes numbers, pictures and a one-page report; of several "
        "runs also a table and a picture with all of them.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="folder that `straightvq fit` made, such as runs/photos"
    )
    parser.add_argument(
        "--num-images", type=int, default=512, help="test examples to measure on (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder of the results (default: analysis in the run's; of several runs, comparison beside them)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of vectors chosen and of the t-SNE (default: %(default)s)")
    options = parser.parse_args(args)
    try:
        from straightvq.analysis.analyze import analyze
        from straightvq.analysis.comparison import compare
    except ImportError as error:
        raise UsageError(f'{error}. The analysis needs the extra: pip install "straightvq[train]"') from error
    settings = {
        "out": options.out,
        "num_images": options.num_images,
        "device": options.device,
        "seed": options.seed,
    }
    with _explained():
        if len(options.runs) == 1:
            analyze(options.runs[0], **settings)
        else:
            compare(options.runs, **settings)


# --- generation ---------------------------------------------------------------------------------------------------


def _generate(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="straightvq generate",
        description="Draws pictures from a run that trained a generation task, or fills a region of a picture.",
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, such as runs/maskgit_digits")
    parser.add_argument("--num", type=int, default=64, help="pictures (default: %(default)s)")
    parser.add_argument("--classes", default=None, help="names or numbers, such as 3,5, or any (default: all in turn)")
    parser.add_argument("--steps", type=int, default=None, help="of decoding (default: the run's)")
    parser.add_argument("--temperature", type=float, default=None, help="more is more varied (default: the run's)")
    parser.add_argument("--guidance", type=float, default=None, help="more is truer to the class (default: the run's)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    parser.add_argument("--inpaint", type=Path, default=None, metavar="IMAGE", help="fill a region of this picture")
    parser.add_argument("--box", default=None, metavar="X0,Y0,X1,Y1", help="the region, in pixels as the network sees")
    parser.add_argument("--mask", type=Path, default=None, metavar="IMAGE", help="the region, white where new")
    parser.add_argument("--tokenizer", default=None, help="its run, if it is no longer where it was in training")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results (default: samples in the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    options = parser.parse_args(args)
    try:
        from straightvq.generation.generate import Sampling, generate
    except ImportError as error:
        raise UsageError(f'{error}. Generation needs the extra: pip install "straightvq[train]"') from error
    with _explained():
        sampling = Sampling(
            num=options.num,
            classes=None if options.classes is None else options.classes.split(","),
            steps=options.steps,
            temperature=options.temperature,
            guidance=options.guidance,
            seed=options.seed,
        )
        generate(
            options.run,
            sampling,
            inpaint=options.inpaint,
            box=None if options.box is None else _box(options.box),
            mask=options.mask,
            tokenizer=options.tokenizer,
            out=options.out,
            device=options.device,
        )


def _box(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"`--box` must be four whole numbers X0,Y0,X1,Y1. Got {text!r}.") from None


# --- studies ------------------------------------------------------------------------------------------------------


def _reproduce(args: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="straightvq reproduce",
        description="Runs what is missing of a study (methods x networks x sets x seeds) and writes its tables and "
        "figures. Finished runs are not repeated; a stopped one goes on where it was.",
    )
    parser.add_argument("study", help="a packaged study (classification, autoencoder, maskgit, toy), or a YAML file")
    parser.add_argument("--size", help="small, paper or tiny (default: small)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: studies/NAME-SIZE)")
    parser.add_argument(
        "--data", type=Path, help="folder that holds the sets, such as cifar10/ (default: embedded data)"
    )
    parser.add_argument("--sets", nargs="+", help="sets to run on (default: those of the size)")
    parser.add_argument("--models", nargs="+", help="networks to run (default: all)")
    parser.add_argument("--rows", nargs="+", help="methods to run (default: all)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: that of the size)")
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed"],
        help="floating-point precision of the training (default: that of the size, else 32-true)",
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time; several need Ray (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and estimate the time")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--rerun", action="store_true", help="repeat runs that failed or have other settings")
    parser.add_argument(
        "--known", type=Path, help="folder with the results.csv of the same study made elsewhere, to be taken over"
    )
    parser.add_argument(_VERBOSE, action="store_true", help="show the whole message of a mistake in a configuration")
    options = vars(parser.parse_args(args))
    is_verbose = options.pop(_VERBOSE.removeprefix("--"))
    try:
        from straightvq.studies import reproduce
    except ImportError as error:
        raise UsageError(f'{error}. Studies need the extra: pip install "straightvq[train]"') from error
    with _explained(is_verbose):
        reproduce(options.pop("study"), **options)


def _help() -> str:
    lines = [f"usage: {USAGE}", "", "commands:"]
    lines += [f"  {name:<10}{text}" for name, text in {**OTHERS, **TRAINING}.items()]
    return "\n".join([*lines, "", EXAMPLES, ""])
