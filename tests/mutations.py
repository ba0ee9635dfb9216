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


ESTIMATOR, LOSSES, BASE, LAYER = (
    "functional/straight_through.py", "nn/slots/losses/pair.py", "nn/quantizer.py", "nn/vector_quantizer.py",
)  # fmt: skip
CODEBOOK, START, RESETS, UPDATES = "nn/codebook.py", "nn/start.py", "nn/slots/resets.py", "nn/slots/updates.py"
OPTIMIZERS, BATCH, DRAWS = "nn/optimizers.py", "nn/batch.py", "functional/draws.py"
UNIT_NORM, RUNNING, CHAIN, LINEAR, BRIDGE = (
    f"nn/slots/parametrizations/{name}.py" for name in ("unit_norm", "running", "chain", "linear", "bridge")
)
ANCHORS, OF_MAPS = "nn/slots/anchors.py", "tests/unit/nn/slots/parametrizations"
PART = "nn/part.py"
RESIDUAL, PRODUCT, COMPOSITE = (f"nn/families/{name}.py" for name in ("residual", "product", "composite"))
FAMILIES = f"{NN}/families"
INTEROP = "tests/unit/interop"
ROOM = "nn/slots/losses"
EXTENSIONS, OTHERS = "tests/contracts/test_extensions.py", f"{NN}/test_other_programs.py"

ROTATION, DYNAMIC, DIVEQ = (f"nn/slots/estimators/{name}.py" for name in ("rotation", "dynamic", "diveq"))
INDEX, SAMPLE, LOGITS = (f"functional/soft/{name}.py" for name in ("index", "sample", "logits"))
DRAWS_OF_PARTS, LARGEST = "nn/draws.py", "nn/slots/assigners/product.py"
ESTIMATORS, SOFT = f"{NN}/slots/estimators", "tests/unit/functional/soft"

