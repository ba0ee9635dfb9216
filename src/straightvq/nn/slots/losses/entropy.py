"""The entropy penalty: few codes for each vector, all codes for the batch."""

from typing import Any

import torch
from torch import Tensor

from straightvq.errors import InvalidValueError
from straightvq.functional.entropy import bit_entropy, bit_logits, bit_usage, entropy, soft_usage
from straightvq.nn.batch import Context
from straightvq.nn.part import check_float, check_int, setting
from straightvq.nn.slots.losses.base import Loss, means_over_ranks, needed

# Codes whose shares are held at once: 64 MB in float32.
_MOST_GROUP_BITS = 24


def _check_group_bits(owner: Loss, name: str, value: Any, minimum: int) -> int:
    value = check_int(owner, name, value, minimum)
    if value > _MOST_GROUP_BITS:
        raise InvalidValueError(
            f"`EntropyLoss`: `{name}` must be at most {_MOST_GROUP_BITS}, because the share of every combination is "
            f"held. Got {value}."
        )
    return value


class EntropyLoss(Loss):
    """Confident assignments, all codes in use: ``mean_n H(p_n) - diversity * H(mean_n p_n)``, in nats.

    ``p_n(c) ~ exp(-||z_n - c||^2 / temperature)`` is the soft assignment of a vector to all codes. In a quantizer with
    a table it is made tile by tile, in the backward again, and reaches vectors and codes: memory is that of both.
    Where codes are signs it is a product over bits, each 1 with probability ``sigmoid(4 s z / temperature)``, s the
    half-width, and

    - the entropy of a vector is the sum of its bits', exactly, whatever their number;
    - that of the codebook is exact up to ``group_bits`` bits. Of more bits it is the sum over groups of consecutive
      bits (the last one may be smaller): an upper bound, reached where the groups are independent.

    In training both means are over the valid vectors of all ranks, and the loss is the same number on each. The
    gradient of a rank is that of its vectors times the number of ranks, as wrappers that average gradients need it. In
    evaluation, where ranks may see different numbers of batches, both are over this process's vectors.

    Args:
        weight: factor in ``QuantizerOutput.loss``.
        diversity: the papers' gamma: weight of the codebook's entropy, at least 0.
        temperature: in units of a squared distance, positive. Small ones leave a gradient at the borders between codes
            only: peers use 0.01 on vectors of the length 1.
        group_bits: bits whose combinations are told apart, 1 to 24; time grows with ``n 2^group_bits``, memory with
            ``2^group_bits``. 9 is BSQ's.

    Source: arXiv 2310.05737 eq. (5); arXiv 2406.07548, section 3 (factorised, in groups); arXiv 1911.05894 (soft).

    Example:
        >>> from straightvq import LookupFreeQuantizer
        >>> z = torch.tensor([[9.0, 9.0], [9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0]])
        >>> layer = LookupFreeQuantizer(2, bits=2, losses=[EntropyLoss()])
        >>> round(layer(z).terms["entropy"].item(), 4)  # each certain, one for each code: -ln 4
        -1.3863
    """

    name = "entropy"
    trains = "both"
    takes_context = True
    takes_signs = True

    diversity: float = setting(check_float, minimum=0)
    temperature: float = setting(check_float, minimum=0, open_minimum=True)
    group_bits: int = setting(_check_group_bits, minimum=1)

    def __init__(
        self, weight: float = 0.1, diversity: float = 1.0, temperature: float = 1.0, group_bits: int = 18
    ) -> None:
        super().__init__(weight)
        self.diversity = diversity
        self.temperature = temperature
        self.group_bits = group_bits

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Context | None = None) -> Tensor:
        context = needed(self, context)
        weight = z.new_ones(z.shape[:1]) if valid is None else valid.to(z.dtype)
        group = context.group if context.batch is None else context.batch.group
        if context.half_width is None:
            single, usage = soft_usage(z, context.codes.to(z.dtype), weight, self.temperature)
            usages = [usage]
        else:
            logits = bit_logits(z, context.half_width, self.temperature)
            single = bit_entropy(logits).sum(1) @ weight
            usages = [bit_usage(part, weight) for part in logits.split(self.group_bits, 1)]
        single, *shares = means_over_ranks([single, *usages], weight.sum(), group)
        return single - self.diversity * sum((entropy(share) for share in shares), start=torch.zeros_like(single))

    def extra_repr(self) -> str:
        options = f"diversity={self.diversity}, temperature={self.temperature}, group_bits={self.group_bits}"
        return f"{super().extra_repr()}, {options}"
