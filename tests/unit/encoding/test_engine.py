"""Kills, restarts, any number of processes: the same shards as those of a run that nobody disturbed."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.encodings import content, image_run, pictures, table, vector_run, vectors

from straightvq.cli import main
from straightvq.encoding import decode, encode
from straightvq.encoding.folder import ShardFolder
from straightvq.errors import InvalidValueError

ROWS, PER_SHARD, SHARDS = 23, 4, 6


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_run(tmp_path_factory.mktemp("engine") / "run")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("engine") / "pictures", ROWS, bad=(5, 20))


@pytest.fixture(scope="module")
def undisturbed(run: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine") / "codes"
    encode(run, source, out, rows_per_shard=PER_SHARD)
    decode(run, out, out.with_name("decoded"))
    return out


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def same(out: Path, expected: Path) -> bool:
    """Equal to the byte; only the notes tell of other names of folders."""
    found, wanted = content(out), content(expected)
    described = [json.loads(files.pop("metadata.json")) for files in (found, wanted)]
    notes = ("decode", "decoded_from")
    for each in described:
        for name in notes:
            each.pop(name, None)
    return found == wanted and described[0] == described[1]


@pytest.mark.parametrize("world", [1, 2, 4, 7])
def test_any_number_of_processes_makes_the_same(
    world: int, run: Path, source: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command, before, out in ((encode, source, "codes"), (decode, tmp_path / "codes", "decoded")):
        for rank in random.Random(world).sample(range(world), world):  # in any order
            as_rank(monkeypatch, rank, world)
            options: dict[str, Any] = {"rows_per_shard": PER_SHARD} if command is encode else {}
            had = set(content(tmp_path / out))
            made = command(run, before, tmp_path / out, **options)
            new = {name for name in set(content(tmp_path / out)) - had if name.startswith("part-")}
            assert all(int(name[5:10]) % world == rank for name in new)
            assert ("done" in made) == (len([*(tmp_path / out).glob("part-*")]) == SHARDS)
        assert same(tmp_path / out, undisturbed.with_name(out))


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_job_goes_on_with_other_processes_and_loses_nothing(
    seed: int, run: Path, source: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = random.Random(seed)
    commands: list[tuple[Callable[..., Any], Path, str, dict[str, Any]]] = [
        (encode, source, "codes", {"rows_per_shard": PER_SHARD}),
        (decode, tmp_path / "codes", "decoded", {}),
    ]
    for command, before, out, options in commands:
        for _ in range(3):
            world = draws.randint(1, 3)
            as_rank(monkeypatch, draws.randrange(world), world)
            with monkeypatch.context() as patch:
                killed_at(patch, draws.randint(1, 30))
                try:
                    command(run, before, tmp_path / out, **options)
                except Killed:
                    assert len([*(tmp_path / out).glob("part-*")]) < SHARDS
        as_rank(monkeypatch, 0, 1)
        command(run, before, tmp_path / out, **options)
        assert same(tmp_path / out, undisturbed.with_name(out))


def killed_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Dies at one of the moments around the writing of files: before, in the middle, before and behind the renaming."""
    moments = itertools.count(1)

    def around(function: Any, *, in_the_middle: bool = False) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if next(moments) == moment:
                if in_the_middle:
                    function(args[0], args[1][: len(args[1]) // 2])
                raise Killed
            found = function(*args, **kwargs)
            if next(moments) == moment:
                raise Killed
            return found

        return called

    patch.setattr(os, "replace", around(os.replace))
    patch.setattr(pq, "write_table", around(pq.write_table))
    patch.setattr(Path, "write_bytes", around(Path.write_bytes, in_the_middle=True))


def test_what_is_there_is_not_made_again(
    run: Path, source: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ShardFolder, "write", refuse)
    made = encode(run, source, undisturbed, rows_per_shard=PER_SHARD)
    assert (made["done"], made["bad"]) == (ROWS - 2, 2)


@pytest.mark.parametrize("damage", ["half", "empty", "another", "fewer rows", "no footer"])
def test_a_damaged_shard_is_made_again(damage: str, run: Path, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    encode(run, source, out, rows_per_shard=PER_SHARD)
    file = out / "part-00003.parquet"
    whole = file.read_bytes()
    if damage in ("half", "empty"):
        file.write_bytes(whole[: len(whole) // 2 if damage == "half" else 0])
    elif damage == "another":  # the same number of rows, of another job
        encode(run, source, tmp_path / "other", rows_per_shard=PER_SHARD, nearest=1)
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    else:
        rows = pq.read_table(file)
        pq.write_table(rows.slice(1) if damage == "fewer rows" else rows.replace_schema_metadata(None), file)
    assert file.read_bytes() != whole
    with pytest.raises(InvalidValueError, match=r"part-00003.parquet' is missing, damaged, or of other settings"):
        decode(run, out, tmp_path / "decoded")
    encode(run, source, out, rows_per_shard=PER_SHARD)
    assert same(out, undisturbed)


def test_a_full_disk_is_a_sentence_and_leaves_whole_shards(
    run: Path,
    source: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, written = pq.write_table, itertools.count()

    def filling(rows: pa.Table, stream: Any) -> None:
        if next(written) == 4:
            stream.write(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(rows, stream)

    command = ["encode", "--run", run, "--source", source, "--out", tmp_path / "codes", "--rows-per-shard", PER_SHARD]
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", filling)
        assert main(list(map(str, command))) == 2
    said = capsys.readouterr().err
    assert f"cannot use '{tmp_path / 'codes' / 'part-00004.parquet'}': No space left on device." in said
    assert "What is complete stays as it is: make room, and the same command goes on." in said
    names = ["metadata.json", *(f"part-0000{number}.parquet" for number in range(4))]
    assert list(content(tmp_path / "codes")) == names
    assert main(list(map(str, command))) == 0
    assert same(tmp_path / "codes", undisturbed)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("0", "")])
def test_ranks_that_cannot_be_are_refused(
    rank: str, world: str, run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InvalidValueError, match=r"RANK must be an integer in \[0, WORLD_SIZE\)"):
        encode(run, source, tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_engines_that_cannot_be_are_refused(
    run: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "codes"
    with pytest.raises(InvalidValueError, match="`engine` must be one of 'here', 'ray'"):
        encode(run, source, out, **{"engine": "slurm"})
    with pytest.raises(InvalidValueError, match=r"`workers` must be 1 without Ray. Got 3"):
        encode(run, source, out, workers=3)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(InvalidValueError, match=r'pip install "straightvq\[cluster\]"'):
            encode(run, source, out, engine="ray", workers=2)
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(InvalidValueError, match='`engine` must be "here" under `torchrun`'):
        encode(run, source, out, engine="ray")
    assert not out.exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_taken_up_by_two(tmp_path: Path) -> None:
    run, source = vector_run(tmp_path / "run"), vectors(tmp_path / "v.parquet", 4000, bad=(17,), group=500)
    encode(run, source, tmp_path / "whole", rows_per_shard=20)
    out = tmp_path / "codes"
    command = [sys.executable, "-m", "straightvq", "encode", "--run", run, "--source", source, "--out", out]
    words = [*map(str, command), "--rows-per-shard", "20"]
    out.mkdir()
    (out / ".part-00002.parquet.0.tmp").write_text("what an earlier process left")
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (out / "part-00009.parquet").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 9 < len([*out.glob("part-*.parquet")]) < 200
    started = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    assert [process.wait() for process in started] == [0, 0]
    assert same(out, tmp_path / "whole")
    assert len(table(out)["key"]) == 3999


@pytest.mark.slow
def test_workers_of_ray_make_the_same(run: Path, source: Path, undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='needs Ray: pip install "straightvq[cluster]"')
    encode(run, source, tmp_path / "codes", rows_per_shard=PER_SHARD, engine="ray", workers=2)
    assert same(tmp_path / "codes", undisturbed)
    decode(run, tmp_path / "codes", tmp_path / "decoded", engine="ray", workers=2)
    assert same(tmp_path / "decoded", undisturbed.with_name("decoded"))
