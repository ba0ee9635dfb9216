"""Law 9: training and evaluation compile without a graph break."""

import copy

import torch

from straightvq.testing.law import law, near, same
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
            layer.train(mode), twin.train(mode)
            z = [subject.data(8).requires_grad_() for _ in range(2)]
            outs = layer(z[0]), compiled(z[1])
            for out in outs:
                (out.quantized.square().mean() + out.loss).backward()
            same(outs[1].indices, outs[0].indices, "the indices of the eager forward")
            near(outs[1].quantized, outs[0].quantized, "`quantized` of the eager forward")
            near(outs[1].loss, outs[0].loss, "the loss of the eager forward")
            assert z[0].grad is not None
            assert z[1].grad is not None
            near(z[1].grad, z[0].grad, "the gradient of the eager forward")
        other = state_of(twin)
        for name, value in state_of(layer).items():
            near(other[name].double(), value.double(), f"`{name}` as after the eager forwards")
    finally:
        torch._dynamo.reset()
