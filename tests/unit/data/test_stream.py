"""Vectors piece by piece: the same as read whole, bad rows told, little in memory."""

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.versions import needs

from straightvq.data.vectors.read import read
from straightvq.data.vectors.stream import VectorStream, open_stream
from straightvq.errors import InvalidTypeError, InvalidValueError

RANDOM = np.random.default_rng(0)


def whole(stream: VectorStream, step: int) -> tuple[list[str], np.ndarray]:
    pieces = [stream.read(start, min(start + step, len(stream))) for start in range(0, len(stream), step)]
    assert all(not piece.reasons for piece in pieces)
    return [name for piece in pieces for name in piece.names], np.concatenate([piece.vectors for piece in pieces])


def fixed(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


@pytest.mark.parametrize("step", [1, 7, 50])
@pytest.mark.parametrize("kind", ["fixed", "list", "large", "integers", "npy", "folder", "folder of npy"])
def test_pieces_together_are_what_is_read_at_once(kind: str, step: int, tmp_path: Path) -> None:
    array = RANDOM.integers(-9, 9, (23, 3)).astype(np.float32)
    source = tmp_path / "a.parquet"
    names = [f"n{row}" for row in range(23)]
    if kind == "npy":
        source = tmp_path / "a.npy"
        np.save(source, array.astype(np.float64))
    elif kind == "folder of npy":
        source = tmp_path
        np.save(tmp_path / "a.npy", array[:9])
        np.save(tmp_path / "b.npy", array[9:].astype(int))
    elif kind == "folder":
        source = tmp_path
        for name, rows in (("b", slice(9, 23)), ("a", slice(0, 9))):
            pq.write_table(pa.table({"v": fixed(array[rows])}), tmp_path / f"{name}.parquet", row_group_size=4)
    else:
        cells = {
            "fixed": fixed(array),
            "list": pa.array(array.tolist(), pa.list_(pa.float32())),
            "large": pa.array(array.tolist(), pa.large_list(pa.float64())),
            "integers": pa.array(array.astype(int).tolist(), pa.list_(pa.int16())),
        }[kind]
        pq.write_table(pa.table({"price": [1.5] * 23, "name": names, "v": cells}), source, row_group_size=5)
    stream = open_stream(str(source))
    expected = read(source)
    assert (len(stream), stream.width) == (23, 3)
    found, vectors = whole(stream, step)
    assert found == [str(item) for item in expected.items]
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected.vectors)


def test_rows_may_be_asked_for_in_any_order_and_in_another_process(tmp_path: Path) -> None:
    array = RANDOM.standard_normal((40, 2)).astype(np.float32)
    pq.write_table(pa.table({"v": fixed(array)}), tmp_path / "a.parquet", row_group_size=6)
    stream: Any = open_stream(str(tmp_path / "a.parquet"))
    for start, stop in [(30, 33), (33, 40), (0, 1), (5, 29), (7, 8), (39, 40)]:
        assert np.array_equal(stream.read(start, stop).vectors, array[start:stop])
        stream = pickle.loads(pickle.dumps(stream)) if start == 5 else stream


def test_going_forward_opens_no_row_group_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"v": fixed(np.zeros((100, 2), dtype=np.float32))}), tmp_path / "a.parquet")
    stream = open_stream(str(tmp_path / "a.parquet"))
    opened = []
    file = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *args, **kwargs: opened.append(1) or file(*args, **kwargs))
    for start in range(0, 100, 20):  # every other piece, as one of two processes asks
        stream.read(start, start + 10)
    assert len(opened) == 1


