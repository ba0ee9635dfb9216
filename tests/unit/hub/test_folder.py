"""What is written, and what is said of folders that are damaged, hostile, or of something else."""

import errno
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import straightvq as svq
from straightvq.models import Autoencoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    svq.presets.ema(4, 8).save_pretrained(tmp_path / "layer")
    return tmp_path / "layer"


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def write(folder: Path, content: Any) -> None:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def change(*path: Any, to: Any) -> Callable[[Path], None]:
    """Writes a value somewhere into the config."""

    def act(folder: Path) -> None:
        content = config(folder)
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        write(folder, content)

    return act


def reweigh(act: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Changes the tensors."""

    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        act(state)
        save_file(state, folder / "model.safetensors")

    return change


def replace_weights(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


class Runs:
    """What a pickle can do to whoever reads it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs()))


HEADER = json.dumps({"codebook.raw": {"dtype": "F32", "shape": [1 << 31, 1], "data_offsets": [0, 1 << 33]}}).encode()
TENSORS = "must be a safetensors file. It is damaged, or none"
OTHER = "model.safetensors is of another module than config.json describes: it "
NOT_MADE = "config.json describes nothing that can be made: "
CLASSES = "class_path must be that of a module in straightvq, "

HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json: it was not made by save_pretrained"),
    "no JSON": (lambda f: write(f, "class_path: x"), "is not readable as JSON"),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "is not readable as JSON"),
    "nested without end": (lambda f: write(f, "[" * 100_000), "is not readable as JSON"),
    "a number without end": (lambda f: write(f, '{"a": ' + "9" * 10_000 + "}"), "is not readable as JSON"),
    "a huge config": (lambda f: write(f, " " * (1 << 24) + "{}"), "must be smaller than 16,777,216 bytes"),
    "a list": (lambda f: write(f, [1]), "must describe a module. Got list"),
    "nothing": (lambda f: write(f, {}), "a part must have class_path and init_args. Got none"),
    "a part, no module": (
        lambda f: write(f, {"class_path": "straightvq.training.OptimizerSettings", "init_args": {}}),
        "must describe a module. Got OptimizerSettings",
    ),
    "code": (change("class_path", to="os.system"), CLASSES),
    "code of torch's": (change("class_path", to="torch.hub.load"), CLASSES),
    "a function": (change("class_path", to="straightvq.replace"), CLASSES),
    "a module that would run": (change("class_path", to="straightvq.__main__"), CLASSES),
    "a private class": (change("class_path", to="straightvq.interop.convert.Layout"), CLASSES),
    "a path as a class": (change("class_path", to="straightvq/../../x.VectorQuantizer"), CLASSES),
    "a number as a class": (change("class_path", to=3), CLASSES),
    "code inside": (change("init_args", "codebook", "class_path", to="builtins.exec"), CLASSES),
    "a part of another kind": (
        change("init_args", "assigner", to={"class_path": "straightvq.Identity", "init_args": {}}),
        NOT_MADE + "`VectorQuantizer`: `assigner` must be an instance of Assigner",
    ),
    "another argument": (
        change("init_args", "dims", to=4),
        NOT_MADE + "straightvq.VectorQuantizer takes no argument 'dims'. Did you mean 'dim'?",
    ),
    "an impossible argument": (change("init_args", "dim", to="wide"), NOT_MADE + "`VectorQuantizer`: `dim` must be an"),
    "too few arguments": (lambda f: write(f, config(f) | {"init_args": {}}), NOT_MADE),
    "arguments as a list": (change("init_args", to=[4]), NOT_MADE + "a part must have class_path and init_args"),
    "more codes than a computer holds": (
        change("init_args", "codebook", "init_args", "size", to=10**12),
        OTHER + "has codebook.filled (8,) instead of (1000000000000,)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "a pickle": (as_pickle, "pytorch_model.bin may run code when it is read, and is not"),
    "a pickle under that name": (replace_weights(pickle.dumps(Runs())), TENSORS),
    "an empty file": (replace_weights(b""), TENSORS),
    "a header of ten gigabytes": (replace_weights(struct.pack("<Q", 10 << 30) + b"{}"), TENSORS),
    "a tensor of eight gigabytes": (replace_weights(struct.pack("<Q", len(HEADER)) + HEADER), TENSORS),
    "a header of no JSON": (replace_weights(struct.pack("<Q", 4) + b"\xff\xff\xff\xff"), TENSORS),
    "a cut file": (lambda f: replace_weights((f / "model.safetensors").read_bytes()[:-1])(f), TENSORS),
    "a missing tensor": (reweigh(lambda s: s.pop("codebook.raw")), OTHER + "lacks codebook.raw"),
    "a tensor too many": (reweigh(lambda s: s.update(x=torch.ones(1))), OTHER + "also has x"),
    "another shape": (
        reweigh(lambda s: s.update({"codebook.raw": torch.ones(8, 5)})),
        OTHER + "has codebook.raw (8, 5) instead of (8, 4)",
    ),
    "integers as codes": (
        reweigh(lambda s: s.update({"codebook.raw": torch.ones(8, 4).long()})),
        "model.safetensors must hold codebook.raw as torch.float32. Got torch.int64",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_that_is_not_whole_is_refused_in_a_sentence(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    act, words = HOSTILE[name]
    act(folder)
    with pytest.raises(ValueError, match="from_pretrained") as caught:
        svq.from_pretrained(folder)
    assert isinstance(caught.value, svq.errors.StraightVQError)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)  # which folder it is
    assert not Path("ran").exists()


def test_a_state_of_another_grid_is_refused(tmp_path: Path) -> None:
    svq.FiniteScalarQuantizer(2, [4, 4], form="symmetric").save_pretrained(tmp_path)
    change("init_args", "form", to="paper")(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit what config\.json describes: .*form=0"):
        svq.from_pretrained(tmp_path)


def test_the_config_of_an_earlier_version_may_lack_what_has_a_default(folder: Path) -> None:
    content = config(folder)
    del content["init_args"]["channel_dim"], content["straightvq_version"]
    write(folder, content)
    assert isinstance(svq.from_pretrained(folder), svq.VectorQuantizer)


def test_nothing_is_written_of_what_could_not_be_made_again(tmp_path: Path) -> None:
    class Own(svq.Estimator):
        def forward(self, z: Any, code: Any) -> Any:
            return code

    changed = svq.presets.vq_vae(4, 8)
    changed.extra = nn.Linear(2, 2)
    retrained = svq.presets.vq_vae(4, 8)
    raw = retrained.codebook.raw.detach()
    del retrained.codebook.raw
    retrained.codebook.register_buffer("raw", raw)
    of_a_function: Any = Autoencoder(svq.presets.vq_vae(4, 8, channel_dim=1), hidden=8)
    of_a_function.hidden = abs
    infinite: Any = Autoencoder(svq.presets.vq_vae(4, 8, channel_dim=1), hidden=8)
    infinite.hidden = float("inf")
    refused: list[tuple[Any, str]] = [
        (svq.VectorQuantizer(4, svq.Codebook(8), estimator=Own()), "Own: of a module of your own, save the quantizer"),
        (changed, "beside the state of a new one, its own also has extra.bias, extra.weight"),
        (retrained, "its own has codebook.raw trained in one of the two alone"),
        (svq.presets.fsq(4, [3, 3]).to("meta"), "must be tensors. Got one without data at"),
        (of_a_function, "arguments must be numbers, texts, lists and parts. Got builtin_function_or_method"),
        (infinite, "numbers must be finite. Got inf"),
    ]
    for module, words in refused:
        with pytest.raises((ValueError, TypeError)) as caught:
            module.save_pretrained(tmp_path / "new")
        assert words in str(caught.value)
        assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = svq.presets.ema(4, 8)

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_weights_in_half_precision_leave_the_codes_at_float32(tmp_path: Path) -> None:
    network = Autoencoder(svq.presets.ema(4, 8, channel_dim=1), hidden=8).half()
    network.save_pretrained(tmp_path)
    again = Autoencoder.from_pretrained(tmp_path)
    assert {p.dtype for p in again.encoder.parameters()} == {torch.float16}
    assert again.quantizer.codes().dtype == torch.float32
    reweigh(lambda s: s.update({k: v.half() for k, v in s.items() if v.is_floating_point()}))(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).quantizer.codes().dtype == torch.float32


def test_a_process_that_has_imported_nothing_else_loads_it(folder: Path) -> None:
    code = f"import straightvq as svq; print(type(svq.from_pretrained({str(folder)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "VectorQuantizer\n"


def test_a_missing_package_is_named_with_what_brings_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r'`from_pretrained`: .*`pip install "straightvq\[hub\]"` brings what it needs'
    ):
        svq.from_pretrained(folder)
    with pytest.raises(ImportError, match="`save_pretrained`: "):
        svq.presets.ema(4, 8).save_pretrained(folder)


def test_a_class_that_its_package_does_not_offer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svq.interop, "Hidden", svq.VectorQuantizer, raising=False)
    change("class_path", to="straightvq.interop.Hidden")(folder)
    with pytest.raises(ValueError, match="class_path must be that of a module in"):
        svq.from_pretrained(folder)
