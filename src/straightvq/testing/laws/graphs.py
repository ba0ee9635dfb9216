"""Law 9: training and evaluation compile without a graph break."""

import copy

import torch

from straightvq.testing.law import law, near, near_state, same
from straightvq.testing.subject import Subject, state_of


@law("graphs")
def compiled_forward_equals_eager(subject: Subject) -> None:
    """Training and evaluation forward compile with ``fullgraph=True`` and do what they do without, up to rounding."""
    layer = subject.trained()
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        for mode in (True, False):
            outs, gradients = [], []
            for forward, module in ((layer, layer), (compiled, twin)):
                module.train(mode)
                z = subject.data(8).requires_grad_()
                outs.append(forward(z))
                (outs[-1].quantized.square().mean() + outs[-1].loss).backward()
                assert z.grad is not None
                gradients.append(z.grad)
            eager, out = outs
            same(out.indices, eager.indices, "the indices of the eager forward")
            near(out.quantized, eager.quantized, "`quantized` of the eager forward")
            near(out.loss, eager.loss, "the loss of the eager forward")
            near(gradients[1], gradients[0], "the gradient of the eager forward")
        near_state(state_of(twin), state_of(layer), "the state after the eager forwards")
    finally:
        torch._dynamo.reset()
