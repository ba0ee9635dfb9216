"""The authors' toy figure with the real layer: five ways to combine the commitment and the task gradient."""

import contextlib

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from straightvq.training.alternated import alternated_step

LR, SYNC = 0.55, 0.3
START = (-0.9, -0.9)

# Rule: steps until |z_e| < 0.01 for good, then z_e and z_q after steps 1, 2 and 3 (paper.md, section 4: derived from
# the constants of the figure, plain gradient descent).
# fmt: off
ROWS = {
    "none": (7, ((-0.4050, -0.4050), (-0.1822, -0.1822), (-0.0820, -0.0820)), None),
    "joint": (22, ((-0.7515, -0.4050), (-0.4941, 0.0083), (-0.2191, 0.2801)),
                  ((-0.3465, -0.9000), (-0.5024, -0.7094), (-0.4992, -0.4331))),
    "synchronised": (15, ((-0.7515, -0.4050), (-0.4941, -0.0488), (-0.2412, 0.1494)),
                         ((-0.3465, -0.7515), (-0.4453, -0.4941), (-0.3906, -0.2412))),
    "alternated": (11, ((-0.5609, -0.4050), (-0.2896, -0.0965), (-0.1061, 0.0628)),
                       ((-0.3465, -0.9000), (-0.4291, -0.7094), (-0.3754, -0.4734))),
    "alternated and synchronised": (10, ((-0.5609, -0.4050), (-0.2995, -0.1222), (-0.1297, 0.0132)),
                                        ((-0.2893, -0.7515), (-0.3289, -0.5161), (-0.2652, -0.3043))),
}
# fmt: on


def make_layer(sync: float) -> svq.VectorQuantizer:
    """Two codes, of which the second is never chosen; means over 2 elements make the losses half squares."""
    layer = svq.VectorQuantizer(
        2, svq.Codebook(2), estimator=svq.StraightThrough(sync), losses=[svq.CommitmentLoss(0.3), svq.CodebookLoss(0.7)]
    )
    layer.set_codes(torch.tensor([[0.0, -0.9], [100.0, 100.0]]))
    return layer


def half_square(quantized: Tensor) -> Tensor:
    return 0.5 * quantized.square().sum()


def trajectory(rule: str, steps: int = 60) -> tuple[Tensor, Tensor]:
    """z_e and z_q after each step, (steps, 2)."""
    z = nn.Parameter(torch.tensor([START]))
    layer = make_layer(SYNC if "synchronised" in rule else 0.0)
    parameters = [z, *layer.parameters()]
    inner, outer = torch.optim.SGD(parameters, lr=LR), torch.optim.SGD(parameters, lr=LR)
    path = []
    for _ in range(steps):
        if "alternated" in rule:
            alternated_step(lambda: layer(z).loss, lambda: half_square(layer(z).quantized), inner, outer)
        else:
            outer.zero_grad()
            with svq.bypass(layer) if rule == "none" else contextlib.nullcontext():
                out = layer(z)
            (half_square(out.quantized) + out.loss).backward()
            outer.step()
        path.append((z.detach()[0].clone(), layer.codes()[0]))
    assert torch.equal(layer.codes()[1], torch.tensor([100.0, 100.0]))
    return torch.stack([p[0] for p in path]), torch.stack([p[1] for p in path])


def steps_until_still(z: Tensor) -> int:
    """The first step from which on |z| stays below 0.01."""
    outside = (z.norm(dim=1) >= 0.01).nonzero()
    return int(outside.max()) + 2


@pytest.mark.parametrize("rule", ROWS)
def test_toy_figure_is_reproduced(rule: str) -> None:
    steps, first_z, first_codes = ROWS[rule]
    z, code = trajectory(rule)
    assert steps_until_still(z) == steps
    torch.testing.assert_close(z[:3], torch.tensor(first_z), atol=1e-4, rtol=0)
    if first_codes is not None:
        torch.testing.assert_close(code[:3], torch.tensor(first_codes), atol=1e-4, rtol=0)


