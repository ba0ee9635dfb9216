"""What is done to vectors before the network, and undone behind it: centring, scale, principal components."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.nn.part import check_choice, check_int

Scaling = Literal["whole", "columns", "none"]
SCALINGS = get_args(Scaling)


@dataclass(frozen=True)
class Standard:
    """The map ``y = ((x - mean) / scale) @ basis``, and the way back.

    Attributes:
        mean: Float32 (d,).
        scale: Float32 (d,), positive.
        basis: Float32 (d, components) with orthonormal columns; None for none.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """Vectors (n, d) -> what the network sees, (n, width)."""
        y = (x - self.mean.to(x.device)) / self.scale.to(x.device)
        return y if self.basis is None else y @ self.basis.to(x.device)

    def undo(self, y: Tensor) -> Tensor:
        """The way back, (n, width) -> (n, d); what lies outside the components is lost."""
        x = y if self.basis is None else y @ self.basis.to(y.device).T
        return x * self.scale.to(y.device) + self.mean.to(y.device)

    @property
    def width(self) -> int:
        return len(self.mean) if self.basis is None else self.basis.shape[1]

    def state(self) -> dict[str, Tensor]:
        parts = {"mean": self.mean, "scale": self.scale, "basis": self.basis}
        return {name: part for name, part in parts.items() if part is not None}


def learn(vectors: NDArray[np.float32], scaling: Scaling, components: int | None) -> Standard:
    """From the training rows, Float32 (n, d).

    Args:
        vectors: the training rows.
        scaling: "whole" centres each column and divides by one number, so that the mean variance of the columns is 1:
            angles and relative distances stay. "columns" gives every column a variance of 1. "none" does nothing.
        components: principal components kept, of the scaled vectors; None for no rotation.

    Raises:
        ValueError: for more components than columns or rows, and for columns that are constant where they must not be.

    Example:
        >>> standard = learn(np.array([[1.0, 0.0], [5.0, 4.0]], dtype=np.float32), "whole", None)
        >>> standard.mean.tolist(), standard.scale.tolist()
        ([3.0, 2.0], [2.0, 2.0])
        >>> standard.apply(torch.tensor([[5.0, 1.0]])).tolist()
        [[1.0, -0.5]]
    """
    check_choice("Vectors", "scaling", scaling, SCALINGS)
    wide = vectors.astype(np.float64)
    mean, scale = np.zeros(wide.shape[1]), np.ones(wide.shape[1])
    if scaling != "none":
        mean, variance = wide.mean(0), wide.var(0)
        if not variance.any():
            raise InvalidValueError(
                f"`Vectors`: the {len(wide)} training vectors must differ to be scaled. Got {len(wide)} equal ones; "
                'pass scaling="none".'
            )
        # A constant column is 0 once it is centred, whatever its scale.
        scale = np.sqrt(
            np.full_like(variance, variance.mean()) if scaling == "whole" else np.where(variance, variance, 1)
        )
    basis = None if components is None else _basis((wide - mean) / scale, components)
    return Standard(_tensor(mean), _tensor(scale), basis)


def _basis(scaled: NDArray[np.float64], components: int) -> Tensor:
    from sklearn.decomposition import PCA

    check_int("Vectors", "components", components, 1)
    if components > min(scaled.shape):
        raise InvalidValueError(
            f"`Vectors`: `components` must be at most {min(scaled.shape)}, for {len(scaled)} training vectors of "
            f"{scaled.shape[1]} numbers. Got {components}; None keeps the vectors as they are, and the network's width "
            "must then be theirs."
        )
    # Directions of the largest variance; with scaling="none" the vectors are not centred before they are rotated.
    return _tensor(PCA(components, svd_solver="covariance_eigh").fit(scaled).components_.T)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
