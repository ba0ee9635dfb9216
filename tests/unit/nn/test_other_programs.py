"""What other people's programs do around a layer: threads, averages, functional calls, partial states, schedules."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import straightvq as svq

PRESETS = [svq.presets.vq_vae, svq.presets.ema, svq.presets.vq_ste_pp, svq.presets.straight]
every_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.__name__)


class Held(svq.Nearest):
    """Waits inside the evaluation rule until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_inside, self.may_go = threading.Event(), threading.Event()

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        assert not self.training
        self.is_inside.set()
        assert self.may_go.wait(60)
        return super().forward(z, codes)


def test_a_layer_trains_while_another_thread_encodes() -> None:
    held = Held()
    layer = svq.VectorQuantizer(4, svq.Codebook(8, update=svq.EMAUpdate()), assigner=held)
    thread = threading.Thread(target=lambda: layer.encode(torch.randn(16, 4)))
    thread.start()
    assert held.is_inside.wait(60)
    assert layer.training
    assert all(part.training for part in layer.modules())
    layer.eval()
    held.may_go.set()
    thread.join()
    assert not any(part.training for part in layer.modules())


def test_a_module_that_stands_twice_in_a_layer_is_one_in_evaluation_too() -> None:
    class Twice(svq.Transform):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Dropout(0.5)

        def forward(self, z: Tensor) -> Tensor:
            assert self.first is self.second
            return self.second(z)

        def inverse(self, codes: Tensor) -> Tensor:
            return codes

        def codebook_dim(self, dim: int) -> int:
            return dim

    layer = svq.VectorQuantizer(4, svq.Codebook(64), transform=Twice())
    z = torch.randn(32, 4)
    assert torch.equal(layer.encode(z), layer.encode(z))
    assert layer.transform.first.training


@every_preset
def test_a_layer_is_averaged_with_its_buffers(preset: Callable[..., svq.VectorQuantizer]) -> None:
    layer = preset(8, 16)
    average = AveragedModel(layer, use_buffers=True)
    for _ in range(5):
        layer(torch.randn(64, 8))
        average.update_parameters(layer)
    out = average.module.train()(torch.randn(64, 8))
    assert torch.isfinite(out.quantized).all()


def test_a_codebook_that_was_frozen_for_a_while_is_not_frozen_in_its_average_for_ever() -> None:
    layer = svq.presets.ema(8, 16)
    average = AveragedModel(layer, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(layer)
    layer.codebook.freeze()
    average.update_parameters(layer)
    average.update_parameters(layer)
    layer.load_state_dict(average.module.state_dict())
    assert layer.codebook.is_still
    layer.codebook.unfreeze()
    for _ in range(3):
        average.update_parameters(layer)
    layer.load_state_dict(average.module.state_dict())
    assert not layer.codebook.is_still


@every_preset
@pytest.mark.parametrize("training", [True, False])
def test_a_functional_call_does_what_the_layer_does(preset: Callable[..., svq.VectorQuantizer], training: bool) -> None:
    layer, z = preset(8, 16), torch.randn(64, 8)
    layer(z)
    layer.train(training)
    state = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    expected = layer(z)
    out = torch.func.functional_call(layer, state, (z,))
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized)


@every_preset
def test_the_loss_alone_reaches_every_parameter(preset: Callable[..., svq.VectorQuantizer]) -> None:
    layer = preset(8, 16)
    layer(torch.randn(64, 8, requires_grad=True)).loss.backward()
    assert [name for name, p in layer.named_parameters() if p.requires_grad and p.grad is None] == []


class Watching(svq.Loss):
    """Lets autograd keep the table."""

    name, trains, takes_context = "watching", "encoder", True

    def __init__(self) -> None:
        super().__init__(1.0)

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None, context: Any = None) -> Tensor:
        return (z @ context.codes.T).logsumexp(1).mean()


