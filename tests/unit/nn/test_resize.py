import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq

DIM = 6
Make = Callable[[int], svq.VectorQuantizer]


def layer(size: int, dim: int = DIM, **parts: Any) -> svq.VectorQuantizer:
    return svq.VectorQuantizer(dim, svq.Codebook(size, **parts))


PRESETS: dict[str, Make] = {
    "vq_vae": lambda k: svq.presets.vq_vae(DIM, k),
    "ema": lambda k: svq.presets.ema(DIM, k),
    "vq_ste_pp": lambda k: svq.presets.vq_ste_pp(DIM, k),
    "vq_ste_pp-l2": lambda k: svq.presets.vq_ste_pp(DIM, k, l2=True),
    "vq_ste_pp-sgd": lambda k: svq.presets.vq_ste_pp(DIM, k, lr=2.0, momentum=0.9),
    "straight": lambda k: svq.presets.straight(DIM, k),
    "straight-narrow": lambda k: svq.presets.straight(DIM, k, codebook_dim=3, sync=0.5),
}
GROUPED: dict[str, Make] = {
    "vq_ste_pp-groups": lambda k: svq.presets.vq_ste_pp(DIM, k, groups=8),
    "running": lambda k: layer(k, parametrization=svq.RunningAffine(groups=4), update=svq.EMAUpdate()),
    "chain": lambda k: layer(k, parametrization=svq.Chain([svq.RunningAffine(groups=4), svq.UnitNormCodes()])),
}
every = pytest.mark.parametrize("make", (PRESETS | GROUPED).values(), ids=PRESETS | GROUPED)


