"""`Generation`: the loss, who is trained, what is measured, resume, and sampling."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from tests import trainings
from tests.trainings import changed, check_exact_resume, state
from torch import Tensor
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.data import Images, Tokens
from straightvq.diagnostics.fid import FeatureNetwork
from straightvq.generation import Generation, Tokenizer
from straightvq.generation import task as module
from straightvq.generation.task import masked_cross_entropy
from straightvq.models import Autoencoder, MaskGIT
from straightvq.training import OptimizerSettings

CODES = 16


def make_tokenizer(seed: int = 0, codes: int = CODES) -> Tokenizer:
    torch.manual_seed(seed)
    model = Autoencoder(svq.presets.vq_vae(4, codes, channel_dim=1), in_channels=1, hidden=8, blocks=1)
    model.quantizer.set_codes(torch.randn(codes, 4))
    return Tokenizer(model)


def make_task(num_classes: int | None = 10, seed: int = 0, grid: tuple[int, int] = (2, 2), **kwargs: Any) -> Generation:
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = MaskGIT(CODES, grid=grid, num_classes=num_classes, layers=1, width=16, heads=2)
    settings = {"optimizer": OptimizerSettings(lr=1e-2, warmup_steps=2), "steps": 3}
    return Generation(model, tokenizer, **{**settings, **kwargs})


def make_data(kind: type[Images] = Tokens, **kwargs: Any) -> Images:
    sizes = {"size": 8, "channels": 1, "batch_size": 8, "num_train": 36, "num_test": 20}
    return kind(source="digits", **{**sizes, **kwargs})


def make_trainer(steps: int) -> lightning.Trainer:
    return trainings.make_trainer(steps, max_epochs=-1)


@pytest.mark.parametrize(
    "quantizer",
    [
        svq.presets.fsq(2, [4, 4], channel_dim=1),
        svq.presets.lfq(4, 4, channel_dim=1),
        svq.presets.bsq(4, 4, channel_dim=1),
        svq.RandomProjectionQuantizer(4, CODES, 4, channel_dim=1),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_it_trains_on_the_tokens_of_quantizers_without_a_codebook(quantizer: svq.Quantizer, tmp_path: Path) -> None:
    tokenizer = Tokenizer(Autoencoder(quantizer, in_channels=1, hidden=8, blocks=1))
    model = MaskGIT(CODES, grid=(2, 2), num_classes=10, layers=1, width=16, heads=2)
    task = Generation(model, tokenizer, optimizer=OptimizerSettings(lr=1e-2, warmup_steps=2), steps=2)
    before = state(task)
    make_trainer(2).fit(task, make_data(Tokens))
    assert "model.token_embedding.weight" in changed(task, before)
    filled = task.sample(3, generator=torch.Generator().manual_seed(0))
    assert tokenizer.decode(filled).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_plain_cross_entropy_of_masked_tokens(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 5, generator=generator)
    tokens = torch.randint(5, (3, 2, 4), generator=generator)
    masked = torch.rand(3, 2, 4, generator=generator) < 0.5
    losses = []
    for place in masked.nonzero().tolist():
        log_p = logits[tuple(place)].log_softmax(0)
        token = int(tokens[tuple(place)])
        losses.append(-(1 - smoothing) * log_p[token] - smoothing * log_p.mean())
    measured = masked_cross_entropy(logits, tokens, masked, label_smoothing=smoothing)
    assert measured.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


def test_training_step_masks_tokens_and_drops_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(class_dropout=0.5)
    seen: list[tuple[Tensor, Tensor]] = []
    forward = task.model.forward

    def spy(indices: Tensor, labels: Tensor) -> Tensor:
        seen.append((indices, labels))
        return forward(indices, labels)

    monkeypatch.setattr(task.model, "forward", spy)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    tokens, labels = torch.randint(CODES, (400, 2, 2)), torch.randint(10, (400,))
    task.training_step({"tokens": tokens, "label": labels}, 0)
    ((given, classes),) = seen
    assert ((given == tokens) | (given == -1)).all()
    assert (given < 0).flatten(1).any(1).all()
    # Uniform u: ceil(4 cos(pi u/2)) is 4, 3, 2, 1 with probability .46, .206, .172, .161; on the mean 2.97.
    assert (given < 0).flatten(1).sum(1).float().mean().item() == pytest.approx(2.97, abs=0.2)
    assert ((classes == labels) | (classes == -1)).all()
    assert (classes < 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_ranks_mask_other_tokens_and_one_process_what_torch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    task, drawn = make_task(), []
    for number in range(2):
        torch.manual_seed(0)  # the same on all ranks
        monkeypatch.setattr(module, "num_ranks", lambda group: 2)
        monkeypatch.setattr(module, "rank", lambda group, number=number: number)
        drawn.append(task._uniform(50))
    assert not (drawn[0] == drawn[1]).any()
    monkeypatch.undo()
    torch.manual_seed(0)
    alone = task._uniform(50)
    torch.manual_seed(0)
    assert torch.equal(alone, torch.rand(50))


def test_values_of_a_set_stay_exact_in_a_network_of_half_precision() -> None:
    task = make_task().to(torch.bfloat16)
    logits = torch.zeros(1, 2, 2, CODES)
    logits[..., 3] = 2
    right, wrong = torch.full((1, 2, 2), 3), torch.full((1, 2, 2), 4)
    for number in range(1000):
        task._measure(logits, right if number < 700 else wrong, torch.ones(1, 2, 2, dtype=torch.bool))
    assert task.metrics.compute()["accuracy"].item() == pytest.approx(0.7)


def test_a_small_set_is_learnt() -> None:
    task = make_task(label_smoothing=0.0)
    trainer = make_trainer(150)
    trainer.fit(task, make_data(num_train=8, val_fraction=0.0))
    (measured,) = make_trainer(1).validate(task, make_loader(task, 8), verbose=False)
    assert measured["val/accuracy"] > 0.7
    assert measured["val/cross_entropy"] < 1.0


def make_loader(task: Generation, number: int) -> Any:
    data = make_data(num_train=number, val_fraction=0.0)
    data.encode(task)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    return DataLoader(batches, batch_size=None)


def test_only_the_transformer_is_trained() -> None:
    task = make_task()
    tokenizer, model = state(task.tokenizer.model), state(task.model)
    trainer = make_trainer(6)
    trainer.fit(task, make_data())
    assert changed(task.tokenizer.model, tokenizer) == set()
    assert not task.tokenizer.model.training
    assert changed(task.model, model) == set(model)
    trained = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == set(task.model.parameters())
    assert set(task.state_dict()) == {f"model.{name}" for name in model}


def test_weights_of_linear_layers_alone_decay() -> None:
    task = make_task(optimizer=OptimizerSettings(weight_decay=0.1))
    trainer = make_trainer(1)
    trainer.fit(task, make_data())
    decayed, others = trainer.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    named = {p: name for name, p in task.model.named_parameters()}
    spared = [name for name in named.values() if name.endswith("bias") or "norm" in name or "embedding" in name]
    assert {named[p] for p in others["params"]} == {*spared, "last.2.weight"}


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.0), ("constant", 1.0)])
def test_rate_warms_up_and_then_follows_the_schedule(schedule: Any, end: float) -> None:
    trainer = make_trainer(10)
    trainer.fit(make_task(optimizer=OptimizerSettings(warmup_steps=4, schedule=schedule)), make_data())
    (config,) = trainer.lr_scheduler_configs
    rates = [config.scheduler.lr_lambdas[0](step) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[10] == pytest.approx(end)


def test_images_are_encoded_in_every_step_to_the_same_numbers() -> None:
    whole, fresh = make_task(), make_task()
    for task, kind in ((whole, Tokens), (fresh, Images)):
        torch.manual_seed(5)
        make_trainer(7).fit(task, make_data(kind, flip=True))
    assert changed(fresh, whole.state_dict()) == set()


def test_validation_is_deterministic_and_exact() -> None:
    task = make_task()
    values = []
    for seed in range(2):
        torch.manual_seed(seed)
        values += make_trainer(1).validate(task, make_data(num_train=None), verbose=False)
    assert values[0] == values[1]
    assert values[0]["val/cross_entropy"] == pytest.approx(torch.tensor(CODES).log().item(), rel=0.05)  # untrained
    # Twice the same two batches have the same mean.
    batches = make_loader(task, 16)
    masks = [torch.Generator().manual_seed(number) for number in range(2)]
    total = count = 0.0
    for batch, generator in zip(list(batches), masks, strict=True):
        progress = torch.rand(8, generator=generator)
        masked = module.random_mask(progress, torch.rand(8, 2, 2, generator=generator))
        logits = task.model.eval()(batch["tokens"].long().masked_fill(masked, -1), batch["label"])
        total += F.cross_entropy(logits[masked], batch["tokens"].long()[masked], reduction="sum").item()
        count += masked.sum().item()
    (measured,) = make_trainer(1).validate(task, batches, verbose=False)
    assert measured["val/cross_entropy"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("stop", [3, 5])
def test_resume_is_exact(stop: int, tmp_path: Path) -> None:
    check_exact_resume(lambda: (make_task(), make_data(flip=True)), tmp_path, stop, max_epochs=-1)


def test_a_checkpoint_remembers_its_tokenizer(tmp_path: Path) -> None:
    trainer = make_trainer(1)
    trainer.fit(make_task(), make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = make_task()
    other.tokenizer = make_tokenizer(seed=1)
    with pytest.raises(ValueError, match=r"`Generation`: `tokenizer` must be the one of the training"):
        make_trainer(2).fit(other, make_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


class Moments(FeatureNetwork):
    """Mean and standard deviation of the pixels."""

    name, num_features = "moments", 2

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


@pytest.fixture
def _moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_features", lambda source: Moments())


@pytest.mark.usefixtures("_moments")
@pytest.mark.parametrize("num_classes", [10, None])
def test_fid_does_not_depend_on_the_batch_size(num_classes: int | None) -> None:
    task = make_task(num_classes)
    results = [make_trainer(1).test(task, make_data(batch_size=size), verbose=False)[0] for size in (20, 7)]
    assert {"test/fid", "test/fid_std", "test/rfid", "test/cross_entropy", "test/accuracy"} == set(results[0])
    for name in ("test/fid", "test/fid_std", "test/rfid"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-3)
    assert results[0]["test/fid_std"] > 0


@pytest.mark.usefixtures("_moments")
def test_samples_at_the_tokens_of_the_images_have_the_fid_of_reconstructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two distances are computed alike."""
    task = make_task()
    data = make_data()
    images = [data.on_after_batch_transfer(batch, 0)["image"] for batch in data.test_dataloader()]
    perfect = iter([task.tokenizer.encode(x) for x in images for _ in range(task.fid_seeds)])
    monkeypatch.setattr(task, "sample", lambda *_, **__: next(perfect))
    (measured,) = make_trainer(1).test(task, make_data(), verbose=False)
    assert measured["test/fid"] == pytest.approx(measured["test/rfid"], rel=1e-6)
    assert measured["test/fid_std"] == pytest.approx(0, abs=1e-9)


