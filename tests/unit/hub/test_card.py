"""The page beside a saved module: its table is of the module, and its lines of use run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq.hub.card import Notes, card
from straightvq.hub.folder import save
from straightvq.models import Autoencoder, ResNet18


@pytest.mark.parametrize(
    ("module", "row"),
    [
        (svq.presets.ema(4, 1024), "| `VectorQuantizer` | 1,024 | 4 | 10 |"),
        (svq.presets.soundstream(4, 16, num_quantizers=3), "| `ResidualQuantizer` | 3 x 16 | 4 | 12 |"),
        (
            svq.ProductQuantizer(6, [svq.presets.ema(2, 16), svq.presets.ema(4, 8)]),
            "| `ProductQuantizer` | 16, 8 | 6 | 7 |",
        ),
        (svq.presets.fsq(4, [3, 5]), "| `FiniteScalarQuantizer` | 15 | 4 | 3.907 |"),
        (Autoencoder(svq.presets.ema(4, 32, channel_dim=1), hidden=8), "| `VectorQuantizer` | 32 | 4 | 5 |"),
    ],
)
def test_the_table_is_of_the_outermost_quantizer(module: Any, row: str) -> None:
    lines = card(module, Notes("x")).splitlines()
    place = lines.index("| quantizer | codes | width | bits per vector |")
    assert lines[place + 2 : place + 4] == [row, ""]


def test_the_page_has_the_hubs_header_and_what_was_told() -> None:
    metrics = {"mse": 0.00123456, "perplexity": 430.0}
    notes = Notes("me/photos", "Trained on photographs.", metrics, "the test set", Path("p/a.png"))
    page = card(svq.presets.ema(4, 8), notes)
    tags = "tags:\n- straightvq\n- vector-quantization"
    assert page.startswith(f"---\nlibrary_name: straightvq\n{tags}\n---\n\n# photos\n")
    assert "Trained on photographs." in page
    table = "| measure | value |\n| --- | --- |\n| mse | 0.001235 |\n| perplexity | 430 |"
    assert f"Measured on the test set:\n\n{table}" in page
    assert "![](a.png)" in page


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (svq.presets.ema(4, 8), None),
        (svq.presets.ema(4, 8, channel_dim=1), None),
        (svq.presets.rq_vae(4, 8, num_quantizers=2), None),
        (Autoencoder(svq.presets.ema(4, 8, channel_dim=1), hidden=8), torch.rand(2, 3, 8, 8)),
        (
            ResNet18(svq.presets.ema(8, 8, channel_dim=1), num_classes=3, width=4, small_images=True),
            torch.rand(2, 3, 8, 8),
        ),
    ],
)
def test_the_lines_of_use_run(module: Any, x: Any, tmp_path: Path) -> None:
    save(module, tmp_path, Notes(str(tmp_path)))
    found = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    assert found is not None
    namespace = {"x": x}
    exec(found[1], namespace)
    assert "indices" in namespace or "out" in namespace


def test_the_picture_goes_into_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a picture")
    save(svq.presets.ema(4, 8), tmp_path / "new", Notes("x", picture=tmp_path / "a.png"))
    assert (tmp_path / "new" / "a.png").read_bytes() == b"a picture"
