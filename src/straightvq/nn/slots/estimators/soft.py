"""Estimators through a softmax over all codes: every code gets a gradient, not only the one that was taken."""

from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.functional.soft.index import gumbel_index, product_index, reinmax_index
from straightvq.nn.batch import Context
from straightvq.nn.part import check_float, setting
from straightvq.nn.slots.assigners.stochastic import drawn_with
from straightvq.nn.slots.estimators.base import Estimator


class Gumbel(Estimator):
    """The straight-through Gumbel-softmax: the gradient of a drawn code is that of the softmax it was drawn with.

    The value is the code to the bit. With logits ``a_k = -||z - c_k||^2 / T`` and Gumbel numbers ``n`` of the assigner
    ``Stochastic(T)``, ``p = softmax((a + n) / temperature)`` and ``G_k = <g, c_k>``, the logits get
    ``p * (G - <p, G>) / temperature`` and hand it on to the vector and to all codes; the code drawn gets ``g`` too.
    Evaluation takes the nearest code, without noise.

    The softmax is made again in the backward, tile by tile: memory is O(n d + k d), time O(n k d).

    Args:
        temperature: of the gradient, positive, relative to that of the assigner: with 1 both are one softmax, as in the
            paper; another one decouples them. Low values have a small bias and a large variance.

    Source: arXiv 1611.01144; arXiv 2410.13331 (decoupled). The KL term that some trainings add is none of it.

    Example:
        >>> import straightvq as svq
        >>> svq.VectorQuantizer(8, svq.Codebook(32), assigner=svq.Stochastic(), estimator=Gumbel(0.5)).estimator
        Gumbel(temperature=0.5)
    """

    takes_context = trains_codes = needs_draws = True

    temperature: float = setting(check_float, minimum=0, open_minimum=True)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        return gumbel_index(
            z,
            context.codes,
            context.indices,
            None if context.batch is None else drawn_with(context.batch),
            temperature=_temperature(self, context),
            softness=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class ReinMax(Estimator):
    """The second-order straight-through estimator of a drawn code, Heun's rule where the plain one is Euler's.

    The value is the code to the bit. With the logits ``a_k = -||z - c_k||^2 / T`` of the assigner ``Stochastic(T)``,
    ``d`` the one-hot vector of the code drawn, ``G_k = <g, c_k>`` and ``J(p) G = p * (G - <p, G>)``, the logits get
    ``2 J(p_1) G - J(p_0) G / 2``, ``p_0 = softmax(a)``, ``p_1 = (softmax(a / temperature) + d) / 2``, and hand it on to
    the vector and to all codes; the code drawn gets ``g`` too. Where the task is linear in the code and the temperature
    1, its mean over draws is the exact gradient. Evaluation takes the nearest code.

    The softmax is made again in the backward, tile by tile: memory is O(n d + k d), time O(n k d).

    Args:
        temperature: at least 1; larger values trade variance for bias.

    Source: arXiv 2304.08612.

    Example:
        >>> import straightvq as svq
        >>> svq.VectorQuantizer(8, svq.Codebook(32), assigner=svq.Stochastic(), estimator=ReinMax()).estimator
        ReinMax(temperature=1.0)
    """

    takes_context = trains_codes = needs_draws = True

    temperature: float = setting(check_float, minimum=1)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        return reinmax_index(
            z,
            context.codes,
            context.indices,
            temperature=_temperature(self, context),
            softness=self.temperature,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class IndexBackpropagation(Estimator):
    """The one-hot index made differentiable through a softmax of inner products, so that all codes learn.

    The value is the code to the bit. With ``p = softmax(<z, c> / temperature)`` and ``G_k = <g, c_k>`` the logits get
    ``p * (G - <p, G>)`` and hand it on to the vector, which gets nothing else of ``g``, and to all codes; the code
    taken gets ``g`` too. The same in training and evaluation.

    The scale of vectors and codes decides how soft the softmax is. The paper takes the code with the largest inner
    product, `LargestProduct`; with another assigner the softmax and the index may disagree. Without an entropy loss it
    is reported to collapse.

    The softmax is made again in the backward, tile by tile: memory is O(n d + k d), time O(n k d).

    Args:
        temperature: of the inner products, positive.

    Source: arXiv 2412.02692.

    Example:
        >>> import torch
        >>> z, codes = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.eye(2, requires_grad=True)
        >>> index = IndexBackpropagation()(z, codes[:1], Context(codes, torch.tensor([0]), None))
        >>> index.backward(torch.tensor([[1.0, 0.0]]))
        >>> [round(x, 4) for x in [*z.grad[0].tolist(), *codes.grad[:, 0].tolist()]]
        [0.1966, -0.1966, 1.1966, -0.1966]
    """

    takes_context = trains_codes = True

    temperature: float = setting(check_float, minimum=0, open_minimum=True)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        return product_index(z, context.codes, context.indices, temperature=self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def _temperature(estimator: Estimator, context: Context) -> float:
    if context.temperature is None:
        raise InvalidValueError(
            f"`{type(estimator).__name__}`: `context` must have the temperature of the draws. Got None."
        )
    return context.temperature
