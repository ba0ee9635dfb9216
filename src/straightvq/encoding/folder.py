"""A folder of shards: Parquet files of a fixed number of rows, each there as a whole or not at all."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import straightvq
from straightvq.errors import InvalidValueError
from straightvq.io import replacing, write_text

METADATA, BAD = "metadata.json", "bad.jsonl"
_FOOTER = b"straightvq"


class ShardFolder:
    """Shards that one command with one set of settings makes, by any processes at any times.

    A shard is complete if its file can be read, is of these settings, and accounts for all its rows. What is not is
    made anew. Processes that do the same shard at the same time write the same.

    Args:
        path: the folder.
        owner: the command, in messages.
        settings: on which the content of the shards depends; values for JSON.
        sizes: rows of each shard, the unusable ones included.
        notes: what else is worth knowing, for ``metadata.json``.
    """

    def __init__(
        self, path: Path, owner: str, settings: dict[str, Any], sizes: Sequence[int], notes: dict[str, Any]
    ) -> None:
        self.path, self.owner, self.sizes, self.notes = path, owner, sizes, notes
        self.settings = {"made_by": f"straightvq {owner}", "version": straightvq.__version__, **settings}
        self.id = identity(self.settings)

    def file(self, number: int) -> Path:
        return shard_file(self.path, number)

    def prepare(self) -> None:
        """Makes the folder. A ValueError refuses one that holds something else, or was made with other settings."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InvalidValueError(
                f"`{self.owner}`: `out` must be a folder. Got the file {str(self.path)!r}."
            ) from error
        known = read_metadata(self.path, self.owner)
        if known is None and any(not name.name.startswith(".") for name in self.path.iterdir()):
            known = read_metadata(self.path, self.owner)  # another process may have begun in between
            if known is None:
                raise InvalidValueError(
                    f"`{self.owner}`: `out` must be a new or an empty folder, or one to go on with. Got "
                    f"{str(self.path)!r}, which holds something else."
                )
        if known is None:
            self._describe({})
            return
        before = known["settings"]
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            changes = "; ".join(f"{name} {before.get(name)!r}, now {self.settings.get(name)!r}" for name in names)
            raise InvalidValueError(
                f"`{self.owner}`: {str(self.path)!r} was made with other settings: {changes}. Pass another `out`, or "
                "the same settings to go on."
            )

    def is_complete(self, number: int) -> bool:
        made_with, rows, bad = self._footer(number)
        return made_with == self.id and rows + len(bad) == self.sizes[number]

    def write(self, number: int, table: pa.Table, bad: Sequence[tuple[str, str]]) -> None:
        """Writes a shard and its unusable rows, each with key and reason."""
        footer = json.dumps({"made_with": self.id, "bad": bad})
        table = table.replace_schema_metadata({_FOOTER: footer})
        # Through a file of Python's, whose errors say what the disk has refused.
        with replacing(self.file(number)) as unfinished, unfinished.open("wb") as stream:
            pq.write_table(table, stream)

    def finish(self) -> dict[str, Any]:
        """If all shards are there, writes ``bad.jsonl`` and the counts; returns what ``metadata.json`` holds.

        Whoever comes last does; several at the same time write the same. A ValueError says that no row was usable.
        """
        good = bad = 0
        for number in range(len(self.sizes)):
            if not self.is_complete(number):
                return self._described({})
            _, rows, unusable = self._footer(number)
            good, bad = good + rows, bad + len(unusable)
        for left in self.path.glob(".part-*.tmp"):  # by killed processes; nobody writes shards any more
            left.unlink(missing_ok=True)
        if bad:
            self._write_bad()
        self._describe({"done": good, "bad": bad})
        if not good:
            raise InvalidValueError(f"`{self.owner}`: none of the {bad} rows can be used. {self.path / BAD} says why.")
        return self._described({"done": good, "bad": bad})

    def _write_bad(self) -> None:
        with replacing(self.path / BAD) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
            for number in range(len(self.sizes)):
                for key, reason in self._footer(number)[2]:
                    lines.write(json.dumps({"key": key, "reason": reason}, ensure_ascii=False) + "\n")

    def _footer(self, number: int) -> tuple[str, int, list[tuple[str, str]]]:
        return read_footer(self.file(number)) or ("", 0, [])

    def _describe(self, counts: dict[str, int]) -> None:
        write_text(self.path / METADATA, json.dumps(self._described(counts), indent=2) + "\n")

    def _described(self, counts: dict[str, int]) -> dict[str, Any]:
        size = {"shards": len(self.sizes), "rows": sum(self.sizes)}
        return {"settings": self.settings, **self.notes, **size, **counts}


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def identity(settings: dict[str, Any]) -> str:
    """What the footers of all shards of these settings say."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def read_metadata(folder: Path, owner: str) -> dict[str, Any] | None:
    """What ``metadata.json`` says; None where there is none. A ValueError refuses one of something else."""
    try:
        content = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError):  # no JSON
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise InvalidValueError(f"`{owner}`: {str(folder / METADATA)!r} is damaged, or of another program.")
    return content


def read_footer(file: Path) -> tuple[str, int, list[tuple[str, str]]] | None:
    """With what settings a shard was made, its rows, and its unusable ones; None for what is no whole shard."""
    with contextlib.suppress(pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        metadata = pq.read_metadata(file)
        footer = json.loads(metadata.metadata[_FOOTER])
        return footer["made_with"], metadata.num_rows, [(key, reason) for key, reason in footer["bad"]]
    return None
