"""Semantic IDs out of a training: codes refined at its end, and the table of the IDs of all items."""

import json
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning
import torch
from lightning import Callback
from torch import Tensor

from straightvq.data import Vectors
from straightvq.diagnostics import save
from straightvq.diagnostics.semantic_ids import (
    IdReport,
    assign_last,
    id_picture,
    number_collisions,
    report_ids,
    sinkhorn_last,
    unique_rate,
)
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.io import replacing, write_text
from straightvq.models import MLPAutoencoder
from straightvq.nn import ResidualQuantizer, VectorQuantizer, refine_residual
from straightvq.nn.part import check_choice, check_int, evaluating

Unique = Literal["number", "sinkhorn", "assign"]
NAME = "semantic_ids"

# Vectors that are encoded at once.
_ROWS = 8192


class SemanticIds(Callback):
    """Writes the IDs of all items when a training or a prediction ends.

    Into the run's folder: ``semantic_ids.parquet`` with the columns ``item``, ``codes`` (one per level) and ``id`` (the
    codes made unique); ``semantic_ids.json`` with the same and a summary, `IdReport`; and ``semantic_ids.png``. A
    training writes those of its last step, a prediction those of its checkpoint. Without a logger there is no such
    folder, and nothing is written: see `make_ids` and `write_ids`.

    Args:
        unique: how IDs that several items share are made different: "number" adds a level that numbers the items of one
            ID (TIGER); "sinkhorn" chooses the last code anew, evenly (LC-Rec); "assign" does so by the best assignment
            of all items with the same codes before the last. What the latter two leave is numbered too.
        refine: rounds of `refine_residual` on all training items in the last training step, before its checkpoints are
            written; 0 for none.

    Raises:
        TypeError, ValueError: for values out of range, and as soon as a run starts for another network than
            `MLPAutoencoder`, other data than `Vectors`, and several processes with ``refine``.

    Source: arXiv 2305.05065 (TIGER), arXiv 2311.09049 (LC-Rec).
    """

    def __init__(self, unique: Unique = "number", refine: int = 0) -> None:
        self.unique = cast(Unique, check_choice(self, "unique", unique, get_args(Unique)))
        self.refine = check_int(self, "refine", refine, 0)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        model, _ = _parts(trainer, pl_module)
        if self.refine and not isinstance(model.quantizer, ResidualQuantizer):
            raise InvalidValueError(
                f"`SemanticIds`: `refine` needs a ResidualQuantizer. Got {type(model.quantizer).__name__}."
            )
        if self.refine and stage == "fit" and trainer.world_size > 1:
            raise InvalidValueError(
                f"`SemanticIds`: `refine` needs one process: pass --trainer.devices 1. Got {trainer.world_size}."
            )

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        # In the last step and not behind it: its validation and its checkpoints follow.
        if self.refine and trainer.global_step >= trainer.estimated_stepping_batches:
            model, data = _parts(trainer, pl_module)
            z = _encoded(model, data, data.train_vectors)
            refine_residual(cast(ResidualQuantizer, model.quantizer), z, rounds=self.refine)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        folder = trainer.log_dir  # all ranks ask
        # Without a logger Lightning would name the current folder; a trial run has one that writes nothing.
        is_run = bool(trainer.loggers) and not getattr(trainer, "fast_dev_run", False)
        if is_run and trainer.is_global_zero and folder is not None:
            model, data = _parts(trainer, pl_module)
            write_ids(Path(folder), data.items, *make_ids(model, data, self.unique))


def make_ids(model: MLPAutoencoder, data: Vectors, unique: Unique = "number") -> tuple[Tensor, Tensor, IdReport]:
    """Codes Int64 (items, levels), IDs made unique Int64 (items, levels or more), and what was measured on them.

    By the evaluation rule; no state changes.
    """
    z = _encoded(model, data, data.vectors)
    with torch.no_grad(), evaluating(model) as still:
        codes = torch.cat([still.quantizer.encode(part) for part in z.split(_ROWS)])
        codes = codes if still.quantizer.is_composite else codes[:, None]
        prefixes = [_decoded(still, data, codes[:, : level + 1]) for level in range(codes.shape[1])]
        ids = _made_unique(still, z, codes, unique)
        from_ids = _decoded(still, data, ids[:, : codes.shape[1]])
    codes, ids = codes.cpu(), ids.cpu()
    sizes = model.quantizer.codebook_sizes
    return codes, ids, report_ids(data.vectors, codes, ids, prefixes, sizes, from_ids)