def test_test_without_features_says_what_to_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="Pass the run of a classifier as `features`"):
        make_trainer(1).test(make_task(), make_data(), verbose=False)


def test_guidance_mixes_class_and_null_class() -> None:
    task = make_task().eval()
    labels = torch.tensor([3, 3])

    def fill(weight: float, given: Tensor | None) -> Tensor:
        return task.sample(2, given, generator=torch.Generator().manual_seed(0), guidance=weight)

    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(torch.randn_like(p))
    assert not torch.equal(fill(0, labels), fill(5.0, labels))
    null = torch.full((2,), -1)
    assert torch.equal(fill(0, None), fill(5.0, null))


def test_sampling_leaves_the_mode_and_the_global_random_state_alone() -> None:
    task = make_task()
    task.train()
    before = torch.get_rng_state()
    samples = task.sample(2, generator=torch.Generator().manual_seed(0))
    assert task.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert samples.shape == (2, 2, 2)
    assert samples.min() >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": {"lr": 1e-3}}, r"`Generation`: `optimizer` must be an instance of OptimizerSettings"),
        ({"optimizer": OptimizerSettings(codebook_lr=0.1)}, r"`codebook_lr` of the optimizer must be None"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be a finite number in \[0, 1\)"),
        ({"class_dropout": 1.0}, r"`class_dropout` must be a finite number in \[0, 1\)"),
        ({"steps": 0}, r"`steps` must be an integer >= 1"),
        ({"temperature": -0.1}, r"`temperature` must be a finite number"),
        ({"guidance": -1.0}, r"`guidance` must be a finite number"),
        ({"guidance": 1.0, "num_classes": None}, r"`guidance` needs classes"),
        ({"guidance": 1.0, "class_dropout": 0.0}, r"the null class, which is not trained with class_dropout=0"),
        ({"fid_seeds": 0}, r"`fid_seeds` must be an integer >= 1"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_task(**arguments)


def test_sizes_must_agree_with_the_tokenizer() -> None:
    model = MaskGIT(CODES + 1, grid=(2, 2), layers=1, width=8, heads=2)
    with pytest.raises(ValueError, match=r"`codebook_size` of the model must be the tokenizer's, 16. Got 17"):
        Generation(model, make_tokenizer())
    for kind in (Tokens, Images):
        with pytest.raises(ValueError, match=r"`grid` of the model must be \(2, 2\), because .* Got \(3, 2\)"):
            make_trainer(1).fit(make_task(grid=(3, 2)), make_data(kind))
    with pytest.raises(ValueError, match=r"`MaskGIT`: `labels` must be in \[0, 3\)"):
        make_trainer(5).fit(make_task(num_classes=3), make_data())


def test_prediction_is_another_command() -> None:
    with pytest.raises(ValueError, match="straightvq generate"):
        make_trainer(1).predict(make_task(), make_data())