def test_every_rule_follows_its_recursion() -> None:
    """Against the recursions written out in float64, for thirty steps."""
    for rule in ROWS.keys() - {"none"}:
        sync = SYNC if "synchronised" in rule else 0.0
        ze, zq = torch.tensor(START).double(), torch.tensor([0.0, -0.9]).double()
        z, code = trajectory(rule, 30)
        for step in range(30):
            if "alternated" in rule:
                ze, zq = ze - LR * 0.3 * (ze - zq), zq - LR * 0.7 * (zq - ze)
                ze, zq = ze - LR * zq, zq - LR * sync * zq
            else:
                ze, zq = ze - LR * (zq + 0.3 * (ze - zq)), zq - LR * (0.7 * (zq - ze) + sync * zq)
            torch.testing.assert_close(z[step].double(), ze, atol=1e-5, rtol=0)
            torch.testing.assert_close(code[step].double(), zq, atol=1e-5, rtol=0)


def test_stale_gradients_do_not_reach_either_phase() -> None:
    z = nn.Parameter(torch.tensor([1.0]))
    z.grad = torch.tensor([100.0])
    optimizer = torch.optim.SGD([z], lr=0.5)
    alternated_step(lambda: half_square(z), lambda: half_square(z), optimizer, optimizer)
    assert z.item() == 0.25


def test_a_codebook_without_task_gradient_is_left_alone_by_the_outer_optimizer() -> None:
    """Momentum and weight decay must not move what the second phase gives no gradient."""
    layer = make_layer(0.0)
    z = nn.Parameter(torch.tensor([START]))
    inner = torch.optim.SGD(layer.parameters(), lr=0.0)
    outer = torch.optim.AdamW([z, *layer.parameters()], lr=0.1, weight_decay=0.5)
    before = layer.codes()
    for _ in range(3):
        alternated_step(lambda: layer(z).loss, lambda: half_square(layer(z).quantized), inner, outer)
    assert torch.equal(layer.codes(), before)


def test_inner_steps_runs_the_first_phase_that_often() -> None:
    calls = {"inner": 0, "outer": 0}
    z = nn.Parameter(torch.ones(1))

    def loss(phase: str) -> Tensor:
        calls[phase] += 1
        return z.sum()

    optimizer = torch.optim.SGD([z], lr=0.1)
    first, second = alternated_step(lambda: loss("inner"), lambda: loss("outer"), optimizer, optimizer, inner_steps=3)
    assert calls == {"inner": 3, "outer": 1}
    torch.testing.assert_close(first, torch.tensor(0.8))
    torch.testing.assert_close(second, torch.tensor(0.7))
    assert not first.requires_grad


@pytest.mark.parametrize("inner_steps", [0, -1])
def test_inner_steps_must_be_positive(inner_steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"`alternated_step`: `inner_steps` must be an integer >= 1"):
        alternated_step(lambda: torch.ones(1), lambda: torch.ones(1), optimizer, optimizer, inner_steps=inner_steps)


def test_rewritten_rows_lose_their_moments_in_both_optimizers() -> None:
    layer = make_layer(SYNC)
    z = nn.Parameter(torch.tensor([START]))
    inner = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    outer = torch.optim.AdamW([z, *layer.parameters()], lr=1e-3)
    svq.attach_optimizer(inner, layer)
    svq.attach_optimizer(outer, layer)
    raw, book = layer.codebook.raw, layer.codebook
    for _ in range(3):  # the first takes down the flags that set_codes put up
        alternated_step(lambda: layer(z).loss, lambda: half_square(layer(z).quantized), inner, outer)
    assert not book.rewritten.any()
    assert all((optimizer.state[raw]["exp_avg"][0] != 0).all() for optimizer in (inner, outer))
    book.rewritten[0] = True
    z.grad = None
    raw.grad = torch.zeros_like(raw)
    outer.step()
    assert not book.rewritten.any()
    assert all((optimizer.state[raw]["exp_avg"][0] == 0).all() for optimizer in (inner, outer))
