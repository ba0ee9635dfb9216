"""The log of a run."""

import json
from pathlib import Path

import pytest
from tests.encodings import image_run

from straightvq import io
from straightvq.errors import InvalidValueError
from straightvq.runs import MetricsLog, open_run, read_log


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


def test_a_run_is_opened_by_its_folder_or_one_of_its_checkpoints(tmp_path: Path) -> None:
    folder = image_run(tmp_path / "run")
    kept = folder / "checkpoints" / "step-00000003.ckpt"
    kept.parent.mkdir()
    kept.write_bytes((folder / "last.ckpt").read_bytes())
    for path, file in ((folder, folder / "last.ckpt"), (folder / "last.ckpt", folder / "last.ckpt"), (kept, kept)):
        run, checkpoint = open_run(path, "test")
        assert (run.folder, checkpoint.path, checkpoint.step) == (folder, file, 7)
    with pytest.raises(InvalidValueError, match=r"`test`: .* has no checkpoint 'best'"):
        open_run(folder / "best.ckpt", "test")


def test_a_run_builds_its_data_with_another_source(tmp_path: Path) -> None:
    run, _ = open_run(image_run(tmp_path / "run"), "test")
    data = run.build_data(source="photos")
    assert (data.source, data.size, data.channels) == ("photos", 8, 1)


def test_building_a_run_leaves_its_configuration_as_it_was_read(tmp_path: Path) -> None:
    levels = [{"class_path": "straightvq.presets.ema", "init_args": {"dim": 4, "codebook_size": 8}} for _ in range(2)]
    quantizer = {"class_path": "straightvq.ResidualQuantizer", "init_args": {"dim": 4, "levels": levels}}
    run, _ = open_run(image_run(tmp_path / "run", quantizer), "test")
    before = json.dumps(run.config)
    run.build_task()
    assert json.dumps(run.config) == before
