"""Training on from an imported file at a tiny size: all arms start from its codes, and the page has their rows."""

import io
import runpy
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.fine_tune import ARMS, Arm, fine_tune, measured, network
from PIL import Image

import straightvq as svq

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fine_tune.py"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of the usual network for CIFAR-10, untrained, with moving averages."""
    torch.manual_seed(0)
    layer = svq.presets.ema(64, 16)
    state = {f"_vq_vae.{name}": value for name, value in svq.interop.to_state_dict(layer, "vqvae").items()}
    sizes = {
        "_encoder._conv_1": (64, 3, 4), "_encoder._conv_2": (128, 64, 4), "_encoder._conv_3": (128, 128, 3),
        "_pre_vq_conv": (64, 128, 1), "_decoder._conv_1": (128, 64, 3), "_decoder._conv_trans_1": (128, 64, 4),
        "_decoder._conv_trans_2": (64, 3, 4),
    }  # fmt: skip
    for side in ("_encoder", "_decoder"):
        for number in range(2):
            at = f"{side}._residual_stack._layers.{number}._block"
            sizes |= {f"{at}.1": (32, 128, 3), f"{at}.3": (128, 32, 1)}
    state |= {f"{name}.weight": 0.05 * torch.randn(out, into, k, k) for name, (out, into, k) in sizes.items()}
    torch.save(state, tmp_path / "vqvae.pth")
    return tmp_path / "vqvae.pth"


def test_all_arms_start_from_the_codes_of_the_file(weights: Path) -> None:
    pictures = torch.rand(3, 3, 8, 8)
    imported, *others = (network(weights, 1.0, arm) for arm in ARMS)
    for straight in others:
        assert measured(imported, pictures) == measured(straight, pictures)
        (book,) = straight.quantizer.codebooks()
        assert isinstance(book.update, svq.AlternatedUpdate)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.title)
def test_the_encoder_is_trained_where_the_arm_says_so(weights: Path, arm: Arm) -> None:
    net = network(weights, 1.0, arm)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fine_tune(net, torch.rand(4, 3, 8, 8), steps=2, batch=2, lr=1e-3, seed=0)
    moved = {name.split(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "decoder" in moved
    assert ("encoder" in moved) == arm.encoder


def test_the_page_has_a_row_for_the_file_and_for_each_arm(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(content, "PNG")
        table = pa.table({"image": [{"bytes": content.getvalue(), "path": "a.png"}] * 4})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    options = ["--weights", str(weights), "--pictures", str(tmp_path), "--steps", "1", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", ["fine_tune.py", *options, "--out", str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = [line for line in (tmp_path / "fine-tune.md").read_text().splitlines() if line.startswith("| vqvae |")]
    assert [row.split(" | ")[1:3] for row in rows] == [["the imported layer", "0"], *([arm.title, "1"] for arm in ARMS)]
