"""The command `straightvq`: runs what a command line asks for, and explains mistakes in one sentence."""

import os
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Sequence

from straightvq import commands
from straightvq.errors import InvalidValueError, StraightVQError, did_you_mean

TRAINING = {
    "fit": "train, with validation and checkpoints",
    "validate": "measure a checkpoint on the validation set",
    "test": "measure a checkpoint on the test set",
    "predict": "write indices and reconstructions of the test set",
}
OTHERS = {
    "demo": "plain VQ against ours on two photographs: minutes on a CPU, no download",
    "recipes": "list the packaged recipes, or show one",
    "analyze": "measure a run's checkpoints: divergence, gradients, pictures, a report; or compare several runs",
    "doctor": "say what a quantizer in a file or a run is, whether it is well, and what helps",
    "publish": "write a run's network as a folder for from_pretrained, or upload it to the Hugging Face Hub",
    "reproduce": "run a comparison of methods, small on a CPU or full on a GPU, and write its report",
    "compare": "rank quantizers under equal conditions, on your own data or bundled data",
    "encode": "turn a whole data set into tokens, in shards that any number of processes write",
    "decode": "turn tokens back into pictures, sound or vectors",
    "generate": "generate images with a trained run, or fill in a region of one",
}
EXAMPLES = """\
examples:
  straightvq demo
  straightvq fit --config photos
  straightvq fit --config photos --config plain_vq --model.optimizer.lr 3e-4
  straightvq fit --config folder --data.source /path/to/images
  straightvq test --config photos --ckpt_path best
  straightvq analyze runs/photos
  straightvq doctor runs/photos
  straightvq reproduce toy
  straightvq compare --presets straight ema vq_vae --data digits
  straightvq encode --run runs/photos --source /path/to/images --out tokens
  straightvq generate --run runs/maskgit_digits
`straightvq <command> --help` lists the options of a command; --verbose_errors shows errors in full."""
VERBOSE = "--verbose_errors"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; without ``argv``, that of the process.

    Returns the exit status: 0; 2 for a mistake on the command line or in a configuration, explained on the standard
    error stream; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    is_verbose, args = VERBOSE in args, [arg for arg in args if arg != VERBOSE]
    try:
        _dispatch(args)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"straightvq: {str(stop) or 'stopped'}\n")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if is_verbose:
            traceback.print_exception(error)
        sys.stderr.write("\n".join([f"straightvq: {sentence}", *getattr(error, "__notes__", []), ""]))
        return 2
    return 0


def _dispatch(args: list[str]) -> None:
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        sys.stdout.write(_help())
    elif command == "--version":
        import straightvq

        sys.stdout.write(f"straightvq {straightvq.__version__}\n")
    elif command in TRAINING:
        commands.train(command, args[1:])
    elif command in OTHERS:
        getattr(commands, command)(args[1:])
    else:
        hint = did_you_mean(command, [*TRAINING, *OTHERS])
        raise InvalidValueError(f"there is no command {command!r}.{hint}\n{_help()}")


def _help() -> str:
    lines = ["usage: straightvq <command> [options]", "", "commands:"]
    lines += [f"  {name:<10}{text}" for name, text in {**OTHERS, **TRAINING}.items()]
    return "\n".join([*lines, "", EXAMPLES, ""])


def _sentence(error: Exception) -> str | None:
    """The sentence for the user; None for a fault of ours, which needs its traceback."""
    more = f"\nAdd {VERBOSE} to see the whole message."
    if isinstance(error, ModuleNotFoundError):
        return f'{error}. `pip install "straightvq[train]"` brings what this command needs.'
    if isinstance(error, ArgumentError):
        from straightvq.configuration import innermost

        return innermost(error) + more
    if isinstance(error, OSError) and error.errno is not None:
        what = "read or write" if error.filename is None else f"use {str(error.filename)!r}"
        return f"cannot {what}: {error.strerror}."
    cause: BaseException | None = error
    while cause is not None and isinstance(error, (ValueError, TypeError)):
        if isinstance(cause, StraightVQError):
            return f"{cause}{more if isinstance(cause.__cause__, ArgumentError) else ''}"
        cause = cause.__cause__
    return None
