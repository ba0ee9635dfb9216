"""Estimators that add to the vector a step as long as its quantization error, whose length is differentiable."""

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.functional.nearest import nearest_code
from straightvq.functional.straight_through import directions
from straightvq.nn.batch import Batch, Context
from straightvq.nn.part import check_float, setting
from straightvq.nn.slots.estimators.base import Estimator


class DiVeQ(Estimator):
    """A step as long as the error, in its direction, which noise may tilt: one gradient trains vectors and codes.

    ``quantized = z + |code - z| * sg[u]``, u the unit vector along ``code - z + v``, v normal with standard deviation
    ``noise``. Without noise the value is the code to the bit, and the task gradient ``g`` is divided between the two:
    ``(I - u u^T) g`` for the vector, ``u u^T g`` for its code.

    In training with noise the output is not a code, but as far from the vector as its code. Evaluation has no noise.
    The method has no commitment and codebook loss: both have weight 0 by default, and others are warned of.

    Args:
        noise: standard deviation, at least 0, in the units of the vectors; 0 is the paper's detached variant. The
            paper's variances 1e-3 and 1e-2 are 0.032 and 0.1; the authors' code takes its ``noise_var`` for a standard
            deviation and ran with 0.001.

    Source: arXiv 2509.26469, DiVeQ.

    Example:
        >>> z, code = torch.zeros(1, 2, requires_grad=True), torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> DiVeQ()(z, code, Context(code, torch.tensor([0]), None)).backward(torch.tensor([[1.0, 0.0]]))
        >>> [[round(x, 2) for x in side.grad[0].tolist()] for side in (z, code)]
        [[0.64, -0.48], [0.36, 0.48]]
    """

    takes_context = trains_codes = replaces_losses = True

    noise: float = setting(check_float, minimum=0)

    def __init__(self, noise: float = 0.001) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        if context.batch is None or not self.noise:
            return _to_the_code(z, code)
        return _stepped(z, code, _tilted(z, code, context.batch, "diveq", self.noise))

    def extra_repr(self) -> str:
        return f"noise={self.noise}"


class SpaceFillingDiVeQ(Estimator):
    """Trains on the lines between neighbouring codes, so that every code is pulled along wherever its line is used.

    In training each of the ``codebook_size - 1`` lines from code i to code i + 1 offers the point
    ``(1 - s) c_i + s c_(i+1)``, s uniform in (0, 1) and drawn anew at every step. A vector takes the nearest of these
    points; with ``q_0, q_1`` the steps of `DiVeQ` to the ends of its line, ``quantized = (1 - s) q_0 + s q_1``.

    That output is no code: it says more than ``log2 codebook_size`` bits, and ``decode(indices)`` does not give it. The
    indices are those of the nearest codes, and **evaluation takes the nearest code**, with the gradient of
    ``DiVeQ(0)``. The authors evaluate with the nearest point of the lines, which is a real number beside an index, so
    their tables do not compare with those of K codes. A code is farther off than such a point; that is what being
    discrete costs, the less the shorter the lines.

    The order of the codes matters: neighbours by index are neighbours by line. It makes a second search in training,
    which no assigner decides: the layer's must be the Euclidean `Nearest`. No commitment and codebook loss, as `DiVeQ`;
    no reset, which would tear lines.

    Args:
        noise: as for `DiVeQ`.

    Raises:
        ValueError: from a layer with another assigner than ``Nearest()``.

    Source: arXiv 2509.26469, SF-DiVeQ. Deviations: evaluation; both steps start at the vector, where the authors' code
        has ``c_i - z`` in the second one too.

    Example:
        >>> import straightvq as svq
        >>> layer = svq.presets.sf_diveq(1, 2)
        >>> layer.set_codes(torch.tensor([[0.0], [1.0]]))
        >>> z = torch.tensor([[0.2]])
        >>> bool(0 < layer(z).quantized < 1), layer.eval()(z).quantized.item()
        (True, 0.0)
    """

    takes_context = trains_codes = needs_nearest = replaces_losses = True

    noise: float = setting(check_float, minimum=0)

    def __init__(self, noise: float = 0.001) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        codes, batch = context.codes, context.batch
        if batch is None:
            return _to_the_code(z, code)
        share = batch.draws.uniform("lines", (len(codes) - 1, 1), z.dtype)
        line = nearest_code(z, torch.lerp(codes[:-1], codes[1:], share))
        first, second = (
            _stepped(z, end, _tilted(z, end, batch, stream, self.noise))
            for end, stream in ((F.embedding(line, codes), "diveq"), (F.embedding(line + 1, codes), "diveq second"))
        )
        return torch.lerp(first, second, share[line])

    def extra_repr(self) -> str:
        return f"noise={self.noise}"


class NSVQ(Estimator):
    """In training the quantization error is replaced by noise of the same length.

    ``quantized = z + |code - z| * v / |v|``, v standard normal. The gradient passes through z and the length: with
    ``u`` the unit vector along ``code - z`` and ``n = v / |v|``, the vector gets ``g - u n^T g``, its code ``u n^T g``.
    Evaluation gives the code to the bit, with the gradient of ``DiVeQ(0)``.

    The training output is not a code, and the farther off the wider the codes: its error relative to the code is
    ``sqrt(2)`` times the quantization error. There is no commitment and codebook loss, as for `DiVeQ`; codes that are
    not used get nothing, so that a reset is needed.

    Source: Vali and Bäckström 2022 (IEEE Access 10).

    Example:
        >>> NSVQ()
        NSVQ()
    """

    takes_context = trains_codes = replaces_losses = True

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        if context.batch is None:
            return _to_the_code(z, code)
        noise = context.batch.draws.normal("nsvq", tuple(z.shape), z.dtype, rows=context.batch.rows())
        return _stepped(z, code, directions(noise)[0])


def _stepped(z: Tensor, code: Tensor, direction: Tensor) -> Tensor:
    """``z + |code - z| * sg[direction]``."""
    return z + torch.linalg.vector_norm(code - z, dim=1, keepdim=True) * direction.detach()


def _to_the_code(z: Tensor, code: Tensor) -> Tensor:
    """The step in the error's own direction; its value is the code to the bit, where the sum rounds."""
    step = _stepped(z, code, directions((code - z).detach())[0])
    return code.detach() + (step - step.detach())


def _tilted(z: Tensor, code: Tensor, batch: Batch, stream: str, noise: float) -> Tensor:
    """Unit vectors along the error plus normal noise."""
    error = (code - z).detach()
    if noise:
        error = error + noise * batch.draws.normal(stream, tuple(z.shape), z.dtype, rows=batch.rows())
    return directions(error)[0]
