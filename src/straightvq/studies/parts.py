"""A study that is one script in parts, each computed once and kept, so that a stopped study goes on."""

import datetime
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import straightvq
from straightvq.errors import InvalidValueError
from straightvq.io import remove_unfinished, write_text
from straightvq.studies.results import hardware
from straightvq.studies.study import slug

COLUMNS = ["experiment", "row", "source", "d", "series", "at", "value"]
Values = list[list[Any]]  # rows of the last three columns


@dataclass(frozen=True)
class Part:
    """One curve, or several of different seeds.

    Args:
        experiment, row, source: what it shows, of what, and by which means.
        d: number of weights; 0 for what holds in the limit.
        given: all else that decides the values, in JSON's kinds.
        run: computes them, as rows of the series (a seed, or a histogram's tau), the place (mostly tau) and the value.
    """

    experiment: str
    row: str
    source: str
    d: int
    given: dict[str, Any]
    run: Callable[[], Values]

    @property
    def title(self) -> str:
        return f"{self.experiment}: {self.row}, {self.source}{f' d={self.d}' if self.d else ''}"

    @property
    def file(self) -> str:
        return f"{slug(self.title)}.json"

    @property
    def settings(self) -> str:
        """Fingerprint of what decides the values."""
        content = json.dumps([self.title, self.given], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


class Parts(dict[str, dict[str, Any]]):
    """What is finished in a folder, one file for each part, written in one piece; by the part's title.

    A part of other settings counts as not there, and is replaced.
    """

    def __init__(self, folder: Path, plan: Sequence[Part]) -> None:
        super().__init__()
        self.folder = folder
        self.plan = plan
        for part in plan:
            file = folder / "runs" / part.file
            if file.is_file() and (content := _read(file))["settings"] == part.settings:
                self[part.title] = content

    def run(self) -> None:
        """Computes what is missing, and keeps each part as it comes."""
        due = [part for part in self.plan if part.title not in self]
        # `disable=None`: no bar where nobody watches.
        for part in tqdm(due, unit="part", disable=None, dynamic_ncols=True):
            start = time.process_time()  # that of the processor: other programs do not count
            values = part.run()
            self[part.title] = {
                "settings": part.settings,
                "seconds": round(time.process_time() - start, 2),
                "date": str(datetime.date.today()),
                "hardware": hardware("cpu"),
                "versions": f"straightvq {straightvq.__version__}, torch {torch.__version__}",
                "values": values,
            }
            file = self.folder / "runs" / part.file
            remove_unfinished(file)
            write_text(file, json.dumps(self[part.title]))
            tqdm.write(f"{part.title}: {self[part.title]['seconds']:.0f} s", file=sys.stdout)

    def table(self) -> pd.DataFrame:
        """All values, with `COLUMNS`, of the rows of an experiment whose parts are all finished."""
        missing = {(part.experiment, part.row) for part in self.plan if part.title not in self}
        rows = [
            [part.experiment, part.row, part.source, part.d, *value]
            for part in self.plan
            if (part.experiment, part.row) not in missing
            for value in self[part.title]["values"]
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def origin(self) -> str:
        """With what, on what and when."""
        found = list(self.values())
        parts = [" and ".join(sorted({one[name] for one in found})) for name in ("versions", "hardware")]
        parts.insert(0, f"{len(self)} of {len(self.plan)} parts are finished")
        dates = sorted({one["date"] for one in found})
        parts.append(" to ".join(dict.fromkeys([dates[0], dates[-1]])))
        return ", ".join(parts)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.keys() >= {"settings", "values"}:
            return content
    except (json.JSONDecodeError, UnicodeDecodeError):
        pass
    raise InvalidValueError(
        f"`reproduce`: {str(file)!r} is not a result of this version. Remove it to compute it anew."
    )
