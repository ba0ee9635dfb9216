"""The log of a run as a table, which outlives a training that is killed."""

import csv
import io
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from straightvq.training.resume import write_aside


class MetricsLog(CSVLogger):
    """Lightning's ``metrics.csv``, with two differences.

    A new column rewrites the table aside, so that a kill at that moment leaves the old one; and a row that repeats the
    one before, as a checkpoint makes it (see `StepCheckpoint`), is written once.
    """

    _latest: tuple[int | None, dict[str, Any]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return cast(ExperimentWriter, self._experiment)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = (step, dict(metrics))
        if row != self._latest:
            super().log_metrics(metrics, step)
        self._latest = row


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        file = Path(self.metrics_file_path)
        with file.open(newline="", encoding="utf-8") as old:
            rows = list(csv.DictReader(old))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
        write_aside(file, lambda new: new.write(table.getvalue().encode()))
