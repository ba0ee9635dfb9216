"""Gradient maths of the straight-through family."""

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
