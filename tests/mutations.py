"""Plants faults in a copy of the package and shows which test finds each.

    python tests/mutations.py                # all: some minutes
    python tests/mutations.py "sign of sync" # those whose name holds the words

Prints a Markdown table fault -> first failing test. Exit code 1 if a fault survives, if its text is no longer in the
source, or if the tests fail without any fault.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAWS = "tests/contracts/test_laws.py"
GRADIENTS = "tests/contracts/test_gradients.py"
BAD_INPUT = "tests/contracts/test_bad_input.py"
KNOWN = "tests/contracts/test_known_bugs.py"
NN = "tests/unit/nn"


@dataclass(frozen=True)
class Fault:
    """One replacement: ``old`` stands exactly once in the file; ``tests`` are to notice that ``new`` is there."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def apply(self, package: Path) -> None:
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise LookupError(
                f"{self.name!r}: expected its text once in {self.file}. Got {text.count(self.old)} times."
            )
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


ESTIMATOR, LOSSES, LAYER = "functional/straight_through.py", "nn/losses.py", "nn/vector_quantizer.py"
CODEBOOK, RESETS, UPDATES, NEAREST = "nn/codebook.py", "nn/resets.py", "nn/updates.py", "functional/nearest.py"

FAULTS = [
    Fault("sign of sync", ESTIMATOR, "quantized + sync * (code", "quantized - sync * (code", GRADIENTS),
    Fault("sync scales the encoder", ESTIMATOR, "+ (z - z.detach())\n", "+ (1 + sync) * (z - z.detach())\n", GRADIENTS),
    Fault(
        "output rounds",
        ESTIMATOR,
        "quantized = code.detach() + (z - z.detach())",
        "quantized = z + (code - z).detach()",
        LAWS,
    ),
    Fault("codebook loss reaches the encoder", LOSSES, "(code - z.detach())", "(code - z)", LAWS),
    Fault("commitment reaches the codes", LOSSES, "(z - code.detach())", "(z - code)", LAWS),
    Fault("mean over masked rows too", LOSSES, "(valid.sum() * x.shape[1]).clamp(min=1)", "x.numel()", LAWS),
    Fault(
        "swapped loss weights",
        LAYER,
        "(loss.weight * terms[loss.name] for loss in self._losses)",
        "(other.weight * terms[loss.name] for loss, other in zip(self._losses, self._losses[::-1]))",
        LAWS,
    ),
    Fault("evaluation adapts the codebook", LAYER, "if self.training:  # 2", "if True:  # 2", LAWS),
    Fault(
        "indices in int32",
        LAYER,
        "indices.view(self._batch(z)), total",
        "indices.int().view(self._batch(z)), total",
        LAWS,
    ),
    Fault(
        "decode of the raw table",
        LAYER,
        "rows = self._inverse(_rows(self.codebook.codes(), flat)",
        "rows = self._inverse(_rows(self.codebook.raw, flat)",
        LAWS,
    ),
    Fault(
        "decode without the projection",
        LAYER,
        "rows = self._inverse(_rows(self.codebook.codes(), flat), flat >= 0)",
        "rows = F.pad(_rows(self.codebook.codes(), flat), (0, self.dim - self.codebook.raw.shape[1]))\n"
        "            rows = torch.where(flat[:, None] < 0, 0, rows)",
        LAWS,
    ),
    Fault("output in the codebook's dtype", "nn/quantizer.py", "rows.to(z.dtype).reshape(", "rows.reshape(", LAWS),
    Fault("mask of any shape", "nn/quantizer.py", "if mask.shape != expected:", "if mask.numel() == 0:", BAD_INPUT),
    Fault(
        "forgotten inverse map",
        CODEBOOK,
        "written = self.parametrization.inverse(codes.to(self.raw.dtype))",
        "written = codes.to(self.raw.dtype)",
        KNOWN,
    ),
    Fault(
        "scale that runs away",
        CODEBOOK,
        "raw = self.parametrization.rebase(self.raw, rows)",
        "raw = self.raw",
        "tests/unit/nn/test_parametrizations.py",
    ),
    Fault("missing all-reduce", CODEBOOK, "message = Message(self.process_group)", "message = Message(False)", LAWS),
    Fault(
        "ranks start apart",
        CODEBOOK,
        "copy_from_first_rank(tensor.detach(), self.process_group)",
        "tensor.detach()",
        LAWS,
    ),
    Fault("k-means on masked rows", CODEBOOK, "z if valid is None else z[valid]", "z", LAWS),
    Fault(
        "stale weight after a reset", CODEBOOK, "self.update.forget(rows)", "self.update.forget", f"{NN}/test_resets.py"
    ),
    Fault("frozen parameters train", CODEBOOK, "requires_grad_(not self._frozen)", "requires_grad_(True)", LAWS),
    Fault("init over codes set by hand", CODEBOOK, "if self.is_set or not", "if not", LAWS),
    Fault(
        "mask ignored in sums",
        "functional/sums.py",
        "torch.where(indices < 0, num_codes, indices)",
        "indices.clamp(min=0)",
        LAWS,
    ),
    Fault(
        "mask ignored in moments",
        "nn/batch.py",
        "(rows if self.valid is None else torch.where(self.valid[:, None], rows, 0)).sum(0)",
        "rows.sum(0)",
        LAWS,
    ),
    Fault(
        "off by one in the reset",
        RESETS,
        "self.idle >= self.patience - 1e-3",
        "self.idle > self.patience",
        f"{NN}/test_resets.py",
    ),
    Fault(
        "reset draws from the global generator",
        RESETS,
        "draw_normal(clock.seed, clock.step, _NOISE, (self.size, z.shape[1]), z.dtype)",
        "torch.randn_like(vectors)",
        LAWS,
    ),
    Fault(
        "reset on vectors of one rank",
        RESETS,
        "sum_over_ranks(self._own(batch, picks), batch.group)",
        "self._own(batch, picks)",
        LAWS,
    ),
    Fault(
        "reset counters are not saved",
        RESETS,
        '"idle", torch.zeros(size))',
        '"idle", torch.zeros(size), persistent=False)',
        LAWS,
    ),
    Fault(
        "EMA weights are not saved",
        UPDATES,
        '"weight", torch.ones(size))',
        '"weight", torch.ones(size), persistent=False)',
        LAWS,
    ),
    Fault(
        "decay of the new value",
        UPDATES,
        "self.decay * self.weight + (1 - self.decay) * counts",
        "(1 - self.decay) * self.weight + self.decay * counts",
        f"{NN}/test_updates.py",
    ),
    Fault(
        "alternated codebook trained twice",
        UPDATES,
        "    loss_trains_parametrization = True\n    takes_task_gradient = True\n\n    velocity",
        "    loss_trains_raw = loss_trains_parametrization = True\n    takes_task_gradient = True\n\n    velocity",
        GRADIENTS,
    ),
    Fault(
        "moments of reset rows kept",
        "nn/optimizers.py",
        "value.masked_fill_(book.rewritten[:, None], 0)",
        "value.masked_fill_(book.rewritten[:, None] & False, 0)",
        f"{NN}/test_optimizers.py",
    ),
    Fault(
        "half-precision distances",
        NEAREST,
        "z, codes = z.detach().to(dtype), codes.detach().to(dtype)",
        "z, codes = z.detach().half().to(dtype), codes.detach().half().to(dtype)",
        LAWS,
    ),
    Fault("distances about the origin", NEAREST, "z, codes = z - centre, codes - centre", "pass", LAWS),
    Fault("cosine of unnormalised codes", NEAREST, "codes = F.normalize(codes, dim=1)", "pass", KNOWN),
    Fault(
        "ties to any index",
        NEAREST,
        "return _first_of_equals(codes)[indices]",
        "return indices + 0",
        "tests/unit/functional/test_nearest.py",
    ),
]


