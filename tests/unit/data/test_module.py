import subprocess
import sys

import lightning
import pytest
import torch
from jsonargparse import ArgumentParser

from straightvq.data import Images
from straightvq.data.sets import ImageStream, TensorSet

from .conftest import grey, noise_jpeg

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Recorder(lightning.LightningModule):
    """Remembers what it was shown."""

    def __init__(self, checkpoint_at=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.evaluated = [], []
        self.checkpoint_at, self.path = checkpoint_at, path

    def training_step(self, batch, batch_idx):
        self.seen.append({name: value.clone() for name, value in batch.items()})
        return self.weight.sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.seen) == self.checkpoint_at:
            self.trainer.save_checkpoint(self.path)

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch["label"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**kwargs):
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps")
    return lightning.Trainer(**(dict.fromkeys(off, False) | {"accelerator": "cpu", "max_epochs": 1} | kwargs))


def digit_images(**kwargs):
    kwargs = {"size": 8, "batch_size": 32, "channels": 1, "num_train": 160, "num_test": 40, **kwargs}
    return Images("digits", **kwargs)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])
        for a, b in zip(first, second, strict=True)
    )


def test_trainer_sees_floats_between_0_and_1_and_two_keys():
    data, model = digit_images(), Recorder()
    assert next(iter(data.train_dataloader()))["image"].dtype == torch.uint8, "bytes until they are on the device"
    trainer().fit(model, data)
    batch = model.seen[0]
    assert sorted(batch) == ["image", "label"]
    assert batch["image"].shape == (32, 1, 8, 8)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() == 0
    assert 0.9 < batch["image"].max() <= 1
    assert batch["label"].dtype == torch.int64
    assert len(data.val_dataloader().dataset) + sum(len(b["label"]) for b in model.seen) == 160
    assert (data.shape, data.num_classes, data.class_names[3]) == ((1, 8, 8), 10, "3")


def test_input_follows_a_true_precision_of_the_trainer():
    model = Recorder()
    trainer(precision="64-true", limit_train_batches=1).fit(model, digit_images())
    assert model.seen[0]["image"].dtype == torch.float64


def test_every_stage_of_the_trainer_runs_and_prediction_is_over_the_test_split():
    data, model = digit_images(), Recorder()
    trainer().validate(model, data, verbose=False)
    trainer().test(model, data, verbose=False)
    predicted = trainer().predict(model, data)
    assert torch.cat(predicted).tolist() == torch.cat([b["label"] for b in model.evaluated[1:]]).tolist()


# Five batches an epoch: in the middle and on the edge of one.
@pytest.mark.parametrize("stop", [3, 5, 7])
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}], ids=str)
def test_resume_shows_the_very_batches_that_were_to_come(tmp_path, limits, stop):
    path = tmp_path / "last.ckpt"
    whole, rest = Recorder(stop, path), Recorder()
    trainer(**limits).fit(whole, digit_images(flip=True))
    trainer(**limits).fit(rest, digit_images(flip=True), ckpt_path=path, weights_only=False)
    assert same(rest.seen, whole.seen[stop:])


def test_checkpoint_written_after_fit_goes_on_too(tmp_path):
    whole, first, rest = Recorder(), Recorder(), Recorder()
    trainer(max_steps=8, max_epochs=-1).fit(whole, digit_images(flip=True))
    half = trainer(max_steps=3, max_epochs=-1)
    half.fit(first, digit_images(flip=True))
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_steps=8, max_epochs=-1).fit(
        rest, digit_images(flip=True), ckpt_path=tmp_path / "half.ckpt", weights_only=False
    )
    assert same(first.seen + rest.seen, whole.seen)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_one_batch_repeats_it():
    model = Recorder()
    trainer(overfit_batches=1, max_epochs=3).fit(model, digit_images())
    assert len(model.seen) == 3
    assert same(model.seen[:1] * 3, model.seen)


def epochs_beside_plain_ones(**kwargs):
    """Pictures of two training epochs, by number: with what ``kwargs`` draw, and without."""
    data, plain = digit_images(num_train=None, **kwargs), digit_images(num_train=None)
    epochs = []
    for changing, unchanged in zip((data.train_dataloader(),) * 2, (plain.train_dataloader(),) * 2, strict=True):
        pairs = {}
        for a, b in zip(changing, unchanged, strict=True):
            index = a["index"].tolist()
            pictures = zip(data.on_after_batch_transfer(a, 0)["image"], b["image"] / 255, strict=True)
            pairs |= dict(zip(index, pictures, strict=True))
        epochs.append([pairs[i] for i in sorted(pairs)])
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(data.on_after_batch_transfer(dict(batch), 0)["image"], batch["image"] / 255)
    return epochs


def test_flips_mirror_about_half_of_the_training_pictures_anew_each_epoch():
    mirrored = []
    for pairs in epochs_beside_plain_ones(flip=True):
        assert all(torch.equal(image, original) or torch.equal(image, original.flip(-1)) for image, original in pairs)
        mirrored.append([torch.equal(image, original) for image, original in pairs])
    assert 0.45 < sum(mirrored[0]) / len(mirrored[0]) < 0.55
    assert mirrored[0] != mirrored[1]


def test_crops_shift_training_pictures_by_every_distance_up_to_the_padding():
    def shift(image, original):
        padded = torch.nn.functional.pad(original, (1, 1, 1, 1))
        return next((y, x) for y in range(3) for x in range(3) if torch.equal(image, padded[:, y : y + 8, x : x + 8]))

    first, second = ([shift(*pair) for pair in pairs] for pairs in epochs_beside_plain_ones(crop_padding=1))
    assert set(first) == {(y, x) for y in range(3) for x in range(3)}
    assert first != second


