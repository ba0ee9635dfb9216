"""An assigner that draws codes in training."""

from torch import Tensor

from straightvq.functional.nearest import nearest_code
from straightvq.functional.soft.logits import Noise
from straightvq.functional.soft.sample import sample_code
from straightvq.nn.batch import Batch
from straightvq.nn.part import check_float, setting
from straightvq.nn.slots.assigners.base import Assigner


class Stochastic(Assigner):
    """In training code k is drawn with probability ``softmax_k(-||z - c_k||^2 / temperature)``.

    By the Gumbel-max trick, with numbers that depend on seed, step and the vector's place only, so that ranks, a
    resumed run and compiled graphs draw the same codes. Evaluation takes the most likely code, which is the nearest
    one. Tiles are made and used up one at a time: memory is O(n d + k d).

    For `Gumbel` and `ReinMax`, whose gradients are those of a draw.

    Args:
        temperature: positive, in units of a squared distance: codes whose squared distances differ by less than this
            are drawn about equally often. A schedule may lower it.

    Source: arXiv 2410.13331 and 2205.07547 (logits from distances); arXiv 1611.01144 (Gumbel-max).

    Example:
        >>> import torch
        >>> import straightvq as svq
        >>> layer = svq.VectorQuantizer(1, svq.Codebook(2), assigner=Stochastic(0.5))
        >>> layer.set_codes(torch.tensor([[0.0], [1.0]]))
        >>> z = torch.full((1000, 1), 0.4)  # both codes are drawn; evaluation takes the nearest
        >>> sorted(set(layer(z).indices.tolist())), set(layer.encode(z).tolist())
        ([0, 1], {0})
    """

    is_random = True

    temperature: float = setting(check_float, minimum=0, open_minimum=True)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest_code(z, codes)

    def training_rule(self, batch: Batch, codes: Tensor) -> Tensor:
        return sample_code(batch.z, codes, self.temperature, drawn_with(batch))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def drawn_with(batch: Batch) -> Noise:
    """The Gumbel numbers that draw the codes of a batch."""
    return batch.draws.noise("stochastic", batch.rows())
