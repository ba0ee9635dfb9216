"""`Vectors`: what is read, what is refused, what is learnt and saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from straightvq.data import Vectors

RANDOM = np.random.default_rng(0)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def fixed(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def opened(path: Path | str, **kwargs: Any) -> Vectors:
    data = Vectors(str(path), **{"batch_size": 4, **kwargs})
    data.setup("fit")
    return data


# --- reading


@pytest.mark.parametrize("kind", ["fixed", "list", "large_list", "float64", "integers"])
def test_every_kind_of_lists_is_read(kind: str, tmp_path: Path) -> None:
    array = RANDOM.integers(-5, 5, (6, 3)).astype(np.float32)
    lists = array.tolist()
    columns = {
        "fixed": fixed(array),
        "list": pa.array(lists, pa.list_(pa.float32())),
        "large_list": pa.array(lists, pa.large_list(pa.float32())),
        "float64": pa.array(lists, pa.list_(pa.float64())),
        "integers": pa.array(array.astype(int).tolist(), pa.list_(pa.int16())),
    }
    file = parquet(tmp_path / "a.parquet", price=pa.array([1.5] * 6), name=pa.array(list("abcdef")), e=columns[kind])
    data = opened(file)
    assert data.items == list("abcdef")
    assert data.vectors.dtype == torch.float32
    assert torch.equal(data.vectors, torch.from_numpy(array))


def test_names_are_row_numbers_where_there_are_none_and_a_column_may_be_chosen(tmp_path: Path) -> None:
    array = np.eye(3, dtype=np.float32)
    file = parquet(tmp_path / "a.parquet", a=fixed(array), b=fixed(2 * array), n=pa.array([7, 8, 9]), t=["x", "y", "z"])
    assert opened(file, column="b").items == [7, 8, 9]
    assert torch.equal(opened(file, column="b").vectors, 2 * torch.eye(3))
    assert opened(file, column="a", item="t").items == ["x", "y", "z"]
    assert opened(parquet(tmp_path / "b.parquet", a=fixed(array))).items == [0, 1, 2]


def test_npy_files_and_folders_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "readme.txt").write_text("not looked at")
    for name, rows in (("b", 2), ("a", 3)):
        np.save(folder / f"{name}.npy", np.full((rows, 2), rows, dtype=np.float64))
    assert opened(folder / "a.npy", scaling="none").items == [0, 1, 2]
    data = opened(folder)
    assert data.items == ["a:0", "a:1", "a:2", "b:0", "b:1"]
    assert data.vectors[:, 0].tolist() == [3, 3, 3, 2, 2]


def test_a_folder_of_parquet_files_keeps_their_names(tmp_path: Path) -> None:
    for name, at in (("b", 1), ("a", 0)):
        parquet(tmp_path / f"{name}.parquet", e=fixed(np.eye(2, dtype=np.float32)), item=[f"{at}x", f"{at}y"])
    assert opened(tmp_path).items == ["0x", "0y", "1x", "1y"]


def test_the_embedded_digits_are_their_pixels() -> None:
    data = opened("digits")
    assert tuple(data.vectors.shape) == (1797, 64)
    assert (float(data.vectors.min()), float(data.vectors.max())) == (0, 1)


# --- refusing


def hostile(name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A source that must be refused, and arguments."""
    good = np.eye(3, dtype=np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan
    file, array = folder / "x.parquet", folder / "x.npy"
    options: dict[str, Any] = {}
    if name == "ragged":
        parquet(file, e=pa.array([[1.0, 2.0], [3.0, 4.0], [5.0]]))
    elif name == "texts":
        parquet(file, e=pa.array([["a"], ["b"]]))
    elif name == "no list":
        parquet(file, e=pa.array([1.0, 2.0]))
    elif name == "two columns":
        parquet(file, a=fixed(good), b=fixed(good))
    elif name == "misspelt column":
        parquet(file, embedding=fixed(good))
        options = {"column": "embeding"}
    elif name == "column of numbers":
        parquet(file, e=fixed(good), price=[1.0, 2.0, 3.0])
        options = {"column": "price"}
    elif name == "item of numbers":
        parquet(file, e=fixed(good), price=[1.5, 2.0, 3.0])
        options = {"item": "price"}
    elif name == "no such item":
        parquet(file, e=fixed(good), title=["a", "b", "c"])
        options = {"item": "titel"}
    elif name == "empty row":
        parquet(file, e=pa.array([[1.0], None]))
    elif name == "empty number":
        parquet(file, e=pa.array([[1.0], [None]], pa.list_(pa.float32())))
    elif name == "no rows":
        parquet(file, e=pa.array([], pa.list_(pa.float32())))
    elif name == "no width":
        parquet(file, e=pa.array([[], []], pa.list_(pa.float32())))
    elif name == "nan":
        parquet(file, e=fixed(bad), item=["a", "b", "c"])
    elif name == "too large for float32":
        parquet(file, e=fixed(1e300 * np.eye(3)))
    elif name == "nameless":
        parquet(file, e=fixed(good), item=["a", None, "c"])
    elif name == "one name twice":
        parquet(file, e=fixed(good), item=["a", "b", "a"])
    elif name == "damaged":
        file.write_bytes(b"PAR1 not really")
    elif name == "damaged npy":
        array.write_bytes(b"\x93NUMPY")
    elif name == "empty npy":
        array.write_bytes(b"")
    elif name == "pickle":
        np.save(array, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif name == "flat":
        np.save(array, np.ones(5))
    elif name == "complex":
        np.save(array, np.ones((2, 2), dtype=complex))
    elif name == "column of npy":
        np.save(array, good)
        options = {"column": "e"}
    elif name == "widths":
        parquet(folder / "a.parquet", e=fixed(good), item=["a", "b", "c"])
        parquet(folder / "b.parquet", e=fixed(np.eye(2)), item=["d", "e"])
    elif name == "both kinds":
        np.save(array, good)
        parquet(file, e=fixed(good))
    elif name == "other file":
        (folder / "x.csv").write_text("1,2")
    elif name == "constant":
        np.save(array, np.ones((4, 2)))
    elif name == "components":
        np.save(array, RANDOM.normal(size=(9, 3)))
        options = {"components": 4}
    found = [path for path in folder.iterdir()]
    return (found[0] if len(found) == 1 else folder), options


REFUSED = {
    "ragged": "must hold vectors of one width. Got 2, and 1 in row 2",
    "texts": "must have one column of vectors. Got none of lists of numbers",
    "no list": "Its columns are e (double)",
    "two columns": "Got 'a' and 'b': pass `column`",
    "misspelt column": "has no column 'embeding'. Did you mean 'embedding'?",
    "column of numbers": "column 'price' of x.parquet must hold lists of numbers. Got double",
    "item of numbers": "must be texts or integers. Got double",
    "no such item": "Did you mean 'title'?",
    "empty row": "must hold a vector in every row. Got 1 rows without",
    "empty number": "must hold finite numbers. Got 1 empty",
    "no rows": "must hold at least one vector. Got the shape (0, 1)",
    "no width": "must hold at least one vector. Got the shape (2, 0)",
    "nan": "Got 1 rows with NaN or infinite values, the first of item 'b'",
    "too large for float32": "must be finite in float32. Got 3 rows",
    "nameless": "must name every row. Got 1 without",
    "one name twice": "must have different names. Got 'a' 2 times",
    "damaged": "is not a readable Parquet file",
    "damaged npy": "cannot be read as an array of numbers",
    "empty npy": "cannot be read as an array of numbers",
    "pickle": "cannot be read as an array of numbers",
    "flat": "one vector per row, shape (n, d). Got (5,)",
    "complex": "must hold real numbers. Got complex128",
    "column of npy": "`column` belongs to Parquet files",
    "widths": "a.parquet has 3 numbers in a row, b.parquet has 2",
    "both kinds": "must hold .parquet or .npy files. Got both",
    "other file": "must end in .parquet or .npy",
    "empty folder": "must hold .parquet or .npy files. Got none",
    "constant": "the 4 training vectors must differ to be scaled",
    "components": "`components` must be at most 3, for 9 training vectors of 3 numbers. Got 4",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_gets_a_sentence(name: str, tmp_path: Path) -> None:
    source, options = hostile(name, tmp_path)
    with pytest.raises((ValueError, TypeError)) as refused:
        opened(source, **options)
    assert str(refused.value).startswith("`Vectors`: ")
    assert REFUSED[name] in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere.npy"}, "`source` 'nowhere.npy' does not exist"),
        ({"source": 3}, "`source` must be a string"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"val_fraction": 0.5}, "`val_fraction`"),
        ({"scaling": "rows"}, "`scaling` must be one of 'whole'"),
        ({"components": 0}, "`components` must be an integer >= 1"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match="`Vectors`") as refused:
        Vectors(**options)
    assert message in str(refused.value)


# --- scaling


def file_of(tmp_path: Path, array: np.ndarray) -> Path:
    np.save(tmp_path / "x.npy", array)
    return tmp_path / "x.npy"


def test_scaling_as_a_whole_keeps_angles_and_relative_distances(tmp_path: Path) -> None:
    array = RANDOM.normal(size=(50, 4)) * [1, 2, 3, 0] + 5
    standard = opened(file_of(tmp_path, array)).standard
    y = standard.apply(torch.from_numpy(array).float()).double().numpy()
    centred = array - array.mean(0)
    np.testing.assert_allclose(y, centred / np.sqrt(centred.var(0).mean()), atol=1e-5)
    assert abs(y.var(0).mean() - 1) < 1e-5


def test_scaling_of_columns_gives_each_a_variance_of_one_and_spares_constant_ones(tmp_path: Path) -> None:
    array = RANDOM.normal(size=(50, 4)) * [1, 2, 3, 0] + 5
    standard = opened(file_of(tmp_path, array), scaling="columns").standard
    y = standard.apply(torch.from_numpy(array).float())
    np.testing.assert_allclose(y.var(0, unbiased=False), [1, 1, 1, 0], atol=1e-5)


def test_components_are_the_singular_vectors_and_the_way_back_is_a_projection(tmp_path: Path) -> None:
    array = RANDOM.normal(size=(60, 5)) * [3, 1, 2, 0.5, 0.1]
    standard = opened(file_of(tmp_path, array), components=2).standard
    x = torch.from_numpy(array).float()
    centred = array - array.mean(0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    best = (left[:, :2] * singular[:2]) @ right[:2] + array.mean(0)
    np.testing.assert_allclose(standard.undo(standard.apply(x)), best, atol=1e-4)
    assert (standard.width, tuple(standard.apply(x).shape)) == (2, (60, 2))


def test_without_components_the_way_back_is_exact(tmp_path: Path) -> None:
    array = RANDOM.normal(size=(20, 3)) + 100
    for scaling in ("whole", "columns", "none"):
        standard = opened(file_of(tmp_path, array), scaling=scaling).standard
        x = torch.from_numpy(array).float()
        torch.testing.assert_close(standard.undo(standard.apply(x)), x, rtol=1e-6, atol=1e-5)


def test_the_scaling_is_learnt_from_training_rows_only(tmp_path: Path) -> None:
    array = RANDOM.normal(size=(200, 2))
    data = opened(file_of(tmp_path, array), val_fraction=0.25)
    rows = data._rows["train"].numpy()
    assert 0 < len(data._rows["validation"]) < 100
    assert len(rows) + len(data._rows["validation"]) == 200
    np.testing.assert_allclose(data.standard.mean, array[rows].mean(0), atol=1e-6)


def test_a_checkpoint_brings_its_own_scaling_and_its_width(tmp_path: Path) -> None:
    first = opened(file_of(tmp_path, RANDOM.normal(size=(30, 3)) * 7), components=2)
    other = tmp_path / "other.npy"
    np.save(other, RANDOM.normal(size=(10, 3)))
    second = opened(other)
    second.load_state_dict(first.state_dict())
    batch = {"vector": second.vectors, "index": torch.arange(10)}
    got = second.on_after_batch_transfer(batch, 0)["vector"]
    torch.testing.assert_close(got, first.standard.apply(second.vectors))
    np.save(other, RANDOM.normal(size=(10, 4)))
    with pytest.raises(ValueError, match="must have 3 numbers, as those that the checkpoint was trained on"):
        opened(other).load_state_dict(first.state_dict())


def test_a_single_vector_can_be_read_with_a_checkpoint(tmp_path: Path) -> None:
    first = opened(file_of(tmp_path, RANDOM.normal(size=(30, 3)) * 7), components=2)
    np.save(tmp_path / "one.npy", np.ones((1, 3)))
    one = Vectors(str(tmp_path / "one.npy"), components=2)
    one.setup("predict")
    one.load_state_dict(first.state_dict())
    torch.testing.assert_close(one.standard.apply(one.vectors), first.standard.apply(torch.ones(1, 3)))


# --- batches


def test_training_serves_every_row_once_and_evaluation_all_in_order(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.float64).reshape(10, 2)
    data = opened(file_of(tmp_path, array), scaling="none")
    seen = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(10))
    assert seen.tolist() != list(range(10))
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
        assert torch.equal(torch.cat([batch["vector"] for batch in batches]), torch.from_numpy(array).float())


def test_the_order_depends_on_the_seed_alone() -> None:
    orders = [
        torch.cat([batch["index"] for batch in opened("digits", seed=seed, batch_size=500).train_dataloader()])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
