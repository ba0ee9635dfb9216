"""The benchmark of semantic IDs: its baseline, its arms, its table and its picture, on a hundred items."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from benchmarks import semantic_ids
from straightvq.data import Vectors


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(semantic_ids, "SIZE", 8)
    np.save(tmp_path / "items.npy", np.random.default_rng(0).normal(size=(100, 6)))
    return tmp_path / "items.npy"


def test_the_baseline_is_scikit_learns_k_means_of_what_is_left(items: Path) -> None:
    row = semantic_ids.run("kmeans", 3, str(items))
    data = Vectors(str(items))
    data.setup("fit")
    rest = data.standard.apply(data.vectors).numpy()
    total = (rest**2).sum()
    for level in range(1, 5):
        found = KMeans(8, n_init=1, random_state=3).fit(rest)
        rest = rest - found.cluster_centers_[found.labels_]
        assert row[f"error_{level}"] == pytest.approx((rest**2).sum() / total, rel=1e-3)


def test_refinement_beats_the_baseline(items: Path) -> None:
    rows = {name: semantic_ids.run(name, 0, str(items)) for name in ("kmeans", "straight_refined")}
    assert rows["straight_refined"]["error_4"] < 0.95 * rows["kmeans"]["error_4"]
    assert rows["straight_refined"]["unique_after"] == 1


def test_the_table_and_the_picture_are_written_from_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    table, out = tmp_path / "rows.csv", tmp_path / "out" / "semantic-ids.md"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*semantic_ids.RUN, *semantic_ids.MEASURED])
        writer.writeheader()
        for arm in semantic_ids.ARMS:
            for seed in range(2):
                values = torch.rand(len(semantic_ids.MEASURED), generator=generator).tolist()
                run = dict.fromkeys(semantic_ids.RUN, 1) | {"arm": arm, "seed": seed}
                writer.writerow(run | dict(zip(semantic_ids.MEASURED, values, strict=True)))
    monkeypatch.setattr("sys.argv", ["x", "--seeds", "2", "--csv", str(table), "--out", str(out)])
    semantic_ids.main()
    text = out.read_text()
    assert all(arm.about in text for arm in semantic_ids.ARMS.values())
    assert text in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 10_000
