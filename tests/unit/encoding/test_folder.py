"""Folders of shards: what they accept, what they refuse by which words."""

from pathlib import Path

import pyarrow as pa
import pytest
from tests.encodings import content

from straightvq.encoding.folder import ShardFolder, read_footer
from straightvq.errors import InvalidValueError


def folder(path: Path, **settings: object) -> ShardFolder:
    return ShardFolder(path, "encode", {"source": "a", "nearest": None, **settings}, [2, 1], {"note": "n"})


def full(path: Path) -> ShardFolder:
    made = folder(path)
    made.prepare()
    made.write(0, pa.table({"key": ["x", "y"]}), [])
    made.write(1, pa.table({"key": pa.array([], pa.string())}), [("z", "a reason")])
    return made


def test_a_shard_is_complete_with_all_its_rows_the_unusable_ones_included(tmp_path: Path) -> None:
    made = full(tmp_path / "out")
    assert [made.is_complete(number) for number in range(2)] == [True, True]
    assert read_footer(made.file(1)) == (made.id, 0, [("z", "a reason")])
    made.write(0, pa.table({"key": ["x"]}), [])
    assert not made.is_complete(0)
    assert "done" not in made.finish()
    assert not folder(tmp_path / "out", nearest=2).is_complete(1)


def test_the_end_counts_and_collects_what_cannot_be_used(tmp_path: Path) -> None:
    made = full(tmp_path / "out")
    (tmp_path / "out" / ".part-00000.parquet.0.tmp").touch()  # of a process that was killed
    (tmp_path / "out" / ".metadata.json.0.tmp").touch()  # another process may be at the same end
    assert made.finish() == {
        "settings": made.settings, "note": "n", "shards": 2, "rows": 3, "done": 2, "bad": 1,
    }  # fmt: skip
    assert (tmp_path / "out" / "bad.jsonl").read_text() == '{"key": "z", "reason": "a reason"}\n'
    hidden = {name for name in content(tmp_path / "out") if "tmp" in name}
    assert hidden == {".metadata.json.0.tmp"}


def test_every_unusable_row_of_a_shard_counts(tmp_path: Path) -> None:
    made = folder(tmp_path / "out")
    made.prepare()
    made.write(0, pa.table({"key": pa.array([], pa.string())}), [("x", "a reason"), ("y", "another")])
    made.write(1, pa.table({"key": ["z"]}), [])
    counts = made.finish()
    assert (counts["done"], counts["bad"]) == (1, 2)
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 2


def test_the_same_settings_may_go_on_and_others_are_named(tmp_path: Path) -> None:
    full(tmp_path / "out").finish()
    folder(tmp_path / "out").prepare()
    before = content(tmp_path / "out")
    with pytest.raises(InvalidValueError) as refused:
        folder(tmp_path / "out", source="b", size=8).prepare()
    assert str(refused.value) == (
        f"`encode`: {str(tmp_path / 'out')!r} was made with other settings: source 'a', now 'b'; size None, now 8. "
        "Pass another `out`, or the same settings to go on."
    )
    assert content(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InvalidValueError, match=r"`out` must be a new or an empty folder, or one to go on with"):
        folder(tmp_path).prepare()
    assert content(tmp_path) == {"thesis.tex": b"years"}
    with pytest.raises(InvalidValueError, match=r"`out` must be a folder. Got the file"):
        folder(tmp_path / "thesis.tex").prepare()
    for text in ("{", "[]", '{"settings": 1}'):
        (tmp_path / "metadata.json").write_text(text)
        with pytest.raises(InvalidValueError, match=r"metadata.json' is damaged, or of another program"):
            folder(tmp_path).prepare()


def test_an_empty_folder_and_one_with_hidden_files_are_taken(tmp_path: Path) -> None:
    (tmp_path / ".metadata.json.0.tmp").touch()  # of a process that was killed in its first moment
    folder(tmp_path).prepare()
    assert "metadata.json" in content(tmp_path)
