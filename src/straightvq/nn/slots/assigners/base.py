"""The base of all assigners, and the nearest code."""

from abc import abstractmethod
from typing import get_args

from torch import Tensor

from straightvq.functional.few import nearest_codes
from straightvq.functional.nearest import Backend, Distance, nearest_code
from straightvq.nn.batch import Batch
from straightvq.nn.part import Part, check_choice, setting


class Assigner(Part):
    """Required: ``forward``, the evaluation rule; ``training_rule`` as well where training assigns otherwise.

    Set the class attribute ``is_random`` if the training rule draws random numbers. ``distance`` is what the evaluation
    rule goes by. Estimators of a code that was drawn from a softmax over negative squared distances are told its
    ``temperature``; that of an assigner which is not random is no business of theirs.
    """

    is_random = False
    distance: Distance = "euclidean"
    temperature: float | None = None

    @abstractmethod
    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        """z (n, d), codes (k, d) -> indices Int64 (n,), a function of each vector alone."""

    def nearest(self, z: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Distances and indices (n, k) of the first ``k`` codes by the evaluation rule; see ``nearest_codes``."""
        return nearest_codes(z, codes, k, distance=self.distance)

    def training_rule(self, batch: Batch, codes: Tensor) -> Tensor:
        """Vectors ``batch.z`` (n, d), codes (k, d) -> indices Int64 (n,), in training forwards.

        May look at the whole batch and at ``batch.draws``. What it gives at masked positions is not used.
        """
        indices: Tensor = self(batch.z, codes)
        return indices


class Nearest(Assigner):
    """The nearest code, in at least float32; ties go to the lowest index. The same in training and evaluation.

    Args:
        distance: ``"euclidean"``, or ``"cosine"`` for the smallest angle whatever the lengths.
        backend: what searches, see ``straightvq.functional.nearest_code``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
        >>> z = torch.tensor([[1.0, 2.0]])
        >>> Nearest()(z, codes).item(), Nearest("cosine")(z, codes).item()
        (0, 1)
    """

    distance: Distance = setting(check_choice, choices=get_args(Distance))
    backend: Backend = setting(check_choice, choices=get_args(Backend))

    def __init__(self, distance: Distance = "euclidean", backend: Backend = "auto") -> None:
        super().__init__()
        self.distance = distance
        self.backend = backend

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(z, codes, distance=self.distance, backend=self.backend)

    def extra_repr(self) -> str:
        return f"distance={self.distance!r}" + ("" if self.backend == "auto" else f", backend={self.backend!r}")
