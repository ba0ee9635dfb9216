"""The monitor's numbers are those of one pass over the same data; it warns when it should, and disturbs nothing."""

import contextlib
import random
import warnings

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq import diagnostics as dx
from straightvq.diagnostics.task import measure_gradient_gap
from straightvq.models import Autoencoder
from straightvq.training import CodebookMonitor, CodebookWarning, HasHead, Reconstruction

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

SIZE, DIM, BATCH = 8, 4, 32


def batches(number=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number * BATCH, DIM, generator=generator)
    return DataLoader([{"x": row, "mask": row[0] > -0.5} for row in x], batch_size=BATCH)


class Task(lightning.LightningModule):
    """Linear encoder, quantizers one after the other, linear head; reconstructs its input."""

    def __init__(self, *quantizers, in_optimizer=True, uses_loss=True, masked=False, lr=1e-2, encode=True):
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM) if encode else nn.Identity()
        self.quantizers = nn.ModuleList(quantizers)
        self.head = nn.Linear(DIM, DIM)
        self.in_optimizer, self.uses_loss, self.masked, self.lr = in_optimizer, uses_loss, masked, lr
        self.seen = {"train": [], "val": []}

    def step(self, batch, stage):
        h, extra = self.encoder(batch["x"]), 0.0
        for quantizer in self.quantizers:
            z = h
            out = quantizer(z, batch["mask"] if self.masked else None)
            if isinstance(quantizer, svq.VectorQuantizer):
                codes = quantizer.codes()[out.indices.clamp(min=0)]
                self.seen[stage].append((z.detach().clone(), codes, out.indices))
            h, extra = out.quantized, extra + out.loss
        return self.head_loss(h, batch) + (extra if self.uses_loss else 0.0)

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.step(batch, "val")

    def latent(self, batch):
        return self.encoder(batch["x"])

    def head_loss(self, latent, batch):
        return (self.head(latent).tanh() - batch["x"]).square().mean()

    def configure_optimizers(self):
        owned = {id(p) for q in self.quantizers for book in q.codebooks() for p in book.parameters()}
        kept = [p for p in self.parameters() if self.in_optimizer or id(p) not in owned]
        return torch.optim.SGD(kept, lr=self.lr)


