"""Gradient maths of the straight-through family."""

import torch
from torch import Tensor


def straight_through(z: Tensor, code: Tensor, sync: float = 0.0) -> Tensor:
    """The code as value, with gradient ``g`` for ``z`` and ``sync * g`` for ``code``.

    ``out = sg[code] + (z - sg[z]) + sync * (code - sg[code])``: the value is the code to the bit, where the usual
    ``z + sg[code - z]`` rounds.

    Args:
        z: encoder output, Float (n, d).
        code: the code chosen for each vector, Float (n, d).
        sync: the paper's nu; 0 gives the plain straight-through estimator.

    Source: arXiv 1308.3432 (straight-through); arXiv 2305.08842, synchronised update, eq. (21) of its draft.

    Example:
        >>> import torch
        >>> z, code = torch.tensor([[0.2]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
        >>> out = straight_through(z, code, sync=0.5)
        >>> out.backward(torch.tensor([[2.0]]))
        >>> out.item(), z.grad.item(), code.grad.item()
        (1.0, 2.0, 1.0)
    """
    quantized = code.detach() + (z - z.detach())
    return quantized + sync * (code - code.detach()) if sync else quantized


def directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, d) and lengths (n, 1) of vectors (n, d); zeros for a zero vector, exact for tiny ones too.

    Example:
        >>> [v.tolist() for v in directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))]
        [[[0.6000000238418579, 0.800000011920929], [0.0, 0.0]], [[5.0], [0.0]]]
    """
    peak = x.abs().amax(1, keepdim=True)
    scaled = x / torch.where(peak > 0, peak, 1)  # its squares neither overflow nor vanish
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / length.clamp(min=1), peak * length
