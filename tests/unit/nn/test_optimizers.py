import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import pytest
import torch
import torch.distributed as dist
from tests.contracts.test_host import no_waiting
from tests.versions import needs_torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)
from torch.utils.data import DataLoader

import straightvq as svq
from straightvq.nn import optimizers


class Net(nn.Module):
    def __init__(self, layer: svq.VectorQuantizer) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.layer = layer


def far_codes(used: int = 2) -> torch.Tensor:
    codes = 1000.0 + torch.arange(32.0).view(8, 4)
    codes[:used] = torch.arange(float(used))[:, None].expand(-1, 4)
    return codes


@pytest.mark.parametrize("codebook_lr", [None, 0.5])
def test_groups_cover_every_parameter_once(codebook_lr: float | None) -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    groups = svq.parameter_groups(net, 0.1, 0.2, codebook_lr)
    assert [group["name"] for group in groups] == ["network", "codebook"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.2), (codebook_lr or 0.1, 0.0)]
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(net.parameters())


def test_groups_without_parameters_are_left_out() -> None:
    assert [g["name"] for g in svq.parameter_groups(nn.Linear(2, 2), 0.1, 0.1)] == ["network"]
    assert [g["name"] for g in svq.parameter_groups(svq.presets.vq_vae(4, 8), 0.1, 0.1)] == ["codebook"]
    assert svq.parameter_groups(svq.presets.ema(4, 8), 0.1, 0.1) == []


def test_projection_belongs_to_the_network() -> None:
    layer = svq.VectorQuantizer(4, svq.Codebook(8), transform=svq.Projection(2))
    groups = {g["name"]: g["params"] for g in svq.parameter_groups(layer, 0.1, 0.1)}
    assert set(groups["network"]) == set(layer.transform.parameters())


def test_a_codebook_shared_by_two_places_is_listed_once() -> None:
    layer = svq.presets.vq_vae(4, 8)
    assert len(svq.parameter_groups(nn.ModuleList([layer, layer]), 0.1, 0.1)[0]["params"]) == 1


