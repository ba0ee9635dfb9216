"""`straightvq doctor` on every kind of place: what it finds there, and what it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import straightvq as svq
from straightvq.analysis.doctor.examine import examine, page
from straightvq.cli import main
from straightvq.models import Autoencoder

pytestmark = pytest.mark.filterwarnings("ignore::straightvq.training.monitor.CodebookWarning")
DEAD = [3, 4, 5, 6, 7, 8, 9, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]


def collapsed(folder: Path) -> Path:
    """A file as the usual code of a VQ-VAE leaves it after a collapse: its averages have taken dead codes to 0."""
    codes, weight = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) * 4 + 2, torch.full((32,), 20.0)
    codes[DEAD], weight[DEAD] = 1e-30, 1e-3
    state = {"_embedding.weight": codes, "_ema_cluster_size": weight, "_ema_w": codes * weight[:, None]}
    torch.save(
        {f"_vq_vae.{name}": value for name, value in state.items()} | {"_conv.weight": torch.ones(3)}, folder / "a.pth"
    )
    return folder / "a.pth"


def embeddings(folder: Path, codes: torch.Tensor, number: int = 50) -> Path:
    """Vectors around these codes."""
    noise = torch.randn(number, *codes.shape, generator=torch.Generator().manual_seed(1))
    np.save(folder / "z.npy", (codes + 0.1 * noise).reshape(-1, codes.shape[1]).numpy())
    return folder / "z.npy"


def names(result: dict[str, Any], place: int = 0) -> list[str]:
    return [finding["name"] for finding in result["quantizers"][place]["findings"]]


def test_a_collapse_is_seen_in_the_file_alone_and_in_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = collapsed(tmp_path)
    assert main(["doctor", str(file)]) == 0
    told = capsys.readouterr().out
    assert "VectorQuantizer, read as the layout 'vqvae' at '_vq_vae.'" in told
    assert "18 of 32 codes (56%) are dead: their moving number of vectors is below 0.01." in told
    assert "18 of 32 codes lie on one spot at the origin" in told
    assert "1. revive dead codes: svq.Codebook(..., reset=svq.DeadCodeReset())" in told
    assert told.endswith("Unused in VectorQuantizer: 3-9, 20, 22-31.\n")
    assert all(len(line) <= 120 for line in told.splitlines()[1:])
    assert len(told.splitlines()) <= 30

    alive = [code for code in range(32) if code not in DEAD]
    z = embeddings(tmp_path, examine_codes(file)[alive])
    assert main(["doctor", str(file), "--data", str(z), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == "the 700 vectors of z.npy"
    assert result["quantizers"][0]["unused"] == DEAD
    assert result["quantizers"][0]["unused_by"] == "none of 700 vectors chose them"
    assert names(result)[:2] == ["unused", "at_origin"]
    assert result["quantizers"][0]["values"]["used"] == 14


def examine_codes(file: Path) -> torch.Tensor:
    return svq.interop.from_file(file).quantizer.codes()


def test_without_statistics_the_codes_alone_show_it(tmp_path: Path) -> None:
    state = {name: value for name, value in torch.load(collapsed(tmp_path)).items() if "_ema" not in name}
    torch.save(state, tmp_path / "a.pth")
    result = examine(tmp_path / "a.pth")
    assert names(result) == ["at_origin"]
    assert result["quantizers"][0]["unused"] is None
    assert any("DeadCodeReset" in cure for cure in result["quantizers"][0]["findings"][0]["cures"])


def test_a_well_quantizer_is_told_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 16)
    for _ in range(20):
        layer(torch.randn(512, 4))
    layer.save_pretrained(tmp_path)
    np.save(tmp_path / "z.npy", torch.randn(1000, 4).numpy())
    for data in (None, tmp_path / "z.npy"):
        told = page(examine(tmp_path, data=data))
        assert told.endswith("\nWell: nothing stands out in these numbers.\n")
        assert "VectorQuantizer, saved by save_pretrained" in told
        assert "reset DeadCodeReset(patience=20" in told
    assert page(examine(tmp_path / "model.safetensors")) == page(examine(tmp_path)).replace(
        str(tmp_path), str(tmp_path / "model.safetensors")
    )


def test_levels_that_are_alike_share_their_lines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = svq.presets.soundstream(4, 16, num_quantizers=3)
    layer.save_pretrained(tmp_path)
    told = page(examine(tmp_path))
    assert "note: a ResidualQuantizer, 3 codes for each vector; each of its parts is measured on what" in told
    assert told.count("VectorQuantizer with ") == 1
    assert [line.split()[0] for line in told.splitlines() if line.strip().startswith("parts.")] == [
        "parts.0", "parts.1", "parts.2",
    ]  # fmt: skip
    assert "- parts.0: the codes have not been started: KMeansInit waits" in told
    assert "(and 2 more like it)" in told


def test_codes_of_a_grid_that_nothing_chooses_are_told_without_cures_of_a_codebook(tmp_path: Path) -> None:
    svq.presets.fsq(2, [4, 4]).save_pretrained(tmp_path)
    np.save(tmp_path / "z.npy", np.full((64, 2), 0.1, dtype=np.float32))
    result = examine(tmp_path, data=tmp_path / "z.npy")
    (table,) = result["quantizers"]
    assert len(table["unused"]) == 15
    finding = next(each for each in table["findings"] if each["name"] == "unused")
    assert finding["seen"] == "15 of 16 codes (94%) are unused: none of 64 vectors chose them"
    assert finding["cures"] == [
        "a learned map onto the grid: svq.FiniteScalarQuantizer(..., transform=svq.Projection(2))"
    ]


def test_codes_that_are_too_many_to_be_counted_leave_the_error(tmp_path: Path) -> None:
    svq.presets.lfq(3, 40).save_pretrained(tmp_path)
    (table,) = examine(tmp_path, data=embeddings(tmp_path, torch.randn(8, 3)))["quantizers"]
    assert table["values"]["vectors"] == 400
    assert table["values"]["error"] > 0
    assert not {"used", "usage", "perplexity"} & table["values"].keys()


@pytest.mark.parametrize("channel_dim", [-1, 1, 2, 0, -2])
def test_embeddings_are_rows_whatever_axis_the_layer_takes(channel_dim: int, tmp_path: Path) -> None:
    layer = svq.presets.vq_vae(3, 8, channel_dim=channel_dim)
    layer.save_pretrained(tmp_path)
    z = embeddings(tmp_path, layer.codes())
    result = examine(tmp_path, data=z)
    assert result["quantizers"][0]["values"]["vectors"] == 400


def test_a_network_is_judged_by_the_quantizer_inside(tmp_path: Path) -> None:
    network = Autoencoder(svq.presets.vq_vae(4, 8, channel_dim=1), hidden=8)
    network.save_pretrained(tmp_path)
    z = embeddings(tmp_path, network.quantizer.codes())
    result = examine(tmp_path, data=z)
    assert [table["name"] for table in result["quantizers"]] == ["quantizer"]
    assert result["quantizers"][0]["values"]["vectors"] == 400


def test_a_bare_state_of_our_own_is_read_with_its_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 16)
    layer(torch.randn(512, 4))
    with torch.no_grad():
        layer.state_dict()["codebook.reset.idle"][:12] = 9.0
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    for name in ("layer.pt", "layer.safetensors"):
        result = examine(tmp_path / name)
        assert result["what"] == "VectorQuantizer, read as the layout 'straightvq' at ''"
        assert result["quantizers"][0]["unused"] == list(range(12))
        assert names(result) == ["unused"]
    z = embeddings(tmp_path, layer.codes())
    assert examine(tmp_path / "layer.pt", data=z)["quantizers"][0]["values"]["vectors"] == 800


def test_every_quantizer_of_a_state_has_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = torch.nn.ModuleDict(
        {
            "top": svq.presets.ema(4, 16),
            "bottom": svq.presets.soundstream(4, 8, num_quantizers=2),
            "sides": svq.ProductQuantizer(6, [svq.presets.vq_vae(3, 8), svq.presets.vq_vae(3, 8)]),
        }
    )
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "network.ckpt")
    result = examine(tmp_path / "network.ckpt")
    found = {table["name"]: table["values"]["codes"] for table in result["quantizers"]}
    parts = {f"{side}.parts.{number}": 8 for side in ("bottom", "sides") for number in range(2)}
    assert found == {"top": 16, **parts}
    assert result["what"] == "5 quantizers, read as the layout 'straightvq'"
    z = embeddings(tmp_path, torch.randn(8, 4))
    assert main(["doctor", str(tmp_path / "network.ckpt"), "--data", str(z)]) == 2
    assert "`data` needs one quantizer that takes it. Got 5" in capsys.readouterr().err


def test_two_quantizers_of_another_library_have_their_names_too(tmp_path: Path) -> None:
    state = {f"{name}._embedding.weight": torch.randn(8, 3) for name in ("vq.parameters", "vq.bottom")}
    torch.save(state, tmp_path / "two.pth")
    assert [table["name"] for table in examine(tmp_path / "two.pth")["quantizers"]] == ["vq.parameters", "vq.bottom"]


def test_an_affine_map_needs_its_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = svq.presets.vq_ste_pp(4, 16)
    with torch.no_grad():
        layer.codebook.parametrization.shift.fill_(1.0)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    assert main(["doctor", str(tmp_path / "layer.pt")]) == 2
    assert "`lr_scale` must be given" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "layer.pt"), "--lr-scale", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["quantizers"][0]["values"]["norm_median"]
    assert told in [pytest.approx(norm, rel=1e-5) for norm in layer.codes().norm(dim=1).tolist()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    options = ["--config", "digits", "--config", "tiny", "--runs", str(runs), "--name", "small", "--keep_every", "4"]
    assert main(["fit", *options]) == 0
    return runs / "small"


def test_a_run_is_measured_on_its_own_test_set(run: Path) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    result = examine(run, num_examples=10)
    assert result["what"].startswith("Reconstruction (best")
    assert result["data"] == "the first 10 examples of its test set"
    (table,) = result["quantizers"]
    assert table["name"] == "model.quantizer"
    assert table["values"]["vectors"] == 10 * 16
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_one_checkpoint_of_a_run_can_be_asked_for(run: Path) -> None:
    for file, words in ((run / "last.ckpt", "(last, step 8)"), (run / "checkpoints" / "step-00000004.ckpt", "step 4)")):
        result = examine(file, num_examples=10)
        assert result["what"].endswith(words)
        assert result["quantizers"][0]["values"]["vectors"] == 10 * 16


def test_a_checkpoint_away_from_its_run_is_judged_by_its_codes(run: Path, tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes((run / "best.ckpt").read_bytes())
    result = examine(tmp_path / "best.ckpt")
    assert result["what"] == "VectorQuantizer, read as the layout 'straightvq' at 'model.quantizer.'"
    (within,) = examine(run, num_examples=10)["quantizers"]
    for name in ("codes", "nearest_min", "norm_max", "spread"):
        assert result["quantizers"][0]["values"][name] == within["values"][name]


def test_a_run_whose_data_are_gone_is_judged_by_its_codes(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "best.ckpt").write_bytes((run / "best.ckpt").read_bytes())
    text = (run / "config.yaml").read_text()
    place = text.index("data:")
    assert "source: digits" in text[place:]
    (copy / "config.yaml").write_text(
        text[:place] + text[place:].replace("source: digits", "source: /nowhere/at/all", 1)
    )
    result = examine(copy)
    assert result["data"] is None
    assert result["notes"][0].startswith("its own data could not be read, pass --data: ")
    assert "used" not in result["quantizers"][0]["values"]


def test_what_is_none_of_these_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("a text")
    (tmp_path / "bad.pth").write_bytes(b"no file of torch's")
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    svq.presets.vq_vae(4, 8).save_pretrained(tmp_path / "layer")
    np.save(tmp_path / "wide.npy", np.ones((3, 5), dtype=np.float32))
    kinds = (
        "must be the folder of a run, one that save_pretrained wrote, or a file in .ckpt, .safetensors, .pt, .pth, .bin"
    )
    for words, sentence in (
        ([tmp_path / "nowhere"], f"{kinds}. Got nothing there"),
        ([tmp_path], f"{kinds}. Got a folder of other things"),
        ([tmp_path / "text.txt"], f"{kinds}. Got another file"),
        ([tmp_path / "bad.pth"], "must be a file of torch.save with tensors and plain values alone"),
        ([tmp_path / "other.pth"], "must hold a quantizer of a known layout. Got 1 entries"),
        ([tmp_path / "layer", "--data", tmp_path / "wide.npy"], "must be embeddings of the width 4"),
        ([tmp_path / "layer", "--data", tmp_path / "text.txt"], "must end in .parquet or .npy"),
        ([tmp_path / "layer", "--num-examples", "0"], "`num_examples` must be an integer >= 1"),
    ):
        assert main(["doctor", *map(str, words)]) == 2
        assert sentence in capsys.readouterr().err


def test_broken_codes_are_told_without_sending_data(tmp_path: Path) -> None:
    layer = svq.presets.vq_vae(4, 8)
    with torch.no_grad():
        layer.codebook.raw[2] = float("nan")
    layer.save_pretrained(tmp_path)
    np.save(tmp_path / "z.npy", np.ones((50, 4), dtype=np.float32))
    result = examine(tmp_path, data=tmp_path / "z.npy")
    assert names(result) == ["not_finite"]
    assert "1 of 8 codes are NaN or infinite" in page(result)
