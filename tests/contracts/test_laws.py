"""The laws of the layer, each run over the whole table of cases."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import straightvq as svq
from tests.contracts.cases import CASES, DIM, PRESETS, SIZE, Factory

every_case = pytest.mark.parametrize("make", list(CASES.values()), ids=list(CASES))


def data(seed: int, n: int = 70) -> Tensor:
    """Six drifting clusters: some codes die, some are shared."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(6, DIM, generator=torch.Generator().manual_seed(99))
    home = torch.randint(6, (n,), generator=generator)
    return centres[home] + 0.02 * seed + 0.3 * torch.randn(n, DIM, generator=generator)


def made(make: Factory, channel_dim: int = -1, seed: int = 0) -> svq.VectorQuantizer:
    torch.manual_seed(seed)
    return make(channel_dim=channel_dim)


class Trainer:
    """An encoder, the layer and AdamW: enough for gradients to reach everything that takes them."""

    def __init__(self, layer: svq.VectorQuantizer) -> None:
        torch.manual_seed(5)
        self.net = nn.ModuleList([nn.Linear(DIM, DIM), layer])
        groups = svq.parameter_groups(self.net, lr=3e-3, weight_decay=0.1, codebook_lr=1e-2)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        svq.attach_optimizer(self.optimizer, self.net)

    @property
    def layer(self) -> svq.VectorQuantizer:
        layer = self.net[1]
        assert isinstance(layer, svq.VectorQuantizer)
        return layer

    def step(self, number: int, n: int = 70) -> Tensor:
        z = data(number, n)
        out = self.layer(self.net[0](z))
        loss = (out.quantized - z).square().mean() + out.loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, start: int, stop: int) -> list[Tensor]:
        return [self.step(number) for number in range(start, stop)]

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save({"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.net.load_state_dict(state["net"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])


def trained(make: Factory, steps: int = 6) -> svq.VectorQuantizer:
    trainer = Trainer(made(make))
    trainer.run(0, steps)
    return trainer.layer


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_table_holds_every_preset_and_every_concrete_part() -> None:
    layers = [made(make) for make in CASES.values()]
    used = {type(module) for layer in layers for module in layer.modules()}
    for name in svq.__all__:
        item = getattr(svq, name)
        if inspect.isclass(item) and issubclass(item, nn.Module) and not inspect.isabstract(item):
            assert item in used, f"{name} appears in no case"
    for name in svq.presets.__all__:
        assert any(key.split("-")[0] == name for key in PRESETS), f"preset {name} has no case"


# --- round trip ------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(
    ("channel_dim", "shape"), [(-1, (7, 5, DIM)), (1, (2, DIM, 5, 7)), (0, (DIM, 35)), (-1, (DIM,))]
)
def test_decode_gives_what_the_evaluation_forward_gave(make: Factory, channel_dim: int, shape: tuple[int, ...]) -> None:
    layer = made(make, channel_dim)
    layer.load_state_dict(trained(make).state_dict())
    layer.eval()
    z = data(3, 200)[: torch.Size(shape).numel() // DIM].reshape(-1)[: torch.Size(shape).numel()].reshape(shape)
    with torch.no_grad():
        out = layer(z)
    assert out.quantized.shape == z.shape
    assert out.indices.shape == tuple(s for axis, s in enumerate(shape) if axis != channel_dim % len(shape))
    assert out.indices.dtype == torch.int64
    assert torch.equal(layer.encode(z), out.indices)
    assert torch.equal(layer.decode(out.indices), out.quantized)


@every_case
def test_decode_of_a_subset_agrees(make: Factory) -> None:
    layer = trained(make).eval()
    out = layer(data(3))
    torch.testing.assert_close(layer.decode(out.indices[3:8]), out.quantized[3:8].detach(), rtol=1e-6, atol=1e-6)
    single = torch.stack([layer.decode(index) for index in out.indices[:9]])
    torch.testing.assert_close(single, out.quantized[:9].detach(), rtol=1e-6, atol=1e-6)


@every_case
def test_training_forward_returns_rows_of_the_table_it_leaves_behind(make: Factory) -> None:
    layer = trained(make).train()
    for number in range(6, 12):
        out = layer(data(number))
        assert torch.equal(layer.decode(out.indices), out.quantized)


@every_case
def test_codes_quantize_to_themselves(make: Factory) -> None:
    layer = trained(make).eval()
    if isinstance(layer.transform, svq.Projection):
        pytest.skip("a projection does not return to its argument")
    out = layer(layer.codes())
    torch.testing.assert_close(out.quantized, layer.codes(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("size", [16, 100])
def test_decode_takes_every_integer_dtype(size: int, dtype: torch.dtype) -> None:
    layer = svq.presets.vq_vae(DIM, size)
    indices = torch.arange(size)
    assert torch.equal(layer.decode(indices.to(dtype)), layer.decode(indices))


def test_bytes_hold_the_indices_of_256_codes() -> None:
    layer = svq.presets.vq_vae(DIM, 256)
    assert torch.equal(layer.decode(torch.arange(256).to(torch.uint8)), layer.codes())


# --- evaluation is pure ----------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("steps", [0, 6], ids=["untrained", "trained"])
def test_evaluation_changes_no_state_and_draws_nothing(make: Factory, steps: int) -> None:
    layer = trained(make, steps).eval()
    before, random = state_of(layer), torch.get_rng_state()
    first = layer(data(50) + 5)
    layer.encode(data(51))
    layer.train().encode(data(52))
    layer.decode(first.indices)
    second = layer.eval()(data(50) + 5)
    assert_same_state(before, state_of(layer))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(first.quantized, second.quantized)
    assert torch.equal(first.loss, second.loss)


@every_case
def test_other_vectors_in_the_batch_change_no_index(make: Factory) -> None:
    layer = trained(make).eval()
    z = data(3)
    together, alone = layer.encode(z), torch.stack([layer.encode(row) for row in z])
    x = layer.transform(z).detach().double()
    codes = layer.codes().double()
    assert isinstance(layer.assigner, svq.Nearest)
    if layer.assigner.distance == "cosine":
        codes = nn.functional.normalize(codes, dim=1)
    nearest = torch.cdist(x, codes).sort(1).values
    clear = nearest[:, 1] - nearest[:, 0] > 1e-4
    assert torch.equal(together[clear], alone[clear])


@every_case
def test_losses_are_reported_in_evaluation_and_add_up(make: Factory) -> None:
    layer = trained(make).eval()
    out = layer(data(3))
    weights = {loss.name: loss.weight for loss in layer.losses if isinstance(loss, svq.Loss)}
    assert set(out.terms) == set(weights)
    assert out.loss.shape == ()
    torch.testing.assert_close(
        out.loss, sum((weights[k] * v for k, v in out.terms.items()), start=torch.tensor(0.0)) + 0.0
    )
    assert all(term > 0 and term.isfinite() for term in out.terms.values())


# --- training --------------------------------------------------------------------------------------------------------


@every_case
def test_training_forward_moves_the_codebook_unless_the_optimizer_does(make: Factory) -> None:
    layer = trained(make)
    before = layer.codes()
    layer.train()(data(40))
    moves_itself = not isinstance(layer.codebook.update, svq.GradientUpdate)
    follows = isinstance(layer.codebook.parametrization, svq.RunningAffine)
    if moves_itself or follows:
        assert not torch.equal(before, layer.codes())
    trainer = Trainer(layer)
    before = layer.codes()
    trainer.run(0, 2)
    assert not torch.equal(before, layer.codes())


@every_case
def test_forward_leaves_no_gradient_behind_and_runs_without_one(make: Factory) -> None:
    layer = made(make)
    layer(data(0))
    with torch.no_grad():
        layer(data(1))
    assert all(p.grad is None for p in layer.parameters())


@every_case
def test_state_changes_do_not_depend_on_gradient_mode(make: Factory) -> None:
    with_grad, without = made(make), made(make)
    for number in range(4):
        with_grad(data(number))
        with torch.no_grad():
            without(data(number))
    assert_same_state(state_of(with_grad), state_of(without))


@every_case
def test_two_forwards_before_one_backward(make: Factory) -> None:
    trainer = Trainer(made(make))
    for number in range(8):
        trainer.optimizer.zero_grad()
        outs = [trainer.layer(trainer.net[0](data(2 * number + i, 30))) for i in (0, 1)]
        sum((out.loss + out.quantized.square().mean() for out in outs), start=torch.tensor(0.0)).backward()
        trainer.optimizer.step()
    assert trainer.layer.codes().isfinite().all()


@every_case
def test_gradients_accumulate_over_several_forwards(make: Factory) -> None:
    trainer = Trainer(made(make))
    for number in range(4):
        out = trainer.layer(trainer.net[0](data(number, 30)))
        (out.loss + out.quantized.square().mean()).backward()
    trainer.optimizer.step()
    assert trainer.layer.codes().isfinite().all()


@every_case
def test_long_training_stays_finite(make: Factory) -> None:
    trainer = Trainer(made(make))
    assert torch.stack(trainer.run(0, 60)).isfinite().all()
    assert all(value.isfinite().all() for value in trainer.net.state_dict().values())


# --- state -----------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("stop", [1, 50])
def test_resume_equals_never_having_stopped(make: Factory, stop: int) -> None:
    straight_on = Trainer(made(make))
    straight_on.run(0, stop)
    saved = straight_on.save()
    resumed = Trainer(made(make, seed=123))
    resumed.load(saved)
    torch.manual_seed(77)  # the global generator plays no part
    second = resumed.run(stop, stop + 12)
    torch.manual_seed(78)
    first = straight_on.run(stop, stop + 12)
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert_same_state(state_of(straight_on.net), state_of(resumed.net))


@every_case
def test_state_dict_is_complete_and_loads_strictly(make: Factory) -> None:
    layer = trained(make)
    fresh = made(make, seed=9)
    assert str(fresh.load_state_dict(layer.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert_same_state(state_of(layer), state_of(fresh))
    for number in range(20, 25):
        first, second = layer(data(number)), fresh(data(number))
        assert torch.equal(first.quantized, second.quantized)
        assert torch.equal(first.indices, second.indices)
    assert_same_state(state_of(layer), state_of(fresh))


@every_case
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("steps", [0, 6], ids=["untrained", "trained"])
def test_copy_goes_on_alike_and_apart(
    make: Factory, how: Callable[[svq.VectorQuantizer], svq.VectorQuantizer], steps: int
) -> None:
    layer = trained(make, steps)
    for parameter in layer.parameters():
        parameter.grad = None
    twin = how(layer)
    assert_same_state(state_of(layer), state_of(twin))
    before = state_of(layer)
    twin(data(30))
    assert_same_state(before, state_of(layer))
    layer(data(30))
    assert_same_state(state_of(layer), state_of(twin))


# --- precision -------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 6], ids=["untrained", "trained"])
def test_half_precision_inputs_come_back_and_the_state_stays_float32(
    make: Factory, dtype: torch.dtype, steps: int
) -> None:
    layer = trained(make, steps).to(dtype)
    for parameter in layer.parameters():
        parameter.grad = None
    assert all(v.dtype == torch.float32 for v in layer.state_dict().values() if v.is_floating_point())
    plain = copy.deepcopy(layer)
    for number in range(3):
        z = data(number).to(dtype).requires_grad_()
        out = layer(z)
        exact = plain(z.detach().float())
        assert out.quantized.dtype == dtype
        assert out.loss.dtype == torch.float32
        assert torch.equal(out.indices, exact.indices)
        assert torch.equal(out.loss, exact.loss)
        (out.quantized.float().sum() + out.loss).backward()
        assert z.grad is not None
        assert z.grad.dtype == dtype
    assert_same_state(state_of(layer), state_of(plain))


@every_case
def test_double_stays_double(make: Factory) -> None:
    layer = made(make).double()
    assert all(v.dtype == torch.float64 for v in layer.state_dict().values() if v.is_floating_point())
    trainer = Trainer(layer)
    trainer.net.double()
    for number in range(5):
        z = data(number).double()
        out = layer(trainer.net[0](z))
        assert out.quantized.dtype == out.loss.dtype == torch.float64
        (out.quantized.square().mean() + out.loss).backward()
        trainer.optimizer.step()
    assert all(v.dtype == torch.float64 for v in layer.state_dict().values() if v.is_floating_point())


@every_case
def test_double_input_to_a_float32_layer(make: Factory) -> None:
    layer = trained(make)
    for mode in (True, False):
        out = layer.train(mode)(data(9).double())
        assert out.quantized.dtype == torch.float64
        torch.testing.assert_close(layer.decode(out.indices).double(), out.quantized, rtol=1e-6, atol=1e-6)


@every_case
def test_autocast_changes_nothing(make: Factory) -> None:
    layer = trained(make)
    twin = copy.deepcopy(layer)
    for mode in (True, False):
        layer.train(mode), twin.train(mode)
        z = data(8)
        plain = layer(z)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = twin(z)
            assert torch.equal(layer.encode(z), twin.encode(z))
            assert torch.equal(layer.decode(out.indices), layer.decode(plain.indices))
        assert torch.equal(out.indices, plain.indices)
        assert torch.equal(out.quantized, plain.quantized)
        assert torch.equal(out.loss, plain.loss)
    assert_same_state(state_of(layer), state_of(twin))


# --- masks and odd batches -------------------------------------------------------------------------------------------


@every_case
def test_masked_positions_take_part_in_nothing(make: Factory) -> None:
    first, second = made(make), made(make)
    for number in range(6):
        z = data(number).view(14, 5, DIM)
        mask = torch.rand(14, 5, generator=torch.Generator().manual_seed(number)) < 0.7
        other = torch.where(mask[..., None], z, torch.tensor([float("nan"), 1e9])[number % 2])
        a = first(z.requires_grad_(), mask)
        b = second(other, mask)
        assert (a.indices[~mask] == -1).all()
        assert (a.quantized[~mask] == 0).all()
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.quantized, b.quantized)
        assert torch.equal(a.loss, b.loss)
        (a.quantized.sum() + a.loss).backward()
        assert z.grad is not None
        assert (z.grad[~mask] == 0).all()
        assert z.grad.isfinite().all()
    assert_same_state(state_of(first), state_of(second))


@every_case
def test_masked_batch_equals_the_batch_of_its_valid_vectors(make: Factory) -> None:
    first, second = trained(make), trained(make)
    mask = torch.arange(70) % 3 != 0
    a, b = first(data(7), mask), second(data(7)[mask])
    assert torch.equal(a.indices[mask], b.indices)
    torch.testing.assert_close(a.loss, b.loss)
    torch.testing.assert_close(first.codes(), second.codes())


@every_case
def test_mask_of_ones_changes_nothing(make: Factory) -> None:
    first, second = made(make), made(make)
    for number in range(5):
        a, b = first(data(number)), second(data(number), torch.ones(70, dtype=torch.bool))
        assert torch.equal(a.indices, b.indices)
        torch.testing.assert_close(a.loss, b.loss)
    for mine, other in zip(state_of(first).values(), state_of(second).values(), strict=True):
        torch.testing.assert_close(mine, other)


@every_case
@pytest.mark.parametrize("steps", [0, 6], ids=["untrained", "trained"])
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_batch_without_vectors_changes_only_the_step_and_keeps_the_graph(make: Factory, mode: bool, steps: int) -> None:
    layer = trained(make, steps).train(mode)
    for parameter in layer.parameters():
        parameter.grad = None
    before = state_of(layer)
    for z, mask in ((data(1), torch.zeros(70, dtype=torch.bool)), (data(1)[:0], None)):
        z.requires_grad_()
        out = layer(z, mask)
        assert out.loss == 0
        assert (out.indices == -1).all()
        (out.loss + out.quantized.sum()).backward()
        assert z.grad is not None
        assert (z.grad == 0).all()
        assert layer.encode(z, mask).shape == out.indices.shape
    after = state_of(layer)
    # What is due is due: a reset cannot write without vectors either. Only the clock may move, and the flag that a
    # data-free init sets in its first step.
    for name in before:
        if name not in ("codebook.step", "codebook.is_ready"):
            assert torch.equal(before[name], after[name]), name


@every_case
def test_one_vector_at_a_time(make: Factory) -> None:
    layer = made(make)
    for number in range(5):
        z = data(number, 1).requires_grad_()
        out = layer(z)
        (out.quantized.sum() + out.loss).backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert len(layer.codes().unique(dim=0)) == SIZE, "two codes are equal"
    assert layer.codes().isfinite().all()


@every_case
def test_channels_first_equals_channels_last(make: Factory) -> None:
    first, second = made(make, 1), made(make, -1)
    for number in range(3):
        z = data(number).view(2, 5, 7, DIM)
        a, b = first(z.movedim(-1, 1)), second(z)
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.quantized.movedim(1, -1), b.quantized)
    assert_same_state(state_of(first), state_of(second))


# --- switches --------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("steps", [0, 6], ids=["untrained", "trained"])
def test_frozen_codebook_stays_to_the_bit_under_adamw(make: Factory, steps: int) -> None:
    trainer = Trainer(made(make))
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = 0.5
    trainer.run(0, steps)
    trainer.layer.codebook.freeze()
    before = state_of(trainer.layer.codebook)
    trainer.run(6, 16)
    after = state_of(trainer.layer.codebook)
    before.pop("rewritten"), after.pop("rewritten")  # the optimizer's mark, cleared at its step
    assert_same_state(before, after)
    assert torch.equal(trainer.layer.codes(), trainer.layer.codebook.codes())


@every_case
def test_unfrozen_codebook_moves_again(make: Factory) -> None:
    trainer = Trainer(made(make))
    trainer.run(0, 6)
    trainer.layer.codebook.freeze()
    frozen = trainer.layer.codes()
    trainer.run(6, 8)
    trainer.layer.codebook.unfreeze()
    trainer.run(8, 10)
    assert not torch.equal(frozen, trainer.layer.codes())
    assert all(p.requires_grad for p in trainer.layer.parameters())


@every_case
def test_freezing_is_saved(make: Factory) -> None:
    layer = trained(make)
    layer.codebook.freeze()
    fresh = made(make, seed=4)
    fresh.load_state_dict(layer.state_dict())
    before = fresh.codes()
    out = fresh((data(60) + 3).requires_grad_())
    (out.loss + out.quantized.sum()).backward()
    assert torch.equal(before, fresh.codes())
    assert not any(p.requires_grad for p in fresh.codebook.parameters())
    assert all(p.grad is None for p in fresh.codebook.parameters())


@every_case
def test_bypass_passes_vectors_through_and_changes_nothing(make: Factory) -> None:
    layer = trained(make)
    before = state_of(layer)
    z = data(20).requires_grad_()
    for mode in (True, False):
        layer.train(mode)
        with svq.bypass(nn.Sequential(layer)):
            out = layer(z)
        assert torch.equal(out.quantized, z)
        assert (out.indices == -1).all()
        assert out.indices.shape == (70,)
        assert out.loss == 0
        assert set(out.terms) == set(layer(z.detach()).terms) if not mode else True
        (out.quantized.sum() + out.loss).backward()
    assert_same_state(before, state_of(layer))
    assert (layer(z).indices >= 0).all()


@every_case
def test_set_codes_writes_effective_codes(make: Factory) -> None:
    layer = made(make)
    width = layer.codes().shape[1]
    codes = torch.randn(SIZE, width, generator=torch.Generator().manual_seed(2))
    if "norm" in repr(layer.codebook.parametrization).lower():
        codes = nn.functional.normalize(codes, dim=1)
    layer.set_codes(codes)
    torch.testing.assert_close(layer.codes(), codes, rtol=1e-5, atol=1e-5)
    layer.codebook.freeze()
    layer(data(1))
    layer.codebook.unfreeze()
    torch.testing.assert_close(layer.codes(), codes, rtol=1e-5, atol=1e-5)


@every_case
def test_no_init_overwrites_codes_that_somebody_set(make: Factory) -> None:
    layer = made(make)
    codes = nn.functional.normalize(torch.randn(layer.codes().shape), dim=1)
    codes[3] = -codes[2]
    layer.set_codes(codes)
    layer(layer.transform.inverse(codes[:2].repeat(50, 1)).detach())
    # 100 vectors on two codes: an init would have gathered all codes there.
    distance = torch.cdist(layer.codes(), codes[:2]).min(1).values
    assert (distance > 0.2).sum() >= SIZE - 6


@every_case
def test_every_codebook_parameter_is_in_the_codebook_group(make: Factory) -> None:
    net = nn.Sequential(nn.Linear(DIM, DIM), made(make))
    groups = {g["name"]: g for g in svq.parameter_groups(net, lr=1.0, weight_decay=0.5, codebook_lr=0.1)}
    layer = net[1]
    assert isinstance(layer, svq.VectorQuantizer)
    owned = set(layer.codebook.parameters())
    if owned:
        assert set(groups["codebook"]["params"]) == owned
        assert groups["codebook"]["lr"] == 0.1
        assert groups["codebook"]["weight_decay"] == 0
    assert set(groups["network"]["params"]) == set(net.parameters()) - owned
    assert groups["network"]["weight_decay"] == 0.5