@pytest.mark.parametrize("update", [svq.EMAUpdate, svq.AlternatedUpdate, svq.GradientUpdate])
def test_two_forwards_before_one_backward_where_a_loss_keeps_the_table(update: type[svq.Update]) -> None:
    book = svq.Codebook(64, init=svq.NormalInit(5.0), update=update(), reset=svq.DeadCodeReset(patience=1))
    layer = svq.VectorQuantizer(8, book, losses=[svq.CommitmentLoss(), svq.CodebookLoss(), Watching()])
    z = torch.randn(64, 8, requires_grad=True)
    (layer(z).loss + layer(z).loss + layer.eval()(z).loss + layer.train()(z).loss).backward()
    assert torch.isfinite(z.grad).all()


def test_codes_are_a_copy() -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(4))
    layer.codebook.codes().zero_()
    assert layer.codes().any()


@pytest.mark.parametrize("codes", [torch.full((4, 2), 1e300, dtype=torch.float64), torch.full((4, 2), 1e19)])
@pytest.mark.parametrize("parametrization", [svq.Direct, svq.RunningAffine])
def test_codes_that_would_overflow_are_refused(codes: Tensor, parametrization: type[svq.Parametrization]) -> None:
    layer = svq.VectorQuantizer(2, svq.Codebook(4, parametrization=parametrization()))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(svq.errors.NonFiniteError, match=r"at most 2\.8e\+14 in size.*Got 1e\+"):
        layer.set_codes(codes)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_table_that_is_loaded_alone_is_kept() -> None:
    trained, layer = svq.presets.ema(8, 16), svq.presets.ema(8, 16)
    trained(torch.randn(64, 8))
    layer.load_state_dict({"codebook.raw": trained.codebook.raw.clone()}, strict=False)
    layer.codebook.update.decay = 0.9999
    layer(torch.randn(64, 8))
    torch.testing.assert_close(layer.codes(), trained.codes(), rtol=0, atol=1e-2)


def test_an_assigned_state_in_half_precision_becomes_float32() -> None:
    layer = svq.presets.ema(8, 16, codebook_dim=4)
    half = {name: v.half() if v.is_floating_point() else v for name, v in layer.state_dict().items()}
    layer.load_state_dict(half, assign=True)
    kinds = {v.dtype for v in layer.state_dict().values() if v.is_floating_point()}
    assert kinds == {torch.float32}
    assert all(v.dtype == torch.float16 for v in half.values() if v.is_floating_point()), "the caller's are untouched"


def test_a_quantizer_of_ones_own_keeps_its_parameters_in_float32() -> None:
    class Signs(svq.Quantizer):
        codebook_size = 16

        def __init__(self) -> None:
            super().__init__(4)
            self.scale = nn.Linear(4, 4)

        def bound(self, x: Tensor) -> Tensor:
            return self.scale(x)

        def assign(self, z: Tensor) -> Tensor:
            return ((z > 0).long() << torch.arange(4)).sum(1)

        def lookup(self, indices: Tensor) -> Tensor:
            return ((indices[:, None] >> torch.arange(4)) & 1).float() * 2 - 1

    out = Signs().half()(torch.randn(5, 4).half())
    assert out.quantized.dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: svq.RunningAffine(), {"momentum": -7}),
        (lambda: svq.RunningAffine(), {"shrink": "much"}),
        (lambda: svq.RunningAffine(), {"groups": 0}),
        (lambda: svq.Affine(), {"lr_scale": -3}),
        (lambda: svq.CommitmentLoss(), {"weight": 9.0}),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused_when_it_is_set(
    make: Callable[[], Any], change: dict[str, Any]
) -> None:
    part = make()
    (name, value) = next(iter(change.items()))
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        setattr(part, name, value)


def test_groups_of_a_living_map_stay() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(8, parametrization=svq.Affine(groups=2)))
    with pytest.raises(ValueError, match="`groups` must stay 2"):
        layer.codebook.parametrization.groups = 4


def test_an_inner_step_keeps_one_of_its_rates() -> None:
    update = svq.presets.straight(8, 16).codebook.update
    with pytest.raises(ValueError, match="one of `fraction`, `lr`, `memory` must be given"):
        update.fraction = None


def test_an_estimator_that_begins_to_train_codes_that_take_no_gradient_is_refused() -> None:
    layer = svq.presets.ema(8, 16)
    layer.estimator.sync = 1.0
    with pytest.raises(ValueError, match="EMAUpdate takes none"):
        layer(torch.randn(4, 8))


