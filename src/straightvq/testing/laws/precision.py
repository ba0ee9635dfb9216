"""Laws 6 and 9: at least float32 inside, the input's dtype outside; compiled graphs do what eager forwards do."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from straightvq.nn import Nearest, Quantizer, VectorQuantizer
from straightvq.testing.law import NotApplicable, hold, law, near, near_state, same, same_state
from straightvq.testing.subject import Subject, Trainer, backward, same_output, state_of, with_inverse


def _all_state_is(layer: Quantizer, dtype: torch.dtype, when: str) -> None:
    named = itertools.chain(layer.named_parameters(), layer.named_buffers())
    other = {name: x.dtype for name, x in named if x.is_floating_point() and x.dtype != dtype}
    hold(not other, f"all state in {dtype} {when}", other)


@law("precision")
def half_precision_inputs_come_back_and_the_state_stays_float32(subject: Subject) -> None:
    """Half-precision inputs come back in their dtype; search, losses and state are those of float32."""
    for dtype in (torch.float16, torch.bfloat16):
        for layer in subject.of_each_age():
            layer.to(dtype)
            _all_state_is(layer, torch.float32, f"after .to({dtype})")
            plain = copy.deepcopy(layer)
            for number in range(3):
                z = subject.data(number).to(dtype).requires_grad_()
                out, exact = layer(z), plain(z.detach().float())
                same_output(out, exact._replace(quantized=exact.quantized.to(dtype)), f"as float32, for {dtype}")
                gradient = backward(out, z)
                hold(gradient.dtype == dtype, f"a gradient in {dtype}", gradient.dtype)
            same_state(state_of(layer), state_of(plain), f"float32's state after {dtype} inputs")


@law("precision")
def double_stays_double(subject: Subject) -> None:
    """A float64 layer computes in float64 and keeps its state there."""
    layer = subject.made().double()
    _all_state_is(layer, torch.float64, "after .double()")
    trainer = Trainer(subject, layer)
    trainer.net.double()
    for number in range(5):
        out = layer(trainer.encoder(subject.data(number).double()))
        hold(out.quantized.dtype == torch.float64, "`quantized` in float64", out.quantized.dtype)
        hold(out.loss.dtype == torch.float64, "the loss in float64", out.loss.dtype)
        (out.quantized.square().mean() + out.loss).backward()
        trainer.optimizer.step()
    _all_state_is(layer, torch.float64, "after training in float64")


@law("precision")
def double_input_to_a_float32_layer(subject: Subject) -> None:
    """Float64 input to a float32 layer comes back in float64."""
    layer = subject.trained()
    for mode in (True, False):
        out = layer.train(mode)(subject.data(9).double())
        hold(out.quantized.dtype == torch.float64, "`quantized` in float64", out.quantized.dtype)
        near(layer.decode(out.indices).double(), out.quantized, "`decode` to give `quantized`", 1e-6)


@law("precision")
def far_from_the_origin_the_nearest_code_is_found(subject: Subject) -> None:
    """Data thousands of spreads away from the origin get the code that float64 finds, where the margin is clear."""
    layer = with_inverse(subject.trained()).eval()
    codes = layer.codes()
    between = (0.52 * codes[:, None] + 0.48 * codes).flatten(0, 1)[: 4 * subject.n]
    with torch.no_grad():
        z = layer.transform.inverse(between)
    for offset in (0.0, 1e4):
        # The same shift for vectors and codes moves no margin: what is lost beyond rounding, the search has lost.
        layer.set_codes(codes + offset)
        exact = copy.deepcopy(layer).double()
        wanted, clear = _nearest(exact, (z + offset).double())
        same(layer.encode(z + offset)[clear], wanted[clear], f"float64's indices at a mean of {offset:g}")


@torch.no_grad()
def _nearest(layer: VectorQuantizer, z: Tensor) -> tuple[Tensor, Tensor]:
    """Indices in float64, and where they are clear; by all distances for the assigners whose distance is known."""
    x, codes, assigner = layer.transform(z), layer.codes(), layer.assigner
    if not isinstance(assigner, Nearest):
        wanted = layer.encode(z)
        return wanted, torch.ones_like(wanted, dtype=torch.bool)
    if assigner.distance == "cosine":
        x, codes = F.normalize(x, dim=1), F.normalize(codes, dim=1)
    distance, order = torch.cdist(x, codes, compute_mode="donot_use_mm_for_euclid_dist").sort(1)
    return order[:, 0], distance[:, 1] - distance[:, 0] > 2e-2


@law("precision")
def autocast_changes_nothing(subject: Subject) -> None:
    """Under bfloat16 autocast results and state are those without it, bit for bit."""
    layer = subject.trained()
    twin = copy.deepcopy(layer)
    for mode in (True, False):
        layer.train(mode), twin.train(mode)
        z = subject.data(8)
        plain = layer(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = twin(z)
            same(twin.encode(z), layer.encode(z), "the same indices from `encode` under autocast")
            same(twin.decode(plain.indices), layer.decode(plain.indices), "the same `decode` under autocast")
        same_output(out, plain, "under autocast")
    same_state(state_of(twin), state_of(layer), "the same state under autocast")


@law("graphs")
def compiled_forward_equals_eager(subject: Subject) -> None:
    """Training and evaluation forward compile with ``fullgraph=True`` and do what they do without, up to rounding."""
    if torch.__version__ < "2.13":
        raise NotApplicable(f"it is asked of torch 2.13 and later, and this is torch {torch.__version__}")
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
