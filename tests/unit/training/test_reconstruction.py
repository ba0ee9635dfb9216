"""`Reconstruction`: what is trained by what, what is logged, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainings import changed, check_exact_resume, make_trainer, state
from torch import Tensor, nn
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.data import Images
from straightvq.models import Autoencoder
from straightvq.training import Alternation, OptimizerSettings, Reconstruction


class Noisy(nn.Module):
    """Draws random numbers in training, so that a lost random state shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x) if self.training else x


def make_task(preset: str = "straight", **kwargs: Any) -> Reconstruction:
    torch.manual_seed(0)
    quantizer = getattr(svq.presets, preset)(4, 8, channel_dim=1)
    model = Autoencoder(quantizer, hidden=8, blocks=1)
    model.encoder.append(Noisy())
    return Reconstruction(model, **{"optimizer": OptimizerSettings(lr=1e-2, warmup_steps=2), **kwargs})


def make_loader(count: int = 32) -> DataLoader[Any]:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader([{"image": image} for image in images], batch_size=8)


@pytest.mark.parametrize("preset", ["vq_vae", "ema", "vq_ste_pp", "straight"])
def test_every_preset_learns(preset: str) -> None:
    task = make_task(preset, loss_weight=10.0)
    trainer = make_trainer(40, max_epochs=-1)
    trainer.fit(task, make_loader(8))
    # The variance of the images is 1/12, and a random decoder is far worse.
    assert trainer.callback_metrics["train/reconstruction"].item() < 0.1


@pytest.mark.parametrize("alternate", [None, Alternation("codebook"), Alternation("codebook_and_encoder")])
def test_training_moves_encoder_codebook_and_decoder(alternate: Alternation | None) -> None:
    task = make_task("vq_vae", alternate=alternate)
    before = state(task)
    make_trainer(3).fit(task, make_loader())
    moved = changed(task, before)
    assert "model.quantizer.codebook.raw" in moved
    assert any(name.startswith("model.encoder") for name in moved)
    assert any(name.startswith("model.decoder") for name in moved)


@pytest.mark.parametrize(("phase", "encoder_moves"), [("codebook", False), ("codebook_and_encoder", True)])
def test_first_phase_moves_what_its_name_says(phase: Any, encoder_moves: bool) -> None:
    """With a main learning rate of next to nothing only the first phase is left."""
    optimizer = OptimizerSettings(lr=1e-30, weight_decay=0.0, warmup_steps=2)
    task = make_task("vq_vae", alternate=Alternation(phase, lr=1e-2), optimizer=optimizer)
    task.model.quantizer.set_codes(torch.randn(8, 4))
    before = state(task)
    make_trainer(3).fit(task, make_loader())
    moved = [name for name, p in task.named_parameters() if (p - before[name]).abs().max() > 1e-6]
    assert "model.quantizer.codebook.raw" in moved
    assert any(name.startswith("model.encoder") for name in moved) == encoder_moves
    assert not any(name.startswith("model.decoder") for name in moved)


def test_inner_steps_are_not_counted_as_steps_of_training() -> None:
    task = make_task("vq_vae", alternate=Alternation("codebook_and_encoder", steps=3))
    trainer = make_trainer(5)
    trainer.fit(task, make_loader(80))
    assert trainer.global_step == 5


def test_evaluation_logs_totals_over_the_set() -> None:
    task = make_task()
    trainer = make_trainer(4)
    trainer.fit(task, make_loader(), make_loader(16))
    logged = {"train/loss", "train/reconstruction", "train/commitment", "train/codebook"}
    logged |= {"val/mse", "val/psnr", "val/perplexity", "val/codes_used"}
    assert logged <= set(trainer.callback_metrics)
    (measured,) = trainer.test(task, make_loader(20), verbose=False)  # batches of 8, 8 and 4
    x = torch.cat([batch["image"] for batch in make_loader(20)])
    task.eval()
    with torch.no_grad():
        out = task(x)
    mse = (out.reconstruction.clamp(0, 1) - x).square().mean()
    counts = torch.bincount(out.quantizer.indices.flatten(), minlength=8).double()
    p = counts[counts > 0] / counts.sum()
    assert measured["test/mse"] == pytest.approx(mse.item(), rel=1e-5)
    assert measured["test/psnr"] == pytest.approx(-10 * mse.log10().item(), rel=1e-5)
    assert measured["test/codes_used"] == (counts > 0).sum().item()
    assert measured["test/perplexity"] == pytest.approx((-(p * p.log()).sum()).exp().item(), rel=1e-5)


