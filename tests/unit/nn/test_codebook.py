import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import straightvq as svq


def quantizer(size: int = 8, dim: int = 4, **slots: object) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    return svq.VectorQuantizer(dim, svq.Codebook(size, **slots))


def test_raw_table_is_a_parameter_only_if_a_gradient_reaches_it() -> None:
    assert isinstance(quantizer().codebook.raw, nn.Parameter)
    assert not isinstance(quantizer(update=svq.EMAUpdate()).codebook.raw, nn.Parameter)
    assert not isinstance(quantizer(update=svq.AlternatedUpdate()).codebook.raw, nn.Parameter)
    synchronised = svq.VectorQuantizer(
        4, svq.Codebook(8, update=svq.AlternatedUpdate()), estimator=svq.StraightThrough(0.1)
    )
    assert isinstance(synchronised.codebook.raw, nn.Parameter)


def test_width_follows_the_transform() -> None:
    layer = svq.VectorQuantizer(6, svq.Codebook(8), transform=svq.Projection(3))
    assert layer.codebook.dim == 3
    assert layer.codes().shape == (8, 3)
    assert layer.codebook_size == 8


def test_given_width_must_agree() -> None:
    assert svq.VectorQuantizer(4, svq.Codebook(8, 4)).codebook.dim == 4
    with pytest.raises(ValueError, match=r"`dim` must equal the width 3 that the quantizer's transform gives. Got 4"):
        svq.VectorQuantizer(6, svq.Codebook(8, 4), transform=svq.Projection(3))


def test_learned_map_with_ema_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"Affine.*EMAUpdate.*RunningAffine"):
        svq.Codebook(8, parametrization=svq.Affine(), update=svq.EMAUpdate())


def test_data_free_init_keeps_the_codes_of_the_constructor() -> None:
    layer = quantizer()
    before = layer.codes()
    layer(torch.randn(30, 4))
    assert torch.equal(before, layer.codes())


def test_write_changes_the_given_rows_only() -> None:
    affine = svq.Affine(2.0)
    layer = quantizer(parametrization=affine)
    affine.scale.data.fill_(0.3)
    affine.shift.data.fill_(-0.2)
    before, raw = layer.codes(), layer.codebook.raw.detach().clone()
    rows = torch.arange(8) % 3 == 0
    new = torch.randn(8, 4)
    layer.codebook.write(new, rows)
    torch.testing.assert_close(layer.codes()[rows], new[rows])
    assert torch.equal(layer.codebook.raw[~rows], raw[~rows])
    assert torch.equal(layer.codes()[~rows], before[~rows])


def test_set_codes_starts_all_state_of_the_rows_over() -> None:
    ema, reset = svq.EMAUpdate(), svq.DeadCodeReset(5)
    layer = quantizer(update=ema, reset=reset)
    for number in range(3):
        layer(torch.randn(30, 4) + number)
    layer.set_codes(torch.randn(8, 4))
    assert (ema.cluster_size == 1).all()
    assert (reset.idle == 0).all()
    assert layer.codebook.rewritten.all()


def test_returned_codes_are_a_copy() -> None:
    layer = quantizer()
    layer.codes().fill_(9.0)
    assert not (layer.codes() == 9.0).any()
    given = torch.randn(8, 4)
    layer.set_codes(given)
    kept = given.clone()
    given.fill_(5.0)
    assert torch.equal(layer.codes(), kept)


def test_set_codes_takes_other_dtypes() -> None:
    layer = quantizer()
    codes = torch.randn(8, 4, dtype=torch.float64)
    layer.set_codes(codes)
    assert layer.codes().dtype == torch.float32
    layer.set_codes(codes.half())
    assert torch.equal(layer.codes(), codes.half().float())


def test_freezing_clears_gradients_and_unfreezing_restores_training() -> None:
    layer = quantizer(parametrization=svq.Affine())
    layer(torch.randn(30, 4)).loss.backward()
    layer.codebook.freeze()
    assert all(p.grad is None and not p.requires_grad for p in layer.codebook.parameters())
    out = layer(torch.randn(30, 4, requires_grad=True))
    assert out.terms["codebook"].requires_grad is False
    out.loss.backward()
    layer.codebook.unfreeze()
    layer(torch.randn(30, 4)).loss.backward()
    assert all(p.grad is not None for p in layer.codebook.parameters())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_frozen_codes_are_bit_identical_under_decay_and_momentum(kind: str) -> None:
    layer = quantizer(parametrization=svq.Affine(), reset=svq.DeadCodeReset(2))
    encoder = nn.Linear(4, 4)
    parameters = [*layer.parameters(), *encoder.parameters()]
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    else:
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)
    before = layer.codes()
    for number in range(12):
        if number == 4:
            assert not torch.equal(before, layer.codes())
            layer.codebook.freeze()
            before = layer.codes()
        optimizer.zero_grad(set_to_none=False)
        out = layer(encoder(torch.randn(30, 4)))
        (out.quantized.square().mean() + out.loss).backward()
        optimizer.step()
    assert torch.equal(before, layer.codes())


