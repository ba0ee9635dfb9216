"""A run of a study: one method in one network on one set, with one seed or one setting of tuning."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Cell", "Run"]

Config = dict[str, Any]
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
    def folder(self) -> Path:
        """Below that of all runs."""
        return Path(slug(self.set), slug(self.model), slug(self.row))


@dataclass(frozen=True)
class Run:
    """One training: `straightvq fit` with these overlays, measured afterwards.

    Attributes:
        cell: what is trained.
        kind: "tune", measured on the validation set, or "final", on the test set.
        number: of the setting in tuning, else the seed.
        setting: name of the setting, "" where nothing was tuned.
        overlays: configurations by name, each laid over the ones before.
        source: where the data lie, None for what the overlays say. It decides no result.
        upon: the runs that this one builds upon: folder and fingerprint, by the option that gets the folder.
    """

    cell: Cell
    kind: str
    number: int
    setting: str
    overlays: dict[str, Config]
    source: str | None = None
    upon: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{'tune' if self.kind == TUNE else 'seed'}{self.number}"

    @property
    def title(self) -> str:
        return f"{self.cell.title} {f'tuning: {self.setting}' if self.kind == TUNE else f'seed {self.number}'}"

    @property
    def seed(self) -> int:
        return 0 if self.kind == TUNE else self.number

    @property
    def options(self) -> list[str]:
        """Words of the command line behind the overlays."""
        options = ["--seed_everything", str(self.seed), "--data.init_args.seed", str(self.seed)]
        options += [] if self.source is None else ["--data.init_args.source", self.source]
        return [*options, *(word for name, (folder, _) in self.upon.items() for word in (f"--{name}", folder))]

    @property
    def settings(self) -> str:
        """Fingerprint of everything that decides the result."""
        upon = {name: fingerprint for name, (_, fingerprint) in self.upon.items()}
        parts = [list(self.overlays.values()), self.seed, *([upon] if upon else [])]
        content = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def slug(text: str) -> str:
    """A name of a file.

    Example:
        >>> slug("EMA + reset"), slug("l2 + replace"), slug("lr 1e-3")
        ('EMA-reset', 'l2-replace', 'lr-1e-3')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")