def test_a_map_to_another_number_of_codes_is_refused() -> None:
    class Longer(svq.Parametrization):
        def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
            return size + 1, dim

        def forward(self, raw: Tensor) -> Tensor:
            return raw

    with pytest.raises(ValueError, match=r"Longer must start with codes of shape \(16, 8\). Got \(17, 8\)"):
        svq.VectorQuantizer(8, svq.Codebook(16, parametrization=Longer()))


def test_a_map_with_an_inverse_keeps_one_row_for_each_code() -> None:
    class Halves(svq.Parametrization):
        def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
            return size, 2, dim // 2

        def forward(self, raw: Tensor) -> Tensor:
            return raw.flatten(1)

        def inverse(self, codes: Tensor) -> Tensor:
            return codes.unflatten(1, (2, -1))

    with pytest.raises(ValueError, match=r"one row for each of the 16 codes. Got shape \(16, 2, 4\)"):
        svq.VectorQuantizer(8, svq.Codebook(16, parametrization=Halves()))


def test_an_optimizer_is_attached_to_a_table_with_other_rows_than_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mixed(svq.Parametrization):
        def raw_shape(self, size: int, dim: int) -> tuple[int, ...]:
            return 3, dim

        def _make(self, size: int, dim: int) -> None:
            self.register_buffer("mix", torch.randn(size, 3))

        def forward(self, raw: Tensor) -> Tensor:
            return self.mix @ raw

    monkeypatch.setattr("straightvq.nn.optimizers.can_ask", lambda _: False)  # as on an accelerator
    layer = svq.VectorQuantizer(4, svq.Codebook(16, parametrization=Mixed()))
    optimizer = torch.optim.Adam(layer.parameters())
    svq.attach_optimizer(optimizer, layer)
    for _ in range(2):
        layer(torch.randn(64, 4)).loss.backward()
        optimizer.step()


def test_an_init_that_gives_other_codes_than_asked_for_is_refused() -> None:
    class One(svq.KMeansInit):
        def fit(self, z: Tensor, size: int, generator: torch.Generator) -> Tensor:
            return z[:1]

    layer = svq.VectorQuantizer(4, svq.Codebook(8, init=One()))
    with pytest.raises(ValueError, match=r"`One`: `fit` must give codes of shape \(8, 4\). Got \(1, 4\)"):
        layer(torch.randn(64, 4))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    class Each(svq.Loss):
        name, trains = "each", "encoder"

        def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
            return z.square().sum(1)

    layer = svq.VectorQuantizer(4, svq.Codebook(8), losses=[svq.CodebookLoss(), Each(1.0)])
    with pytest.raises(ValueError, match=r"the loss 'each' must be a scalar. Got shape \(5,\)"):
        layer(torch.randn(5, 4))


def test_a_layer_is_pickled_without_its_process_group() -> None:
    layer = svq.presets.ema(4, 8)
    layer.codebook.process_group = threading.Lock()  # which cannot be pickled, as a group cannot
    assert pickle.loads(pickle.dumps(layer)).codebook.process_group is None
    layer.codebook.process_group = False
    assert pickle.loads(pickle.dumps(layer)).codebook.process_group is False


def test_the_largest_unsigned_index_is_no_masked_one() -> None:
    layer = svq.presets.vq_vae(4, 8)
    with pytest.raises(ValueError, match=r"must be in \[0, 8\)"):
        layer.decode(torch.tensor([2**64 - 1], dtype=torch.uint64))


def test_a_level_names_its_range() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(8))
    with pytest.raises(ValueError, match=r"below 8\. Got 20"):
        layer.lookup(torch.tensor([3, 20]))


def test_streams_of_like_names_are_independent() -> None:
    draws = svq.nn.draws.Draws(svq.nn.draws.Clock())
    first, second = (draws.normal(name, (4,), torch.float32) for name in ("Aa", "BB"))
    assert not torch.equal(first, second)


def test_a_device_by_default_does_not_move_the_draws_of_an_init() -> None:
    layer, z = svq.presets.straight(8, 16), torch.randn(64, 8)
    torch.set_default_device("meta")
    try:
        out = layer(z)
    finally:
        torch.set_default_device(None)
    assert torch.isfinite(out.loss)
