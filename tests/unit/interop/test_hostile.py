"""Files and states that nobody should trust, and arguments that make no sense: sentences, and no code run."""

import contextlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq import interop
from straightvq.errors import StraightVQError

STATE = {"_embedding.weight": torch.randn(8, 3)}
TRACE: list[str] = []


class Planted:
    """Runs a function of its own when a careless reader unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return TRACE.append, ("run",)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(folder: Path) -> Path:
    torch.save(STATE, folder / "whole.pth")
    return write(folder / "a.pth", (folder / "whole.pth").read_bytes()[:-400])


def planted(folder: Path) -> Path:
    torch.save({"state_dict": STATE, "hook": Planted()}, folder / "a.pth")
    return folder / "a.pth"


def long_header(folder: Path) -> Path:
    return write(folder / "a.safetensors", struct.pack("<Q", 10 * 2**30) + b"{}")


def long_tensor(folder: Path) -> Path:
    header = b'{"_embedding.weight":{"dtype":"F32","shape":[4000000,1000],"data_offsets":[0,16000000000]}}'
    return write(folder / "a.safetensors", struct.pack("<Q", len(header)) + header)


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "It is damaged, or holds other objects"),
    "planted": (planted, "which are not loaded"),
    "bare_pickle": (lambda f: write(f / "a.pt", pickle.dumps(Planted())), "which are not loaded"),
    "empty": (lambda f: write(f / "a.pth", b""), "It is damaged"),
    "text": (lambda f: write(f / "a.pth", b"hello"), "It is damaged"),
    "header_of_ten_gigabytes": (long_header, "must be a safetensors file"),
    "tensor_that_is_not_there": (long_tensor, "must be a safetensors file"),
    "short_safetensors": (lambda f: write(f / "a.safetensors", b"\x01"), "must be a safetensors file"),
    "missing": (lambda f: f / "none.pth", "there is no file"),
    "folder": (lambda f: f, "there is no file"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused_and_runs_nothing(name: str, tmp_path: Path) -> None:
    make, words = FILES[name]
    path = make(tmp_path)
    TRACE.clear()
    with pytest.raises(ValueError, match=words):
        interop.from_file(path)
    assert TRACE == []


def test_file_of_a_list_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"must hold a dict of tensors by name\. Got list"):
        interop.from_file(tmp_path / "a.pth")


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_tensors_are_found_where_scripts_put_them(key: str | None, tmp_path: Path) -> None:
    torch.save(STATE if key is None else {"epoch": 3, key: STATE}, tmp_path / "a.pth")
    found = interop.from_file(str(tmp_path / "a.pth"), channel_dim=1)
    assert torch.equal(found.quantizer.codebooks()[0].codes(), STATE["_embedding.weight"])
    assert found.quantizer.channel_dim == 1


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(STATE, tmp_path / "a.safetensors")
    found = interop.from_file(tmp_path / "a.safetensors")
    assert torch.equal(found.quantizer.codebooks()[0].codes(), STATE["_embedding.weight"])


# --- states -----------------------------------------------------------------------------------------------------------

NAN = torch.full((8, 3), float("nan"))
STATES: dict[str, tuple[Any, type[Exception], str]] = {
    "list": ([1], TypeError, "must be a dict of tensors by name. Got list"),
    "number": ({"_embedding.weight": 3}, TypeError, "Got int at '_embedding.weight'"),
    "key": ({3: torch.ones(1)}, TypeError, "Got Tensor at 3"),
    "empty": ({}, ValueError, "must hold a quantizer of a known layout. Got 0 entries: none"),
    "unknown": ({"conv.weight": torch.ones(1)}, ValueError, "Got 1 entries: 'conv.weight'"),
    "rank": ({"_embedding.weight": torch.ones(8)}, ValueError, r"floating point of the shape \(any, any\)"),
    "integers": ({"_embedding.weight": torch.ones(8, 3).long()}, ValueError, "Got torch.int64"),
    "no_data": ({"_embedding.weight": torch.ones(8, 3, device="meta")}, ValueError, "with data. Got one w"),
    "sparse": ({"_embedding.weight": torch.ones(8, 3).to_sparse()}, ValueError, "with data. Got torch.sparse_coo"),
    "nan": ({"_embedding.weight": NAN}, ValueError, "must be finite"),
    "one_code": ({"_embedding.weight": torch.ones(1, 3)}, ValueError, "at least 2 codes. Got 1"),
    "half_an_average": (
        STATE | {"_ema_cluster_size": torch.ones(8)}, ValueError, "must have an entry '_ema_w'"
    ),
    "other_size": (
        STATE | {"_ema_cluster_size": torch.ones(7), "_ema_w": NAN}, ValueError, r"of the shape \(8\)"
    ),
    "negative_weight": (
        STATE | {"_ema_cluster_size": -torch.ones(8), "_ema_w": torch.ones(8, 3)}, ValueError, "finite and at least 0"
    ),
    "two": (
        {"a._embedding.weight": torch.ones(8, 3), "b._embedding.weight": torch.ones(8, 3)},
        ValueError, "Got 'vqvae' at 'a.', 'vqvae' at 'b.'",
    ),
    "leftover": (
        {"vq._embedding.weight": torch.ones(8, 3), "vq.scale": torch.ones(1)}, ValueError, "Got 'scale' as well"
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_any_floating_dtype_is_read(dtype: torch.dtype) -> None:
    codes = STATE["_embedding.weight"].to(dtype)
    found = interop.from_state_dict({"_embedding.weight": codes}).quantizer.codebooks()[0].codes()
    assert torch.equal(found, codes.to(found.dtype))


@pytest.mark.parametrize("name", STATES)
def test_bad_state_is_refused(name: str) -> None:
    state, error, words = STATES[name]
    with pytest.raises(error, match=words):
        interop.from_state_dict(state)


def residual(make: Callable[[], svq.Quantizer]) -> svq.ResidualQuantizer:
    return svq.ResidualQuantizer(8, [make() for _ in range(2)])


def reversed_signs(kind: Any) -> svq.Quantizer:
    return kind(4, bits=4, transform=interop.Reversed())


SETS: dict[str, tuple[Callable[[], svq.Quantizer], dict[str, Any]]] = {
    "straightvq": (lambda: svq.presets.vq_ste_pp(8, 16), {}),
    "vqvae": (lambda: svq.presets.ema(8, 16), {}),
    "vqtorch": (
        lambda: svq.VectorQuantizer(8, svq.Codebook(16, parametrization=svq.Affine(groups=2))), {"lr_scale": 2.0}
    ),
    "vqtorch.group": (
        lambda: svq.ProductQuantizer(8, [svq.presets.vq_vae(4, 16) for _ in range(2)]), {"num_quantizers": 2}
    ),
    "vqtorch.residual": (lambda: residual(lambda: svq.presets.vq_vae(8, 16)), {"num_quantizers": 2}),
    "vqp": (lambda: svq.presets.ema(8, 16, codebook_dim=4), {}),
    "vqp.residual": (lambda: residual(lambda: svq.presets.ema(8, 16)), {}),
    "vqp.grouped_residual": (
        lambda: svq.ProductQuantizer(16, [residual(lambda: svq.presets.ema(8, 16)) for _ in range(2)]), {}
    ),
    "vqp.fsq": (
        lambda: svq.FiniteScalarQuantizer(8, [5, 4], form="atanh", transform=svq.Projection(2)), {"levels": [5, 4]}
    ),
    "vqp.lfq": (lambda: svq.LookupFreeQuantizer(8, 4, transform=svq.Projection(4)), {}),
    "vqp.bsq": (lambda: reversed_signs(svq.BinarySphericalQuantizer), {}),
    "vqp.simvq": (lambda: svq.VectorQuantizer(8, svq.Codebook(16, parametrization=svq.Linear())), {}),
    "taming": (lambda: svq.presets.ema(8, 16), {}),
    "encodec": (lambda: residual(lambda: svq.presets.ema(8, 16)), {}),
    "dac": (lambda: svq.presets.dac(8, 16, num_quantizers=2, codebook_dim=4), {}),
    "mimi": (
        lambda: interop.SplitQuantizer(8, [residual(lambda: svq.presets.ema(8, 16)) for _ in range(2)]), {}
    ),
}  # fmt: skip


def damaged(value: torch.Tensor) -> list[Any]:
    """A tensor in every wrong form."""
    rows = value.reshape(1, *value.shape) if value.ndim == 0 else torch.cat([value, value[:1]])
    forms = [value.reshape(-1), value[None], rows, value[:0] if value.ndim else value[None][:0], value.bool()]
    return [*forms, value.float() * float("nan"), -value.float() * 1e30]


@pytest.mark.parametrize("layout", SETS)
def test_any_one_damaged_entry_gives_a_sentence_or_a_quantizer(layout: str) -> None:
    make, settings = SETS[layout]
    state = interop.to_state_dict(make(), layout)
    interop.from_state_dict(state, layout, **settings)
    for entry, value in state.items():
        without = {name: other for name, other in state.items() if name != entry}
        for broken in (without, *(state | {entry: form} for form in damaged(value))):
            with contextlib.suppress(StraightVQError):
                interop.from_state_dict(broken, layout, **settings)


def test_every_layout_is_damaged_above() -> None:
    assert SETS.keys() == interop.LAYOUTS.keys() - {"diffusers"}


def test_prefix_and_layout_say_which_of_several() -> None:
    two = {f"{name}._embedding.weight": torch.randn(size, 3) for name, size in (("top", 4), ("bottom", 8))}
    assert interop.from_state_dict(two, prefix="bottom.").quantizer.codebook_size == 8
    both = two | {"vq.codebook.weight": torch.randn(5, 3)}
    assert interop.from_state_dict(both, "vqtorch").quantizer.codebook_size == 5
    with pytest.raises(ValueError, match=r"of a known layout at 'middle\.'"):
        interop.from_state_dict(two, prefix="middle.")


SETTINGS: list[tuple[str, Any, type[Exception], str]] = [
    ("layout", "vqva", ValueError, r"Got 'vqva'. Did you mean 'vqvae'\?"),
    ("layout", 3, TypeError, "must be the name of a layout"),
    ("prefix", 3, TypeError, "`prefix` must be a string"),
    ("channel_dim", "last", TypeError, "`channel_dim` must be an integer"),
    ("dim", 0, ValueError, "`dim` must be an integer >= 1"),
    ("num_quantizers", 2.5, TypeError, "`num_quantizers` must be an integer"),
    ("shared", 1, TypeError, "`shared` must be True or False"),
    ("symmetric", "no", TypeError, "`symmetric` must be True or False"),
    ("unit_norm", 1, TypeError, "`unit_norm` must be True or False"),
    ("decay", 1.0, ValueError, "`decay` must be a finite number"),
    ("lr_scale", 0, ValueError, "`lr_scale` must be a finite number"),
    ("levels", 8, TypeError, "`levels` must be a list"),
    ("levels", [8, 5], ValueError, "`levels` must be left out"),
    ("decay", 0.9, ValueError, "`decay` must be left out"),
]


@pytest.mark.parametrize(("name", "value", "error", "words"), SETTINGS)
def test_bad_setting_is_refused(name: str, value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        interop.from_state_dict(STATE, **{name: value})


def test_export_refuses_what_a_layout_cannot_hold() -> None:
    with pytest.raises(TypeError, match="must be an instance of Quantizer"):
        interop.to_state_dict(torch.nn.Linear(2, 2), "vqvae")
    with pytest.raises(ValueError, match="`layout` must be one of"):
        interop.to_state_dict(svq.presets.ema(4, 8), "none")
    for layout in interop.LAYOUTS:
        with pytest.raises(ValueError, match=f"the layout '{layout}' cannot hold|'taming' cannot hold"):
            interop.to_state_dict(svq.presets.best_rq(4, 8), layout)
    with pytest.raises(ValueError, match="it searches by the euclidean distance"):
        interop.to_state_dict(svq.VectorQuantizer(4, svq.Codebook(8), assigner=svq.Nearest("cosine")), "vqvae")


def test_report_says_what_was_read_dropped_and_different() -> None:
    codes = torch.randn(8, 3)
    averages = {"q.quantize.embedding.cluster_size": torch.ones(8), "q.quantize.embedding.embed_avg": codes}
    report = str(interop.from_state_dict({"q.quantize.embedding.weight": codes, "conv": torch.ones(1)} | averages))
    assert "VectorQuantizer from the layout 'taming', entries at 'q.quantize.'." in report
    assert "dropped q.quantize.embedding.embed_avg: it is the code times its weight" in report
    assert "1 entries of the network around it." in report
