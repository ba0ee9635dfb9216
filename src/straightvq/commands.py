"""The options of each command of `straightvq`; the function behind it is imported when it is called."""

import os
import shlex
import sys
from argparse import SUPPRESS, ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from straightvq.errors import InvalidValueError
from straightvq.recipes import config_names, recipe_names, recipe_path


class _Parser(ArgumentParser):
    """Leaves out options that are not given: the function behind the command has the defaults."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"straightvq {command}", description=description, argument_default=SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise InvalidValueError(f"{message}. `{self.prog} --help` lists the options.")


def recipes(args: list[str]) -> None:
    parser = _Parser("recipes", "Lists the packaged recipes, or shows one.")
    parser.add_argument("--show", metavar="NAME", help="write this recipe to the terminal, to copy and change")
    options = parser.parse_args(args)
    if "show" in options:
        sys.stdout.write(Path(recipe_path(options.show)).read_text(encoding="utf-8"))
        return
    width = 2 + max(map(len, recipe_names()))
    for name in recipe_names():
        first = Path(recipe_path(name)).read_text(encoding="utf-8").partition("\n")[0]
        sys.stdout.write(f"  {name:<{width}}{first.removeprefix('# ')}\n")


def train(command: str, args: list[str]) -> None:
    names = config_names(args)
    asks_only = any(arg in ("-h", "--help") or arg.startswith(("--help.", "--print_config")) for arg in args)
    if not names and not asks_only:
        known = ", ".join(recipe_names())
        raise InvalidValueError(
            f"`straightvq {command}` needs a configuration: --config NAME or FILE. Packaged: {known}."
        )
    from straightvq.training.command_line import TrainingCLI, quiet

    # photos, photos.yaml and runs/photos/config.yaml all make runs called `photos`.
    paths = [Path(name) for name in names]
    stems = [path.parent.name if path.name == "config.yaml" and path.parent.name else path.stem for path in paths]
    with quiet():
        cli = TrainingCLI([command, *args], "-".join(stems) or "run", shlex.join(["straightvq", command, *args]))
    sys.stdout.write(cli.summary())


def demo(args: list[str]) -> None:
    parser = _Parser("demo", "Compares plain VQ and our recommendation, trained from one seed on two photographs.")
    parser.add_argument("--out", type=Path, default="runs/demo", help="folder for the results (default: runs/demo)")
    parser.add_argument("--steps", type=int, help="training steps of each arm")
    parser.add_argument("--codebook-size", type=int, help="codes of each arm")
    parser.add_argument("--seed", type=int, help="random seed (default: 0)")
    options = vars(parser.parse_args(args))
    from straightvq.demo import DemoSettings, run_demo

    run_demo(options.pop("out"), DemoSettings(**options))


def analyze(args: list[str]) -> None:
    about = (
        "Measures a run's checkpoints on a fixed part of its test split: usage, divergence of embeddings and codes, "
        "gradients, update delay. Writes numbers, pictures and a one-page report; several runs also share a table."
    )
    parser = _Parser("analyze", about)
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="folder that `straightvq fit` made")
    parser.add_argument("--num-images", type=int, help="test examples to measure on (default: 512)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: RUN/analysis, or comparison)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--seed", type=int, help="random seed of shown vectors and t-SNE (default: 0)")
    options = vars(parser.parse_args(args))
    from straightvq.analysis.analyze import analyze as analyze_one
    from straightvq.analysis.comparison import compare

    runs = options.pop("runs")
    if len(runs) == 1:
        analyze_one(runs[0], **options)
    else:
        compare(runs, **options)


def doctor(args: list[str]) -> None:
    about = (
        "Says what a quantizer is and whether it is well: codes that nothing uses, codes on one spot, codes away from "
        "the data, with the likely cause and what helps."
    )
    parser = _Parser("doctor", about)
    what = "a run's folder or .ckpt, a folder of save_pretrained, or a .safetensors, .pt, .pth file with quantizers"
    parser.add_argument("source", metavar="FILE|RUN", type=Path, help=what)
    vectors = "a .npy or .parquet file of embeddings, one per row, as the quantizer gets them"
    parser.add_argument("--data", type=Path, help=f"{vectors} (default: a run's test set)")
    parser.add_argument("--num-examples", type=int, help="of a run's test set (default: 512)")
    parser.add_argument("--lr-scale", type=float, help="of an affine map in a file of tensors, which no entry tells")
    parser.add_argument("--json", action="store_true", help="everything as JSON, the unused codes by number")
    options = {"json": False, **vars(parser.parse_args(args))}
    import json

    from straightvq.analysis.doctor.examine import examine, page

    as_json = options.pop("json")
    result = examine(options.pop("source"), **options)
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if as_json else page(result))


def publish(args: list[str]) -> None:
    about = "Writes a run's network as a folder that `straightvq.from_pretrained` loads, with a model card."
    parser = _Parser("publish", about)
    parser.add_argument("run", type=Path, help="folder that `straightvq fit` made")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/pretrained)")
    parser.add_argument("--checkpoint", metavar="NAME", help="which of the run's checkpoints (default: the best)")
    parser.add_argument("--push-to", metavar="OWNER/NAME", help="upload it to the Hugging Face Hub as well")
    options = vars(parser.parse_args(args))
    from straightvq.analysis.publish import publish as publish_run

    sys.stdout.write(f"{publish_run(options.pop('run'), **options)}\n")


def generate(args: list[str]) -> None:
    parser = _Parser("generate", "Generates images with a trained run, or fills in a region of an image.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, such as runs/maskgit_digits")
    parser.add_argument("--inpaint", type=Path, metavar="IMAGE", help="image with a region to fill in")
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="the region, in pixels of the network's input")
    parser.add_argument("--mask", type=Path, metavar="IMAGE", help="the region: white is filled in")
    parser.add_argument("--tokenizer", help="the tokenizer's run, if it is no longer where it was in training")
    parser.add_argument("--out", type=Path, help="folder for the results (default: samples in the run's)")
    parser.add_argument("--device", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--num", type=int, help="number of pictures (default: 64)")
    parser.add_argument("--classes", help="names or numbers, such as 3,5, or any (default: all)")
    parser.add_argument("--steps", type=int, help="steps of decoding (default: the run's)")
    parser.add_argument("--temperature", type=float, help="higher is more varied (default: the run's)")
    parser.add_argument("--guidance", type=float, help="higher is closer to the class (default: the run's)")
    parser.add_argument("--seed", type=int, help="random seed (default: 0)")
    options = vars(parser.parse_args(args))
    if "classes" in options:
        options["classes"] = options["classes"].split(",")
    if "box" in options:
        options["box"] = _box(options["box"])
    from straightvq.generation import generate as room

    drawn = {field.name: options.pop(field.name) for field in fields(room.Sampling) if field.name in options}
    room.generate(options.pop("run"), room.Sampling(**drawn), **options)


def encode(args: list[str]) -> None:
    about = (
        "Encodes a whole data set to Parquet shards of tokens, each row with its key. What is there already is not "
        "made again; several processes (torchrun, or RANK and WORLD_SIZE) share the shards."
    )
    parser = _origin("encode", about)
    parser.add_argument("--source", required=True, help="what the run's --data.source takes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--rows-per-shard", type=int, help="rows of a shard (default: 10000)")
    parser.add_argument("--nearest", type=int, metavar="K", help="also write the K nearest codes and their distances")
    parser.add_argument("--readers", type=int, help="processes that read and decode (default: 0, a thread)")
    options = vars(parser.parse_args(args))
    from straightvq import encoding

    run, source, out = options.pop("run", None), options.pop("source"), options.pop("out")
    sys.stdout.write(_counted(out, encoding.encode(run, source, out, **options)))


def decode(args: list[str]) -> None:
    about = "Decodes a folder of `straightvq encode` to PNG or WAV files named by key, or to vectors in Parquet shards."
    parser = _origin("decode", about)
    parser.add_argument("--codes", type=Path, required=True, help="folder that `straightvq encode` made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--levels", type=int, metavar="K", help="use the first K levels of a residual quantizer only")
    options = vars(parser.parse_args(args))
    from straightvq import encoding

    run, codes, out = options.pop("run", None), options.pop("codes"), options.pop("out")
    sys.stdout.write(_counted(out, encoding.decode(run, codes, out, **options)))


def _origin(command: str, about: str) -> _Parser:
    parser = _Parser(command, about)
    parser.add_argument("--run", type=Path, help="folder of the run, such as runs/digits, or a checkpoint in it")
    parser.add_argument("--file", type=Path, help="instead of a run, a file of another library's quantizer")
    parser.add_argument("--layout", help="of the file (default: found)")
    parser.add_argument("--engine", help="here, or ray (default: here)")
    parser.add_argument("--workers", type=int, help="workers of Ray's (default: 1)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default: auto)")
    return parser


def _counted(out: Path, made: dict[str, Any]) -> str:
    if "done" not in made:
        return f"{out}{os.sep}: this process's shards are there, those of others are not yet\n"
    bad = f", {made['bad']} that cannot be used (bad.jsonl)" if made["bad"] else ""
    return f"{out}{os.sep}: {made['done']} rows in {made['shards']} shard(s){bad}\n"


def _box(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidValueError(f"`--box` must be four whole numbers X0,Y0,X1,Y1. Got {text!r}.") from None


def reproduce(args: list[str]) -> None:
    about = "Runs what a study still lacks (methods x networks x sets x seeds) and writes its tables and figures. "
    parser = _Parser("reproduce", f"{about}Finished runs are not repeated; a stopped one resumes.")
    parser.add_argument(
        "study", help="a packaged study (classification, autoencoder, maskgit, dynamics, binary, toy), or a YAML file"
    )
    parser.add_argument("--size", help="small, paper or tiny (default: small)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: studies/NAME-SIZE)")
    parser.add_argument("--data", type=Path, help="folder of the sets, such as cifar10/ (default: embedded data)")
    parser.add_argument("--sets", nargs="+", help="sets to run on (default: those of the size)")
    parser.add_argument("--models", nargs="+", help="networks to run (default: all)")
    parser.add_argument("--rows", nargs="+", help="methods to run (default: all)")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: that of the size)")
    precision = "floating-point precision of the training (default: that of the size, else 32-true)"
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], help=precision)
    parser.add_argument("--dry-run", action="store_true", help="list the runs and estimate the time")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--rerun", action="store_true", help="repeat runs that failed or have other settings")
    parser.add_argument("--workers", type=int, help="runs at a time; several need Ray (default: 1)")
    parser.add_argument("--known", type=Path, help="folder with results of the same study made elsewhere, to take over")
    options = vars(parser.parse_args(args))
    from straightvq import studies

    studies.reproduce(options.pop("study"), **options)


def compare(args: list[str]) -> None:
    about = (
        "Ranks quantizers under equal conditions: the same bits, network, data, steps and seeds, and as many settings "
        "tried for each. Writes a table, a picture and what each was tuned to. Finished runs are not repeated; a "
        "stopped one resumes; one that fails becomes a row that says so."
    )
    parser = _Parser("compare", about)
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="presets to compare, or all")
    parser.add_argument("--config", type=Path, help="YAML file with quantizers of your own and any of these options")
    data = "moving (drifting vectors, no network), digits, photos, a folder, a .parquet file, or owner/name on the Hub"
    parser.add_argument("--data", help=f"{data} (default: moving)")
    parser.add_argument("--size", help="small, or tiny to see that everything works (default: small)")
    parser.add_argument("--codebook-size", type=int, help="codes of every quantizer (default: that of the size)")
    parser.add_argument("--steps", type=int, help="training steps of a run (default: that of the size)")
    parser.add_argument("--seeds", type=int, help="runs of every quantizer (default: that of the size)")
    grid = "values to tune over, each combination once: lr=1e-3,3e-3 codebook_lr=... commitment=... (default: three lr)"
    parser.add_argument("--grid", nargs="+", metavar="AXIS=VALUES", help=grid)
    parser.add_argument("--init", help="own, or kmeans for every codebook (default: own)")
    parser.add_argument("--reset", help="dead codes: own, with (a reset for all) or without (default: own)")
    parser.add_argument("--pixels", type=int, help="side of the images (default: 32, digits 16)")
    parser.add_argument("--accelerator", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--workers", type=int, help="runs at a time; several need Ray (default: 1)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: comparisons/DATA-SIZE)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--rerun", action="store_true", help="repeat runs that failed or have other settings")
    options = vars(parser.parse_args(args))
    from straightvq import studies
    from straightvq.studies.comparing.request import read_grid

    if "grid" in options:
        options["grid"] = read_grid(options["grid"])
    studies.compare_quantizers(**options)