def _encoded(model: MLPAutoencoder, data: Vectors, vectors: Tensor) -> Tensor:
    """Embeddings Float (n, dim) of vectors in their own units, by the evaluation rule, on the model's device."""
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    dtype = next((parameter.dtype for parameter in model.encoder_parameters()), torch.float32)
    with torch.no_grad(), evaluating(model) as still:
        parts = (data.standard.apply(part.to(device)).to(dtype) for part in vectors.split(_ROWS))
        return torch.cat([still.encode(part) for part in parts])


def _decoded(model: MLPAutoencoder, data: Vectors, codes: Tensor) -> Tensor:
    """Vectors in their own units on the CPU, from the first codes of each item."""
    parts = codes.split(_ROWS)
    if not model.quantizer.is_composite:
        parts = tuple(part[:, 0] for part in parts)
    return torch.cat([data.standard.undo(_detokenized(model, part)).cpu() for part in parts])


def _detokenized(model: MLPAutoencoder, codes: Tensor) -> Tensor:
    dtype = next((parameter.dtype for parameter in model.decoder.parameters()), torch.float32)
    return model.decode(model.quantizer.decode(codes).to(dtype)).float()


def _made_unique(model: MLPAutoencoder, z: Tensor, codes: Tensor, unique: Unique) -> Tensor:
    if unique == "number":
        return number_collisions(codes)
    quantizer = model.quantizer
    levels = quantizer.levels if isinstance(quantizer, ResidualQuantizer) else [quantizer]
    last = levels[-1]
    if not isinstance(last, VectorQuantizer) or codes.shape[1] != len(levels):
        raise InvalidValueError(
            f'`SemanticIds`: `unique` must be "number" unless the last level is a VectorQuantizer. Got {unique!r} with '
            f"{type(last).__name__}."
        )
    rest = z - quantizer.decode(codes[:, :-1]).to(z.dtype) if len(levels) > 1 else z
    rows = last.transformed(rest)
    choose = assign_last if unique == "assign" else sinkhorn_last
    chosen = choose(codes, rows, last.codes().to(rows.dtype))
    return chosen if unique_rate(chosen) == 1 else number_collisions(chosen)


def write_ids(folder: Path, items: list[str] | list[int], codes: Tensor, ids: Tensor, report: IdReport) -> None:
    """Writes ``semantic_ids.parquet``, ``.json`` and ``.png`` into the folder, each whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"codes": codes.tolist(), "id": ids.tolist()}
    small = pa.list_(pa.int32())
    table = pa.table({"item": pa.array(items), **{name: pa.array(rows, small) for name, rows in numbers.items()}})
    with replacing(folder / f"{NAME}.parquet") as unfinished:
        pq.write_table(table, unfinished)
    rows = [
        json.dumps({"item": item, "codes": own, "id": made})
        for item, own, made in zip(items, numbers["codes"], numbers["id"], strict=True)
    ]
    lines = ",\n".join(rows)
    write_text(folder / f"{NAME}.json", f'{{"summary": {json.dumps(report.as_dict())},\n"items": [\n{lines}\n]}}\n')
    save(id_picture(report), folder / f"{NAME}.png")


def _parts(trainer: lightning.Trainer, task: lightning.LightningModule) -> tuple[MLPAutoencoder, Vectors]:
    model, data = getattr(task, "model", None), cast(Any, trainer).datamodule
    for name, part, kind in (("model", model, MLPAutoencoder), ("data", data, Vectors)):
        if not isinstance(part, kind):
            raise InvalidTypeError(f"`SemanticIds`: the {name} must be {kind.__name__}. Got {type(part).__name__}.")
    return cast(MLPAutoencoder, model), cast(Vectors, data)
