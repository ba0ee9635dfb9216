"""The codecs of pictures, of clips, and of vectors."""

import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from straightvq.data import Images, Sound
from straightvq.data.sound.decode import needed
from straightvq.data.vectors.standard import Standard
from straightvq.data.vectors.stream import open_stream
from straightvq.encoding.codec import Codec, FileCodec
from straightvq.encoding.rows import RecordRows, Rows, VectorRows
from straightvq.errors import InvalidValueError
from straightvq.models import AudioCodec
from straightvq.training.base import QuantizedTask


class PictureCodec(FileCodec):
    """Pictures, scaled and cut as those of the run's validation."""

    kind = "pictures"
    suffix = ".png"

    def __init__(self, task: QuantizedTask, data: Images) -> None:
        super().__init__(task, data.batch_size)
        self.data = data

    def rows(self) -> Rows:
        return RecordRows(self.data.find().everything(), self.data.size, self.data.channels)

    def settings(self) -> dict[str, Any]:
        return {"size": self.data.size, "channels": self.data.channels}

    def batch(self, values: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        image = torch.from_numpy(np.stack(values)).to(self.device)
        return self.data.on_after_batch_transfer({"image": image, "label": None}, 0)

    def restore(self, indices: Sequence[NDArray[np.int64]], lengths: Sequence[int | None]) -> list[NDArray[Any]]:
        image = _detokenized(self, torch.from_numpy(np.stack(indices)))
        return list((image.clamp(0, 1) * 255).round().byte().cpu().numpy())

    def packed(self, value: NDArray[Any]) -> bytes:
        file = io.BytesIO()
        Image.fromarray(value[0] if len(value) == 1 else value.transpose(1, 2, 0)).save(file, format="PNG")
        return file.getvalue()


class ClipCodec(FileCodec):
    """Whole clips of sound at the run's sample rate."""

    kind = "clips"
    suffix = ".wav"
    is_ragged = True
    model: AudioCodec

    def __init__(self, task: QuantizedTask, data: Sound) -> None:
        super().__init__(task, data.batch_size)
        self.data = data

    def rows(self) -> Rows:
        return RecordRows(self.data.find().everything(), self.data.sample_rate, 1)

    def settings(self) -> dict[str, Any]:
        return {"sample_rate": self.data.sample_rate, "hop": self.model.hop}

    def batch(self, values: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        audio = torch.zeros(len(values), 1, max(map(len, values)))
        for row, clip in zip(audio, values, strict=True):
            row[0, : len(clip)] = torch.from_numpy(clip)
        return {"audio": audio.to(self.device), "length": torch.tensor([len(v) for v in values], device=self.device)}

    def mask(self, batch: dict[str, Tensor]) -> Tensor | None:
        return self.model.valid(batch["audio"], batch["length"])

    def restore(self, indices: Sequence[NDArray[np.int64]], lengths: Sequence[int | None]) -> list[NDArray[Any]]:
        padded = np.full((len(indices), max(map(len, indices)), *indices[0].shape[1:]), -1, dtype=np.int64)
        for row, own in zip(padded, indices, strict=True):
            row[: len(own)] = own
        clips = _detokenized(self, torch.from_numpy(padded))[:, 0].cpu().numpy()
        ends = [len(own) * self.model.hop if end is None else end for own, end in zip(indices, lengths, strict=True)]
        return [clip[:end] for clip, end in zip(clips, ends, strict=True)]

    def packed(self, value: NDArray[Any]) -> bytes:
        file = io.BytesIO()
        needed("soundfile").write(file, value.clip(-1, 1), self.data.sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()


class VectorCodec(Codec):
    """Vectors, scaled as those of the training were.

    Args:
        task: the trained task.
        batch_size: vectors that the network sees at once.
        standard: what is done to them before.
        source: where they are; None to decode.
        column: of the vectors, in Parquet files.
        item: of their names.
    """

    kind = "vectors"

    def __init__(
        self,
        task: QuantizedTask,
        batch_size: int,
        standard: Standard,
        source: str | None,
        column: str | None = None,
        item: str | None = None,
    ) -> None:
        super().__init__(task, batch_size)
        self.standard, self.source, self.column, self.item = standard, source, column, item

    def rows(self) -> Rows:
        assert self.source is not None  # whoever encodes has one
        stream, width = open_stream(self.source, self.column, self.item), len(self.standard.mean)
        if stream.width != width:
            raise InvalidValueError(
                f"`encode`: the vectors must have {width} numbers, as those of the training. Got {stream.width} in "
                f"{self.source!r}."
            )
        return VectorRows(stream)

    def settings(self) -> dict[str, Any]:
        return {"width": len(self.standard.mean)}

    def batch(self, values: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        return {"vector": self.standard.apply(torch.from_numpy(np.stack(values)).to(self.device))}

    def restore(self, indices: Sequence[NDArray[np.int64]], lengths: Sequence[int | None]) -> list[NDArray[Any]]:
        found = _detokenized(self, torch.from_numpy(np.stack(indices)))
        return list(self.standard.undo(found).cpu().numpy())


@torch.no_grad()
def _detokenized(codec: Codec, indices: Tensor) -> Tensor:
    return cast(Any, codec.model).detokenize(indices.to(codec.device)).float()
