"""A run of a study: one method in one network on one set, with one seed or one setting of tuning."""

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from straightvq.studies.study import Config, slug

TUNE, FINAL = "tune", "final"


@dataclass(frozen=True)
class Cell:
    """One method in one network on one set."""

    set: str
    model: str
    row: str

    @property
    def title(self) -> str:
        return f"{self.set} {self.model} {self.row}"

    @property
    def place(self) -> tuple[str, str]:
        """What its rows are compared within."""
        return self.set, self.model


@dataclass(frozen=True)
class Run:
    """One training, measured afterwards.

    Attributes:
        cell: what is trained.
        kind: "tune", measured on the validation set, or "final", on the test set.
        number: of the setting in tuning, else the seed.
        setting: name of the setting, "" where nothing was tuned.
        overlays: configurations, each laid over the ones before.
        source: where the data lie, None for what the overlays say. It decides no result.
        upon: the runs that this one builds upon: folder and fingerprint, by the option that gets the folder.
    """

    cell: Cell
    kind: str
    number: int
    setting: str
    overlays: list[Config]
    source: str | None = None
    upon: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Within that of its study."""
        cell, name = self.cell, f"{'tune' if self.kind == TUNE else 'seed'}{self.number}"
        return Path("runs", slug(cell.set), slug(cell.model), slug(cell.row), name)

    @property
    def title(self) -> str:
        return f"{self.cell.title} {f'tuning: {self.setting}' if self.kind == TUNE else f'seed {self.number}'}"

    @property
    def seed(self) -> int:
        return 0 if self.kind == TUNE else self.number

    @functools.cached_property
    def settings(self) -> str:
        """Fingerprint of everything that decides the result."""
        upon = {name: fingerprint for name, (_, fingerprint) in self.upon.items()}
        content = json.dumps([self.overlays, self.seed, *([upon] if upon else [])], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]
