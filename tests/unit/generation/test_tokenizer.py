"""`Tokenizer`: frozen, safe to load, and codes that are remembered only for the same weights and pixels."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import straightvq as svq
from straightvq.cli import main
from straightvq.generation import Tokenizer
from straightvq.models import Autoencoder

CPU = torch.device("cpu")


def make_model(seed: int = 0, distance: str = "euclidean") -> Autoencoder:
    torch.manual_seed(seed)
    quantizer = svq.VectorQuantizer(4, svq.Codebook(16), assigner=svq.Nearest(distance), channel_dim=1)
    return Autoencoder(quantizer, hidden=8, blocks=1)


def make_images(seed: int = 0, number: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)


def count_encodings(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda images: calls.append(len(images)) or encode(images))
    return calls


def test_it_encodes_and_decodes_as_the_network_in_evaluation() -> None:
    model = make_model().train()
    tokenizer = Tokenizer(model)
    x = torch.rand(2, 3, 8, 8)
    out = model(x)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(tokenizer.encode(x), out.quantizer.indices)
    assert torch.equal(tokenizer.decode(tokenizer.encode(x)), out.reconstruction.clamp(0, 1))


@pytest.mark.parametrize(
    "quantizer",
    [
        svq.presets.straight_residual(4, 16, num_quantizers=2, channel_dim=1),
        svq.ProductQuantizer(4, [svq.presets.vq_vae(2, 16) for _ in range(2)], channel_dim=1),
        svq.ResidualQuantizer(4, [svq.presets.vq_vae(4, 16)], channel_dim=1),
        svq.RandomProjectionQuantizer(4, 16, 4, num_codebooks=2, channel_dim=1),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_several_tokens_per_position_are_refused_with_what_to_do(quantizer: svq.Quantizer) -> None:
    model = Autoencoder(quantizer, hidden=8, blocks=1)
    count = quantizer.num_quantizers
    told = rf"one token per position. Got {type(quantizer).__name__} with {count}. Train .* with a single quantizer"
    with pytest.raises(ValueError, match=told):
        Tokenizer(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_more_codes_than_a_transformer_has_rows_for_are_refused() -> None:
    model = Autoencoder(svq.presets.lfq(40, 40, channel_dim=1), hidden=8, blocks=1)
    with pytest.raises(ValueError, match=r"at most 16,777,216 codes.*Got LookupFreeQuantizer with 1,099,511,627,776"):
        Tokenizer(model)


def test_remembered_codes_are_fresh_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images()
    fresh = Tokenizer(make_model()).encode(images.float() / 255)
    for encodings in ([5], []):
        tokenizer = Tokenizer(make_model(), tmp_path / "cache")
        calls = count_encodings(tokenizer, monkeypatch)
        for _ in range(2):
            tokens = tokenizer.encode_all(images, CPU)
            assert tokens.dtype == torch.int32
            assert torch.equal(tokens, fresh)
        assert calls == encodings


def test_other_weights_other_settings_or_other_pixels_are_encoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, cache = make_images(), tmp_path / "cache"
    Tokenizer(make_model(), cache).encode_all(images, CPU)
    other = images.clone()
    other[3, 1, 2, 2] ^= 1
    cases = [(make_model(), pixels) for pixels in (other, images[:4], images.flip(0))]
    cases += [(make_model(1), images), (make_model(0, "cosine"), images)]
    for model, pixels in cases:
        tokenizer = Tokenizer(model, cache)
        calls = count_encodings(tokenizer, monkeypatch)
        assert torch.equal(tokenizer.encode_all(pixels, CPU), Tokenizer(model).encode(pixels.float() / 255))
        assert calls == [len(pixels)]


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_memory_is_made_anew(damage: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_model(), tmp_path)
    fresh = tokenizer.encode_all(make_images(), CPU)
    (file,) = tmp_path.iterdir()
    if damage == "other":
        save_file({"tokens": torch.zeros(2, 2, 2, dtype=torch.int32)}, file)
    else:
        os.truncate(file, 0 if damage == "empty" else 20)
    assert torch.equal(tokenizer.encode_all(make_images(), CPU), fresh)
    assert torch.equal(load_file(file)["tokens"], fresh)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    tokenizer = Tokenizer(make_model(), tmp_path / "cache")
    assert tokenizer.encode_all(make_images(), CPU).shape == (5, 2, 2)
    assert len(tokenizer.encode_all(make_images(number=0), CPU)) == 0


def test_fingerprint_is_that_of_the_weights() -> None:
    assert Tokenizer(make_model()).fingerprint == Tokenizer(make_model()).fingerprint
    model = make_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    assert Tokenizer(model).fingerprint != Tokenizer(make_model()).fingerprint


def test_bad_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`Tokenizer`: `model` must be an instance of AutoencoderBase"):
        Tokenizer(nn.Identity())
    with pytest.raises(ValueError, match=r"`Tokenizer`: there is no folder '.*nowhere'"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"`Tokenizer`: '.*' is not a run's folder: it has no config.yaml"):
        Tokenizer.load(tmp_path)


def test_the_checkpoint_that_is_named_is_loaded_and_no_other_is_read(tmp_path: Path) -> None:
    configs = ("--config", "digits", "--config", "tiny")
    assert main(["fit", *configs, "--runs", str(tmp_path), "--name", "run"]) == 0
    run = tmp_path / "run"
    best = Tokenizer.load(run / "best.ckpt").fingerprint
    content = torch.load(run / "best.ckpt", weights_only=True)
    content["state_dict"]["model.quantizer.codebook.raw"] += 1
    torch.save(content, run / "averaged.ckpt")  # of the same step, and first in the alphabet
    (run / "last.ckpt").write_bytes(b"damaged")
    assert Tokenizer.load(run).fingerprint == best
    assert Tokenizer.load(run / "best.ckpt").fingerprint == best
    assert Tokenizer.load(run / "averaged.ckpt").fingerprint != best
    with pytest.raises(ValueError, match=r"last.ckpt' cannot be read as a checkpoint"):
        Tokenizer.load(run / "last.ckpt")


def test_objects_in_a_checkpoint_are_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "executed").touch, ())

    (tmp_path / "config.yaml").write_text("model: {}\ndata: {}\n")
    torch.save({"state_dict": {}, "global_step": 1, "evil": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"`Tokenizer`: .* cannot be read as a checkpoint"):
        Tokenizer.load(tmp_path)
    assert not (tmp_path / "executed").exists()