def test_freezing_before_the_first_batch_forbids_the_init() -> None:
    layer = quantizer(init=svq.KMeansInit(), update=svq.EMAUpdate())
    layer.codebook.freeze()
    before = layer.codes()
    layer(torch.randn(100, 4))
    assert torch.equal(before, layer.codes())
    layer.codebook.unfreeze()
    layer(torch.randn(100, 4))
    assert not torch.equal(before, layer.codes())


def test_freezing_between_backward_and_step_holds() -> None:
    layer = quantizer()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    layer(torch.randn(30, 4)).loss.backward()
    before = layer.codes()
    layer.codebook.freeze()
    optimizer.step()
    assert torch.equal(before, layer.codes())


def test_loading_a_frozen_state_clears_pending_gradients() -> None:
    frozen, layer = quantizer(), quantizer()
    frozen.codebook.freeze()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(30, 4)).loss.backward()
    layer.load_state_dict(frozen.state_dict())
    before = layer.codes()
    optimizer.step()
    assert torch.equal(before, layer.codes())


def lerp_parameters_and_buffers(average: nn.Module, model: nn.Module, weight: float) -> None:
    """As torch.optim.swa_utils and ema_pytorch do it."""
    for mine, other in zip(average.parameters(), model.parameters(), strict=True):
        mine.data.lerp_(other.data, weight)
    for mine, other in zip(average.buffers(), model.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(other, weight)


def lerp_state(average: nn.Module, model: nn.Module, weight: float) -> None:
    """As timm does it, entry by entry of the state dict; what is no number is copied."""
    for mine, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        mine.lerp_(other, weight) if mine.is_floating_point() else mine.copy_(other)


def lerp_floats(average: nn.Module, model: nn.Module, weight: float) -> None:
    """As plain loops do it: floating-point entries only."""
    state = model.state_dict()
    for name, mine in average.state_dict().items():
        if mine.is_floating_point():
            mine.lerp_(state[name], weight)


@pytest.mark.parametrize("average", [lerp_parameters_and_buffers, lerp_state, lerp_floats], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [svq.presets.straight, svq.presets.ema, svq.presets.vq_ste_pp, svq.presets.vq_vae])
def test_averages_work_from_the_first_step_and_go_on_training_from_the_average(make: Any, average: Any) -> None:
    torch.manual_seed(0)
    layer = make(4, 32)
    averaged = copy.deepcopy(layer)
    for _ in range(8):  # the init takes more than one batch
        layer(torch.randn(20, 4) + 5)
        average(averaged, layer, 0.5)
    assert torch.equal(averaged.eval()(z := torch.randn(6, 4)).quantized, averaged.decode(averaged.encode(z)))
    before = averaged.codes()
    averaged.train()(torch.randn(200, 4) + 100)
    moved = (averaged.codes() - before).norm(dim=1)
    assert (moved < 60).sum() >= 30, "an init would have thrown the average away"


def test_averaged_models_of_torch_follow_a_codebook_whose_init_is_not_finished() -> None:
    for use_buffers in (False, True):
        layer = quantizer(size=32, init=svq.KMeansInit())
        averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=use_buffers)
        for _ in range(8):
            layer(torch.randn(20, 4))
            averaged.update_parameters(layer)
        z = torch.randn(6, 4)
        assert torch.equal(averaged.eval()(z).quantized, layer.eval()(z).quantized)


def test_loading_goes_on_with_an_unfinished_init() -> None:
    layer = quantizer(size=32, init=svq.KMeansInit())
    layer(torch.randn(20, 4))
    assert layer.codebook.filled.sum() == 20
    fresh = quantizer(size=32, init=svq.KMeansInit())
    fresh.load_state_dict(layer.state_dict())
    z = torch.randn(20, 4)
    layer(z), fresh(z)
    assert torch.equal(fresh.codes(), layer.codes())
    assert fresh.codebook.is_ready == layer.codebook.is_ready == 1


@pytest.mark.parametrize("how", ["keys that fit", "caught error"])
@pytest.mark.parametrize("change", ["size", "width"])
def test_a_table_that_was_not_loaded_is_initialised(how: str, change: str) -> None:
    torch.manual_seed(0)
    trained = svq.presets.ema(4, 64)
    trained(torch.randn(600, 4))
    trained.codebook.freeze()
    layer = svq.presets.ema(4, 128) if change == "size" else svq.presets.ema(6, 64)
    state = trained.state_dict()
    if how == "keys that fit":
        own = layer.state_dict()
        layer.load_state_dict({k: v for k, v in state.items() if v.shape == own[k].shape}, strict=False)
    else:
        with pytest.raises(RuntimeError, match="size mismatch"):
            layer.load_state_dict(state)
    out = layer(torch.randn(1000, layer.dim) + 50)
    assert len(out.indices.unique()) > 0.7 * layer.codebook_size, "random codes would share two to eight"


