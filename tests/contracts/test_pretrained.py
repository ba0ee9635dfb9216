"""Every quantizer that is saved and loaded goes on as if it had not been."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import straightvq as svq
from tests.contracts.cases import CASES, DIM, FREE, SIZE, every
from tests.contracts.test_families import CASES as FAMILIES


def _of_other_settings() -> svq.Quantizer:
    """What a schedule or a user has set after the layer was made."""
    layer = svq.presets.gumbel(DIM, SIZE, temperature=4.0)
    layer.estimator.temperature, layer.losses[0].coefficient = 2.0, 0.125
    return layer


def _folded() -> svq.Quantizer:
    layer = svq.presets.simvq(DIM, SIZE)
    layer.codebook.fold()
    return layer


def _frozen() -> svq.Quantizer:
    layer = svq.presets.vq_vae(DIM, SIZE)
    layer.freeze()
    return layer


ALL: dict[str, Callable[..., svq.Quantizer]] = {**CASES, **FREE, **FAMILIES} | {
    "settings changed": _of_other_settings,
    "folded": _folded,
    "frozen": _frozen,
    "double": lambda: svq.presets.straight(DIM, SIZE).double(),
    "split": lambda: svq.interop.SplitQuantizer(DIM, [svq.presets.ema(DIM, SIZE), svq.presets.rq_vae(DIM, SIZE)]),
    "transforms of other libraries": lambda: svq.VectorQuantizer(
        DIM, svq.Codebook(SIZE), transform=svq.interop.Steps([svq.Projection(4), svq.interop.Reversed()])
    ),
}


def z_of(layer: svq.Quantizer, seed: int) -> Tensor:
    return torch.randn(64, layer.dim, generator=torch.Generator().manual_seed(seed))


def step(layer: svq.Quantizer, optimizer: torch.optim.Optimizer | None, seed: int) -> list[Tensor]:
    """One step of training: everything that comes out of it, gradients included."""
    z = z_of(layer, seed).requires_grad_()
    out = layer(z)
    layer.zero_grad()
    (out.loss + (out.quantized * z_of(layer, seed + 1)).sum()).backward()
    if optimizer is not None:
        optimizer.step()
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    return [out.quantized, out.indices, out.loss, z.grad, *gradients, *out.terms.values(), *layer.state_dict().values()]


def optimizer_of(layer: svq.Quantizer) -> torch.optim.Optimizer | None:
    trained = [p for p in layer.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.1) if trained else None


@every("make", ALL)
def test_a_loaded_quantizer_does_what_the_saved_one_does(make: Callable[..., svq.Quantizer], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = make()
    for seed in range(2):
        step(layer, optimizer_of(layer), seed)
    before = torch.random.get_rng_state()
    layer.save_pretrained(tmp_path)
    again = type(layer).from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert repr(again) == repr(layer)
    assert not any(module.training for module in again.modules())
    assert torch.equal(again.encode(z_of(layer, 7)), layer.encode(z_of(layer, 7)))
    again.train()
    for seed in (11, 13):
        ours, theirs = (step(each, optimizer_of(each), seed) for each in (layer, again))
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
