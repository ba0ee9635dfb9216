"""`Autoencoder`: shapes, scales, independence of the batch, tokens."""

import pytest
import torch

import straightvq as svq
from straightvq.models import Autoencoder


def make_model(dim: int = 8, **kwargs: int) -> Autoencoder:
    torch.manual_seed(0)
    quantizer = svq.presets.vq_vae(dim, 16, channel_dim=1)
    return Autoencoder(quantizer, **{"hidden": 16, "blocks": 1, **kwargs})


@pytest.mark.parametrize("downsample", [1, 2, 4, 8])
def test_latent_is_smaller_by_downsample(downsample: int) -> None:
    model = make_model(downsample=downsample)
    x = torch.rand(2, 3, 16, 24)
    out = model(x)
    assert out.reconstruction.shape == x.shape
    assert out.z.shape == (2, 8, 16 // downsample, 24 // downsample)
    assert out.quantizer.indices.shape == (2, 16 // downsample, 24 // downsample)


def test_embeddings_start_at_scale_one_and_images_at_mid_grey() -> None:
    torch.manual_seed(0)
    model = Autoencoder(svq.presets.vq_vae(64, 16, channel_dim=1))
    x = torch.rand(16, 3, 32, 32)
    assert 0.7 < model.encode(x).std().item() < 1.4
    assert model(x).reconstruction.mean().item() == pytest.approx(0.5, abs=0.2)


def test_an_image_does_not_depend_on_its_batch_even_in_training() -> None:
    model, x = make_model(), torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(model.encode(x)[:1], model.encode(x[:1]))
    torch.testing.assert_close(model.decode(model.encode(x))[:1], model.decode(model.encode(x[:1])))


def test_tokenize_changes_nothing_even_in_training_mode() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.tokenize(torch.rand(2, 3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("hidden", [2, 6, 17, 40])
def test_any_width_can_be_normalized(hidden: int) -> None:
    assert make_model(hidden=hidden)(torch.rand(1, 3, 8, 8)).reconstruction.shape == (1, 3, 8, 8)