def train(quantizer: nn.Module, steps: int = 6, dim: int = DIM, seed: int = 1) -> None:
    """Some steps with an optimizer of its own, on data beside the origin."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in quantizer.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 0.01) if parameters else None
    for _ in range(steps):
        out = quantizer(3 + torch.randn(400, dim, generator=generator))
        if optimizer is not None:
            optimizer.zero_grad()
            (out.loss + out.quantized.square().mean()).backward()
            optimizer.step()


def trained(make: Make, size: int) -> svq.VectorQuantizer:
    torch.manual_seed(0)
    quantizer = make(size)
    train(quantizer)
    return quantizer


def resized(state: dict[str, Tensor], module: nn.Module, **options: Any) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return svq.resize_codebooks(state, module, **options)


def moved(quantizer: svq.VectorQuantizer, make: Make, size: int, **options: Any) -> svq.VectorQuantizer:
    """A layer of another size with the state of ``quantizer``."""
    other = make(size)
    other.load_state_dict(resized(quantizer.state_dict(), other, **options))
    return other


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def set_use(quantizer: svq.VectorQuantizer, order: list[int]) -> None:
    """As if the codes had been used in this order, the most used first."""
    book, place = quantizer.codebook, torch.empty(len(order))
    place[order] = torch.arange(len(order), dtype=torch.float32)
    if isinstance(book.update, svq.EMAUpdate):
        book.update.cluster_size.copy_(len(order) - place)
    else:
        assert isinstance(book.reset, svq.DeadCodeReset)
        book.reset.idle.copy_(place)


# --- values -----------------------------------------------------------------------------------------------------------


@every
def test_old_codes_stay_and_come_back(make: Make) -> None:
    old = trained(make, 64)
    large = moved(old, make, 128)
    if make in PRESETS.values():
        assert torch.equal(large.codes()[:64], old.codes()), "to the bit, where no map changes"
    torch.testing.assert_close(large.codes()[:64], old.codes(), rtol=1e-6, atol=2e-6)
    book = large.codebook
    if isinstance(book.update, svq.EMAUpdate):
        book.update.cluster_size[64:] = 0
    if book.reset is not None:
        book.reset.idle[64:] = 1e6
    small = moved(large, make, 64)
    torch.testing.assert_close(small.codes(), old.codes(), rtol=1e-6, atol=2e-6)
    if make in PRESETS.values():
        kept = small.state_dict()
        if isinstance(book.update, svq.EMAUpdate):
            kept["codebook.reset.idle"] = old.codebook.reset.idle
        assert same(kept, old.state_dict()), "growing and shrinking gives the whole state back"


@every
def test_no_two_codes_are_equal_and_copies_are_near(make: Make) -> None:
    old = trained(make, 64)
    codes = moved(old, make, 256).codes()
    assert codes.isfinite().all()
    assert len(codes.unique(dim=0)) == 256
    spread = old.codes().std(0, unbiased=False).norm()
    distance = torch.cdist(codes[64:], old.codes(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert distance.max() < 0.1 * spread
    assert distance.min() > 0


def test_copies_differ_by_the_noise_that_was_asked_for() -> None:
    make: Make = lambda k: layer(k, dim=2)  # noqa: E731
    old = make(1000)
    channels = torch.tensor([1.0, 100.0])
    old.set_codes(torch.randn(1000, 2) * channels + 1e4)
    step = moved(old, make, 2000, noise=0.05).codes()[1000:] - old.codes()
    expected = 0.05 * old.codes().std(0)
    assert (step.std(0) / expected).tolist() == pytest.approx([1, 1], rel=0.1)
    assert (step.mean(0) / expected).tolist() == pytest.approx([0, 0], abs=0.1)


@pytest.mark.parametrize("update", [svq.EMAUpdate, svq.GradientUpdate])
def test_most_used_codes_are_copied_first_and_kept(update: Callable[[], svq.Update]) -> None:
    make: Make = lambda k: layer(k, dim=1, update=update(), reset=svq.DeadCodeReset())  # noqa: E731
    old = make(4)
    old.set_codes(torch.tensor([[0.0], [10.0], [20.0], [30.0]]))
    set_use(old, [2, 0, 3, 1])
    large = moved(old, make, 10, noise=1e-3)
    assert large.codes()[:, 0].div(10).round().tolist() == [0, 1, 2, 3, 2, 0, 3, 1, 2, 0]
    assert moved(old, make, 3).codes()[:, 0].tolist() == [0, 20, 30]
    assert moved(old, make, 2).codes()[:, 0].tolist() == [0, 20]


def test_cluster_sizes_come_before_idle_times() -> None:
    make: Make = lambda k: layer(k, dim=1, update=svq.EMAUpdate(), reset=svq.DeadCodeReset())  # noqa: E731
    old = make(4)
    old.set_codes(torch.arange(4.0)[:, None])
    old.codebook.update.cluster_size.copy_(torch.tensor([1.0, 5.0, 1.0, 1.0]))
    old.codebook.reset.idle.copy_(torch.tensor([3.0, 9.0, 0.0, 2.0]))
    assert moved(old, make, 2).codes()[:, 0].tolist() == [1, 2]
    assert moved(old, make, 3).codes()[:, 0].tolist() == [1, 2, 3]


def test_without_knowledge_of_use_the_first_are_kept_and_all_copied_in_turn() -> None:
    make: Make = lambda k: layer(k, dim=1)  # noqa: E731
    old = make(3)
    old.set_codes(torch.tensor([[0.0], [10.0], [20.0]]))
    assert moved(old, make, 7, noise=1e-3).codes()[:, 0].div(10).round().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert moved(old, make, 2).codes()[:, 0].tolist() == [0, 10]


def test_state_of_a_row_follows_it_and_new_rows_start_fresh() -> None:
    make: Make = lambda k: layer(  # noqa: E731
        k, dim=2, update=svq.AlternatedUpdate(momentum=0.5), reset=svq.DeadCodeReset(), init=svq.KMeansInit()
    )
    old = make(4)
    old.set_codes(torch.randn(4, 2))
    book = old.codebook
    book.update.velocity.copy_(torch.arange(8.0).view(4, 2))
    book.reset.idle.copy_(torch.tensor([2.0, 0.0, 1.0, 3.0]))
    book.rewritten.copy_(torch.tensor([False, True, False, True]))
    grown = moved(old, make, 6).codebook
    assert grown.update.velocity.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [0, 0], [0, 0]]
    assert grown.reset.idle.tolist() == [2, 0, 1, 3, 0, 0]
    assert grown.rewritten.tolist() == [False, True, False, True, False, False]
    assert grown.filled.tolist() == [1] * 6
    shrunk = moved(old, make, 2).codebook
    assert shrunk.update.velocity.tolist() == [[2, 3], [4, 5]]
    assert shrunk.reset.idle.tolist() == [0, 1]
    assert shrunk.rewritten.tolist() == [True, False]


def test_new_codes_start_with_the_weight_of_a_new_codebook() -> None:
    make: Make = lambda k: layer(k, update=svq.EMAUpdate())  # noqa: E731
    old = make(4)
    old.codebook.update.cluster_size.copy_(torch.tensor([9.0, 8.0, 7.0, 6.0]))
    assert moved(old, make, 6).codebook.update.cluster_size.tolist() == [9, 8, 7, 6, 1, 1]


class Reminder(svq.Update):
    """An extension with state of several shapes, one of them as long as there are codes by chance."""

    loss = task = svq.GradientUpdate.loss

    def _make(self, size: int, dim: int) -> None:
        self.register_buffer("per_row", torch.rand(size, 3, 2))
        self.register_buffer("fixed", torch.zeros(4, 3))

    def step(self, table: Any, batch: Any, search: Any) -> None:
        return None


class Pairs(Reminder):
    def _make(self, size: int, dim: int) -> None:
        self.register_buffer("pairs", torch.zeros(size, size))


def test_state_of_an_extension_goes_by_rows_only_if_it_depends_on_the_size() -> None:
    make: Make = lambda k: layer(k, update=Reminder())  # noqa: E731
    old = make(4)
    old.codebook.update.fixed.fill_(7)
    new = moved(old, make, 6).codebook.update
    assert torch.equal(new.fixed, old.codebook.update.fixed)
    assert torch.equal(new.per_row[:4], old.codebook.update.per_row)
    assert torch.equal(new.per_row, moved(old, make, 6).codebook.update.per_row), "whatever the global generator"


def test_state_that_does_not_go_by_rows_is_refused() -> None:
    state = layer(4, update=Pairs()).state_dict()
    with pytest.raises(ValueError, match=r"must go by rows. Got 'update.pairs' of shape \(4, 4\)"):
        resized(state, layer(6, update=Pairs()))


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 16])
def test_codes_keep_their_value_under_the_map_of_another_group(size: int) -> None:
    make: Make = lambda k: layer(k, dim=1, parametrization=svq.Affine(groups=2))  # noqa: E731
    old = make(8)
    with torch.no_grad():
        old.codebook.parametrization.scale.copy_(torch.tensor([[1.0], [3.0]]))  # effective scales 2 and 4
        old.codebook.parametrization.shift.copy_(torch.tensor([[0.0], [8.0]]))
        old.codebook.raw.copy_(torch.arange(8.0)[:, None])
    assert old.codes()[:, 0].tolist() == [0, 2, 4, 6, 24, 28, 32, 36]
    new = moved(old, make, size)
    kept = min(size, 8)
    assert torch.equal(new.codes()[:kept], old.codes()[:kept])
    raw = [0, 1, 2, 3, 12, 14, 16, 18] if size == 16 else [0, 1, -1, -0.5]
    assert new.codebook.raw[:kept, 0].tolist() == raw
    assert torch.equal(new.codebook.parametrization.scale, old.codebook.parametrization.scale)


@pytest.mark.parametrize("scale", [-1.0, -0.9999, 1e6])
def test_codes_of_a_map_without_a_usable_inverse_are_kept(scale: float) -> None:
    make: Make = lambda k: layer(k, parametrization=svq.Affine())  # noqa: E731
    old = make(8)
    with torch.no_grad():
        old.codebook.parametrization.scale[0, 0] = scale
    new = moved(old, make, 16)
    assert torch.equal(new.codes()[:8], old.codes())
    assert new.codebook.raw.isfinite().all()


def test_lengths_of_raw_rows_on_the_sphere_are_kept() -> None:
    make: Make = lambda k: layer(k, parametrization=svq.UnitNormCodes(), reset=svq.DeadCodeReset())  # noqa: E731
    old = make(8)
    with torch.no_grad():
        old.codebook.raw.mul_(torch.arange(1.0, 9.0)[:, None])
        old.codebook.raw[5] = 0  # its direction depends on its place
    set_use(old, [7, 5, 6, 0, 1, 2, 3, 4])
    assert torch.equal(moved(old, make, 16).codebook.raw[:8], old.codebook.raw)
    small = moved(old, make, 3)
    torch.testing.assert_close(small.codes(), old.codes()[5:])
    assert torch.equal(small.codebook.raw[1:], old.codebook.raw[6:])


def test_another_number_of_groups_is_refused() -> None:
    state = layer(8, parametrization=svq.Affine(groups=2)).state_dict()
    with pytest.raises(ValueError, match=r"must fit `module` but for the number of codes.*parametrization.scale"):
        resized(state, layer(16, parametrization=svq.Affine(groups=4)))


def test_an_old_size_that_the_groups_do_not_divide_is_refused() -> None:
    state = layer(9, parametrization=svq.Affine(groups=3)).state_dict()
    with pytest.raises(ValueError, match=r"cannot have 9 codes.*must divide"):
        resized(state, layer(16, parametrization=svq.Affine(groups=4)))


class NoInverse(svq.Parametrization):
    def forward(self, raw: Tensor) -> Tensor:
        return raw.tanh()


def test_a_parametrization_without_inverse_is_refused() -> None:
    state = layer(4, parametrization=NoInverse()).state_dict()
    with pytest.raises(ValueError, match=r"must have an inverse.*NoInverse has none"):
        resized(state, layer(8, parametrization=NoInverse()))
    same_size = layer(4, parametrization=NoInverse())
    assert same(svq.resize_codebooks(state, same_size), state)


# --- training goes on -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("size", [32, 128])
def test_training_goes_on(make: Make, size: int) -> None:
    new = moved(trained(make, 64), make, size)
    before = new.codes()
    step = int(new.clock.step)
    train(new, seed=2)
    assert new.codes().isfinite().all()
    assert int(new.clock.step) == step + 6
    assert (new.codes() - before).norm(dim=1).median() < before.std(0).norm(), "no init has run again"


def test_no_init_runs_over_the_codes() -> None:
    make: Make = lambda k: layer(k, init=svq.KMeansInit(), update=svq.AlternatedUpdate(fraction=1e-6))  # noqa: E731
    old = make(8)
    old.set_codes(torch.randn(8, DIM))
    for size in (4, 16):
        new = moved(old, make, size)
        before = new.codes()
        new(100 + torch.randn(300, DIM))
        assert (new.codes() - before).abs().max() < 0.01


def test_an_init_that_has_not_run_runs_after_loading() -> None:
    make: Make = lambda k: layer(k, init=svq.KMeansInit(), update=svq.AlternatedUpdate())  # noqa: E731
    new = moved(make(8), make, 16)
    assert not new.codebook.filled.any()
    assert not new.codebook.is_ready
    new(100 + torch.randn(300, DIM))
    assert (new.codes() - 100).abs().max() < 10


def test_rows_without_a_vector_are_kept_last_and_their_copies_wait_too() -> None:
    make: Make = lambda k: layer(k, dim=1, init=svq.SampleInit(), update=svq.EMAUpdate())  # noqa: E731
    old = make(4)
    old(torch.tensor([[0.0], [10.0]]))
    assert old.codebook.filled.tolist() == [1, 1, 0, 0]
    old.codebook.update.cluster_size.copy_(torch.tensor([1.0, 2.0, 9.0, 9.0]))
    assert moved(old, make, 2).codes()[:, 0].tolist() == old.codes()[:2, 0].tolist()
    large = moved(old, make, 7)
    assert large.codebook.filled.tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert large.codebook.is_ready == 0


def test_a_frozen_codebook_stays_frozen() -> None:
    make: Make = lambda k: svq.presets.straight(DIM, k)  # noqa: E731
    old = trained(make, 64)
    old.codebook.freeze()
    new = moved(old, make, 128)
    assert new.codebook.is_still
    assert torch.equal(new.codes()[:64], old.codes())


# --- what is left alone -----------------------------------------------------------------------------------------------


@every
def test_nothing_but_the_result_is_changed_and_it_is_the_same_every_time(make: Make) -> None:
    state, module = trained(make, 64).state_dict(), make(128)
    given, own = copy.deepcopy(state), copy.deepcopy(module.state_dict())
    generator = torch.get_rng_state()
    first = resized(state, module)
    assert torch.equal(torch.get_rng_state(), generator)
    assert same(state, given)
    assert same(module.state_dict(), own)
    torch.manual_seed(5)
    assert same(resized(state, make(128)), first), "ranks agree, whatever they hold"
    for key, tensor in first.items():
        if key.startswith("codebook."):
            tensor.zero_()  # shares no memory
    assert same(state, given)
    assert same(module.state_dict(), own)


def test_codebooks_of_the_same_size_pass_without_a_warning() -> None:
    old, new = svq.presets.ema(DIM, 8), svq.presets.ema(DIM, 8)
    state = old.state_dict()
    result = svq.resize_codebooks(state, new)
    assert same(result, state)
    assert result is not state


def test_versions_beside_the_entries_are_kept() -> None:
    make = lambda k: nn.Sequential(nn.BatchNorm1d(DIM), svq.presets.ema(DIM, k))  # noqa: E731
    state: Any = make(8).state_dict()
    result: Any = resized(state, make(16))
    assert result._metadata == state._metadata


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_states_of_another_precision(dtype: torch.dtype) -> None:
    old = svq.presets.straight(DIM, 8).double()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in old.state_dict().items()}
    new = svq.presets.straight(DIM, 256).double()
    result = resized(state, new)
    new.load_state_dict(result)
    assert result["codebook.raw"].dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(new.codes()[:8], state["codebook.raw"].double())
    assert len(new.codes().unique(dim=0)) == 256


def test_a_module_without_memory_can_be_the_measure() -> None:
    old = trained(PRESETS["straight"], 64)
    with torch.device("meta"):
        measure = svq.presets.straight(DIM, 128)
    result = resized(old.state_dict(), measure)
    assert same(result, resized(old.state_dict(), svq.presets.straight(DIM, 128)))


def test_the_default_device_does_not_matter() -> None:
    state, module = trained(PRESETS["straight"], 64).state_dict(), svq.presets.straight(DIM, 128)
    expected = resized(state, module)
    with torch.device("meta"):
        result = resized(state, module)
    assert same(result, expected)


# --- equal codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, 1e-20, 1e30])
def test_equal_codes_get_copies_that_differ(value: float) -> None:
    make: Make = lambda k: layer(k, dim=2)  # noqa: E731
    old = make(2)
    with torch.no_grad():
        old.codebook.raw.fill_(value)
    codes = moved(old, make, 66).codes()
    assert len(codes.unique(dim=0)) == 65
    assert (codes - value).abs().max() <= max(1e-4 * value, 0.05 * (value == 0))


def test_copies_that_round_to_equal_codes_are_drawn_again() -> None:
    make: Make = lambda k: layer(k, dim=1)  # noqa: E731
    old = make(2)
    with torch.no_grad():  # 16 units in the last place hold few numbers
        old.codebook.raw.fill_(1.0)
    assert len(moved(old, make, 502, noise=1e-9).codes().unique(dim=0)) == 501


def test_codes_that_cannot_differ_are_refused() -> None:
    make: Make = lambda k: layer(k, dim=1, parametrization=svq.UnitNormCodes())  # noqa: E731
    with pytest.raises(ValueError, match=r"codebook 'codebook' must be able to hold 8 different codes. Got \d"):
        resized(make(4).state_dict(), make(8))


# --- names ------------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two codebooks, one of them under two names."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM)
        self.levels = nn.ModuleList([svq.presets.ema(DIM, first), svq.presets.vq_vae(DIM, second)])
        self.last = self.levels[1]


def test_every_codebook_is_told_of_once() -> None:
    old, new = Two(8, 32), Two(16, 16)
    with pytest.warns(UserWarning, match="codes") as caught:
        state = svq.resize_codebooks(old.state_dict(), new)
    assert [str(each.message) for each in caught] == [
        "Codebook 'levels.0.codebook' grows from 8 to 16 codes: the old ones stay as they are, 8 jittered copies "
        "follow, of the most used first.",
        "Codebook 'levels.1.codebook' shrinks from 32 to 16 codes: as nothing tells which are used, the first 16 are "
        "kept, at their indices.",
    ]
    assert all(each.filename == __file__ for each in caught)
    new.load_state_dict(state)
    assert torch.equal(new.encoder.weight, old.encoder.weight)
    assert torch.equal(new.levels[0].codes()[:8], old.levels[0].codes())
    assert torch.equal(new.last.codes(), old.last.codes()[:16])


def test_the_warning_says_that_indices_change() -> None:
    make: Make = lambda k: layer(k, update=svq.EMAUpdate())  # noqa: E731
    old = make(4)
    set_use(old, [3, 1, 0, 2])
    words = "shrinks from 4 to 2 codes: the 2 most used are kept, in their order, so indices change."
    with pytest.warns(UserWarning, match=re.escape(words)):
        svq.resize_codebooks(old.state_dict(), make(2))
    set_use(old, [1, 0, 3, 2])
    with pytest.warns(UserWarning, match="the 2 most used are kept, at their indices"):
        svq.resize_codebooks(old.state_dict(), make(2))


def test_a_codebook_by_itself() -> None:
    old, new = layer(8).codebook, layer(16).codebook
    with pytest.warns(UserWarning, match="^The codebook grows from 8 to 16 codes"):
        new.load_state_dict(svq.resize_codebooks(old.state_dict(), new))
    assert torch.equal(new.codes()[:8], old.codes())


# --- refused ----------------------------------------------------------------------------------------------------------


def test_other_names_are_shown() -> None:
    state = {f"model.quantizer.{key}": value for key, value in layer(8).state_dict().items()}
    with pytest.raises(ValueError, match=r"must hold 'codebook.raw'.*Got the tables 'model.quantizer.codebook.raw'"):
        resized(state, layer(16))


@pytest.mark.parametrize("size", [8, 16])
def test_another_width_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"only the number of codes may differ.*\(6,\). Got a table of shape \(8, 4\)"):
        resized(layer(8, dim=4).state_dict(), layer(size))


def test_an_empty_table_is_refused() -> None:
    state = layer(8).state_dict()
    state["codebook.raw"] = state["codebook.raw"][:0]
    with pytest.raises(ValueError, match=r"Got a table of shape \(0, 6\)"):
        resized(state, layer(16))


def test_a_state_of_other_parts_is_refused() -> None:
    state = layer(8, update=svq.EMAUpdate()).state_dict()
    with pytest.raises(ValueError, match=r"must fit `module`.*Missing key.*reset.idle"):
        resized(state, layer(16, update=svq.EMAUpdate(), reset=svq.DeadCodeReset()))


def test_codes_that_are_not_finite_are_refused() -> None:
    state = layer(8).state_dict()
    state["codebook.raw"][2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite. Got 1 of 48 values NaN or infinite"):
        resized(state, layer(16))


@pytest.mark.parametrize("size", [4, 12])
def test_what_a_loss_remembers_of_a_code_goes_with_it(size: int) -> None:
    def made(size: int) -> nn.Module:
        losses = [svq.CommitmentLoss(), svq.RegionLoss()]
        return nn.Sequential(svq.VectorQuantizer(DIM, svq.Codebook(size, reset=svq.DeadCodeReset()), losses=losses))

    old, new = made(8), made(size)
    old[0].losses[1].idle.copy_(torch.arange(8))
    old[0].codebook.reset.idle.copy_(torch.tensor([9, 0, 9, 0, 9, 0, 9, 0]))
    old[0].codebook.filled.fill_(1)
    new[0].losses[1].idle.fill_(5)  # that of the new layer is not asked
    with pytest.warns(UserWarning, match="Codebook"):
        new.load_state_dict(svq.resize_codebooks(old.state_dict(), new))
    assert new[0].losses[1].idle.tolist() == ([1, 3, 5, 7] if size == 4 else [*range(8), 0, 0, 0, 0])


def test_anchored_resets_know_which_codes_are_used() -> None:
    old, new = layer(4, reset=svq.AnchoredReset()), layer(2, reset=svq.AnchoredReset())
    old.codebook.filled.fill_(1)
    old.codebook.reset.usage.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    with pytest.warns(UserWarning, match="the 2 most used are kept"):
        new.load_state_dict(svq.resize_codebooks(old.state_dict(), new))
    assert torch.equal(new.codes(), old.codes()[[1, 3]])
    assert torch.equal(new.codebook.reset.usage, torch.tensor([0.4, 0.3]))
