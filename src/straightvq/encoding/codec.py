"""A trained network as a codec: rows of one kind to codes, and codes back to such rows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from straightvq.encoding.rows import Rows
from straightvq.errors import InvalidValueError, NonFiniteError
from straightvq.nn import Quantizer, VectorQuantizer
from straightvq.training.base import QuantizedTask

NOT_FINITE = "what the network makes of it is not finite"


class Code(NamedTuple):
    """What a row is encoded to.

    Attributes:
        indices: Int64 (*positions), of a composite (*positions, levels).
        neighbors: Int64 (*positions, k), the nearest codes, nearest first; None where they are not asked for.
        distances: Float32 (*positions, k), theirs.
        length: samples of a clip; None of all else.
    """

    indices: NDArray[np.int64]
    neighbors: NDArray[np.int64] | None = None
    distances: NDArray[np.float32] | None = None
    length: int | None = None


class Codec(ABC):
    """Base of the codecs. The network is in evaluation mode, on its device.

    Args:
        task: the trained task.
        batch_size: rows that the network sees at once.

    Attributes:
        kind: what a row is called.
        is_ragged: whether rows have lengths of their own.
    """

    kind: ClassVar[str]
    is_ragged: ClassVar[bool] = False

    def __init__(self, task: QuantizedTask, batch_size: int) -> None:
        assert task.model.quantizer is not None  # whoever opens a run has looked
        self.task, self.model = task.eval(), task.model
        self.quantizer: Quantizer = task.model.quantizer
        self.batch_size = batch_size

    @property
    def device(self) -> torch.device:
        return self.task.device

    @abstractmethod
    def rows(self) -> Rows:
        """The rows of the source that the codec was opened with."""

    @abstractmethod
    def batch(self, values: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        """Rows as the network takes them, on its device."""

    @abstractmethod
    def restore(self, indices: Sequence[NDArray[np.int64]], lengths: Sequence[int | None]) -> list[NDArray[Any]]:
        """Indices of rows, of a composite also its first levels alone -> what they stand for."""

    def settings(self) -> dict[str, Any]:
        """What a row is before it is encoded, such as its size."""
        return {}

    def check_decodes(self) -> None:
        """Raises where the network has no way back."""
        if not hasattr(self.model, "detokenize"):
            raise InvalidValueError(
                f"`decode`: the network must be an autoencoder. Got {type(self.model).__name__}, which makes "
                f"something else of its codes than the {self.kind} that they come from."
            )

    @torch.no_grad()
    def encode(self, values: Sequence[NDArray[Any]], nearest: int | None) -> list[Code | None]:
        """The codes of rows; None for those whose embedding is not finite."""
        if not values:
            return []
        try:
            found = self._encode(values, nearest)
        except NonFiniteError:
            found = [None]
        if None not in found:
            return found
        # One row may spoil the batch.
        return found if len(values) == 1 else [code for one in values for code in self.encode([one], nearest)]

    def _encode(self, values: Sequence[NDArray[Any]], nearest: int | None) -> list[Code | None]:
        batch = self.batch(values)
        z, mask = self.task.latent(batch), self.mask(batch)
        found = {"indices": self.quantizer.encode(z, mask)}
        if nearest is not None:
            assert isinstance(self.quantizer, VectorQuantizer)
            distances, neighbors = self.quantizer.nearest(z, nearest, mask)
            found |= {"neighbors": neighbors, "distances": distances.float()}
        arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
        valid = None if mask is None else mask.cpu().numpy()
        codes: list[Code | None] = []
        for i, value in enumerate(values):
            own = {name: array[i] if valid is None else array[i][valid[i]] for name, array in arrays.items()}
            length = None if mask is None else len(value)
            codes.append(None if (own["indices"] < 0).any() else Code(**own, length=length))
        return codes

    def mask(self, batch: dict[str, Tensor]) -> Tensor | None:
        """Which positions of a batch count, where not all do."""
        return None


class FileCodec(Codec):
    """One whose rows are decoded to files of their own; those of the others go into the table.

    Attributes:
        suffix: of the files.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def packed(self, value: NDArray[Any]) -> bytes:
        """A row that was restored, as the content of its file."""