def test_bad_images_are_skipped_with_one_warning_that_counts_and_names_five(folder):
    (folder / "a" / "cut.jpg").write_bytes(noise_jpeg()[:-400])
    (folder / "a" / "phone.heic").write_bytes(b"an image, but none that is read")
    for i in range(5):
        (folder / "b" / f"text{i}.png").write_text("words")
    data = Images(str(folder), size=4, val_fraction=0.0)
    with pytest.warns(UserWarning, match="`Images`: skipped") as caught:
        data.setup()
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "\n" not in message
    assert "skipped 7 unreadable file(s): a/cut.jpg" in message
    assert message.count("(not an image") == 4
    assert "and 2 more" in message
    assert len(data.unreadable) == 7
    assert len(data.train_dataloader().dataset) == 40
    with pytest.raises(ValueError, match=r"`Images`: a/cut.jpg cannot be read: .*truncated.* on_error=\"skip\""):
        Images(str(folder), size=4, val_fraction=0.0, on_error="raise").setup()


@pytest.mark.parametrize("memory_limit_mb", [2048, 0], ids=["decoded once", "decoded as read"])
@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_what_is_no_image_is_passed_over_in_silence(folder, on_error, memory_limit_mb):
    for name in ("README.md", "LICENSE", "a/labels.csv", "a/Thumbs.db", "b/.hidden.png", "b/.DS_Store"):
        (folder / name).write_text("P is for words")
    data = Images(str(folder), 4, val_fraction=0.0, on_error=on_error, memory_limit_mb=memory_limit_mb)
    data.setup()  # a warning would be an error
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 40
    assert data.unreadable == {}


def test_small_sets_are_kept_and_large_ones_streamed_with_the_same_pictures(folder):
    kept, streamed = (Images(str(folder), size=4, batch_size=64, memory_limit_mb=limit) for limit in (1, 0))
    a, b = next(iter(kept.train_dataloader())), next(iter(streamed.train_dataloader()))
    assert isinstance(kept.train_dataloader().dataset, TensorSet)
    assert isinstance(streamed.train_dataloader().dataset, ImageStream)
    assert same([a], [b])


def test_splits_of_a_plain_folder_share_no_picture(folder):
    data = Images(str(folder), size=4, val_fraction=0.25, batch_size=64)
    data.setup()
    values = [
        set(next(iter(loader))["image"][:, 0, 0, 0].tolist())
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert sum(map(len, values)) == len(set.union(*values)) == 40
    assert all(values)


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_set_of_one_picture_trains_and_says_what_is_missing(tmp_path):
    (tmp_path / "only.png").write_bytes(grey(5))
    data, model = Images(str(tmp_path), size=4), Recorder()
    with pytest.warns(UserWarning, match="there will be no validation"):
        data.setup("fit")
    trainer().fit(model, data)
    assert model.seen[0]["label"].tolist() == [-1]
    assert data.num_classes == 0
    with pytest.raises(ValueError, match="has no test pictures"):
        data.test_dataloader()


def test_photos_need_no_argument():
    data = Images()
    assert next(iter(data.train_dataloader()))["image"].shape == (64, 3, 32, 32)
    assert data.class_names == ["china", "flower"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 2}, ValueError, "`Images`: `size` must be an integer >= 4. Got 2."),
        ({"size": 32.0}, TypeError, "`size` must be an integer >= 4. Got 32.0 (float)."),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1. Got 0."),
        ({"batch_size": True}, TypeError, "`batch_size` must be an integer >= 1. Got True (bool)."),
        ({"num_train": 0}, ValueError, "`num_train` must be an integer >= 1. Got 0."),
        ({"num_test": -1}, ValueError, "`num_test` must be an integer >= 1. Got -1."),
        ({"val_fraction": 0.5}, ValueError, "`val_fraction` must be a finite number in [0, 0.5). Got 0.5."),
        ({"val_fraction": float("nan")}, ValueError, "`val_fraction` must be a finite number"),
        ({"val_fraction": "0.1"}, TypeError, "`val_fraction` must be a number in [0, 0.5). Got '0.1' (str)."),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0. Got -1."),
        ({"num_workers": None}, TypeError, "`num_workers` must be an integer >= 0. Got None (NoneType)."),
        ({"memory_limit_mb": -1}, ValueError, "`memory_limit_mb` must be an integer >= 0. Got -1."),
        ({"channels": 2}, ValueError, "`channels` must be 1 (grey) or 3 (RGB). Got 2."),
        ({"flip": 1}, TypeError, "`flip` must be True or False. Got 1 (int)."),
        ({"on_error": "ignore"}, ValueError, "`on_error` must be one of 'skip', 'raise'. Got 'ignore'."),
        ({"source": 3}, TypeError, "`source` must be a string. Got 3."),
        ({"source": "photo"}, ValueError, "`source` 'photo' does not exist. Sources are \"photos\" and"),
        ({"source": "./no/such/folder"}, ValueError, "`source` './no/such/folder' does not exist."),
    ],
)
def test_bad_argument_is_refused_in_one_sentence(arguments, error, message):
    with pytest.raises(error) as caught:
        Images(**arguments)
    assert message in str(caught.value)


def test_configuration_is_the_signature():
    parser = ArgumentParser()
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    settings = {"source": "digits", "size": 8, "channels": 1, "num_train": None, "on_error": "raise"}
    parsed = parser.parse_object({"data": {"class_path": "straightvq.data.Images", "init_args": settings}})
    assert parser.instantiate(parsed).data.shape == (1, 8, 8)


@pytest.mark.slow  # a fresh import of Lightning
def test_importing_is_light():
    heavy = ("sklearn", "datasets", "pyarrow", "pandas", "tqdm.notebook")
    code = f"import sys, straightvq.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
