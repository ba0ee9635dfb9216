"""The learning rate in the course of training."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_up_and_decay(optimizer: Optimizer, total: float, warmup_steps: int, *, cosine: bool = True) -> LambdaLR:
    """Linear warm-up, then a cosine that reaches 0 at step ``total``; constant if there is no end or no cosine."""
    warmup = min(warmup_steps, total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if not cosine or math.isinf(total):
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))

    return LambdaLR(optimizer, factor)
