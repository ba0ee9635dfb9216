"""`Schedule`: an unquantized start, settings along curves, early refusals, exact resume."""

import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tests.trainings import check_exact_resume, make_trainer
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.data import Images
from straightvq.models import Autoencoder
from straightvq.nn import Quantizer
from straightvq.training import Alternation, Anneal, OptimizerSettings, Point, Reconstruction, Schedule

WEIGHT = "quantizer.losses.0.coefficient"


def make_task(preset: str = "straight", **kwargs: Any) -> Reconstruction:
    torch.manual_seed(0)
    quantizer = getattr(svq.presets, preset)(4, 8, channel_dim=1)
    model = Autoencoder(quantizer, hidden=8, blocks=1)
    return Reconstruction(model, **{"optimizer": OptimizerSettings(lr=1e-2, warmup_steps=2), **kwargs})


def make_loader(count: int = 32) -> DataLoader[Any]:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader([{"image": image} for image in images], batch_size=8)


def fit(task: Reconstruction, *schedule: lightning.Callback, steps: int = 8, **options: Any) -> lightning.Trainer:
    trainer = make_trainer(steps, max_epochs=-1, callbacks=list(schedule), **options)
    trainer.fit(task, make_loader(), make_loader(8))
    return trainer


class Watch(lightning.Callback):
    """Keeps, for every training batch, what a function of the task gives while the batch is trained."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(self.look(pl_module))


# --- curves ---------------------------------------------------------------------------------------------------------


def test_pieces_by_hand() -> None:
    points = [Point(10, 1.0), Point(20, 3.0), Point(30, 7.0, "constant"), Point(40, 3.0, "cosine")]
    points.append(Point(50, 5.0, "reste"))
    curve = Anneal("x", points)
    got = [curve.at(step) for step in (0, 10, 15, 20, 29, 30, 32, 35, 40, 45, 50, 1000)]
    quarter, half = (1 - math.cos(math.pi * 0.2)) / 2, 1 - math.cos(math.pi / 4)
    assert got == pytest.approx([1, 1, 2, 3, 3, 7, 7 - 4 * quarter, 5, 3, 3 + 2 * half, 5, 5])


def test_curve_of_reste_is_that_of_its_power() -> None:
    curve = Anneal("quantizer.estimator.power", [Point(0, 1.0), Point(100, 3.0, "reste")])
    for step in (0, 30, 50, 100):
        assert curve.at(step) == pytest.approx(svq.reste_power(step / 100, end=3.0))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_settings_follow_the_optimizer_steps(accumulate: int) -> None:
    task = make_task()
    curves = [
        Anneal(WEIGHT, [Point(0, 0.0), Point(4, 0.4)]),
        Anneal("quantizer.codebook.update.fraction", [Point(1, 0.5), Point(3, 1.0, "constant")]),
        Anneal("model.quantizer.codebook.reset.patience", [Point(0, 10), Point(6, 19)]),
    ]
    quantizer: Any = task.model.quantizer
    step = Watch(
        lambda _: (
            quantizer.losses[0].coefficient,
            quantizer.codebook.update.fraction,
            quantizer.codebook.reset.patience,
        )
    )
    fit(task, step, Schedule(anneal=curves), steps=6, accumulate_grad_batches=accumulate)
    weights = [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]
    fractions = [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
    patience = [10, 12, 13, 14, 16, 18]  # whole numbers stay whole
    for one, values in enumerate((weights, fractions, patience)):
        assert [seen[one] for seen in step.seen] == pytest.approx(values)
    assert isinstance(quantizer.codebook.reset.patience, int)


# --- the unquantized start ------------------------------------------------------------------------------------------


def test_no_codebook_moves_before_the_switch_and_its_init_sees_the_encoder_of_that_moment() -> None:
    task, book = make_task(), []
    latent: list[torch.Tensor] = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, number: int) -> None:
            if trainer.global_step == 5:
                with torch.no_grad():
                    z = pl_module.model.encode(batch["image"]).movedim(1, -1).flatten(0, -2)
                    latent.append(pl_module.model.quantizer.transform(z))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            quantizer = pl_module.model.quantizer
            book.append((bool(quantizer.codebook.is_ready), int(quantizer.clock.step)))

        def on_validation_batch_end(self, *args: Any) -> None:
            assert not task.model.quantizer._is_bypassed

    fit(task, Look(), Schedule(5), steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    assert book == 5 * [(False, 0)] + [(True, 1)]
    codes = task.model.quantizer.codes()
    # k-means on these vectors, and one step of a fifth of the way to their means.
    assert torch.cdist(codes, latent[0]).min(1).values.max() < 0.3 * latent[0].std(0).norm()


def test_without_codes_the_first_steps_are_those_of_the_network_alone() -> None:
    started, alone = make_task(), make_task(quantize=False)
    fit(started, Schedule(4), steps=4)
    fit(alone, steps=4)
    theirs = alone.model.state_dict()
    for name, value in started.model.state_dict().items():
        if "quantizer" not in name:
            assert torch.equal(value, theirs[name]), name


def test_two_phases_start_unquantized_too() -> None:
    task = make_task("vq_vae", alternate=Alternation("codebook_and_encoder"))
    trainer = fit(task, Schedule(3), steps=4)
    assert trainer.global_step == 4
    assert int(task.model.quantizer.clock.step) == 2  # two forwards in the last step


def test_a_task_that_skips_the_rest_of_an_epoch_leaves_nothing_bypassed() -> None:
    class Skipping(Reconstruction):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    torch.manual_seed(0)
    model = Autoencoder(svq.presets.straight(4, 8, channel_dim=1), hidden=8, blocks=1)
    make_trainer(8, max_epochs=1, callbacks=[Schedule(100)]).fit(
        Skipping(model, optimizer=OptimizerSettings(lr=1e-2, warmup_steps=2)), make_loader(), make_loader(8)
    )
    assert not model.quantizer._is_bypassed


def test_a_training_that_breaks_off_leaves_nothing_bypassed() -> None:
    class BreakError(Exception):
        pass

    class Break(lightning.Callback):
        def on_before_backward(self, *args: Any) -> None:
            raise BreakError

    task = make_task()
    with pytest.raises(BreakError):
        fit(task, Schedule(5), Break())
    assert not any(m._is_bypassed for m in task.modules() if isinstance(m, Quantizer))


@pytest.mark.parametrize("stop", [2, 7])
def test_resumed_training_is_the_whole_one(stop: int, tmp_path: Path) -> None:
    curve = Anneal(WEIGHT, [Point(0, 0.0), Point(9, 0.9, "cosine")])

    def make() -> tuple[Any, Any]:
        return make_task(), Images(source="digits", size=8, channels=3, batch_size=8, num_train=36, num_test=8)

    check_exact_resume(make, tmp_path, stop, callbacks=lambda: [Schedule(5, [curve])])


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "quantizer.losses.0.coeficient",
            r"coeficient'\. The nearest are quantizer.losses.0.coefficient",
        ),
        ("quantizer.losses.7.coefficient", r"The nearest are quantizer.losses.\d.coefficient"),
        ("quantizer.estimator.sink", "The nearest are quantizer.estimator.sync"),
        ("quantizer.dim", "must lead to a number that can be set in Autoencoder"),
        ("quantizer.training", "must lead to a number"),
        ("quantizer.codebook.raw", "must lead to a number"),
        ("quantizer", "must lead to a number"),
    ],
)
def test_a_wrong_path_fails_at_the_start_with_the_nearest_names(path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(make_task(), Schedule(anneal=[Anneal(path, [Point(0, 0.5)])]))


def test_levels_of_a_composite_are_found() -> None:
    task = make_task("straight_residual")
    quantizer: Any = task.model.quantizer
    path = "quantizer.levels.1.losses.0.coefficient"
    fit(task, Schedule(anneal=[Anneal(path, [Point(0, 0.0), Point(4, 0.4)])]), steps=3)
    assert [level.losses[0].coefficient for level in quantizer.levels[:3]] == pytest.approx([0.25, 0.2, 0.25])


def test_an_unquantized_start_without_a_quantizer_is_refused() -> None:
    task = lightning.LightningModule()
    task.model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"`unquantized_steps` must be 0 without a quantizer\. Got 3"):
        Schedule(3).setup(make_trainer(1), task, "fit")


@pytest.mark.parametrize(
    ("preset", "path", "value", "words"),
    [
        ("straight", WEIGHT, -1.0, r"'quantizer.losses.0.coefficient' cannot become -1 at step 9. `CommitmentLoss`"),
        ("ema", "quantizer.codebook.update.decay", 1.0, "`decay` must be a finite number in"),
        ("ema", "quantizer.estimator.sync", 0.5, "StraightThrough sends a gradient to the codes, and EMAUpdate takes"),
        ("straight", "quantizer.codebook.update.momentum", 0.5, "`momentum` must stay 0.0"),
        ("straight", "quantizer.estimator.sync", 0.5, "build the layer with a positive `sync`"),
    ],
)
def test_a_value_that_is_refused_fails_at_the_start_and_changes_nothing(
    preset: str, path: str, value: float, words: str
) -> None:
    task = make_task(preset)
    before = repr(task.model.quantizer)
    with pytest.raises(ValueError, match=words):
        fit(task, Schedule(anneal=[Anneal(path, [Point(3, 0.0), Point(9, value)])]))
    assert repr(task.model.quantizer) == before
    assert int(task.model.quantizer.clock.step) == 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Schedule(-1), ValueError, "`unquantized_steps` must be an integer >= 0. Got -1"),
        (lambda: Schedule(1.5), TypeError, "`unquantized_steps` must be an integer"),
        (lambda: Schedule(anneal=3), TypeError, "`anneal` must be a list. Got int"),
        (lambda: Schedule(anneal=[3]), TypeError, "`anneal` must be an instance of Anneal"),
        (lambda: Schedule(anneal=2 * [Anneal("a.b", [Point(0, 1)])]), ValueError, "a path once. Got 'a.b' twice"),
        (lambda: Anneal("a..b", [Point(0, 1)]), ValueError, "`path` must be names with dots between. Got 'a..b'"),
        (lambda: Anneal(3, [Point(0, 1)]), ValueError, "`path` must be names"),
        (lambda: Anneal("a", []), ValueError, "`points` must be at least one, with rising steps"),
        (lambda: Anneal("a", [Point(3, 1), Point(3, 2)]), ValueError, r"rising steps. Got steps \[3, 3\]"),
        (lambda: Anneal("a", "b"), TypeError, "`points` must be a list"),
        (lambda: Anneal("a", [3]), TypeError, "`points` must be an instance of Point"),
        (lambda: Point(-1, 1.0), ValueError, "`step` must be an integer >= 0"),
        (lambda: Point(0, float("nan")), ValueError, "`value` must be a finite number"),
        (lambda: Point(0, "1"), TypeError, "`value` must be a number"),
        (lambda: Point(0, 1.0, "round"), ValueError, "`shape` must be one of 'linear', 'cosine', 'reste', 'constant'"),
    ],
)
def test_bad_arguments_are_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
