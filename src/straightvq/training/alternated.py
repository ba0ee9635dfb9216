"""The paper's two-phase training step: first the quantization error, then the task."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from straightvq.nn.part import check_int


def alternated_step(
    quantizer_loss: Callable[[], Tensor],
    task_loss: Callable[[], Tensor],
    inner: Optimizer,
    outer: Optimizer,
    *,
    inner_steps: int = 1,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
) -> tuple[Tensor, Tensor]:
    """One alternated step: ``inner_steps`` steps on the quantizer's loss alone, then one on the task's loss alone.

        repeat inner_steps times:  gradients <- 0;  quantizer_loss().backward();  inner.step()
                                   gradients <- 0;  task_loss().backward();       outer.step()

    Each loss runs a forward pass of its own, so the task sees the codes (and the encoder) that the first phase left.
    A parameter may be in both optimizers, as a codebook with a synchronised estimator is: phase one gives it the
    commitment gradient and phase two the task's, and neither is counted twice.

    Args:
        quantizer_loss: runs a forward pass and returns the quantizer's loss, a scalar.
        task_loss: runs a forward pass and returns the task's loss, a scalar.
        inner: optimizer of the first phase: of the codebook, or of the codebook and the encoder.
        outer: optimizer of the second phase.
        inner_steps: steps of the first phase.
        backward: called instead of ``loss.backward()``, such as Lightning's ``manual_backward``.

    Returns:
        The last quantizer loss and the task loss, detached.

    Source: arXiv 2305.08842, with a forward pass for each phase (the authors' answer in issue 5 of
        github.com/minyoungg/vqtorch). Their toy figure keeps the first phase's gradient in the second; here it is
        cleared.

    Example:
        >>> z = torch.nn.Parameter(torch.tensor([1.0]))
        >>> inner, outer = torch.optim.SGD([z], lr=0.5), torch.optim.SGD([z], lr=0.5)
        >>> half_square = lambda: 0.5 * z.square().sum()
        >>> _ = alternated_step(half_square, half_square, inner, outer)
        >>> z.item()  # halved twice
        0.25
    """

    def phase(loss: Callable[[], Tensor], optimizer: Optimizer) -> Tensor:
        # To None: a gradient of zero would still move a parameter by momentum and weight decay.
        inner.zero_grad(set_to_none=True)
        outer.zero_grad(set_to_none=True)
        value = loss()
        backward(value)
        optimizer.step()
        return value.detach()

    for _ in range(check_int("alternated_step", "inner_steps", inner_steps, 1)):
        first = phase(quantizer_loss, inner)
    return first, phase(task_loss, outer)