def fit(task, monitor, folder, *, steps=8, ckpt=None, logger=False, callbacks=(), **options):
    options = {"log_every_n_steps": 4, "num_sanity_val_steps": 1, "check_val_every_n_epoch": 1, **options}
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=logger, default_root_dir=folder,
        enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*([monitor] if monitor else []), *callbacks], **options,
    )  # fmt: skip
    trainer.fit(task, batches(), batches(2, seed=1), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


def healthy():
    torch.manual_seed(0)
    codebook = svq.Codebook(SIZE, init=svq.KMeansInit(), update=svq.AlternatedUpdate(), reset=svq.DeadCodeReset())
    return svq.VectorQuantizer(DIM, codebook)


def collapsed():
    """One code in the middle of the data, all others far away."""
    torch.manual_seed(0)
    quantizer = svq.VectorQuantizer(DIM, svq.Codebook(32))
    codes = torch.full((32, DIM), 1e3) + torch.arange(32)[:, None]
    codes[0] = 0
    quantizer.set_codes(codes)
    return quantizer


def expected(seen, size=SIZE):
    """The functional core over the same vectors at once."""
    z, code, indices = (torch.cat(part) for part in zip(*seen, strict=True))
    valid = indices >= 0
    counts = dx.usage_counts(indices, size)
    return {
        "usage": float(dx.usage(counts)),
        "perplexity": float(dx.perplexity(counts)),
        "dead_codes": int(dx.dead_codes(counts)),
        "error": float(dx.normalized_quantization_error(z[valid], code[valid])),
        "commitment": float((z[valid] - code[valid]).double().square().mean()),
    }


def rows(monitor, stage, name=None):
    return [r for r in monitor.history if r["stage"] == stage and name in (None, r["name"])]


def told(record):
    return [str(w.message) for w in record if issubclass(w.category, CodebookWarning)]


class TestNumbers:
    @pytest.mark.parametrize("masked", [False, True])
    def test_equal_the_functional_ones_over_each_window(self, tmp_path, masked):
        task, monitor = Task(healthy(), masked=masked), CodebookMonitor(every_n_steps=3, pictures_every=0)
        fit(task, monitor, tmp_path, steps=7)
        windows = rows(monitor, "train")
        assert [row["step"] for row in windows] == [3, 6]
        for row, seen in zip(windows, (task.seen["train"][:3], task.seen["train"][3:6]), strict=True):
            assert row["name"] == "0"
            assert {k: row[k] for k in expected(seen)} == pytest.approx(expected(seen), rel=1e-6)

    @pytest.mark.parametrize("masked", [False, True])
    def test_equal_the_functional_ones_over_the_validation_set(self, tmp_path, masked):
        task, monitor = Task(healthy(), masked=masked), CodebookMonitor(pictures_every=0)
        trainer = fit(task, monitor, tmp_path, steps=4)
        (row,) = rows(monitor, "val")
        wanted = expected(task.seen["val"])
        del wanted["commitment"]
        z, _, indices = (torch.cat(part) for part in zip(*task.seen["val"], strict=True))
        gap = dx.moment_distance(z[indices >= 0], task.quantizers[0].codes())
        wanted |= {"mean_distance": gap.mean, "std_distance": gap.std, "wasserstein": gap.wasserstein}
        wanted |= {"symmetric_kl": gap.symmetric_kl}
        assert {k: row[k] for k in wanted} == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-5)
        logged = {k.removeprefix("val/codebook/"): float(v) for k, v in trainer.callback_metrics.items() if "val" in k}
        assert logged == pytest.approx({k: v for k, v in row.items() if k in logged})
        assert "perplexity" in logged

    def test_a_projection_is_measured_in_the_space_of_the_codes(self, tmp_path):
        codebook = svq.Codebook(SIZE, init=svq.KMeansInit(), update=svq.EMAUpdate())
        quantizer = svq.VectorQuantizer(DIM, codebook, transform=svq.Projection(2))
        task, monitor = Task(quantizer, lr=0.0), CodebookMonitor(every_n_steps=1, pictures_every=0)
        fit(task, monitor, tmp_path, steps=1)
        z, code, _ = task.seen["train"][0]
        wanted = dx.normalized_quantization_error(quantizer.transform(z), code)
        assert rows(monitor, "train")[0]["error"] == pytest.approx(float(wanted), rel=1e-6)
        assert rows(monitor, "train")[0]["commitment"] > 0

    def test_gradient_gap_is_that_of_the_head(self, tmp_path):
        task, monitor = Task(healthy()), CodebookMonitor(pictures_every=0)
        assert isinstance(task, HasHead)
        fit(task, monitor, tmp_path, steps=4)
        batch = next(iter(batches(2, seed=1)))
        z = task.latent(batch).detach()
        quantizer = task.quantizers[0].eval()
        grads = []
        for point in (z, quantizer(z).quantized.detach()):
            point.requires_grad_()
            grads.append(torch.autograd.grad(task.head_loss(point, batch), point)[0])
        gap = dx.gradient_gap(*grads)
        row = rows(monitor, "val")[-1]
        found = (row["gradient_gap_norm"], row["gradient_gap"], row["gradient_cosine"])
        assert found == pytest.approx(tuple(float(v) for v in gap), rel=1e-5)

    def test_several_quantizers_are_told_apart(self, tmp_path):
        task = Task(healthy(), svq.presets.ema(DIM, 2 * SIZE))
        monitor = CodebookMonitor(every_n_steps=4, pictures_every=0)
        trainer = fit(task, monitor, tmp_path, steps=4)
        assert {row["name"] for row in monitor.history} == {"quantizers.0", "quantizers.1"}
        for number, size in enumerate((SIZE, 2 * SIZE)):
            (row,) = rows(monitor, "train", f"quantizers.{number}")
            wanted = expected(task.seen["train"][number::2], size)
            assert {k: row[k] for k in wanted} == pytest.approx(wanted, rel=1e-6)
            assert f"quantizers.{number}/codebook/usage" in trainer.callback_metrics
            assert f"val/quantizers.{number}/codebook/usage" in trainer.callback_metrics
        assert "gradient_gap" not in rows(monitor, "val")[0]

    def test_the_gradient_gap_of_a_composite_is_that_of_the_whole(self, tmp_path):
        task = Task(svq.ResidualQuantizer(DIM, [healthy(), healthy()]))
        monitor = CodebookMonitor(pictures_every=0)
        trainer = fit(task, monitor, tmp_path, steps=4)
        (row,) = (row for row in rows(monitor, "val", "0") if row["step"] == 4)
        wanted = measure_gradient_gap(task, next(iter(batches(2, seed=1))))
        assert row["gradient_gap"] == pytest.approx(float(wanted.relative), rel=1e-5)
        assert float(trainer.callback_metrics["val/codebook/gradient_gap"]) == pytest.approx(row["gradient_gap"])
        assert "gradient_gap" not in rows(monitor, "val", "quantizers.0.parts.0")[0]

    def test_codes_that_are_too_many_to_be_counted_are_followed_by_their_error(self, tmp_path):
        monitor = CodebookMonitor(every_n_steps=2, pictures_every=1)
        fit(Task(svq.presets.lfq(DIM, 40)), monitor, tmp_path, steps=4)
        row = rows(monitor, "train")[-1]
        assert {"error", "commitment"} <= row.keys()
        assert not {"usage", "perplexity", "dead_codes"} & row.keys()

    def test_bypassed_forwards_count_nothing(self, tmp_path):
        task, monitor = Task(healthy()), CodebookMonitor(every_n_steps=2, pictures_every=0)
        with svq.bypass(task):
            fit(task, monitor, tmp_path, steps=4)
        assert monitor.history == []

    def test_every_window_reaches_the_loggers_whenever_the_trainer_logs(self, tmp_path):
        logger = CSVLogger(tmp_path)
        fit(Task(healthy()), CodebookMonitor(every_n_steps=3, pictures_every=0), tmp_path, steps=7, logger=logger)
        written = [row for row in logger.experiment.metrics if "codebook/usage" in row]
        text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
        assert "codebook/perplexity" in text.splitlines()[0]
        assert len(written) in (0, 2)  # 0: the file holds them already

    def test_a_stand_alone_validation_and_test(self, tmp_path):
        task, monitor = Task(healthy()), CodebookMonitor(pictures_every=0)
        trainer = fit(task, monitor, tmp_path, steps=4)
        trainer.validate(task, batches(2, seed=1), verbose=False)
        first, second = rows(monitor, "val")
        assert first == second
        assert not task.quantizers[0]._forward_hooks


