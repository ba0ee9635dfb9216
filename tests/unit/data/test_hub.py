import datasets
import pytest
from PIL import Image

from straightvq.data.files import local
from straightvq.data.hub import hub

from .conftest import grey, write_parquet


def fake_hub(monkeypatch, **splits):
    fetched = datasets.DatasetDict(splits)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: fetched)


def rows(values, label="label"):
    features = {"img": datasets.Image(), label: datasets.ClassLabel(names=["even", "odd"])}
    pictures = [Image.new("RGB", (8, 8), (value,) * 3) for value in values]
    return datasets.Dataset.from_dict(
        {"img": pictures, label: [value % 2 for value in values]}, features=datasets.Features(features)
    )


@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_hub_set_is_read_by_the_types_of_its_columns(monkeypatch, label):
    fake_hub(monkeypatch, train=rows([3, 4], label), test=rows([5], label))
    source = hub("someone/numbers")
    assert source.class_names == ["even", "odd"]
    assert source.splits["train"].labels.tolist() == [1, 0]
    assert source.splits["test"].decode(0, 4, 3).tolist() == [[[5] * 4] * 4] * 3
    assert source.splits["test"].key(0) == "someone/numbers test row 0"


def test_no_network_says_so_and_lists_the_sources(monkeypatch):
    def unreachable(name):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r'could not be fetched.*ConnectionError.*"photos"'):
        hub("someone/numbers")


def test_hub_set_without_images_or_training_split_is_refused(monkeypatch):
    fake_hub(monkeypatch, train=datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match=r"no column of images. Got the columns text"):
        hub("someone/words")
    fake_hub(monkeypatch, test=rows([1]))
    with pytest.raises(ValueError, match=r"no split 'train'. Got test"):
        hub("someone/numbers")


def test_parquet_beyond_the_limit_is_mapped_and_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    (tmp_path / "set").mkdir()
    write_parquet(tmp_path / "set" / "train-0.parquet", [grey(7)], [1])
    write_parquet(tmp_path / "set" / "train-1.parquet", [grey(8)], [0])
    inside, mapped = (local(tmp_path / "set", limit).splits["train"] for limit in (1 << 20, 0))
    assert type(inside.cells) is not type(mapped.cells)
    assert inside.labels.tolist() == mapped.labels.tolist()
    assert all((inside.decode(i, 4, 3) == mapped.decode(i, 4, 3)).all() for i in range(2))
    names = ["train-0.parquet row 0", "train-1.parquet row 0"]
    assert [[rows.key(i) for i in range(2)] for rows in (inside, mapped)] == [names, names]
