"""What is measured of the layer on the test set, against values worked out by hand."""

from typing import Any, cast

import lightning
import pytest
import torch
from torch import Tensor

import straightvq as svq
from straightvq.studies import LayerMeasures
from straightvq.studies.comparing.measures import Moments, cost

Batches = list[Tensor]


class Task(lightning.LightningModule):
    """A layer, and a head whose loss is the sum of the cubes."""

    def __init__(self, quantizer: svq.Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.logged: dict[str, float] = {}

    def latent(self, batch: Tensor) -> Tensor:
        return batch

    def head_loss(self, latent: Tensor, batch: Tensor) -> Tensor:
        return latent.pow(3).sum()

    def log_dict(self, values: Any, *args: Any, **kwargs: Any) -> None:
        self.logged |= values


def measured(task: Task, batches: Batches) -> dict[str, float]:
    measures, trainer = LayerMeasures(), cast(Any, None)
    task.eval()
    measures.on_test_start(trainer, task)
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            task.quantizer(batch)
            measures.on_test_batch_end(trainer, task, None, batch, number)
    measures.on_test_epoch_end(trainer, task)
    return task.logged


def test_values_over_all_batches_are_those_by_hand() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(4))
    layer.set_codes(torch.tensor([[0.0, 0.0], [4.0, 0.0], [50.0, 0.0], [90.0, 0.0]]))
    batches = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 1.0], [5.0, 0.0]])]
    found = measured(Task(layer), batches)
    # z: x 1, 0, 4, 5 (mean 2.5, squares 17), y 0, 1, 1, 0 (mean .5, squares 1); each vector is 1 from its code.
    assert found["test/distortion"] == pytest.approx(4 / 18)
    assert found["test/usage"] == 0.5
    assert found["test/effective_dim"] == pytest.approx(1)  # all codes lie on a line
    # The gradient 3 x^2 at z is (3, 0), (0, 3), and 0 at the code 0: all of it is missing.
    assert found["test/gradient_gap"] == pytest.approx(1)
    assert found["test/layer_ms"] > 0
    assert set(found) == {f"test/{name}" for name in ("distortion", "usage", "effective_dim", "gradient_gap")} | {
        "test/layer_ms",
        "test/layer_mib",
    }


def test_channels_may_be_on_any_axis_and_wide_codes_are_measured_in_the_layers_input() -> None:
    torch.manual_seed(0)
    layer = svq.presets.straight(16, 8, channel_dim=1, codebook_dim=2)
    z = torch.randn(4, 16, 3, 3)
    found = measured(Task(layer), [z])
    flat = z.movedim(1, -1).reshape(-1, 16)
    error = (flat - layer(z).quantized.detach().movedim(1, -1).reshape(-1, 16)).square().sum()
    assert found["test/distortion"] == pytest.approx(float(error / (flat - flat.mean(0)).square().sum()), rel=1e-5)


def test_measuring_changes_nothing() -> None:
    torch.manual_seed(0)
    layer = svq.presets.ema(4, 8)
    layer.train()(torch.randn(64, 4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.get_rng_state()
    measured(Task(layer), [torch.randn(8, 4, generator=torch.Generator().manual_seed(1))])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_bypassed_quantizer_and_a_network_without_one_have_no_values() -> None:
    task = Task(svq.presets.vq_vae(2, 4))
    with svq.bypass(task):
        assert measured(task, [torch.randn(3, 2)]) == {}
    without = lightning.LightningModule()
    measures, trainer = LayerMeasures(), cast(Any, None)
    measures.on_test_start(trainer, without)
    measures.on_test_batch_end(trainer, without, None, None, 0)
    measures.on_test_epoch_end(trainer, without)


def test_effective_dim_is_that_of_the_covariance_over_all_batches() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([5.0, 2.0, 1.0]) + 1e6
    moments = Moments(3)
    for part in x.split([1, 60, 39]):
        moments.add(part)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T))
    expected = eigenvalues.sum().square() / eigenvalues.square().sum()
    assert moments.effective_dim() == pytest.approx(float(expected), rel=1e-6)
    assert Moments(2).effective_dim() == 0


def test_memory_is_state_and_what_is_kept_for_backward() -> None:
    layer, z = svq.presets.vq_vae(1024, 64), torch.randn(32, 1024)
    layer(z)
    table = sum(tensor.nbytes for tensor in layer.state_dict().values()) / 2**20
    found = cost(layer, z)["layer_mib"]
    assert table < found < table + 20 * z.nbytes / 2**20
