"""The Lightning data module of vectors."""

from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from straightvq.data.loader import EpochSampler, TrainLoader, eval_loader, train_loader
from straightvq.data.split import share
from straightvq.data.vectors.read import Table, digits, read
from straightvq.data.vectors.standard import SCALINGS, Scaling, Standard, learn
from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.nn.part import check_choice, check_float, check_int

Batch = dict[str, Any]


class VectorRows(Dataset[Batch]):
    """Vectors in memory, served in whole batches ``{"vector": Float32 (B, d), "index": Int64 (B)}``.

    Args:
        vectors: all of them, Float32 (n, d).
        rows: those that are served, Int64 (m,); ``index`` is the row among all.
    """

    def __init__(self, vectors: Tensor, rows: Tensor) -> None:
        self.vectors, self.rows = vectors, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([i]).items()}

    def __getitems__(self, places: list[int]) -> Batch:
        # The loader asks for a whole batch at once: one gather instead of B small tensors and their collation.
        index = self.rows[torch.as_tensor(places, dtype=torch.int64)]
        return {"vector": self.vectors[index], "index": index}


class Vectors(lightning.LightningDataModule):
    """Vectors of items in batches ``{"vector": Float (B, width), "index": Int64 (B)}``.

    Training runs over the rows that are not held out, validation over those that are; testing and prediction run over
    all rows in their order. Without a validation split, which is the default because IDs are made for the very items
    that one has, validation runs over all rows too, and its error is that of the training.

    Vectors are scaled, and rotated if there are ``components``, by what the training rows teach. `standard` is part of
    every checkpoint: a checkpoint that is read with other vectors applies that of its training.

    The order of training depends on (seed, epoch) only and its position is part of Lightning's checkpoints.

    Args:
        source: "digits" (the 64 pixels of the 1,797 handwritten digits that come with scikit-learn: no item
            embeddings, but real vectors with clusters, for trying things out), a .parquet file with a column of lists
            of one length, a .npy file of shape (n, d), or a folder of either.
        column: Column of the vectors; None for the only one of lists of numbers.
        item: Column of the items' names, all different; None for the first of texts or integers, and row numbers
            without one.
        batch_size: Vectors per batch and process. The last batch of an epoch may be smaller. A data-dependent start
            of the codes wants four vectors per code in the first one.
        val_fraction: Share of the rows that is held out for validation, in [0, 0.5); chosen by a hash of seed and name.
        scaling: "whole" centres the columns and divides all by one number; "columns" each by its own; "none".
        components: Principal components that are kept: the width of what the network sees. None keeps the vectors'
            own width.
        seed: Random seed of the split and the order.

    Attributes:
        items: Names by row.
        vectors: Float32 (n, d), as they were read.
        standard: What is done to them, `Standard`.

    Raises:
        ValueError, TypeError: An argument out of range; nothing at ``source``; vectors that are empty, of different
            widths, no numbers, or not finite.

    Example:
        >>> data = Vectors(source="digits", batch_size=16, components=8)
        >>> data.setup("test")
        >>> batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
        >>> batch["vector"].shape, tuple(data.vectors.shape), data.items[:3]
        (torch.Size([16, 8]), (1797, 64), [0, 1, 2])
    """

    def __init__(
        self,
        source: str = "digits",
        column: str | None = None,
        item: str | None = None,
        batch_size: int = 1024,
        val_fraction: float = 0.0,
        scaling: Scaling = "whole",
        components: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.source = self._check_source(source)
        self.column, self.item = column, item
        self.batch_size = check_int(self, "batch_size", batch_size, 1)
        self.val_fraction = check_float(self, "val_fraction", val_fraction, minimum=0, maximum=0.5, open_maximum=True)
        self.scaling = cast(Scaling, check_choice(self, "scaling", scaling, SCALINGS))
        self.components = None if components is None else check_int(self, "components", components, 1)
        self.seed = check_int(self, "seed", seed, 0)
        self._table: Table | None = None
        self._standard: Standard | None = None
        self._rows: dict[str, Tensor] = {}

    def _check_source(self, source: Any) -> str:
        if not isinstance(source, str):
            raise InvalidTypeError(f"`Vectors`: `source` must be a string. Got {source!r}.")
        if source != "digits" and not Path(source).expanduser().exists():
            raise InvalidValueError(
                f'`Vectors`: `source` {source!r} does not exist. Sources are "digits" (embedded), a .parquet or .npy '
                "file, or a folder of them."
            )
        return source

    # --- what there is ------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the vectors and divides the rows; to "fit", also learns the scaling."""
        if self._table is None:
            is_embedded = self.source == "digits"
            table = digits() if is_embedded else read(Path(self.source).expanduser(), self.column, self.item)
            held = np.array([share(str(name), self.seed, "split") < self.val_fraction for name in table.items])
            if held.all():
                held[:] = False
            everything = torch.arange(len(table.items))
            self._rows = {"train": everything[~held], "validation": everything[held], "all": everything}
            if not held.any():
                self._rows["validation"] = everything
            self._table = table
        if self._standard is not None:
            self._check_width(self._standard)
        elif stage == "fit":
            self._learn()

    def _learn(self) -> Standard:
        # Not before it is needed: a checkpoint that is read may bring one, and few vectors teach none.
        self._standard = learn(self.train_vectors.numpy(), self.scaling, self.components)
        return self._standard

    def _check_width(self, standard: Standard) -> None:
        width = self.vectors.shape[1]
        if len(standard.mean) != width:
            raise InvalidValueError(
                f"`Vectors`: the vectors must have {len(standard.mean)} numbers, as those that the checkpoint was "
                f"trained on. Got {width} in {self.source!r}."
            )

    @property
    def items(self) -> list[str] | list[int]:
        return self._read().items

    @property
    def vectors(self) -> Tensor:
        return torch.from_numpy(self._read().vectors)

    @property
    def train_vectors(self) -> Tensor:
        """Those of the training rows, in their order."""
        return self.vectors[self._rows["train"]]

    @property
    def standard(self) -> Standard:
        return self._learn() if self._standard is None else self._standard

    def _read(self) -> Table:
        if self._table is None:
            self.setup()
        assert self._table is not None
        return self._table

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self._standard is None else self._standard.state()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        standard = Standard(state_dict["mean"], state_dict["scale"], state_dict.get("basis"))
        if self._table is not None:
            self._check_width(standard)
        self._standard = standard

    # --- batches ------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        rows = self._served("train")
        sampler = EpochSampler(rows, self.seed, **self._ranks())
        loader = train_loader(rows, self.batch_size, sampler)
        if self.trainer is not None:
            # Between epochs Lightning loads no loader state, but knows how many there were.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.epoch = progress.processed - 1
            limit = self.trainer.limit_train_batches
            loader.limit = int(limit * len(loader)) if isinstance(limit, float) else limit
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        return eval_loader(self._served("validation"), self.batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        return eval_loader(self._served("all"), self.batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scales and rotates, on the device.

        Shape:
            batch: ``vector`` Float32 ``(B, d)``, ``index`` Int64 ``(B)``; of the training loader also ``epoch``.
            returns: ``vector`` Float ``(B, width)``, ``index`` Int64 ``(B)``.
        """
        result = {"vector": self.standard.apply(batch["vector"].float()), "index": batch["index"]}
        return result if self.trainer is None else self.trainer.precision_plugin.convert_input(result)

    def _served(self, part: str) -> VectorRows:
        vectors = self.vectors
        return VectorRows(vectors, self._rows[part])

    def _ranks(self) -> dict[str, int]:
        """Number and place of this process among those that share the data."""
        # Of the strategy and not of the world: ranks of tensor parallelism read the same batch.
        return {} if self.trainer is None else dict(self.trainer.distributed_sampler_kwargs or {})