def test_groups_suit_torch_optimizers() -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    optimizer = torch.optim.AdamW(svq.parameter_groups(net, 0.1, 0.2))
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
def test_moments_of_reset_rows_are_cleared_and_others_kept(kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    layer = svq.VectorQuantizer(
        4, svq.Codebook(8, reset=svq.DeadCodeReset(3, noise=0.0)), estimator=svq.StraightThrough(0.5)
    )
    layer.set_codes(far_codes())
    extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(layer.parameters(), lr=0.0, **extra)
    twin = kind(layer.parameters(), lr=0.0, **extra)
    svq.attach_optimizer(optimizer, layer)
    raw = layer.codebook.raw
    for number in range(6):
        out = layer(torch.rand(16, 4, generator=torch.Generator().manual_seed(number)))
        for o in (optimizer, twin):
            o.zero_grad()
        (out.quantized.sum() + out.loss).backward()
        if number == 3:
            for o in (optimizer, twin):
                # As if the dead rows had been used before: old momentum.
                for value in o.state[raw].values():
                    if value.shape == raw.shape:
                        value[2:] = 7.0
            assert layer.codebook.rewritten.tolist() == [False, False, *[True] * 6]
        for o in (twin, optimizer):
            o.step()
        if number == 3:
            break
    assert not layer.codebook.rewritten.any()
    for name, value in optimizer.state[raw].items():
        if value.shape == raw.shape:
            other = twin.state[raw][name]
            assert torch.equal(value[:2], other[:2]), "rows that nobody rewrote keep their moments"
            assert (value[2:] - other[2:]).abs().min() > 0.5, "the old moments must be gone"


def test_set_codes_clears_all_moments() -> None:
    layer = svq.presets.vq_vae(4, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0)
    svq.attach_optimizer(optimizer, layer)
    layer(torch.randn(30, 4)).loss.backward()
    optimizer.step()
    layer.set_codes(far_codes())
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert torch.equal(layer.codes(), far_codes()), "no momentum may move codes that were just set"


def test_clearing_follows_the_optimizers_own_state_after_loading() -> None:
    layer = svq.presets.vq_vae(4, 8)
    optimizer = torch.optim.AdamW(layer.parameters())
    svq.attach_optimizer(optimizer, layer)
    layer(torch.randn(30, 4)).loss.backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    layer.codebook.rewritten.fill_(True)
    layer.codebook.raw.grad.zero_()
    optimizer.step()
    assert (optimizer.state[layer.codebook.raw]["exp_avg"] == 0).all()


def test_missing_codebook_parameters_are_warned_of_once() -> None:
    net = Net(svq.presets.vq_ste_pp(4, 8))
    with pytest.warns(UserWarning, match=r"\['layer.codebook'\] are not in the optimizer"):
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


@pytest.mark.parametrize("preset", [svq.presets.ema, svq.presets.straight], ids=["ema", "straight"])
def test_codebook_without_parameters_is_not_warned_of(preset: object) -> None:
    net = Net(preset(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


def test_frozen_codebook_is_not_warned_of() -> None:
    net = Net(svq.presets.vq_vae(4, 8))
    net.layer.codebook.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svq.attach_optimizer(torch.optim.SGD(net.encoder.parameters(), 0.1), net)


def test_another_optimizer_of_the_same_network_does_not_take_the_flags_away() -> None:
    net = Net(svq.presets.vq_vae(4, 8))
    own, other = torch.optim.AdamW(net.layer.parameters()), torch.optim.AdamW(net.encoder.parameters())
    svq.attach_optimizer(own, net)
    with pytest.warns(UserWarning, match="not in the optimizer"):
        svq.attach_optimizer(other, net)
    net.layer.codebook.rewritten.fill_(True)
    net.encoder.weight.grad = torch.ones(4, 4)
    other.step()
    assert net.layer.codebook.rewritten.all()
    own.step()
    assert not net.layer.codebook.rewritten.any()


def test_optimizer_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer. Got Linear"):
        svq.attach_optimizer(nn.Linear(1, 1), nn.Linear(1, 1))


# --- rewritten rows against a new optimizer on the row alone --------------------------------------------------------

DECAYED = {"weight_decay": 0.1, "decoupled_weight_decay": True}
# Those whose update depends on the table's age ...
AGED: dict[str, Callable[..., Optimizer]] = {
    "adam": Adam,
    "adam, young": partial(Adam, betas=(0.5, 0.6)),
    "adam, no averages": partial(Adam, betas=(0.0, 0.0)),
    "adam, large eps": partial(Adam, eps=0.3),
    "adam, penalty": partial(Adam, weight_decay=0.1),
    "adam, maximize": partial(Adam, maximize=True),
    "adam, foreach": partial(Adam, foreach=True),
    "adam, fused": partial(Adam, fused=True),
    "adam, tensors": lambda p: Adam(
        p, lr=torch.tensor([0.01]).double(), betas=(torch.tensor(0.5).double(), torch.tensor([0.75]).double())
    ),
    "adamw": partial(AdamW, weight_decay=0.1),
    "adamw, fused": partial(AdamW, weight_decay=0.1, fused=True),
    "adamw, tensor": lambda p: AdamW(p, lr=torch.tensor(0.01).double(), weight_decay=0.1),
    "amsgrad": partial(Adam, amsgrad=True),
    "amsgrad, fused": partial(Adam, amsgrad=True, fused=True),
    "adamax": Adamax,
    "adamax, penalty": partial(Adamax, weight_decay=0.1),
    "nadam": NAdam,
    "nadam, fast": partial(NAdam, momentum_decay=2.0),
    "nadam, no average": partial(NAdam, betas=(0.0, 0.9)),
    "nadam, young": partial(NAdam, betas=(0.2, 0.9)),
    "nadam, penalty": partial(NAdam, weight_decay=0.1, maximize=True),
    "nadam, foreach": partial(NAdam, weight_decay=0.1, foreach=True),
    "nadamw": partial(NAdam, **DECAYED),
    "radam": RAdam,
    "radam, short": partial(RAdam, betas=(0.9, 0.5)),
    "radam, penalty": partial(RAdam, weight_decay=0.1),
    "radamw": partial(RAdam, foreach=True, **DECAYED),
}
# ... and those that a row's fresh state is enough for.
AGELESS: dict[str, Callable[..., Optimizer]] = {
    "adadelta": Adadelta,
    "adagrad": Adagrad,
    "adagrad, filled": partial(Adagrad, initial_accumulator_value=3.0),
    "adagrad, fused": partial(Adagrad, fused=True),
    "asgd": partial(ASGD, lambd=0.0),
    "rmsprop": partial(RMSprop, centered=True, momentum=0.9),
    "rprop": Rprop,
    "rprop, tensor": lambda p: Rprop(p, lr=torch.tensor(0.01)),
    "sgd": partial(SGD, momentum=0.9, nesterov=True),
    "sgd, fused": partial(SGD, momentum=0.9, fused=True),
}
ADAM: Callable[..., Optimizer] = partial(Adam, lr=0.1)
every_kind = pytest.mark.parametrize("make", [*AGED.values(), *AGELESS.values()], ids=[*AGED, *AGELESS])
every_aged_kind = pytest.mark.parametrize("make", list(AGED.values()), ids=list(AGED))


def table_of(layer: svq.VectorQuantizer) -> nn.Parameter:
    assert isinstance(layer.codebook.raw, nn.Parameter)
    return layer.codebook.raw


def make_table(dtype: torch.dtype = torch.float64) -> svq.VectorQuantizer:
    layer = svq.VectorQuantizer(3, svq.Codebook(6)).to(dtype)
    layer.set_codes(torch.linspace(-1.0, 1.0, 18, dtype=dtype).view(6, 3).sin())
    return layer


def gradient(number: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of all sizes, so that rows, epsilons and decays tell each other apart."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(6, 3, generator=generator, dtype=dtype) * 10.0 ** torch.arange(-3, 3, dtype=dtype)[:, None]


def rewrite(layer: svq.VectorQuantizer, row: int, code: float) -> None:
    """As a reset does in a training forward."""
    with torch.no_grad():
        layer.codebook.raw[row] = code
        layer.codebook.rewritten[row] = True


def rounding(optimizer: Optimizer, dtype: torch.dtype, steps: int) -> float:
    """Of codes of order 1, once a step; and of NAdam's updates, whose momenta torch multiplies in float32."""
    update = optimizer.param_groups[0]["lr"] * torch.finfo(torch.float32).eps if isinstance(optimizer, NAdam) else 0.0
    return steps * torch.finfo(dtype).eps + update


def step(optimizer: Optimizer, table: nn.Parameter, grad: Tensor) -> None:
    table.grad = grad.clone()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_kind
def test_a_rewritten_row_moves_as_under_a_new_optimizer(make: Callable[..., Optimizer], dtype: torch.dtype) -> None:
    layer = make_table(dtype)
    table = table_of(layer)
    optimizer = make([table])
    svq.attach_optimizer(optimizer, layer)
    for number in range(30):
        step(optimizer, table, gradient(number, dtype))
    alone: dict[int, tuple[nn.Parameter, Optimizer]] = {}
    for number in range(30, 70):
        if number in (30, 33, 60):
            row = {30: 4, 33: 1, 60: 4}[number]  # one of them twice
            rewrite(layer, row, 0.7)
            code = nn.Parameter(torch.full((1, 3), 0.7, dtype=dtype))
            alone[row] = code, make([code])
        step(optimizer, table, gradient(number, dtype))
        for row, (code, own) in alone.items():
            step(own, code, gradient(number, dtype)[row : row + 1])
            torch.testing.assert_close(table[row], code[0], rtol=0, atol=rounding(optimizer, dtype, steps=40))


@every_kind
def test_other_rows_move_bit_for_bit_as_if_nothing_was_attached(make: Callable[..., Optimizer]) -> None:
    layer, twin = make_table(torch.float32), make_table(torch.float32)
    optimizer, other = make([table_of(layer)]), make([table_of(twin)])
    svq.attach_optimizer(optimizer, layer)
    for number in range(40):
        if number in (5, 20):
            rewrite(layer, 3, 0.7)
        for each, one in ((optimizer, layer), (other, twin)):
            step(each, table_of(one), gradient(number, torch.float32))
        kept = torch.arange(6) != 3
        assert torch.equal(layer.codebook.raw[kept], twin.codebook.raw[kept])
    for name, value in other.state[table_of(twin)].items():
        got = optimizer.state[table_of(layer)][name]
        assert torch.equal(*((v[kept] if v.ndim else v) for v in (got, value))), name


def test_a_rewritten_row_never_moves_by_more_than_the_learning_rate() -> None:
    # Under a constant gradient both moments of Adam are the gradient's, bias corrected: each step is lr long.
    layer = make_table()
    table = table_of(layer)
    optimizer = Adam([table], lr=0.01, eps=0.0)
    svq.attach_optimizer(optimizer, layer)
    for _ in range(1000):
        step(optimizer, table, torch.full_like(table, 5.0))
    rewrite(layer, 2, 0.0)
    for number in range(1, 101):
        step(optimizer, table, torch.full_like(table, 5.0))
        torch.testing.assert_close(table[2], torch.full((3,), -0.01 * number, dtype=torch.float64))


# --- when it happens ------------------------------------------------------------------------------------------------


def stale(
    make: Callable[..., Optimizer] = ADAM, dtype: torch.dtype = torch.float64
) -> tuple[svq.VectorQuantizer, Optimizer]:
    """A table whose rows all have momentum."""
    layer = make_table(dtype)
    optimizer = make([table_of(layer)])
    svq.attach_optimizer(optimizer, layer)
    for number in range(20):
        step(optimizer, table_of(layer), gradient(number, dtype))
    return layer, optimizer


@pytest.mark.parametrize("by_name", [False, True], ids=["position", "keyword"])
def test_rows_that_a_closure_rewrites_start_over_before_the_update(by_name: bool) -> None:
    layer, optimizer = stale()
    table = table_of(layer)

    def closure() -> float:
        rewrite(layer, 2, 0.7)
        table.grad = torch.zeros_like(table)
        return 3.0

    result: Any = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert result == 3.0
    assert (table[2] == 0.7).all(), "a row without gradient and momentum stays where it was put"
    assert (table[1] != 0.7).all()
    assert not layer.codebook.rewritten.any()


class OwnStep(Adam):
    """Plain momentum, to which the formula of Adam does not apply; moves after each of two looks at the loss."""

    def step(self, closure: Any = None) -> None:
        for _ in range(2 if closure else 1):
            if closure:
                closure()
            (table,) = self.param_groups[0]["params"]
            state = self.state[table]
            if not state:
                state.update(velocity=torch.zeros_like(table), code=torch.zeros_like(table, dtype=torch.uint8))
            table.data.sub_(state["velocity"].add_(table.grad), alpha=0.1)


def test_rows_start_over_after_each_call_of_a_closure() -> None:
    layer, optimizer = stale(OwnStep)
    table, rows = table_of(layer), iter((2, 5))

    def closure() -> None:
        rewrite(layer, next(rows), 0.7)
        table.grad = torch.zeros_like(table)

    optimizer.step(closure)
    assert (table[2] == 0.7).all()
    assert (table[5] == 0.7).all()


def test_lbfgs_keeps_its_curvature_and_takes_the_flags_down() -> None:
    layer = make_table()
    table = table_of(layer)
    optimizer, calls = LBFGS([table], max_iter=3), 0
    svq.attach_optimizer(optimizer, layer)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        rewrite(layer, 2, 0.7)
        optimizer.zero_grad()
        loss = table.square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert calls > 2
    assert not layer.codebook.rewritten.any()
    assert optimizer.state[table]["old_dirs"][0].shape == (18,)


@every_aged_kind
def test_a_row_without_gradient_waits_for_its_first_update(make: Callable[..., Optimizer]) -> None:
    layer, optimizer = stale(make)
    table = table_of(layer)
    rewrite(layer, 2, 0.7)
    table.grad = None
    for _ in range(3):
        optimizer.step()
    assert (table[2] == 0.7).all()
    code = nn.Parameter(torch.full((1, 3), 0.7, dtype=torch.float64))
    own = make([code])
    for number in range(20, 30):
        step(optimizer, table, gradient(number))
        step(own, code, gradient(number)[2:3])
        torch.testing.assert_close(table[2], code[0], rtol=0, atol=rounding(optimizer, torch.float64, steps=10))


@every_aged_kind
def test_a_row_that_is_rewritten_before_the_first_step_is_as_old_as_the_table(make: Callable[..., Optimizer]) -> None:
    layer, twin = make_table(), make_table()
    svq.attach_optimizer(optimizer := make([table_of(layer)]), layer)
    other = make([table_of(twin)])
    for one in (layer, twin):
        rewrite(one, 2, 0.7)
    for number in range(10):
        step(optimizer, table_of(layer), gradient(number))
        step(other, table_of(twin), gradient(number))
        assert torch.equal(layer.codebook.raw, twin.codebook.raw)


def set_gradient(scaler: torch.amp.GradScaler, table: nn.Parameter, value: float) -> None:
    """As after the backward pass of a scaled loss."""
    table.grad = scaler.scale(torch.full_like(table, value)).detach()


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_step_that_a_gradient_scaler_skips_loses_no_rewritten_row(fused: bool, dtype: torch.dtype) -> None:
    layer = make_table(dtype)
    table = table_of(layer)
    optimizer = AdamW([table], lr=0.1, weight_decay=0.1, fused=fused)
    svq.attach_optimizer(optimizer, layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for _ in range(20):
        set_gradient(scaler, table, 1.0)
        scaler.step(optimizer)
        scaler.update()
    rewrite(layer, 2, 0.7)
    before = table.detach().clone()
    set_gradient(scaler, table, float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(table, before), "the step must have been skipped"
    code = nn.Parameter(torch.full((1, 3), 0.7, dtype=dtype))
    own = AdamW([code], lr=0.1, weight_decay=0.1)
    for number in range(5):
        set_gradient(scaler, table, float(number + 1))
        scaler.step(optimizer)
        scaler.update()
        step(own, code, torch.full((1, 3), float(number + 1), dtype=dtype))
        torch.testing.assert_close(table[2], code[0], rtol=0, atol=5 * torch.finfo(dtype).eps)


@every_kind
def test_a_resumed_run_goes_on_bit_for_bit(make: Callable[..., Optimizer]) -> None:
    dtype = torch.float32  # torch casts what it loads to the table's dtype, NAdam's product of momenta included
    layer, optimizer = stale(make, dtype)
    rewrite(layer, 2, 0.7)
    for number in range(20, 23):
        step(optimizer, table_of(layer), gradient(number, dtype))
    rewrite(layer, 4, 0.7)  # the optimizer has not seen it yet
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, file)

    resumed = make_table(dtype)
    svq.attach_optimizer(again := make([table_of(resumed)]), resumed)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(state["layer"])
    again.load_state_dict(state["optimizer"])
    for number in range(23, 40):
        step(optimizer, table_of(layer), gradient(number, dtype))
        step(again, table_of(resumed), gradient(number, dtype))
        assert torch.equal(layer.codebook.raw, resumed.codebook.raw)


class VanishingCluster(lightning.LightningModule):
    """Two codes on two clusters, of which one moves on to (5.1, 5.0) and the other vanishes.

    Its code has momentum, dies, and is put on (5.1, 5.0) exactly, where no gradient and no momentum moves it.
    """

    def __init__(self, is_automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = is_automatic
        self.layer = svq.VectorQuantizer(2, svq.Codebook(2, reset=svq.DeadCodeReset(3, noise=0.0)))
        self.layer.set_codes(torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
        self.put: list[Tensor] = []
        self.left: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = self.layer(batch).loss
        self.put.append(self.layer.codes()[0])
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def on_train_batch_end(self, *_: Any) -> None:
        self.left.append(self.layer.codes()[0])

    def configure_optimizers(self) -> Optimizer:
        optimizer = AdamW(svq.parameter_groups(self.layer, lr=0.1, weight_decay=0.1))
        svq.attach_optimizer(optimizer, self.layer)
        return optimizer


@pytest.mark.parametrize(
    ("is_automatic", "accumulated", "lead"), [(True, 1, 9), (True, 2, 9), (True, 2, 10), (False, 1, 9)],
    ids=["automatic", "first of two", "second of two", "manual"],
)  # fmt: skip
def test_a_reset_code_stays_where_it_was_put_under_a_trainer(is_automatic: bool, accumulated: int, lead: int) -> None:
    target = torch.tensor([5.1, 5.0])
    both = torch.tensor([[-2.0, -3.0], [5.1, 5.0]]).repeat(2, 1)
    task = VanishingCluster(is_automatic)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulated, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader([both] * lead + [target.repeat(4, 1)] * 15, batch_size=None))
    reset = next(number for number, code in enumerate(task.put) if torch.equal(code, target))
    assert reset == lead + 3, "the fourth batch without the first cluster"
    assert all(torch.equal(code, target) for code in task.left[reset:])


def test_a_wrapped_optimizer_can_be_attached() -> None:
    layer = make_table()
    optimizer = Adam([table_of(layer)])
    wrapper = lightning.pytorch.core.optimizer.LightningOptimizer(optimizer)
    handle = svq.attach_optimizer(wrapper, layer)
    for number in range(20):
        step(optimizer, table_of(layer), gradient(number))
    rewrite(layer, 2, 0.7)
    step(optimizer, table_of(layer), torch.ones_like(layer.codebook.raw))
    torch.testing.assert_close(table_of(layer)[2], torch.full((3,), 0.699, dtype=torch.float64), rtol=0, atol=1e-10)
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # the compiler's own imports
def test_a_compiled_step_treats_rewritten_rows_alike() -> None:
    layer, optimizer = stale()
    twin, other = stale()
    compiled = torch.compile(other.step, backend="aot_eager")
    for number in range(20, 26):
        for one in (layer, twin):
            if number == 22:
                rewrite(one, 2, 0.7)
            table_of(one).grad = gradient(number)
        optimizer.step()
        compiled()
        # The compiler raises the decays to the step count in float32.
        torch.testing.assert_close(twin.codebook.raw, layer.codebook.raw, rtol=0, atol=1e-5)


# --- which optimizers, and which tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_rewritten_row_is_new_to_each_optimizer_of_its_table(order: tuple[int, int]) -> None:
    layer = make_table()
    table = table_of(layer)
    both = [Adam([table], lr=0.1), SGD([table], lr=0.1, momentum=0.9)]
    for each in both:
        svq.attach_optimizer(each, layer)
        for number in range(10):
            step(each, table, gradient(number))
    rewrite(layer, 2, 0.7)
    for place in order:
        step(both[place], table, torch.zeros_like(table))
    assert (table[2] == 0.7).all()
    # The second of them takes the row as new from when it was rewritten, not from when the first has moved it.
    step(both[0], table, torch.ones_like(table))
    code = nn.Parameter(torch.full((1, 3), 0.7, dtype=torch.float64))
    own = Adam([code], lr=0.1)
    for value in (0.0, 1.0):
        step(own, code, torch.full_like(code, value))
    torch.testing.assert_close(table[2], code[0], rtol=0, atol=1e-15)


def test_a_removed_handle_leaves_nothing_behind() -> None:
    layer = make_table()
    table = table_of(layer)
    optimizer, other = Adam([table]), SGD([table], lr=0.1)
    handle = svq.attach_optimizer(optimizer, layer)
    svq.attach_optimizer(other, layer)
    for number in range(5):
        step(optimizer, table, gradient(number))
    handle.remove()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    moments = {name: value.clone() for name, value in optimizer.state[table].items()}
    rewrite(layer, 2, 0.7)
    step(other, table, torch.zeros_like(table))
    assert all(torch.equal(optimizer.state[table][name], value) for name, value in moments.items())
    rewrite(layer, 2, 0.7)
    optimizer.step()
    assert layer.codebook.rewritten[2]


def test_ages_cost_nothing_where_no_row_was_rewritten() -> None:
    _, optimizer = stale()
    (state,) = optimizer.state.values()
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("preset", [svq.presets.ema, svq.presets.straight], ids=["ema", "straight"])
def test_flags_of_a_table_that_is_no_parameter_are_taken_down(preset: Callable[..., svq.VectorQuantizer]) -> None:
    net = Net(preset(4, 8))
    optimizer = SGD(net.encoder.parameters(), 0.1)
    svq.attach_optimizer(optimizer, net)
    net.layer.set_codes(far_codes())
    optimizer.step()
    assert not net.layer.codebook.rewritten.any()


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "not held"])
def test_a_frozen_table_is_new_to_its_optimizer_when_it_thaws(is_held: bool) -> None:
    layer, optimizer = stale()
    other = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    rewrite(layer, 2, 0.7)
    layer.codebook.freeze()
    svq.attach_optimizer(other, layer)
    (optimizer if is_held else other).step()
    assert (layer.codebook.raw[2] == 0.7).all()
    layer.codebook.unfreeze()
    step(optimizer, table_of(layer), torch.zeros_like(table_of(layer)))
    assert (layer.codebook.raw[2] == 0.7).all()


def test_rprop_starts_over_with_the_learning_rate() -> None:
    layer, optimizer = stale(partial(Rprop, lr=0.01))
    rewrite(layer, 2, 0.7)
    step(optimizer, table_of(layer), torch.ones_like(table_of(layer)))
    torch.testing.assert_close(table_of(layer)[2], torch.full((3,), 0.69, dtype=torch.float64))


def test_the_average_of_asgd_starts_over_with_the_new_code() -> None:
    layer, optimizer = stale(partial(ASGD, lr=1e-9, t0=1.0))  # averages from the second step on
    rewrite(layer, 2, 0.7)
    step(optimizer, table_of(layer), torch.ones_like(table_of(layer)))
    torch.testing.assert_close(optimizer.state[table_of(layer)]["ax"][2], torch.full((3,), 0.7, dtype=torch.float64))


def test_the_row_factor_of_adafactor_starts_over_as_the_mean_of_all() -> None:
    layer, optimizer = stale(Adafactor)
    state = optimizer.state[table_of(layer)]
    before = state["row_var"].clone()
    rewrite(layer, 2, 0.7)
    table_of(layer).grad = None
    optimizer.step()
    assert state["row_var"][2] == before.mean()
    kept = torch.arange(6) != 2
    assert torch.equal(state["row_var"][kept], before[kept])


@needs_torch("2.13", "has the optimizer Muon")
def test_muon_forgets_a_rewritten_row() -> None:
    layer, optimizer = stale(torch.optim.Muon)
    rewrite(layer, 2, 0.7)
    step(optimizer, table_of(layer), torch.zeros_like(table_of(layer)))
    momentum = optimizer.state[table_of(layer)]["momentum_buffer"]
    assert (momentum[2] == 0).all()
    assert (momentum[1] != 0).all()


def test_a_step_of_ones_own_is_left_alone_but_for_its_moments() -> None:
    layer, optimizer = stale(OwnStep)
    state = optimizer.state[table_of(layer)]
    rewrite(layer, 2, 0.7)
    state["code"].fill_(7)
    table_of(layer).grad = torch.zeros_like(table_of(layer))
    for hook in optimizer._optimizer_step_pre_hooks.values():
        hook(optimizer, (optimizer,), {})
    assert (state["code"] == 7).all(), "integers are no moments"
    optimizer.step()
    assert (table_of(layer)[2] == 0.7).all()
    assert set(state) == {"velocity", "code"}


class Logged(Adam):
    """Adam by another name."""


def test_an_inherited_step_is_known() -> None:
    layer, optimizer = stale(partial(Logged, lr=0.1))
    rewrite(layer, 2, 0.7)
    step(optimizer, table_of(layer), torch.ones_like(table_of(layer)))
    torch.testing.assert_close(table_of(layer)[2], torch.full((3,), 0.6, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("place", ["meta", "cpu"], ids=["count on the device", "count on the host"])
@pytest.mark.parametrize(
    "make", [Adam, partial(Adam, amsgrad=True), AdamW, Adamax, NAdam, RAdam, ASGD, Adafactor, Rprop]
)
def test_rewritten_rows_wait_for_nothing(make: Callable[..., Optimizer], place: str) -> None:
    layer, optimizer = stale(make, torch.float32)
    known = optimizer.state[table_of(layer)]
    layer.to("meta")
    table = table_of(layer)
    on_meta = make([table])
    on_meta.state[table] = {name: value.to(place if value.ndim == 0 else "meta") for name, value in known.items()}
    handle = svq.attach_optimizer(on_meta, layer)
    table.grad = torch.empty_like(table)
    with no_waiting():
        for hooks in (on_meta._optimizer_step_pre_hooks, on_meta._optimizer_step_post_hooks):
            hooks[handle.id](on_meta, (on_meta,), {})
    aged = optimizers._direction(on_meta) is not None
    assert ("rewritten_at" in on_meta.state[table]) == aged


def test_a_sharded_table_that_nothing_writes_into_is_stepped_over() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = Net(svq.VectorQuantizer(4, svq.Codebook(8)))
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        optimizer = AdamW(net.parameters(), lr=0.1)
        svq.attach_optimizer(optimizer, net)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.ones_like(p)
            net.layer.codebook.rewritten.fill_(True)
            optimizer.step()
        assert not net.layer.codebook.rewritten.any()
    finally:
        dist.destroy_process_group()
