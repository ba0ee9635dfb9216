"""What layouts share: smoothing by hand, weights on the way out."""

import pytest
import torch

import straightvq as svq
from straightvq import interop
from straightvq.interop.tables import smoothed, weights_of


def test_smoothing_keeps_the_total() -> None:
    # (N + eps) / (sum N + K eps) * sum N = (0 + 1) / (3 + 2) * 3 and (3 + 1) / (3 + 2) * 3.
    assert smoothed(torch.tensor([0.0, 3.0]), eps=1.0).tolist() == pytest.approx([0.6, 2.4])


def test_layer_without_averages_weighs_one_vector_each() -> None:
    assert weights_of(svq.presets.vq_vae(4, 8)).tolist() == [1.0] * 8


def test_exported_averages_are_what_the_library_divides() -> None:
    layer = svq.presets.ema(4, 8)
    layer.codebook.update.cluster_size.copy_(torch.tensor([1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0]))
    state = interop.to_state_dict(layer, "vqp")
    divided = state["_codebook.embed_avg"][0] / smoothed(state["_codebook.cluster_size"][0])[:, None]
    torch.testing.assert_close(divided, layer.codes())