def first_failure(source: Path, tests: str) -> str | None:
    """The first failing test against the package in ``source``; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-m", "not slow", *tests.split()]
    # No byte code: two versions of a file within a second would share it.
    own = {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    run = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False)
    found = re.search(r"^(?:FAILED|ERROR) (\S+::.*?|\S+)(?: - .*)?$", run.stdout, re.MULTILINE)
    if found:
        return found[1]
    if run.returncode:
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return None


def is_imported_from(source: Path) -> bool:
    code = "import straightvq; print(straightvq.__file__)"
    environment = os.environ | {"PYTHONPATH": str(source)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return Path(run.stdout.strip()).is_relative_to(source)


def main(words: list[str]) -> int:
    from rich.console import Console
    from rich.progress import track

    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    rows, survivors = [], 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve() / "src"
        clean = source.with_name("clean")
        shutil.copytree(ROOT / "src", clean, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copytree(clean, source)
        if not is_imported_from(source):
            raise RuntimeError(
                f"expected `straightvq` to be imported from the copy in {source}. Got the installed one."
            )
        failure = first_failure(source, " ".join(dict.fromkeys(fault.tests for fault in faults)))
        if failure:
            print(f"Without any fault {failure} fails.", file=sys.stderr)
            return 1
        for fault in track(faults, "Planting faults", console=Console(stderr=True)):
            fault.apply(source / "straightvq")
            failure = first_failure(source, fault.tests)
            survivors += failure is None
            rows.append(f"| {fault.name} | `{fault.file}` | {f'`{failure}`' if failure else '**survives**'} |")
            shutil.copy2(clean / "straightvq" / fault.file, source / "straightvq" / fault.file)
    print("\n".join(["| fault | file | first failing test |", "|---|---|---|", *rows]))
    print(f"\n{len(faults) - survivors} of {len(faults)} planted faults are found.")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
