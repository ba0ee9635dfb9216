"""What a task tells about itself, and that it is left as it was."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq.diagnostics.task import HasHead, first_images, measure_gradient_gap, reconstruct, undisturbed


class Task(nn.Module):
    """An encoder, one quantizer, a head."""

    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.quantizer, self.head = nn.Linear(4, 4), quantizer, nn.Linear(4, 4)

    def latent(self, batch):
        return self.encoder(batch["x"])

    def head_loss(self, latent, batch):
        return (self.head(latent).tanh() - batch["x"]).square().mean()


@pytest.fixture
def batch():
    return {"x": torch.randn(8, 4)}


@pytest.fixture
def task():
    return Task(svq.VectorQuantizer(4, svq.Codebook(8)))


@pytest.mark.parametrize("transform", [svq.UnitNorm(), svq.Projection(2)], ids=["unit norm", "projection"])
def test_a_transform_alone_makes_no_gradient_gap(transform, batch):
    """With a code at every vector nothing is lost to quantization, whatever the transform does."""
    quantizer = svq.VectorQuantizer(4, svq.Codebook(8), transform=transform)
    task = Task(quantizer).eval()
    assert isinstance(task, HasHead)
    quantizer.set_codes(quantizer.transform(task.latent(batch)).detach())
    exact = measure_gradient_gap(task, batch)
    assert float(exact.relative) == pytest.approx(0, abs=1e-5)
    assert float(exact.cosine) == pytest.approx(1)
    quantizer.set_codes(quantizer.codes() + 0.3)
    assert float(measure_gradient_gap(task, batch).relative) > 0.01


def test_the_gap_is_measured_inside_inference_mode_and_leaves_no_trace(task, batch):
    before = torch.get_rng_state()
    with torch.inference_mode():
        inside = measure_gradient_gap(task, batch)
    assert float(inside.norm) == pytest.approx(float(measure_gradient_gap(task, batch).norm))
    assert task.training
    assert task.quantizer.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_without_a_head_or_with_a_bypassed_quantizer_there_is_no_gap(task, batch):
    assert measure_gradient_gap(nn.Sequential(task.quantizer), batch) is None
    with svq.bypass(task):
        assert measure_gradient_gap(task, batch) is None


def test_undisturbed_gives_modes_and_random_numbers_back_after_a_failure(task):
    task.head.eval()
    before = torch.get_rng_state()

    @undisturbed(task)
    def fail():
        assert not task.training
        raise RuntimeError(f"broken after {torch.rand(1)}")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert (task.training, task.head.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_those_that_can_be_drawn():
    images = torch.rand(20, 3, 8, 8)
    assert torch.equal(first_images({"image": images}), images[:12])
    for other in (images, {"x": images}, {"image": images[:, :2]}, {"image": images.long()}, {"image": images[:0]}):
        assert first_images(other) is None


def test_only_autoencoders_reconstruct():
    class Halve(nn.Module):
        def forward(self, x):
            return x / 2, "and more"

        encode = decode = forward

    task = nn.Module()
    task.model = Halve()
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(reconstruct(task, images), images / 2)
    task.model = nn.Identity()
    assert reconstruct(task, images) is None
    assert reconstruct(nn.Module(), images) is None


def test_diagnostics_know_no_lightning():
    names = ", ".join(f"straightvq.diagnostics.{name}" for name in ("concerns", "following", "sums", "task"))
    program = f"import {names}, sys; print('lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
