"""What a task tells about itself, and that it is left as it was."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq.diagnostics.task import (
    HasHead,
    first_images,
    measure_gradient_gap,
    measure_gradient_gaps,
    reconstruct,
    undisturbed,
)


class Task(nn.Module):
    """An encoder, one quantizer, a head."""

    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.quantizer, self.head = nn.Linear(4, 4), quantizer, nn.Linear(4, 4)

    def latent(self, batch):
        return self.encoder(batch["x"])

    def head_loss(self, latent, batch):
        return (self.head(latent).tanh() - batch["x"]).square().mean()


class Bowl(nn.Module):
    """The batch is the latent, and the head's loss half its square: gradients are the latents themselves."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def latent(self, batch):
        return batch["x"]

    def head_loss(self, latent, batch):
        return latent.square().sum() / 2


def coded(codes):
    """A layer of these codes."""
    layer = svq.VectorQuantizer(codes.shape[1], svq.Codebook(len(codes)))
    layer.set_codes(codes)
    return layer


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


def test_the_gap_of_a_residual_level_is_that_with_the_levels_up_to_it():
    # Level 0 takes 0, 0, 4, 4 and leaves 1, -1, 1, -1, of norm 2; the vectors have norm 6. Level 1 leaves nothing.
    levels = [coded(torch.tensor([[0.0], [4.0]])), coded(torch.tensor([[-1.0], [1.0], [9.0]]))]
    task = Bowl(svq.ResidualQuantizer(1, levels))
    gaps = measure_gradient_gaps(task, {"x": torch.tensor([[1.0], [-1.0], [5.0], [3.0]])})
    assert list(gaps) == ["", "level 0", "level 1"]
    assert (float(gaps["level 0"].norm), float(gaps["level 0"].relative)) == pytest.approx((2.0, 1 / 3))
    assert [float(gaps[name].norm) for name in ("", "level 1")] == [0.0, 0.0]


def test_the_gap_of_a_group_is_that_of_its_channels_if_it_alone_were_quantized():
    class Products(Bowl):
        def head_loss(self, latent, batch):  # the gradient of one channel is the other channel
            return latent.prod(1).sum()

    groups = [coded(torch.tensor([[0.0], [2.0]])), coded(torch.tensor([[0.0], [10.0]]))]
    x = torch.tensor([[0.5, 1.0], [1.5, 1.0], [-0.5, 1.0], [2.5, 11.0]])
    quantizer = svq.ProductQuantizer(2, groups, channel_dim=1)
    gaps = measure_gradient_gaps(Bowl(quantizer), {"x": x})
    # Misses of 0.5 in all four, of norm 1, over a norm of 3; of 1 in all four, of norm 2, over one of sqrt(124).
    assert float(gaps["group 0"].relative) == pytest.approx(1 / 3)
    assert float(gaps["group 1"].relative) == pytest.approx(2 / 124**0.5)
    assert float(gaps[""].norm) == pytest.approx(5**0.5)
    # With the other group exact, the gradient of a channel does not change; with both quantized it does.
    gaps = measure_gradient_gaps(Products(quantizer), {"x": x})
    assert [float(gaps[name].norm) for name in ("group 0", "group 1")] == [0.0, 0.0]
    assert float(gaps[""].norm) == pytest.approx(5**0.5)


@pytest.mark.parametrize(
    "quantizer",
    [
        svq.presets.fsq(4, [3, 3, 3, 3]),
        svq.ResidualQuantizer(4, svq.presets.vq_vae(4, 8), num_quantizers=2),
        svq.ProductQuantizer(4, svq.presets.vq_vae(2, 8), num_groups=2),
        svq.ProductQuantizer(4, [svq.presets.vq_vae(2, 8) for _ in range(2)], transform=svq.Projection(4)),
    ],
    ids=["no parts", "shared levels", "shared groups", "mixed channels"],
)
def test_without_parts_of_its_own_there_is_the_gap_of_the_whole_alone(quantizer, batch):
    gaps = measure_gradient_gaps(Task(quantizer), batch)
    assert list(gaps) == [""]
    assert float(gaps[""].norm) > 0
