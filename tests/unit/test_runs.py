"""The log of a run."""

from pathlib import Path

import pytest

from straightvq import io
from straightvq.runs import MetricsLog, read_log


def test_a_log_that_gets_a_column_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path, name="metrics")
    log.log_metrics({"first": 1.0}, step=0)
    log.save()
    (file,) = tmp_path.glob("metrics/version_0/metrics.csv")
    before = file.read_text()
    log.log_metrics({"first": 2.0, "second": 3.0}, step=1)

    def killed(*_: object) -> None:
        assert file.read_text() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(io.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.save()
    assert file.read_text() == before
    monkeypatch.undo()
    log.save()
    assert read_log(tmp_path, "first") == ([1, 2], [1.0, 2.0])
    assert read_log(tmp_path, "second") == ([2], [3.0])
