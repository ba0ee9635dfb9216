"""The gradient contract of the estimators: what each makes of the task gradient, without noise, as in evaluation.

A source of ``docs/gradients.md``. Formulas are written out in NumPy, vector by vector; no automatic differentiation
takes part. ``test_gradients.py`` compares.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import straightvq as svq

Array = np.ndarray[Any, np.dtype[np.float64]]
# Vectors (n, d), codes (k, d), indices (n,), task gradient (n, d) -> gradients at the vectors and at the codes.
Form = Callable[[Array, Array, Any, Array], tuple[Array, Array]]
SOFTNESS, TEMPERATURE, SYNC, GAIN = 1.5, 3.0, 0.7, 1.1


@dataclass(frozen=True)
class Row:
    """An estimator, the assigner it needs, its closed form, and how the page writes that."""

    make: Callable[[], svq.Estimator]
    form: Form
    encoder: str
    chosen: str = "–"
    others: str = "–"
    assigner: Callable[[], svq.Assigner] = svq.Nearest

    @property
    def name(self) -> str:
        return type(self.make()).__name__


def straight(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
    to_codes = np.zeros_like(codes)
    for k, row in zip(indices, g, strict=True):
        to_codes[k] += SYNC * row
    return g.copy(), to_codes


def rotated(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
    to_z = np.empty_like(z)
    for i, k in enumerate(indices):
        a, b = z[i] / np.sqrt(z[i] @ z[i]), codes[k] / np.sqrt(codes[k] @ codes[k])
        w = (a + b) / np.sqrt((a + b) @ (a + b))
        turn = np.eye(len(a)) - 2 * np.outer(w, w) + 2 * np.outer(b, a)
        gain = min(GAIN, np.sqrt(codes[k] @ codes[k]) / np.sqrt(z[i] @ z[i]))
        to_z[i] = gain * turn.T @ g[i]
    return to_z, np.zeros_like(codes)


def damped(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
    squares = ((z - codes[indices]) ** 2).sum(1)
    nearest = {k: squares[indices == k].min() for k in set(indices)}
    return np.stack([g[i] * nearest[k] / squares[i] for i, k in enumerate(indices)]), np.zeros_like(codes)


def divided(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
    to_z, to_codes = np.empty_like(z), np.zeros_like(codes)
    for i, k in enumerate(indices):
        u = (codes[k] - z[i]) / np.sqrt(((codes[k] - z[i]) ** 2).sum())
        to_z[i] = g[i] - u * (u @ g[i])
        to_codes[k] += u * (u @ g[i])
    return to_z, to_codes


def _softmax(a: Array) -> Array:
    e = np.exp(a - a.max())
    return e / e.sum()


def _through(p: Array, gradient: Array) -> Array:
    return (np.diag(p) - np.outer(p, p)) @ gradient


def _by_distance(of_logits: Callable[[Array, Array, int], Array]) -> Form:
    def form(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
        to_z, to_codes = np.zeros_like(z), np.zeros_like(codes)
        for i, k in enumerate(indices):
            logits = -((z[i] - codes) ** 2).sum(1) / TEMPERATURE
            to_codes[k] += g[i]
            for j, weight in enumerate(of_logits(logits, codes @ g[i], k)):
                to_z[i] -= 2 / TEMPERATURE * weight * (z[i] - codes[j])
                to_codes[j] += 2 / TEMPERATURE * weight * (z[i] - codes[j])
        return to_z, to_codes

    return form


def _of_gumbel(logits: Array, gradient: Array, chosen: int) -> Array:
    return _through(_softmax(logits / SOFTNESS), gradient) / SOFTNESS


def _of_reinmax(logits: Array, gradient: Array, chosen: int) -> Array:
    halfway = (_softmax(logits / SOFTNESS) + np.eye(len(logits))[chosen]) / 2
    return 2 * _through(halfway, gradient) - _through(_softmax(logits), gradient) / 2


def by_product(z: Array, codes: Array, indices: Any, g: Array) -> tuple[Array, Array]:
    to_z, to_codes = np.zeros_like(z), np.zeros_like(codes)
    for i, k in enumerate(indices):
        weights = _through(_softmax(codes @ z[i] / TEMPERATURE), codes @ g[i]) / TEMPERATURE
        to_z[i] = weights @ codes
        to_codes += np.outer(weights, z[i])
        to_codes[k] += g[i]
    return to_z, to_codes


def _stochastic() -> svq.Assigner:
    return svq.Stochastic(TEMPERATURE)


_DISTANCES = ("`2/T Σⱼ aⱼ cⱼ`", "`g + 2/T aₖ (z − cₖ)`", "`2/T aⱼ (z − cⱼ)`")
ROWS = (
    Row(lambda: svq.StraightThrough(SYNC), straight, "`g`", "`ν g`"),
    Row(lambda: svq.RotationTrick(GAIN), rotated, "`min(gain, ‖q‖/‖z‖) Rᵀ g`"),
    Row(svq.DynamicStraightThrough, damped, "`w g`"),
    Row(svq.DiVeQ, divided, "`g − u ⟨n, g⟩`", "`u ⟨n, g⟩`"),
    Row(svq.NSVQ, divided, "`g − u ⟨n, g⟩`", "`u ⟨n, g⟩`"),
    Row(svq.SpaceFillingDiVeQ, divided, "`g − u ⟨n, g⟩`, a mean over two ends", "`u ⟨n, g⟩`, both ends by their share"),
    Row(lambda: svq.Gumbel(SOFTNESS), _by_distance(_of_gumbel), *_DISTANCES, _stochastic),
    Row(lambda: svq.ReinMax(SOFTNESS), _by_distance(_of_reinmax), *_DISTANCES, _stochastic),
    Row(
        lambda: svq.IndexBackpropagation(TEMPERATURE), by_product,
        "`1/T Σⱼ aⱼ cⱼ`", "`g + 1/T aₖ z`", "`1/T aⱼ z`", svq.LargestProduct,
    ),
)  # fmt: skip

TITLE = "## Other estimators"
HEAD = ("estimator", "encoder", "code of the vector", "other codes")
INTRO = """
What a vector's task gradient `g` becomes in place of `g` and `νg` above. What is sent to codes takes the routes
of `ν > 0`, and `EMAUpdate` is refused with it. Losses add what they always do.
"""
NOTES = """
`R`: the rotation from z to its code q. `w`: the smallest squared distance of a vector to this code, over its own. `u`:
the unit vector along `q − z`; `n = u` in evaluation and without noise, else the unit vector of the step that was taken.
`a`: what the logits get of `G_j = ⟨g, c_j⟩`, with `J(p) G = p ⊙ (G − ⟨p, G⟩)`, `T` the temperature of the logits and τ
that of the gradient:

| estimator | logits θ | a |
|---|---|---|
| `Gumbel` | `−‖z − c‖² / T` | `J(p) G / τ`, p = softmax((θ + noise) / τ), without noise in evaluation |
| `ReinMax` | `−‖z − c‖² / T` | `2 J(p₁) G − J(p₀) G / 2`, p₀ = softmax(θ), p₁ = (softmax(θ / τ) + one-hot) / 2 |
| `IndexBackpropagation` | `⟨z, c⟩ / T` | `J(p) G`, p = softmax(θ) |
"""


def rows() -> list[tuple[str, ...]]:
    return [(f"`{row.name}`", row.encoder, row.chosen, row.others) for row in ROWS]
