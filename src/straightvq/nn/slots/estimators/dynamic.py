"""A straight-through estimator that damps the gradient of far vectors."""

import torch
from torch import Tensor

from straightvq.nn.batch import Context
from straightvq.nn.ranks import Group, stack_over_ranks
from straightvq.nn.slots.estimators.base import Estimator


class DynamicStraightThrough(Estimator):
    """The nearest vector of every code gets the whole gradient, the others the less the farther they are.

    ``quantized = sg[code] + w * (z - sg[z])``, ``w = sg[d*_k / d]``: the vector's squared distance to its code k is
    ``d``, and ``d*_k`` the smallest of all vectors of that code, of all ranks in training and of this process in
    evaluation. The value is the code to the bit, and no gradient reaches the codes. A vector on its code has weight 1;
    then all others of that code have weight 0.

    Source: StableVQ (2026), Dynamic STE; formula as we have it second-hand, no public code is known.

    Example:
        >>> z, code = torch.tensor([[1.0], [2.0]], requires_grad=True), torch.zeros(2, 1)
        >>> context = Context(code[:1], torch.tensor([0, 0]), None)
        >>> DynamicStraightThrough()(z, code, context).sum().backward()
        >>> z.grad.tolist()
        [[1.0], [0.25]]
    """

    takes_context = True

    def forward(self, z: Tensor, code: Tensor, context: Context | None = None) -> Tensor:
        context = self._given(context)
        with torch.no_grad():
            distance = (z - code).square().sum(1)
            group = context.group if context.batch is None else context.batch.group
            smallest = _smallest(distance, context.indices, len(context.codes), group)
            weight = torch.where(distance > smallest, smallest / distance, 1)
        return code.detach() + weight[:, None] * (z - z.detach())


def _smallest(distance: Tensor, indices: Tensor, size: int, group: Group) -> Tensor:
    """Of each vector: the smallest distance among those of its code, over all ranks; infinite where masked."""
    distance = torch.where(indices >= 0, distance, torch.inf)
    places = indices.clamp(min=0)
    smallest = distance.new_full((size,), torch.inf).scatter_reduce(0, places, distance, "amin")
    smallest = stack_over_ranks(smallest, group).amin(0)
    return torch.where(indices >= 0, smallest[places], torch.inf)