def test_rows_that_cannot_be_used_are_told_with_a_reason(tmp_path: Path) -> None:
    lists = [[1.0, 2.0], None, [3.0], [float("nan"), 1.0], [4.0, None], [5.0, 6.0], [], [1e39, 0.0]]
    table = pa.table({"v": pa.array(lists, pa.list_(pa.float64())), "name": [None, *"bcdefgh"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    piece = open_stream(str(tmp_path / "a.parquet")).read(0, 8)
    not_finite = "NaN or infinite numbers"
    assert piece.names == ["0", *"bcdefgh"]
    assert piece.reasons == {
        1: "no vector", 2: "1 numbers instead of 2", 3: not_finite, 4: not_finite, 6: "0 numbers instead of 2",
        7: not_finite,
    }  # fmt: skip
    assert piece.vectors[[0, 5]].tolist() == [[1, 2], [5, 6]]
    np.save(tmp_path / "c.npy", np.array([[1.0, np.inf], [1.0, 2.0]]))
    assert open_stream(str(tmp_path / "c.npy")).read(0, 2).reasons == {0: not_finite}


@needs("pyarrow", 26, "reads lists of a fixed size of which some are missing")
def test_a_missing_list_of_a_fixed_size_is_told(tmp_path: Path) -> None:
    fixed_size = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"v": fixed_size}), tmp_path / "b.parquet")
    piece = open_stream(str(tmp_path / "b.parquet")).read(0, 3)
    assert piece.reasons == {1: "no vector"}
    assert piece.vectors[[0, 2]].tolist() == [[1, 2], [3, 4]]


def test_large_files_take_little_memory(tmp_path: Path) -> None:
    array = RANDOM.standard_normal((60_000, 32)).astype(np.float32)  # 7.7 MB in one row group
    pq.write_table(pa.table({"v": fixed(array)}), tmp_path / "a.parquet", row_group_size=60_000)
    np.save(tmp_path / "a.npy", array)
    del array
    for name in ("a.parquet", "a.npy"):
        before = pa.total_allocated_bytes()
        most = 0
        stream = open_stream(str(tmp_path / name))
        tracemalloc.start()
        for start in range(0, 60_000, 500):
            stream.read(start, start + 500)
            most = max(most, pa.total_allocated_bytes() - before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20
        assert most < 5 << 20  # some pages, of any file


def test_the_digest_tells_of_other_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    first = open_stream(str(tmp_path)).digest
    assert open_stream(str(tmp_path)).digest == first
    np.save(tmp_path / "b.npy", np.ones((4, 2)))
    assert open_stream(str(tmp_path)).digest != first


def test_what_are_no_vectors_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(4))
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    (tmp_path / "damaged.npy").write_text("x")
    (tmp_path / "damaged.parquet").write_text("x")
    pq.write_table(pa.table({"v": pa.array([None, []], pa.list_(pa.float32()))}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"v": pa.array([], pa.list_(pa.float32()))}), tmp_path / "empty.parquet")
    cases = {
        "one.npy": "must hold one vector per row",
        "damaged.npy": "cannot be read as an array of numbers",
        "damaged.parquet": "is a damaged Parquet file",
        "none.parquet": "must hold at least one vector",
        "empty.parquet": "must hold at least one vector",
        "a.txt": "must end in .parquet or .npy",
    }
    for name, said in cases.items():
        with pytest.raises(InvalidValueError, match=said):
            open_stream(str(tmp_path / name))
    with pytest.raises(InvalidTypeError, match="must hold real numbers"):
        open_stream(str(tmp_path / "text.npy"))
    (tmp_path / "folder").mkdir()
    for width in (2, 3):
        np.save(tmp_path / "folder" / f"{width}.npy", np.ones((2, width)))
    with pytest.raises(InvalidValueError, match=r"vectors of one width. Got 2 and 3"):
        open_stream(str(tmp_path / "folder"))


def test_damage_that_is_met_on_the_way_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    array = RANDOM.standard_normal((4500, 8)).astype(np.float32)
    pq.write_table(pa.table({"v": fixed(array)}), file, row_group_size=1500, compression="zstd")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)  # in the second row group
    file.write_bytes(data)
    stream = open_stream(str(file))
    assert np.array_equal(stream.read(0, 1).vectors, array[:1])
    with pytest.raises(InvalidValueError, match=r"a.parquet is a damaged Parquet file"):
        stream.read(1500, 4500)