class TestWarnings:
    def test_collapse_is_reported_once_with_its_cures(self, tmp_path):
        monitor = CodebookMonitor(every_n_steps=4, patience=2, pictures_every=0)
        with pytest.warns(CodebookWarning, match="collapsed") as record:
            fit(Task(collapsed(), encode=False), monitor, tmp_path, steps=20)
        (text,) = told(record)
        assert "step 8" in text
        assert "1 of 32 codes" in text
        found = [text.index(cure) for cure in ("DeadCodeReset()", "KMeansInit()", "AlternatedUpdate()", "codebook_lr")]
        assert found == sorted(found)
        assert "docs/collapse.md" in text

    @pytest.mark.parametrize("is_frozen", [False, True])
    def test_a_codebook_that_is_healthy_or_frozen_is_left_alone(self, tmp_path, is_frozen):
        quantizer = svq.presets.vq_vae(DIM, SIZE) if is_frozen else healthy()
        if is_frozen:
            quantizer.codebook.freeze()
        low = 0.0 if is_frozen else 0.1
        monitor = CodebookMonitor(every_n_steps=1, patience=1, collapse_usage=low, pictures_every=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CodebookWarning)
            fit(Task(quantizer), monitor, tmp_path, steps=20)

    def test_a_window_of_few_vectors_is_widened(self, tmp_path):
        # 32 codes need 128 vectors: four windows of one step.
        monitor = CodebookMonitor(every_n_steps=1, patience=1, pictures_every=0)
        with pytest.warns(CodebookWarning, match="step 4: the codebook has collapsed"):
            fit(Task(collapsed(), encode=False), monitor, tmp_path, steps=4)

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ({"in_optimizer": False}, r"no code has moved.*raw is in none of the trainer's opt"),
            ({"uses_loss": False}, r"raw is without a gradient \(grad is None\)"),
            ({"lr": 0.0}, "is the learning rate 0"),
        ],
    )
    def test_codes_that_nothing_moves(self, tmp_path, fault, words):
        monitor = CodebookMonitor(every_n_steps=2, collapse_usage=0, pictures_every=0)
        with pytest.warns(CodebookWarning, match=words) as record:
            fit(Task(svq.presets.vq_vae(DIM, SIZE), **fault), monitor, tmp_path, steps=8)
        assert len(told(record)) == 1

    @pytest.mark.parametrize("follows", [False, True])
    def test_divergence_and_not_a_normal_rise(self, tmp_path, follows):
        """The embeddings grow by 1.5 each step; a codebook that stands still loses them, one that follows does not."""

        class Growing(Task):
            def step(self, batch, stage):
                scale = 1.5**self.global_step
                return super().step({"x": batch["x"] * scale, "mask": batch["mask"]}, stage)

        update = svq.EMAUpdate(decay=0.0) if follows else svq.GradientUpdate()
        quantizer = svq.VectorQuantizer(DIM, svq.Codebook(SIZE, init=svq.KMeansInit(), update=update))
        monitor = CodebookMonitor(every_n_steps=1, collapse_usage=0, pictures_every=0)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            fit(Growing(quantizer, encode=False, lr=1e-9), monitor, tmp_path, steps=20)
        windows = rows(monitor, "train")
        assert windows[-1]["commitment"] > 100 * windows[0]["commitment"]
        lost = [text for text in told(record) if "loses the embeddings" in text]
        assert len(lost) == (0 if follows else 1)