def test_loading_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        quantizer(8).load_state_dict(quantizer(9).state_dict())


def test_copies_of_a_codebook_are_codebooks_of_their_own() -> None:
    layer = quantizer(init=svq.KMeansInit())
    twin = copy.deepcopy(layer)
    assert layer.codebook._handle[0] != twin.codebook._handle[0]
    twin(torch.randn(100, 4))
    assert not layer.codebook.is_ready


def test_seeds_of_two_layers_differ_and_follow_the_global_seed() -> None:
    torch.manual_seed(3)
    first, second = svq.presets.ema(4, 8), svq.presets.ema(4, 8)
    torch.manual_seed(3)
    again = svq.presets.ema(4, 8)
    assert first.clock.seed != second.clock.seed
    assert first.clock.seed == again.clock.seed


def test_default_dtype_of_the_program_is_followed() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        layer = svq.presets.vq_ste_pp(4, 8)
        assert all(v.dtype == torch.float64 for v in layer.state_dict().values() if v.is_floating_point())
        layer(torch.randn(30, 4)).loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)


def test_representation_shows_the_parts() -> None:
    text = repr(quantizer(update=svq.EMAUpdate(0.9), reset=svq.DeadCodeReset()))
    for part in (
        "size=8, dim=4",
        "Direct()",
        "NormalInit(std=1.0)",
        "EMAUpdate(decay=0.9)",
        "DeadCodeReset(patience=20",
    ):
        assert part in text


@pytest.mark.parametrize("method", ["codes", "freeze", "unfreeze"])
def test_codebook_without_an_owner_says_so(method: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match="quantizer"):
        getattr(svq.Codebook(8), method)()


def test_sums_over_an_assignment_keep_their_digits_far_from_the_origin() -> None:
    layer = quantizer(size=2, dim=1, update=svq.EMAUpdate())
    codes = torch.tensor([[1e6], [3e6]])
    z = torch.tensor([[1e6 + 0.0625], [1e6 + 0.125], [3e6 - 1.0]])
    counts, pull = layer.codebook.pull(z, codes, torch.tensor([0, 0, 1]))
    assert counts.tolist() == [2.0, 1.0]
    assert pull.flatten().tolist() == [0.1875, -1.0], "sums of the vectors themselves would be rounded to an eighth"


def test_codes_set_by_hand_are_followed_from_the_first_batch() -> None:
    layer = quantizer(init=svq.KMeansInit(), parametrization=svq.RunningAffine(momentum=0.5))
    layer.set_codes(torch.randn(8, 4) - 3)
    before = layer.codebook.parametrization.mean_z.clone()
    layer(torch.ones(64, 4))
    torch.testing.assert_close(layer.codebook.parametrization.mean_z, 0.5 * (before + 1))


def test_a_codebook_that_could_not_be_made_says_why_each_time() -> None:
    book = svq.Codebook(9, parametrization=svq.Affine(groups=2))
    for _ in range(2):
        with pytest.raises(ValueError, match="`groups` must divide the codebook's size 9"):
            svq.VectorQuantizer(4, book)


def test_gradients_of_earlier_forwards_do_not_move_a_rewritten_row() -> None:
    torch.manual_seed(0)
    layer = quantizer(size=4, dim=2, reset=svq.DeadCodeReset(patience=1, noise=0.0))
    layer.set_codes(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [60.0, 60.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.tensor([[50.5, 50.5], [60.5, 60.5], [0.0, 0.5], [1.0, 1.5]])).loss.backward()
    layer.codebook.reset.idle[2] = 9
    before = layer.codebook.raw.grad.clone()
    layer(torch.tensor([[0.0, 0.1]]))  # micro-batch two: row 2 is due
    after = layer.codebook.raw.grad
    assert after is not None
    assert before[2].abs().sum() > 0
    assert (after[2] == 0).all()
    assert torch.equal(after[3], before[3])
    reset = layer.codes()[2].clone()
    optimizer.step()
    assert torch.equal(layer.codes()[2], reset)


@pytest.mark.parametrize("scale", [1.5, 1e-5])
def test_rows_that_a_map_expresses_anew_are_new_ones_to_an_optimizer(scale: float) -> None:
    affine = svq.Affine()
    layer = quantizer(parametrization=affine)
    affine.scale.data.fill_(scale - 1)
    layer.codebook.rewritten.fill_(False)
    before = layer.codes()
    layer.codebook.write(before, torch.arange(8) == 3)
    torch.testing.assert_close(layer.codes(), before)
    assert layer.codebook.rewritten.tolist() == 8 * [scale < 1]
