"""`Classification`: losses by hand, totals over a set, what is trained by what, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.trainings import changed, check_exact_resume, make_trainer, state
from torch import Tensor, nn
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.data import Images
from straightvq.models import AlexNet, ClassifierBase, ResNet18, ViT
from straightvq.training import Alternation, Classification, HasHead, OptimizerSettings


class Affine4(ClassifierBase):
    """Flattened pixels -> 4 channels -> quantizer -> logits: small enough to compute by hand."""

    def __init__(self, quantizer: svq.VectorQuantizer | None, num_classes: int = 3) -> None:
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Unflatten(1, (4, 1, 1)))
        head = nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))
        super().__init__(
            quantizer, {"encoder": encoder, "classifier": head}, position="encoder", dim=4, channel_dim=1, in_channels=3
        )


def make_task(preset: str | None = "vq_vae", **kwargs: Any) -> Classification:
    torch.manual_seed(0)
    quantizer = None if preset is None else getattr(svq.presets, preset)(4, 8, channel_dim=1)
    optimizer = OptimizerSettings(lr=1e-2, weight_decay=0.03, warmup_steps=2)
    return Classification(Affine4(quantizer), **{"optimizer": optimizer, **kwargs})


def make_batch(count: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, 2, 2, generator=generator)
    return {"image": image, "label": torch.arange(count) % 3}


def make_loader(count: int = 32) -> DataLoader[Any]:
    rows = zip(*make_batch(count).values(), strict=True)
    return DataLoader([{"image": image, "label": label} for image, label in rows], batch_size=8)


def test_error_is_the_cross_entropy_of_normalized_images() -> None:
    task, batch = make_task(pixel_mean=0.3, pixel_std=0.4), make_batch()
    error, _ = task.compute(batch)
    logits = task.model((batch["image"] - 0.3) / 0.4).logits.detach()
    rows = [float(logits[i].exp().sum().log() - logits[i, batch["label"][i]]) for i in range(6)]
    assert error.item() == pytest.approx(sum(rows) / 6, rel=1e-5)


def test_loss_is_the_cross_entropy_plus_the_quantizers() -> None:
    task = make_task()
    error, out = task.compute(make_batch(8))
    assert out is not None
    trainer = make_trainer(1)
    trainer.fit(task, make_loader(8))
    logged = trainer.callback_metrics
    assert logged["train/cross_entropy"].item() == pytest.approx(error.item(), rel=1e-6)
    assert logged["train/loss"].item() == pytest.approx(error.item() + out.loss.item(), rel=1e-6)


def test_label_smoothing_by_hand() -> None:
    """Smoothing 0.3 over 3 classes: 0.8 for the right one and 0.1 for each of the others."""
    task = make_task(label_smoothing=0.3)
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    log_p = logits.log_softmax(1)[0]
    expected = -(0.1 * log_p[0] + 0.1 * log_p[1] + 0.8 * log_p[2])
    loss = task.error(logits, {"label": torch.tensor([2])})
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_mixup_mixes_images_and_losses_by_the_same_share() -> None:
    task, batch = make_task(mixup=0.4), make_batch()
    torch.manual_seed(3)
    mixed = task.prepare(batch)
    share = float(mixed["share"])
    assert 0 < share < 1
    torch.manual_seed(3)
    torch.distributions.Beta(0.4, 0.4).sample()
    order = torch.randperm(6)
    torch.testing.assert_close(mixed["image"], share * batch["image"] + (1 - share) * batch["image"][order])
    assert torch.equal(mixed["other_label"], batch["label"][order])
    logits = torch.randn(6, 3)
    own, other = F.cross_entropy(logits, batch["label"]), F.cross_entropy(logits, batch["label"][order])
    torch.testing.assert_close(task.error(logits, mixed), share * own + (1 - share) * other)


def test_without_mixup_a_batch_is_left_alone_and_nothing_is_drawn() -> None:
    task, batch = make_task(), make_batch()
    before = torch.get_rng_state()
    assert task.prepare(batch) is batch
    assert torch.equal(torch.get_rng_state(), before)


def test_latent_and_head_loss_make_up_the_error() -> None:
    task, batch = make_task("ema"), make_batch()
    task.eval()
    assert isinstance(task, HasHead)
    z = task.latent(batch)
    assert z.shape == (6, 4, 1, 1)
    quantized = task.model.quantizer(z).quantized
    torch.testing.assert_close(task.head_loss(quantized, batch), task.compute(batch)[0])


@pytest.mark.parametrize("preset", ["vq_vae", "ema", "vq_ste_pp", "straight", None])
def test_every_preset_learns(preset: str | None) -> None:
    task = make_task(preset)
    trainer = make_trainer(150, max_epochs=-1)
    trainer.fit(task, make_loader(8))
    assert trainer.callback_metrics["train/cross_entropy"].item() < 0.9 * torch.tensor(3.0).log().item()


@pytest.mark.parametrize("alternate", [None, Alternation("codebook"), Alternation("codebook_and_encoder")])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_moves_encoder_codebook_and_head(alternate: Alternation | None, name: Any) -> None:
    task = make_task(alternate=alternate, optimizer=OptimizerSettings(name, lr=1e-2, warmup_steps=2))
    before = state(task)
    make_trainer(3).fit(task, make_loader())
    moved = changed(task, before)
    assert "model.quantizer.codebook.raw" in moved
    assert any(name.startswith("model.stages.encoder") for name in moved)
    assert any(name.startswith("model.stages.classifier") for name in moved)


@pytest.mark.parametrize(("phase", "encoder_moves"), [("codebook", False), ("codebook_and_encoder", True)])
def test_first_phase_moves_what_its_name_says(phase: Any, encoder_moves: bool) -> None:
    """With a main learning rate of next to nothing only the first phase is left."""
    optimizer = OptimizerSettings(lr=1e-30, weight_decay=0.0, warmup_steps=2)
    task = make_task(alternate=Alternation(phase, lr=1e-2), optimizer=optimizer)
    before = state(task)
    make_trainer(3).fit(task, make_loader())
    moved = changed(task, before)
    assert "model.quantizer.codebook.raw" in moved
    assert ("model.stages.encoder.1.weight" in moved) == encoder_moves
    assert "model.stages.classifier.1.weight" not in moved


def test_both_phases_see_the_same_mixed_images() -> None:
    task = make_task(alternate=Alternation("codebook_and_encoder"), mixup=1.0)
    seen: list[Tensor] = []
    task.model.stages.get_submodule("encoder").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    make_trainer(1).fit(task, make_loader())
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_sgd_has_momentum_groups_and_no_decay_of_the_codebook() -> None:
    optimizer = OptimizerSettings("sgd", lr=0.1, codebook_lr=20.0, weight_decay=0.1, momentum=0.8, warmup_steps=0)
    trainer = make_trainer(1)
    trainer.fit(make_task(optimizer=optimizer), make_loader())
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)
    assert groups["network"]["momentum"] == 0.8
    assert (groups["network"]["weight_decay"], groups["codebook"]["weight_decay"]) == (0.1, 0.0)
    assert groups["codebook"]["initial_lr"] == 20.0


@pytest.mark.parametrize("preset", ["vq_vae", "straight"])
def test_without_quantization_the_network_is_trained_as_if_there_were_none(preset: str) -> None:
    plain, bypassed = make_task(None), make_task(preset, quantize=False)
    bypassed.model.stages.load_state_dict(plain.model.stages.state_dict())
    for task in (plain, bypassed):
        trainer = make_trainer(5)
        trainer.fit(task, make_loader())
        (measured,) = trainer.test(task, make_loader(), verbose=False)
        assert set(measured) == {"test/accuracy", "test/cross_entropy"}
    for own, other in zip(plain.model.stages.parameters(), bypassed.model.stages.parameters(), strict=True):
        assert torch.equal(own, other)


def test_classifiers_of_all_kinds_train() -> None:
    models = [
        AlexNet(svq.presets.ema(24, 8, channel_dim=1), num_classes=10, in_channels=1, width=4, small_images=True),
        ResNet18(svq.presets.ema(8, 8, channel_dim=1), num_classes=10, in_channels=1, width=4, small_images=True),
        ViT(svq.presets.ema(12, 8), num_classes=10, in_channels=1, image_size=16, patch_size=4, layers=2, width=12),
    ]
    for model in models:
        task = Classification(model, alternate=Alternation("codebook_and_encoder"))
        data = Images(source="digits", size=16, channels=1, batch_size=16, num_train=36, num_test=16, crop_padding=2)
        trainer = make_trainer(2)
        trainer.fit(task, datamodule=data)
        (measured,) = trainer.test(task, datamodule=data, verbose=False)
        assert 0 <= measured["test/accuracy"] <= 1


def test_evaluation_logs_totals_over_the_set() -> None:
    task = make_task(label_smoothing=0.2, mixup=0.5)
    trainer = make_trainer(4)
    trainer.fit(task, make_loader(), make_loader(16))
    logged = {"val/accuracy", "val/cross_entropy", "val/perplexity", "val/codes_used", "train/loss"}
    assert logged <= set(trainer.callback_metrics)
    (measured,) = trainer.test(task, make_loader(20), verbose=False)  # batches of 8, 8 and 4
    batch = make_batch(20)
    task.eval()
    with torch.no_grad():
        out = task(batch["image"])
    counts = torch.bincount(out.quantizer.indices.flatten(), minlength=8).double()
    p = counts[counts > 0] / counts.sum()
    assert measured["test/accuracy"] == pytest.approx((out.logits.argmax(1) == batch["label"]).double().mean().item())
    plain = F.cross_entropy(out.logits, batch["label"]).item()
    assert measured["test/cross_entropy"] == pytest.approx(plain, rel=1e-5)
    assert measured["test/codes_used"] == (counts > 0).sum().item()
    assert measured["test/perplexity"] == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-5)


def test_predictions_are_logits_and_indices() -> None:
    batches: Any = make_trainer(1).predict(make_task("ema"), make_loader(10))
    assert batches[0]["logits"].shape == (8, 3)
    assert torch.equal(batches[1]["prediction"], batches[1]["logits"].argmax(1))
    assert batches[1]["indices"].shape == (2, 1, 1)
    assert "indices" not in make_trainer(1).predict(make_task(None), make_loader(10))[0]


@pytest.mark.parametrize(
    ("label", "message"), [(-1, r"all images must have a label. Got 1 without"), (3, r"at least 4, since .* Got 3")]
)
def test_labels_that_cannot_be_learned_are_refused(label: int, message: str) -> None:
    batch = make_batch()
    batch["label"][2] = label
    with pytest.raises(ValueError, match=rf"`Classification`: .*{message}"):
        make_task().compute(batch)


@pytest.mark.parametrize("length", [{"steps": 8}, {"steps": -1, "max_epochs": 2}])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_is_exact_with_mixup_and_shifts(length: dict[str, int], stop: int, tmp_path: Path) -> None:
    """Stopped within an epoch of four batches, at its end, and at the beginning of the next."""

    def make() -> tuple[Classification, Images]:
        torch.manual_seed(0)
        quantizer = svq.presets.straight(24, 8, channel_dim=1)
        model = AlexNet(quantizer, num_classes=10, in_channels=1, width=4, small_images=True)
        data = Images(source="digits", size=8, channels=1, batch_size=8, num_train=36, num_test=8, crop_padding=1)
        return Classification(model, mixup=0.4, optimizer=OptimizerSettings(warmup_steps=2)), data

    check_exact_resume(make, tmp_path, stop, **length)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup": -0.1}, r"`Classification`: `mixup` must be a finite number"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be a finite number"),
        ({"pixel_std": 0.0}, r"`pixel_std` must be a finite number"),
        ({"quantize": 1}, r"`quantize` must be True or False"),
        ({"alternate": Alternation("codebook"), "preset": "ema"}, r"needs a codebook that is trained by gradient"),
        ({"alternate": Alternation("codebook"), "preset": None}, r"`alternate` must be None without a quantizer"),
        ({"alternate": Alternation("codebook"), "quantize": False}, r"`alternate` must be None without a quantizer"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_task(**arguments)
