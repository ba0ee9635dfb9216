"""A small network for each code, shared by all."""

from itertools import pairwise

from torch import Tensor, nn

from straightvq.nn.part import check_int, setting
from straightvq.nn.slots.parametrizations.residual import ResidualMap, zero_linear


class MLP(ResidualMap):
    """A network that all codes share: ``code = raw + W_n gelu(... gelu(W_1 raw + b_1)) + b_n``.

    The last layer starts at zero, so the codes start as the init has them; the others start as ``torch.nn.Linear``
    does. The map has no inverse: inits from data, resets, ``EMAUpdate``, ``AlternatedUpdate`` and ``set_codes`` are
    refused. The same in training and evaluation; ``Codebook.fold`` drops it when training has ended.

    Args:
        hidden: width of the hidden layers, at least 1.
        depth: number of hidden layers, at least 1.

    Source: multi-layer projections of the codebook, as compared in arXiv 2509.10140, where they use fewer codes than
    a ``Bridge``. Deviation: residual, from zero.

    Example:
        >>> import torch
        >>> mlp = MLP(hidden=16)
        >>> mlp.bind(2, 3)
        >>> mlp(torch.ones(2, 3)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    hidden: int = setting(check_int, minimum=1, keeps="all")
    depth: int = setting(check_int, minimum=1, keeps="all")

    def __init__(self, hidden: int = 256, depth: int = 1) -> None:
        super().__init__()
        self.hidden = hidden
        self.depth = depth

    def _make(self, size: int, dim: int) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise([dim, *[self.hidden] * self.depth]):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.network = nn.Sequential(*layers, zero_linear(self.hidden, dim))

    def _change(self, raw: Tensor) -> Tensor:
        change: Tensor = self.network(raw)
        return change

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, depth={self.depth}"
