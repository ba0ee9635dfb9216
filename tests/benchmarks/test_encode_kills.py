"""The benchmark that kills encodings, at a tiny size: it ends, and says what was compared."""

import io
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "encode_kills.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")
def test_killed_encodings_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = []
    for number in range(60):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    source = tmp_path / "noise" / "train.parquet"
    source.parent.mkdir()
    pq.write_table(pa.table({"image": pictures}), source)
    sizes = ["--kills", "1", "--most", "60", "--rows-per-shard", "10", "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["encode_kills.py", str(source), *sizes])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    text = (tmp_path / "page.md").read_text()
    assert "noise/train.parquet --kills 1 --most 60" in text
    assert re.search(r"60 pictures in 6 shards; 1 kills", text)
    assert "All 6 shards equal those of the job that was left alone, byte for byte" in text
