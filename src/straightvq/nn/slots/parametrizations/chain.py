"""Several parametrizations, one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from straightvq.errors import InvalidValueError
from straightvq.nn.batch import Batch
from straightvq.nn.part import check_part
from straightvq.nn.ranks import Message
from straightvq.nn.slots.inits import Init
from straightvq.nn.slots.parametrizations.base import Parametrization


class Chain(Parametrization):
    """Several parametrizations one after the other: ``code = last(... first(raw))``.

    ``Chain([Affine(), UnitNormCodes()])`` is the paper's best row: the norm holds for the effective codes.

    Args:
        parts: at least one, in the order in which they act on the raw table. Only the last may be one that cannot give
            every vector, such as ``UnitNormCodes``: codes that are written would otherwise come back as others.

    Raises:
        TypeError, ValueError: for other parts than these.

    Example:
        >>> import torch
        >>> import straightvq as svq
        >>> chain = Chain([svq.Affine(), svq.UnitNormCodes()])
        >>> chain.bind(2, 2)
        >>> chain(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).norm(dim=1).tolist()
        [1.0, 1.0]
    """

    def __init__(self, parts: list[Parametrization]) -> None:
        super().__init__()
        if not isinstance(parts, Sequence) or not parts:
            raise InvalidValueError(f"`Chain`: `parts` must be a list of at least one parametrization. Got {parts!r}.")
        self.parts = nn.ModuleList(check_part(self, "parts", part, Parametrization) for part in parts)
        for part in self._parts[:-1]:
            if self.has_inverse and not part.is_onto:
                raise InvalidValueError(
                    f"`Chain`: `parts` must have {type(part).__name__} last: it cannot give every vector, and codes "
                    "that are written through a later part would come back as others. "
                    f"Got [{', '.join(type(each).__name__ for each in self._parts)}]."
                )
        self.is_onto = self._parts[-1].is_onto

    @property
    def has_inverse(self) -> bool:
        return all(part.has_inverse for part in self._parts)

    @property
    def is_learned(self) -> bool:
        return any(part.is_learned for part in self._parts)

    @property
    def freezes_raw(self) -> bool:
        return any(part.freezes_raw for part in self._parts)

    def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
        return self._parts[0].raw_shape(size, self._dims(size, dim)[0])

    def start(self, init: Init, size: int, dim: int) -> Tensor:
        if self.has_inverse:
            return super().start(init, size, dim)
        return self._parts[0].start(init, size, self._dims(size, dim)[0])

    def _dims(self, size: int, dim: int) -> list[int]:
        """Width of what each part gives."""
        dims = [dim]
        for part in self._parts[:0:-1]:
            dims.insert(0, part.raw_shape(size, dims[0])[-1])
        return dims

    @property
    def _parts(self) -> list[Parametrization]:
        return [part for part in self.parts if isinstance(part, Parametrization)]

    def _check_size(self, size: int) -> None:
        for part in self._parts:
            part._check_size(size)

    def _make(self, size: int, dim: int) -> None:
        for part, width in zip(self._parts, self._dims(size, dim), strict=True):
            part.bind(size, width)

    def forward(self, raw: Tensor) -> Tensor:
        for part in self._parts:
            raw = part(raw)
        return raw

    def inverse(self, codes: Tensor) -> Tensor:
        for part in reversed(self._parts):
            codes = part.inverse(codes)
        return codes

    def adopt(self, codes: Tensor) -> Tensor:
        for part in reversed(self._parts):
            codes = part.adopt(codes)
        return codes

    def rebase(self, raw: Tensor, rows: Tensor) -> Tensor:
        parts = self._parts
        tables = [raw]  # what each part maps
        for part in parts[:-1]:
            tables.append(part(tables[-1]))
        for last in range(len(parts)):  # the first one first: what the others move goes back through it
            based = parts[last].rebase(tables[last], rows)
            if based is tables[last]:
                continue
            # Rows that it leaves alone keep their digits; the others go back through the parts before it.
            moved = (based != tables[last]).any(1, keepdim=True)
            tables[last] = based
            for i in reversed(range(last)):
                based = parts[i].inverse(based)
                tables[i] = torch.where(moved, based, tables[i])
        return tables[0]

    def observe(self, batch: Batch, raw: Tensor) -> None:
        for part in self._parts:
            part.observe(batch, raw)
            raw = part(raw)

    def remember(self, z: Tensor, indices: Tensor, message: Message) -> None:
        for part in self._parts:
            part.remember(z, indices, message)