class TestManners:
    def test_training_is_the_same_to_the_bit(self, tmp_path):
        results = []
        for monitor in (None, CodebookMonitor(every_n_steps=2)):
            torch.manual_seed(0), np.random.seed(0), random.seed(0)
            task = Task(svq.presets.vq_ste_pp(DIM, SIZE))
            fit(task, monitor, tmp_path, steps=10)
            results.append((task.state_dict(), torch.rand(3), np.random.rand(), random.random()))
        (state, *draws), (watched, *watched_draws) = results
        # The seed of the codebook is drawn before training starts.
        assert all(torch.equal(state[name], watched[name]) for name in state)
        assert torch.equal(draws[0], watched_draws[0])
        assert draws[1:] == watched_draws[1:]

    @pytest.mark.parametrize("fails", [False, True])
    def test_hooks_are_removed(self, tmp_path, fails, monkeypatch):
        task = Task(healthy())
        if fails:
            monkeypatch.setattr(task, "training_step", lambda *_: pytest.fail("broken"))
        with pytest.raises(pytest.fail.Exception) if fails else contextlib.nullcontext():
            fit(task, CodebookMonitor(every_n_steps=2), tmp_path, steps=4)
        assert not any(module._forward_hooks for module in task.modules())

    def test_resume_goes_on_where_it_stopped(self, tmp_path):
        def run(steps, **options):
            monitor = CodebookMonitor(every_n_steps=5, patience=2, pictures_every=0)
            fit(Task(collapsed(), encode=False), monitor, tmp_path, steps=steps, **options)
            return monitor

        with pytest.warns(CodebookWarning, match="step 10: the codebook has collapsed"):
            whole = run(16)
        # At the end of an epoch, in the middle of a window.
        keep = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=8)
        run(8, callbacks=[keep])
        keep = ModelCheckpoint(tmp_path, filename="late", every_n_train_steps=8)
        with pytest.warns(CodebookWarning, match="step 10: the codebook has collapsed"):
            resumed = run(16, callbacks=[keep], ckpt=tmp_path / "half.ckpt")
        assert rows(resumed, "train") == rows(whole, "train")
        with warnings.catch_warnings():  # the warning was given
            warnings.simplefilter("error", CodebookWarning)
            run(24, callbacks=[keep], ckpt=tmp_path / "late.ckpt")

    def test_a_second_fit_goes_on_with_the_open_window_and_repeats_no_warning(self, tmp_path):
        monitor = CodebookMonitor(every_n_steps=4, patience=2, pictures_every=0)
        task = Task(collapsed(), encode=False)
        with pytest.warns(CodebookWarning, match="step 8: the codebook has collapsed"):
            trainer = fit(task, monitor, tmp_path, steps=9)
        trainer.validate(task, batches(2, seed=1), verbose=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CodebookWarning)
            fit(task, monitor, tmp_path, steps=9)
        assert [row["step"] for row in rows(monitor, "train")] == [4, 8, 3, 7]

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("every_n_steps", 0, "an integer >= 1. Got 0."),
            ("patience", 0, "an integer >= 1. Got 0."),
            ("pictures_every", -1, "an integer >= 0. Got -1."),
            ("collapse_usage", 1.5, "a finite number"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, name, value, words):
        with pytest.raises(ValueError, match=rf"`CodebookMonitor`: `{name}` must be {words}"):
            CodebookMonitor(**{name: value})


class TestPictures:
    def test_codebook_and_usage_are_drawn_at_every_second_validation(self, tmp_path):
        fit(Task(healthy()), CodebookMonitor(pictures_every=2), tmp_path, steps=12)
        names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert names == [f"{kind}-0-{step:08d}.png" for kind in ("codebook", "usage") for step in (4, 12)]

    def test_reconstructions_of_an_autoencoder_reach_tensorboard(self, tmp_path):
        model = Autoencoder(svq.presets.straight(4, 16, channel_dim=1), hidden=4, in_channels=1, blocks=0)
        images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        loader = DataLoader([{"image": image} for image in images], batch_size=8)
        logger = TensorBoardLogger(tmp_path)
        trainer = lightning.Trainer(
            max_steps=2, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[CodebookMonitor(every_n_steps=1)], log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(Reconstruction(model), loader, loader)
        logger.experiment.flush()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        names = sorted(path.name for path in (tmp_path / "lightning_logs" / "version_0" / "pictures").iterdir())
        kinds = ("codebook-quantizer", "reconstructions", "usage-quantizer")
        assert names == [f"{kind}-00000002.png" for kind in kinds]
        board = EventAccumulator(logger.log_dir).Reload()
        assert "pictures/reconstructions" in board.Tags()["images"]
        assert {"codebook/usage", "val/codebook/usage"} <= set(board.Tags()["scalars"])