SAVED, HUB = "tests/contracts/test_pretrained.py", "tests/unit/hub/test_folder.py tests/unit/hub/test_describe.py"
DOCTOR, TOLD = "analysis/doctor/measure.py", "tests/unit/analysis/doctor/test_measure.py"

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
    Fault(
        "codebook loss reaches the encoder",
        LOSSES,
        "_mean_square(code, z.detach()",
        "_mean_square(code, z",
        LAWS,
    ),
    Fault(
        "commitment reaches the codes",
        LOSSES,
        "_mean_square(z, code.detach()",
        "_mean_square(z, code",
        LAWS,
    ),
    Fault(
        "mean over masked rows too",
        "nn/slots/losses/base.py",
        "(valid.sum() * x.shape[1]).clamp(min=1)",
        "x.numel()",
        LAWS,
    ),
    Fault(
        "swapped loss weights",
        BASE,
        "* terms[loss.name] for loss in self._losses()), start=zero_of(z))",
        "* terms[o.name] for loss, o in zip(self._losses(), self._losses()[::-1])), start=zero_of(z))",
        LAWS,
    ),
    Fault(
        "evaluation adapts the codebook",
        LAYER,
        "if not self.training:\n            return self.choose",
        "if False:\n            return self.choose",
        LAWS,
    ),
    Fault(
        "indices in int32",
        BASE,
        "return indices.view(batch + indices.shape[1:])",
        "return indices.view(batch + indices.shape[1:]).int()",
        LAWS,
    ),
    Fault(
        "lookup in the raw table",
        LAYER,
        "return _rows(self.codebook.current(), indices)",
        "return _rows(self.codebook.raw, indices)",
        LAWS,
    ),
    Fault(
        "decode without the inverse transform",
        BASE,
        "out = still._inverse(still.lookup(flat), valid)",
        "out = still.lookup(flat)\n            out = torch.nn.functional.pad(out, (0, self.dim - out.shape[1]))\n"
        "            out = torch.where(valid[:, None], out, 0)",
        LAWS,
    ),
    Fault("output in the codebook's dtype", BASE, "rows.to(z.dtype).reshape(", "rows.reshape(", LAWS),
    Fault("mask of any shape", BASE, "if mask.shape != expected:", "if mask.numel() == 0:", BAD_INPUT),
    Fault(
        "bypass keeps the codes",
        BASE,
        "quantized = step.z\n",
        "quantized = step.z + 0 * self.step(x, valid).code\n",
        LAWS,
    ),
    Fault(
        "bypass skips the transform",
        BASE,
        "                quantized = step.z\n            else:",
        "                return self._output(z, rows, step, sound)\n            else:",
        f"{NN}/test_quantizer.py",
    ),
    Fault(
        "bypass outlives an exception",
        BASE,
        "        yield\n    finally:\n        for q, was",
        "        yield\n    except ZeroDivisionError:\n        pass\n    else:\n        for q, was",
        f"{NN}/test_quantizer.py",
    ),
    Fault("copies stay bypassed", BASE, 'not in ("_is_bypassed",', "not in (", LAWS),
    Fault(
        "parameters left out under bypass", BASE, "for p in self.parameters() if p.requires_grad)", "for p in ())", LAWS
    ),
    Fault(
        "NaN let through where nobody can ask",
        BASE,
        "valid = sound.expand(flat.shape[0]) if valid is None else valid & sound",
        "pass",
        f"{NN}/test_quantizer.py",
    ),
    Fault(
        "encoding by the training rule",
        BASE,
        "with no_autocast(z.device), evaluating(self) as still:\n            rows",
        "still = self\n        with no_autocast(z.device):\n            rows",
        f"{NN}/test_quantizer.py",
    ),
    Fault(
        "output strided as channels last",
        BASE,
        "return out.contiguous() if z.is_contiguous() else out",
        "return out",
        f"{NN}/test_quantizer.py",
    ),
    Fault(
        "sync forgotten while the encoder is frozen",
        ESTIMATOR,
        "if sync else quantized",
        "if sync and z.requires_grad else quantized",
        "tests/unit/functional/test_straight_through.py",
    ),
    Fault(
        "assignment by the evaluation rule",
        LAYER,
        "self.assigner.training_rule(batch, codes.detach().to(batch.z.dtype))",
        "self.assigner(batch.z, codes.detach().to(batch.z.dtype))",
        EXTENSIONS,
    ),
    Fault("clock that stands still", LAYER, "self.clock.tick()", "self.clock.step.add_(0)", EXTENSIONS),
    Fault(
        "clock between assigner and estimator",
        LAYER,
        "self.codebook.record(batch, indices, counts)\n",
        "self.codebook.record(batch, indices, counts)\n        self.clock.tick()\n",
        EXTENSIONS,
    ),
    Fault(
        "loss routed as the task",
        CODEBOOK,
        "return codes, codes if loss == task else self._read(loss)",
        "return codes, codes",
        GRADIENTS,
    ),
    Fault(
        "raw table trained through a still map",
        CODEBOOK,
        "(self.raw if trains.raw else self.raw.detach())",
        "self.raw",
        GRADIENTS,
    ),
    Fault(
        "map trained that should stay",
        CODEBOOK,
        "if is_learned and not trains.parametrization:",
        "if False:",
        GRADIENTS,
    ),
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
        f"{NN}/slots/test_parametrizations.py",
    ),
    Fault("missing all-reduce", CODEBOOK, "message = Message(self.process_group)", "message = Message(False)", LAWS),
    Fault(
        "sums of vectors instead of residuals",
        CODEBOOK,
        "code_sums(chosen.sub_(z), indices, self.size)",
        "code_sums(-z, indices, self.size)\n        sums = sums + counts[:, None] * codes",
        f"{NN}/test_codebook.py",
    ),
    Fault(
        "gradients of rows that a reset rewrote",
        CODEBOOK,
        "self.raw.grad.masked_fill_(rows[:, None], 0)",
        "pass",
        f"{NN}/test_codebook.py",
    ),
    Fault(
        "stale size after a reset",
        CODEBOOK,
        "self.update.forget(rows)",
        "self.update.forget",
        f"{NN}/slots/test_resets.py",
    ),
    Fault("frozen parameters train", CODEBOOK, "requires_grad_(not self._frozen)", "requires_grad_(True)", LAWS),
    Fault(
        "flags of a table that was not loaded",
        CODEBOOK,
        'for name in ("is_ready", "filled", "is_frozen"):',
        "for name in ():",
        f"{NN}/test_codebook.py",
    ),
    Fault(
        "a failed construction keeps its parts",
        CODEBOOK,
        "            self._unbind()\n",
        "",
        f"{NN}/test_codebook.py",
    ),
    Fault("ranks start apart", START, "copy_from_first_rank(tensor, codebook.process_group)", "pass", LAWS),
    Fault("k-means on masked rows", START, "batch.z if batch.valid is None else batch.z[batch.valid]", "batch.z", LAWS),
    Fault(
        "init over codes set by hand",
        START,
        "if not codebook.init.needs_data or codebook.filled.all():",
        "if not codebook.init.needs_data:",
        f"{NN}/test_codebook.py",
    ),
    Fault(
        "first vectors instead of random ones",
        START,
        'keep = torch.randperm(len(rows), generator=generator, device="cpu")[',
        "keep = torch.arange(len(rows))[",
        f"{NN}/slots/test_inits.py",
    ),
    Fault(
        "vacant rows take the first vectors",
        START,
        'picked = torch.randperm(len(rows), generator=generator, device="cpu")[',
        "picked = torch.arange(len(rows))[",
        f"{NN}/slots/test_inits.py",
    ),
    Fault(
        "vacant rows stay vacant",
        START,
        "codebook.filled[: len(rows)] = 1",
        "codebook.filled.fill_(1)",
        f"{NN}/slots/test_inits.py",
    ),
    Fault(
        "mask ignored in sums",
        "functional/sums.py",
        "torch.where(indices < 0, num_codes, indices)",
        "indices.clamp(min=0)",
        LAWS,
    ),
    Fault(
        "mask ignored in moments",
        BATCH,
        "(rows if self.valid is None else torch.where(self.valid[:, None], rows, 0)).sum(0)",
        "rows.sum(0)",
        LAWS,
    ),
    Fault("shares in one digit", BATCH, "_BASE = 1 << 22", "_BASE = 1 << 30", f"{NN}/test_batch.py"),
    Fault(
        "rows numbered on each rank alone",
        BATCH,
        "return own + self.shares()[: rank(self.group)].sum()",
        "return own",
        "tests/contracts/test_extensions.py tests/contracts/test_laws.py",
    ),
    Fault(
        "masked rows have draws of their own",
        BATCH,
        "own = self.valid.long().cumsum(0) - 1",
        "own = torch.arange(len(self.z), device=self.z.device)",
        EXTENSIONS,
    ),
    Fault(
        "off by one in the reset",
        RESETS,
        "self.idle >= self.patience - 1e-3",
        "self.idle > self.patience",
        f"{NN}/slots/test_resets.py",
    ),
    Fault(
        "reset draws from the global generator",
        RESETS,
        'batch.draws.normal("reset noise", (self.size, z.shape[1]), z.dtype)',
        "torch.randn_like(vectors)",
        LAWS,
    ),
    Fault(
        "reset on vectors of one rank",
        BATCH,
        "sum_over_ranks(self._own(places), self.group)",
        "self._own(places)",
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
        "noise of the authors by default",
        RESETS,
        'relative_to: Measure = "spread")',
        'relative_to: Measure = "norm")',
        f"{NN}/slots/test_resets.py",
    ),
    Fault(
        "reset picks in a progression",
        DRAWS,
        "return drawn[x.argsort(stable=True)[:count]]",
        "return drawn[:count]",
        "tests/unit/functional/test_draws.py",
    ),
    Fault(
        "EMA sizes are not saved",
        UPDATES,
        '"cluster_size", torch.ones(size))',
        '"cluster_size", torch.ones(size), persistent=False)',
        LAWS,
    ),
    Fault(
        "decay of the new value",
        UPDATES,
        "self.decay * self.cluster_size + (1 - self.decay) * counts",
        "(1 - self.decay) * self.cluster_size + self.decay * counts",
        f"{NN}/slots/test_updates.py",
    ),
    Fault(
        "alternated codebook trained twice",
        UPDATES,
        "    loss, task = MAP_ONLY, ALL\n",
        "    loss = task = ALL\n",
        GRADIENTS,
    ),
    Fault(
        "a zero code without direction",
        UNIT_NORM,
        "torch.where(largest > 0, codes / largest, _own_directions(codes))",
        "codes / largest.clamp(min=1e-30)",
        f"{NN}/slots/test_parametrizations.py",
    ),
    Fault(
        "variance with an absolute floor",
        RUNNING,
        "least = _SMALLEST_VARIANCE * var.mean(-1, keepdim=True)",
        "least = torch.full_like(var[..., :1], _SMALLEST_VARIANCE)",
        f"{NN}/slots/test_parametrizations.py",
    ),
    Fault(
        "a linear map from the other side",
        LINEAR,
        "F.linear(raw, self.weight.to(raw.dtype, copy=True), shift)",
        "F.linear(raw, self.weight.mT.to(raw.dtype, copy=True), shift)",
        f"{OF_MAPS}/test_linear.py",
    ),
    Fault(
        "a frozen basis that is trained",
        CODEBOOK,
        "Trains(trains.raw and not self.parametrization.freezes_raw, trains.parametrization)",
        "trains",
        f"{OF_MAPS}/test_linear.py",
    ),
    Fault(
        "a singular map inverted",
        LINEAR,
        "return ~((there <= LARGEST_SCALE) & (back <= LARGEST_SCALE) & (there * back <= LARGEST_SCALE))",
        "return there > LARGEST_SCALE",
        f"{OF_MAPS}/test_linear.py",
    ),
    Fault(
        "heads of a bridge mixed up",
        BRIDGE,
        "attended.transpose(1, 2).reshape(number, width)",
        "attended.reshape(number, width)",
        f"{OF_MAPS}/test_networks.py",
    ),
    Fault(
        "a mapped table read twice",
        CODEBOOK,
        "if loss == NOTHING or task == NOTHING:",
        "if False:",
        f"{OF_MAPS}/test_networks.py",
    ),
    Fault(
        "the farthest vector as the anchor",
        ANCHORS,
        "own = z.index_select(0, nearest_code(codes, z))",
        "own = z.index_select(0, torch.cdist(codes, z).argmax(1))",
        f"{NN}/slots/test_anchors.py",
    ),
    Fault(
        "an anchored code that stays where it was",
        ANCHORS,
        "torch.lerp(codes, anchors, way",
        "torch.lerp(anchors, codes, way",
        f"{NN}/slots/test_anchors.py",
    ),
    Fault(
        "masked vectors as anchors",
        ANCHORS,
        "if valid is not None:  # a vector that is valid",
        "if False:  # a vector that is valid",
        f"{NN}/slots/test_anchors.py",
    ),
    Fault(
        "a normalisation before another map",
        CHAIN,
        "if self.has_inverse and not part.is_onto:",
        "if False:",
        f"{NN}/slots/test_parametrizations.py",
    ),
    Fault(
        "moments of reset rows kept",
        OPTIMIZERS,
        "is_new = book.rewritten > 0\n",
        "is_new = book.rewritten < 0\n",
        f"{NN}/test_optimizers.py",
    ),
    Fault(
        "moments cleared a step late in a closure",
        OPTIMIZERS,
        "given[0] = self._ready_after(given[0], optimizer)",
        "self._get_ready(optimizer)",
        f"{NN}/test_optimizers.py",
    ),
    Fault(
        "age of the table instead of the row's",
        OPTIMIZERS,
        "raw.copy_(torch.where(rows[:, None], own, raw))",
        "pass",
        f"{NN}/test_optimizers.py",
    ),
    Fault(
        "ties to any index",
        "functional/points.py",
        "candidates = candidates.sort(1).values if candidates.shape[1] > 1 else candidates",
        "candidates = candidates.flip(1)",
        "tests/unit/functional/test_nearest.py",
    ),
    Fault(
        "no second search for what is in doubt",
        "functional/certain.py",
        "rows = torch.arange(len(z), device=z.device)[rows][~is_certain]",
        "rows = torch.arange(0)",
        "tests/unit/functional/test_nearest.py",
    ),
    Fault(
        "distances about the origin",
        "functional/points.py",
        "centred = points - middle",
        "centred, middle = points, 0 * middle",
        "tests/unit/functional/test_nearest.py",
    ),
    Fault(
        "encoding switches modes", PART, "if in_training and not torch.compiler.is_compiling():", "if False:", OTHERS
    ),
    Fault("codes are the table itself", CODEBOOK, "return self.current().clone()", "return self.current()", OTHERS),
    Fault(
        "a table that autograd keeps is written into",
        CODEBOOK,
        "raw = (self.raw if trains.raw else self.raw.detach()).clone()",
        "raw = self.raw if trains.raw else self.raw.detach()",
        OTHERS,
    ),
    Fault(
        "a loss that leaves parameters out",
        BASE,
        "for p in self.parameters() if p.requires_grad)",
        "for p in ())",
        OTHERS,
    ),
    Fault(
        "an assigned state in half precision", BASE, "keeping_float32(lambda tensor: tensor)(value)", "value", OTHERS
    ),
    Fault("a table without flags is started again", CODEBOOK, "if fits and not has_flags", "if False", OTHERS),
    Fault(
        "codes too large to be squared",
        CODEBOOK,
        "> (limit := largest_value(self.raw.dtype))",
        "> (limit := torch.inf)",
        OTHERS,
    ),
    Fault(
        "a validation that a resumed run never makes up for",
        "checkpoints.py",
        "self._waits = internals.validation_follows(trainer)",
        "self._waits = False",
        "tests/unit/training/test_resume.py tests/unit/test_checkpoints.py",
    ),
    Fault(
        "the worst checkpoint as the best",
        "training/command_line.py",
        '"mode": "min"',
        '"mode": "max"',
        "tests/recipes/test_recipes.py",
    ),
    Fault(
        "a traceback swallowed",
        "cli.py",
        "        cause = cause.__cause__\n    return None",
        "        cause = cause.__cause__\n    return str(error)",
        "tests/unit/test_cli.py",
    ),
    Fault(
        "a log torn by a kill",
        "runs.py",
        "write_text(file, wider.getvalue())",
        "file.write_text(wider.getvalue())",
        "tests/unit/test_runs.py",
    ),
    Fault(
        "a shard trusted for its name",
        "encoding/folder.py",
        "return made_with == self.id and rows + len(bad) == self.sizes[number]",
        "return self.file(number).exists()",
        "tests/unit/encoding/test_engine.py",
    ),
    Fault(
        "every process makes the shards of the first",
        "encoding/engine.py",
        "range(rank, len(folder.sizes), world)",
        "range(0, len(folder.sizes), world)",
        "tests/unit/encoding/test_engine.py",
    ),
    Fault(
        "the last process removes the files of another",
        "encoding/folder.py",
        '".part-*.tmp"',
        '".*.tmp"',
        "tests/unit/encoding/test_folder.py",
    ),
    Fault(
        "rows of a shard shifted by one",
        "encoding/encoder.py",
        "range(number * size, number * size + self.folder.sizes[number])",
        "range(number * size + 1, number * size + 1 + self.folder.sizes[number])",
        "tests/unit/encoding/test_encoder.py",
    ),
    Fault(
        "a row that is not finite is dropped unnamed",
        "encoding/encoder.py",
        "bad.append((key, NOT_FINITE))",
        "pass",
        "tests/unit/encoding/test_encoder.py",
    ),
    Fault(
        "codes in wider integers than they need",
        "encoding/encoder.py",
        "np.min_scalar_type(max(self.codec.quantizer.codebook_sizes) - 1)",
        "np.min_scalar_type(max(self.codec.quantizer.codebook_sizes))",
        "tests/unit/encoding/test_encoder.py",
    ),
    Fault(
        "codes of other settings taken for these",
        "encoding/folder.py",
        "        if names:\n            changes",
        "        if False:\n            changes",
        "tests/unit/encoding/test_folder.py",
    ),
    Fault(
        "unusable rows counted once per shard",
        "encoding/folder.py",
        "bad + len(unusable)",
        "bad + bool(unusable)",
        "tests/unit/encoding/test_folder.py",
    ),
    Fault(
        "damaged indices decoded",
        "encoding/codes.py",
        "(flat < quantizer.codebook_size)",
        "(flat < flat.max(initial=0) + 1)",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "codes decoded by another network",
        "encoding/decoder.py",
        'if codes.get("weights") != made["weights"]:',
        'if "weights" not in codes:',
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "all levels decoded, whatever is asked for",
        "encoding/decoder.py",
        "[own[..., : self.levels] for own in part.indices]",
        "part.indices",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "a key leads out of the folder",
        "encoding/decoder.py",
        'or ".." in path.parts ',
        "",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "vectors decoded in the units of the training",
        "encoding/kinds.py",
        "list(self.standard.undo(found).cpu().numpy())",
        "list(found.cpu().numpy())",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "pixels cut off instead of rounded",
        "encoding/kinds.py",
        "(image.clamp(0, 1) * 255).round()",
        "(image.clamp(0, 1) * 255)",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "a clip is decoded with its padding",
        "encoding/kinds.py",
        "[clip[:end] for clip, end in zip(clips, ends, strict=True)]",
        "list(clips)",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "one overflow spoils its batch",
        "encoding/codec.py",
        "if None not in found:",
        "if found:",
        "tests/unit/encoding/test_encoder.py",
    ),
    Fault(
        "vectors left in the scale of the network",
        "encoding/kinds.py",
        "self.standard.undo(found)",
        "found",
        "tests/unit/encoding/test_decoder.py",
    ),
    Fault(
        "a result credited to other settings",
        "studies/results.py",
        "return found if found is not None and found.settings == run.settings else None",
        "return found",
        "tests/unit/studies",
    ),
    Fault("cosine of unnormalised codes", "functional/points.py", "points = _unit(codes)", "points = codes", KNOWN),
    Fault(
        "levels send the gradient again",
        RESIDUAL,
        "rest = rest - (rows.detach() if is_once else rows)",
        "rest = step.z - rows",
        FAMILIES,
    ),
    Fault(
        "one level too many kept",
        RESIDUAL,
        "kept > number if valid is None",
        "kept >= number if valid is None",
        FAMILIES,
    ),
    Fault(
        "levels left out still decode",
        COMPOSITE,
        "return torch.where((indices >= 0).any(1, keepdim=True), rows, 0)",
        "return rows",
        FAMILIES,
    ),
    Fault(
        "beam worse than greedy",
        RESIDUAL,
        "torch.where(is_better, paths[:, 0]",
        "torch.where(is_better | True, paths[:, 1]",
        FAMILIES,
    ),
    Fault(
        "levels of a product in another order",
        PRODUCT,
        "[columns(own) for own in indices], 2)",
        "[columns(own) for own in indices], 1)",
        FAMILIES,
    ),
    Fault(
        "a synchronised group passes for a plain one",
        PRODUCT,
        " and not group.estimator.trains_codes",
        "",
        FAMILIES,
    ),
    Fault(
        "losses of groups added up",
        PRODUCT,
        "[width / x.shape[1] for width in each]",
        "[1.0 for width in each]",
        FAMILIES,
    ),
    Fault(
        "residual levels start scaled",
        "nn/slots/transforms.py",
        'if self.start == "scaled":',
        "if self.start:",
        FAMILIES,
    ),
    Fault("a hook misses the levels", RESIDUAL, "level.tell(step)", "pass", FAMILIES),
    Fault(
        "an imported average starts over",
        "interop/tables.py",
        "update.cluster_size.copy_(cluster_size)",
        "pass",
        f"{INTEROP}/test_vqvae.py",
    ),
    Fault(
        "an imported VQGAN has the paper's weights",
        "interop/layouts/taming.py",
        "gradient_losses(1.0, _BETA)",
        "gradient_losses(_BETA, 1.0)",
        f"{INTEROP}/test_taming.py",
    ),
    Fault(
        "a file may run code",
        "interop/files.py",
        "weights_only=True",
        "weights_only=False",
        f"{INTEROP}/test_hostile.py",
    ),
    Fault(
        "an imported affine map has no shift",
        "interop/layouts/vqtorch.py",
        "part.shift.copy_(affine[2])",
        "pass",
        f"{INTEROP}/test_vqtorch.py",
    ),
    Fault(
        "the other bound of FSQ is the paper's",
        "nn/families/finite_scalar.py",
        "(offset / reach).atanh()",
        "(offset / reach).tan()",
        f"{FAMILIES}/test_finite_scalar.py",
    ),
    Fault("rotation the other way", ROTATION, "directions(start + end)", "directions(start - end)", ESTIMATORS),
    Fault("gain without a limit", ROTATION, ".clamp(max=limit)", "", ESTIMATORS),
    Fault("damped by the distance", DYNAMIC, "smallest / distance, 1)", "(smallest / distance).sqrt(), 1)", ESTIMATORS),
    Fault("damped by this rank alone", DYNAMIC, "stack_over_ranks(smallest, group).amin(0)", "smallest", ESTIMATORS),
    Fault("noise as a variance", DIVEQ, "error + noise * batch", "error + noise**0.5 * batch", ESTIMATORS),
    Fault(
        "the length takes no gradient", DIVEQ, "vector_norm(code - z,", "vector_norm((code - z).detach(),", ESTIMATORS
    ),
    Fault(
        "second step to the first end", DIVEQ, "F.embedding(line + 1, codes)", "F.embedding(line, codes)", ESTIMATORS
    ),
    Fault("noise in evaluation", DIVEQ, "if context.batch is None or not self.noise:", "if False:", ESTIMATORS),
    Fault("gradient without the noise", INDEX, "(logits + noise)", "(logits + 0 * noise)", SOFT),
    Fault("second order halved", INDEX, "return 2 * _through_softmax(halfway", "return _through_softmax(halfway", SOFT),
    Fault("no direct gradient", INDEX, ".index_add_(0, indices, g)", "", SOFT),
    Fault("codes take no gradient of logits", INDEX, "to_codes += to_logits.T @ z[part]", "pass", SOFT),
    Fault("draws without noise", SAMPLE, ".add_(noise.tile(part, codes))", "", SOFT),
    Fault(
        "every tile draws the same", LOGITS, "rows = self.rows[part]", "rows = self.rows[: len(self.rows[part])]", SOFT
    ),
    Fault("noise of a later step", DRAWS_OF_PARTS, "self.step.clone()", "self.step", ESTIMATORS),
    Fault(
        "product with one length", LARGEST, "(squares.max() - squares).sqrt()", "0 * squares", f"{NN}/slots/assigners"
    ),
    Fault(
        "matching: means left out",
        f"{ROOM}/matching.py",
        "square = mean_c.to(wide).square().sum() + variances",
        "square = variances",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: roots of the covariances alone",
        f"{ROOM}/matching.py",
        "eigvalsh(root @ cov_c @ root)",
        "eigvalsh(cov_c @ cov_c)",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: gradient of a root at 0",
        f"{ROOM}/matching.py",
        "torch.where(is_apart, torch.where(is_apart, square, 1).sqrt(), 0)",
        "square.clamp(min=0).sqrt()",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: codes moved once by pairs of codes",
        f"{ROOM}/matching.py",
        "twice = 2 * among_codes - among_codes.detach()",
        "twice = among_codes",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: sign of the kernel's gradient",
        f"{ROOM}/kernel.py",
        "to_y += factor.T @ x[rows] - factor.sum(0)[:, None] * y",
        "to_y += factor.sum(0)[:, None] * y - factor.T @ x[rows]",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: oldest vectors stay",
        f"{ROOM}/recent.py",
        "place = (self.seen + number) % self.capacity",
        "place = number % self.capacity",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "matching: masked vectors held",
        f"{ROOM}/recent.py",
        "is_new = number < batch.total()",
        "is_new = number < len(batch.z)",
        f"{NN}/slots/losses/test_matching.py",
    ),
    Fault(
        "region: quotas rounded down",
        f"{ROOM}/region.py",
        "(counts * inactive + total - 1) // total",
        "(counts * inactive) // total",
        f"{NN}/slots/losses/test_region.py",
    ),
    Fault(
        "region: lone vectors hand over",
        f"{ROOM}/region.py",
        "torch.where(counts > 1,",
        "torch.where(counts > 0,",
        f"{NN}/slots/losses/test_region.py",
    ),
    Fault(
        "region: targets added up",
        f"{ROOM}/region.py",
        "handed / times.clamp(min=1)[:, None]",
        "handed",
        f"{NN}/slots/losses/test_region.py",
    ),
    Fault(
        "orthogonality: a code with itself",
        f"{ROOM}/orthogonality.py",
        "(unit.T @ unit).square().sum() - own",
        "(unit.T @ unit).square().sum()",
        f"{NN}/slots/losses/test_orthogonality.py",
    ),
    Fault(
        "moment: variance about 0",
        f"{ROOM}/moments.py",
        "(z - mean.detach()).square()",
        "z.square()",
        f"{NN}/slots/losses/test_moments.py",
    ),
    Fault(
        "sinkhorn: codes balanced alone",
        "nn/slots/assigners/sinkhorn.py",
        "if not is_first:",
        "if False:",
        f"{NN}/slots/assigners/test_sinkhorn.py",
    ),
    Fault(
        "sinkhorn: masked vectors weigh",
        "nn/slots/assigners/sinkhorn.py",
        "log_weight = weight.log()",
        "log_weight = torch.zeros_like(weight)",
        f"{NN}/slots/assigners/test_sinkhorn.py",
    ),
    Fault(
        "sinkhorn: cost not standardised",
        "nn/slots/assigners/sinkhorn.py",
        "torch.where(variance > 0, variance, 1).sqrt()",
        "torch.ones_like(variance)",
        f"{NN}/slots/assigners/test_sinkhorn.py",
    ),
    Fault(
        "few: ties in any order",
        "functional/few.py",
        ".clamp(max=len(codes) - 1).sort(1).values",
        ".clamp(max=len(codes) - 1).sort(1, descending=True).values",
        "tests/unit/functional/test_few.py",
    ),
    Fault(
        "saved: a renamed argument",
        "nn/families/binary.py",
        'kept_as: ClassVar = {"scale": "half_width"}',
        'kept_as: ClassVar = {"scale": "bits"}',
        SAVED,
    ),
    Fault(
        "saved: the shared part as a list",
        COMPOSITE,
        "[0] if self.is_shared else",
        "[:1] if self.is_shared else",
        SAVED,
    ),
    Fault("saved: draws on loading", "hub/folder.py", "fork_rng(devices=[])", "fork_rng(enabled=False)", SAVED),
    Fault("saved: precision", "hub/folder.py", "own.data = own.data.to(state[name].dtype)", "pass", SAVED),
    Fault("saved: mode", "hub/folder.py", "return module.eval()", "return module", SAVED),
    Fault(
        "saved: any module of the package", "hub/describe.py", "if module and name in module.__all__", "if module", HUB
    ),
    Fault("saved: any package", "hub/describe.py", "if room in ROOMS else", "if room else", HUB),
    Fault("saved: memory before shapes", "hub/folder.py", "twin = made(_twin)", "twin = made(_new)", HUB),
    Fault(
        "saved: no look at the kind", "hub/folder.py", "if own.is_floating_point() != state", "if False and state", HUB
    ),
    Fault("doctor: half of the spacing", DOCTOR, "k ** (-1 / d)", "k ** (-2 / d)", TOLD),
    Fault("doctor: one spot of two", DOCTOR, "nearest <= within", "nearest < 0", TOLD),
    Fault("doctor: limit of far", DOCTOR, "away > 3 * usual", "away > usual", TOLD),
    Fault(
        "doctor: too few vectors", DOCTOR, "0 < len(counts) <= counts.sum() / VECTORS_PER_CODE", "0 < len(counts)", TOLD
    ),
    Fault("doctor: far by too few", DOCTOR, "counts.sum() >= VECTORS_PER_CODE", "counts.sum() >= 0", TOLD),
    Fault("doctor: weights of averages", DOCTOR, "update.cluster_size < NO_WEIGHT", "update.cluster_size < 1", TOLD),
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