def test_predictions_are_indices_and_reconstructions() -> None:
    batches: Any = make_trainer(1).predict(make_task(), make_loader(10))
    assert batches[0]["indices"].shape == (8, 2, 2)
    assert batches[1]["reconstruction"].shape == (2, 3, 8, 8)
    assert batches[0]["reconstruction"].min() >= 0
    bypassed: Any = make_trainer(1).predict(make_task(quantize=False), make_loader(10))
    assert list(bypassed[0]) == ["reconstruction"]


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_first_phase_with_nothing_to_train_is_refused(is_frozen: bool) -> None:
    losses = None if is_frozen else [svq.CommitmentLoss()]
    slots: dict[str, Any] = {"losses": losses, "estimator": svq.StraightThrough(0.5)}
    quantizer = svq.VectorQuantizer(4, svq.Codebook(8), channel_dim=1, **slots)
    if is_frozen:
        quantizer.codebook.freeze()
    task = Reconstruction(Autoencoder(quantizer, hidden=8, blocks=1), alternate=Alternation("codebook"))
    with pytest.raises(ValueError, match="`alternate` has nothing to train in its first phase"):
        make_trainer(2).fit(task, make_loader())


def test_rate_warms_up_and_falls_to_zero() -> None:
    task = make_task(optimizer=OptimizerSettings(lr=1e-2, warmup_steps=4, codebook_lr=1e-3))
    trainer = make_trainer(10)
    trainer.fit(task, make_loader(80))
    (schedule,) = trainer.lr_scheduler_configs
    rates = [schedule.scheduler.lr_lambdas[0](step) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[10] == pytest.approx(0.0)


def test_codebook_has_its_own_rate_and_no_decay() -> None:
    optimizer = OptimizerSettings(lr=1e-2, codebook_lr=1e-3, weight_decay=0.1, warmup_steps=0)
    task = make_task("vq_vae", optimizer=optimizer)
    trainer = make_trainer(1)
    trainer.fit(task, make_loader())
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert groups["codebook"]["initial_lr"] == 1e-3
    assert groups["codebook"]["weight_decay"] == 0.0
    assert groups["network"]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("preset", "alternate"), [("straight", None), ("vq_ste_pp", None), ("vq_vae", Alternation("codebook_and_encoder"))]
)
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_resume_is_exact(preset: str, alternate: Alternation | None, stop: int, tmp_path: Path) -> None:
    """Stopped within an epoch of four batches, at its end, and at the beginning of the next."""

    def make() -> tuple[Reconstruction, Images]:
        data = Images(source="digits", size=8, channels=3, batch_size=8, num_train=36, num_test=8)
        return make_task(preset, alternate=alternate), data

    check_exact_resume(make, tmp_path, stop)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": {"lr": 1e-3}}, r"`Reconstruction`: `optimizer` must be an instance of OptimizerSettings"),
        ({"loss": "l3"}, r"`loss` must be one of 'mse', 'l1'. Got 'l3'"),
        ({"loss_weight": 0.0}, r"`loss_weight` must be a finite number"),
        ({"alternate": "codebook"}, r"`alternate` must be an instance of Alternation"),
        ({"alternate": Alternation("codebook")}, r"needs a codebook that is trained by gradient.*Got AlternatedUpdate"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_task(**arguments)
