"""Law 4: all ranks hold the same codebook, and p processes do what one does with the whole batch.

Real processes with gloo on this machine, two and four of them. Each case runs once in one process on whole batches and
once in several on shards of them (uneven, some without any vector), and everything that they hold is compared.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import straightvq as svq
from tests.contracts.cases import CASES, DIM, SIZE
from tests.ranks import pretend_ranks, run_on_ranks
from tests.versions import needs_torch

SHARDS = "2.13"  # `fully_shard` with parameters left out, on CPUs

STEPS, ROWS = 9, 120


def _batch(step: int) -> tuple[Tensor, Tensor]:
    """Vectors of all ranks and their mask: nobody has any in the first step, the last rank none in some others."""
    generator = torch.Generator().manual_seed(step)
    z = 5 + torch.randn(ROWS, DIM, generator=generator) * (1 + step / 10)
    mask = torch.rand(ROWS, generator=generator) > 0.2
    mask[ROWS - 14 if step % 4 == 1 else ROWS :] = False
    return z, mask & (step > 0)


def _uneven(step: int, rank: int, ranks: int) -> slice:
    """The rank's rows, contiguous and in the order of the ranks: shares of four ranks, or of two pairs of them."""
    shares = ((0, 0, 75, 45), (75, 0, 31, 14), (31, 44, 0, 45), (120, 0, 0, 0))[step % 4]
    assert sum(shares) == ROWS
    each = 4 // ranks
    return slice(sum(shares[: each * rank]), sum(shares[: each * (rank + 1)]))


def _even(rank: int, ranks: int) -> slice:
    return slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)


def _made(case: str, seed: int = 0) -> svq.VectorQuantizer:
    torch.manual_seed(seed)
    return CASES[case](channel_dim=-1)


def _forwards(layer: svq.VectorQuantizer, rows: Callable[[int], slice]) -> dict[str, Any]:
    """Training forwards without an optimizer: the codes after each step, and all state after the last."""
    tables = []
    for step in range(STEPS):
        z, mask = _batch(step)
        layer(z[rows(step)], mask[rows(step)])
        tables.append(layer.codes())
    return {"tables": tables, "state": layer.state_dict()}


class Net(nn.Module):
    """A network whose forward is its loss, as a data-parallel wrapper wants it."""

    def __init__(self, layer: svq.VectorQuantizer) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder, self.layer, self.decoder = nn.Linear(DIM, DIM), layer, nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.encoder(x))
        return (self.decoder(out.quantized) - x).square().sum() / max(1, x.numel()) + out.loss


def _optimizer(net: nn.Module) -> torch.optim.Optimizer:
    # Adam would turn a gradient of rounding, as that of a k-means centre, into a step of full length.
    groups = svq.parameter_groups(net, lr=1e-2, weight_decay=0.1, codebook_lr=3e-2)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    svq.attach_optimizer(optimizer, net)
    return optimizer


def _trained(net: nn.Module, rows: slice, steps: range, micro_batches: int = 1) -> None:
    """Optimizer steps, each on the same rows of some batches."""
    optimizer = _optimizer(net)
    for step in steps:
        optimizer.zero_grad()
        for number in range(micro_batches):
            is_last = number == micro_batches - 1
            with contextlib.nullcontext() if is_last or not isinstance(net, DistributedDataParallel) else net.no_sync():
                (net(_batch(1 + step * micro_batches + number)[0][rows]) / micro_batches).backward()
        optimizer.step()


# --- what the ranks do: one set of processes for everything, because it takes seconds to start ----------------------


def _everything(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    layers = {case: _made(case, seed=rank) for case in CASES}  # different on purpose, and before the group exists
    for case, layer in layers.items():  # but for the network around the codebook, which is a wrapper's to make equal
        layer.transform.load_state_dict(_made(case).transform.state_dict())
    join()
    ranks = dist.get_world_size()
    uneven = {case: _forwards(layer, lambda step: _uneven(step, rank, ranks)) for case, layer in layers.items()}
    return {
        "uneven": uneven,
        "wrapped": {case: _wrapped(case, rank, ranks) for case in CASES},
        "accumulated": {case: _wrapped(case, rank, ranks, micro_batches=2) for case in ACCUMULATED},
        "loaded": {case: _loaded_by_the_first(case, rank, ranks) for case in LOADED},
        "filling": _filling_in_the_first(rank, ranks),
        "halves": _in_two_groups(rank, ranks),
        "alone": _one_alone(rank),
        "sharded": _sharded(rank, ranks) if torch.__version__ >= SHARDS else None,
    }


def _wrapped(case: str, rank: int, ranks: int, micro_batches: int = 1) -> dict[str, Any]:
    """Training under DistributedDataParallel on even shards, then a step in which the first rank has nothing."""
    net = Net(_made(case, seed=rank))
    wrapped = DistributedDataParallel(net)
    _trained(wrapped, _even(rank, ranks), range(6), micro_batches)
    even = _state(net)
    _trained(wrapped, slice(0, 0) if rank == 0 else _even(rank, ranks), range(6, 8), micro_batches)
    return {"even": even, "uneven": _state(net)}


ACCUMULATED = ["ema", "straight-sync", "vq_ste_pp"]
LOADED = ["ema", "ema+running+groups", "vq_ste_pp", "straight-sync"]


def _loaded_by_the_first(case: str, rank: int, ranks: int) -> dict[str, Any]:
    """Only the first rank loads a trained state; the wrapper hands it on to the others."""
    net = Net(_made(case, seed=rank))
    if rank == 0:
        net.load_state_dict(_begun(case))
    _trained(DistributedDataParallel(net), _even(rank, ranks), range(3, 6))
    return _state(net)


def _filling_in_the_first(rank: int, ranks: int) -> dict[str, Tensor]:
    """Only the first rank has begun its init, when all go on together."""
    layer = _made("ema", seed=rank)
    if rank == 0:
        layer.codebook.process_group = False
        layer(_batch(0)[0][:9])
        layer.codebook.process_group = None
    for step in (1, 2):
        layer(_batch(step)[0][_even(rank, ranks)][:3])
    return layer.state_dict()


def _begun(case: str) -> dict[str, Tensor]:
    net = Net(_made(case))
    net.layer.codebook.process_group = False
    _trained(net, slice(None), range(3))
    return _state(net)


def _in_two_groups(rank: int, ranks: int) -> dict[str, Any]:
    """Each half of the ranks shares a codebook of its own."""
    halves = [range(ranks // 2), range(ranks // 2, ranks)]
    groups = [dist.new_group(list(half)) for half in halves]
    half = rank // (ranks // 2)
    layer = _made("vq_ste_pp-groups", seed=rank)
    layer.codebook.process_group = groups[half]
    for step in range(1, 6):
        z = _batch(step)[0][_even(rank, ranks)]
        layer(z)
    twin = copy.deepcopy(layer)
    layer.codebook.process_group = groups[1 - half]
    with pytest.raises(ValueError, match="a group that this process belongs to"):
        layer(z)
    return {"state": twin.state_dict(), "is_shared": twin.codebook.process_group is groups[half]}


def _one_alone(rank: int) -> bool:
    layer = _made("straight")
    layer.codebook.process_group = False
    if rank == 0:
        layer(_batch(1)[0])  # would wait for the others
    return bool(layer.codebook.is_ready)


def _sharded(rank: int, ranks: int) -> dict[str, Any]:
    """Fully sharded training with the quantizer left whole, and what is said if it is not."""
    mesh = init_device_mesh("cpu", (ranks,))
    net = Net(_made("straight-sync"))
    fully_shard(net, mesh=mesh, ignored_params=set(net.layer.parameters()))
    for parameter in net.layer.parameters():  # what is not sharded is not averaged either
        parameter.register_post_accumulate_grad_hook(_average_gradient)
    _trained(net, _even(rank, ranks), range(6))
    state = _state(net)
    whole = Net(_made("straight-sync"))
    fully_shard(whole, mesh=mesh)
    with pytest.raises(ValueError, match=r"codebook 'layer\.codebook' must be whole.* ignored_params"):
        _optimizer(whole)
    return state


def _average_gradient(parameter: Tensor) -> None:
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def _state(net: nn.Module) -> dict[str, Tensor]:
    state = {name: value.detach() for name, value in net.state_dict().items()}
    return {name: x.full_tensor() if isinstance(x, DTensor) else x.clone() for name, x in state.items()}


# --- what must be true of it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What each rank got."""
    return run_on_ranks(_everything, request.param)


every_case = pytest.mark.parametrize("case", list(CASES))


def assert_equal(states: list[dict[str, Tensor]]) -> None:
    for rank, state in enumerate(states):
        for name, value in states[0].items():
            assert torch.equal(value, state[name]), f"{name} of rank {rank} differs from the first rank's"


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in second:
        if not name.endswith("seed"):  # each of them drew its own
            torch.testing.assert_close(
                first[name], second[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@every_case
def test_uneven_and_empty_ranks_do_what_one_process_does(case: str, ranks: list[dict[str, Any]]) -> None:
    runs = [rank["uneven"][case] for rank in ranks]
    assert_equal([run["state"] for run in runs])
    alone = _forwards(_made(case), lambda step: slice(None))
    for step in range(STEPS):
        assert_equal([{"table": run["tables"][step]} for run in runs])
        torch.testing.assert_close(
            runs[0]["tables"][step], alone["tables"][step], rtol=1e-4, atol=1e-4, msg=lambda m, s=step: f"step {s}: {m}"
        )


@every_case
def test_data_parallel_training_does_what_one_process_does(case: str, ranks: list[dict[str, Any]]) -> None:
    runs = [rank["wrapped"][case] for rank in ranks]
    assert_equal([run["even"] for run in runs])
    alone = Net(_made(case))
    _trained(alone, slice(None), range(6))
    assert_close(runs[0]["even"], _state(alone))


@every_case
def test_data_parallel_training_goes_on_where_a_rank_has_nothing(case: str, ranks: list[dict[str, Any]]) -> None:
    states = [rank["wrapped"][case]["uneven"] for rank in ranks]
    assert_equal(states)
    assert all(value.isfinite().all() for value in states[0].values())


@pytest.mark.parametrize("case", ACCUMULATED)
def test_accumulated_gradients_are_one_codebook_update_per_micro_batch(case: str, ranks: list[dict[str, Any]]) -> None:
    runs = [rank["accumulated"][case] for rank in ranks]
    assert_equal([run["even"] for run in runs])
    assert runs[0]["even"]["layer.clock.step"] == 6 * 2
    alone = Net(_made(case))
    _trained(alone, slice(None), range(6), micro_batches=2)
    assert_close(runs[0]["even"], _state(alone))


@pytest.mark.parametrize("case", LOADED)
def test_a_state_loaded_by_the_first_rank_alone_is_everyones(case: str, ranks: list[dict[str, Any]]) -> None:
    assert_equal([rank["loaded"][case] for rank in ranks])
    alone = Net(_made(case))
    alone.load_state_dict(_begun(case))
    _trained(alone, slice(None), range(3, 6))
    assert_close(ranks[0]["loaded"][case], _state(alone))


def test_an_init_that_the_first_rank_alone_has_begun_is_everyones(ranks: list[dict[str, Any]]) -> None:
    states = [rank["filling"] for rank in ranks]
    assert_equal(states)
    filled = states[0]["codebook.filled"]
    assert filled.sum() == min(len(filled), 9 + 2 * 3 * len(ranks))
    begun = torch.cdist(_batch(0)[0][:9], states[0]["codebook.raw"]).min(1).values
    assert (begun < 0.5).all(), "the rows that the first rank had filled still stand for its vectors"


def test_a_group_of_some_ranks_has_a_codebook_of_its_own(ranks: list[dict[str, Any]]) -> None:
    middle = len(ranks) // 2
    assert all(rank["halves"]["is_shared"] for rank in ranks)
    states = [rank["halves"]["state"] for rank in ranks]
    for half, rows in ((states[:middle], slice(0, ROWS // 2)), (states[middle:], slice(ROWS // 2, ROWS))):
        assert_equal(half)
        # The group's first rank is its source.
        alone = _made("vq_ste_pp-groups", seed=0 if rows.start == 0 else middle)
        for step in range(1, 6):
            alone(_batch(step)[0][rows])
        assert_close(half[0], alone.state_dict())
    assert not torch.equal(states[0]["codebook.raw"], states[-1]["codebook.raw"])


def test_synchronisation_can_be_switched_off(ranks: list[dict[str, Any]]) -> None:
    assert [rank["alone"] for rank in ranks] == [True] + [False] * (len(ranks) - 1)


@needs_torch(SHARDS, "leaves parameters out of a sharded network")
def test_sharded_training_keeps_what_the_layer_writes(ranks: list[dict[str, Any]]) -> None:
    assert_equal([rank["sharded"] for rank in ranks])
    alone = Net(_made("straight-sync"))
    _trained(alone, slice(None), range(6))
    assert_close(ranks[0]["sharded"], _state(alone))


# --- compiled -------------------------------------------------------------------------------------------------------


def _recipe(parametrization: svq.Parametrization, update: svq.Update, init: svq.Init) -> svq.VectorQuantizer:
    book = svq.Codebook(
        SIZE, parametrization=parametrization, init=init, update=update, reset=svq.DeadCodeReset(patience=2)
    )
    return svq.VectorQuantizer(DIM, book)


def _compiled(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds

    join()
    torch.manual_seed(rank)
    update = svq.AlternatedUpdate(fraction=0.5)
    eager = _recipe(svq.RunningAffine(groups=4), update, svq.KMeansInit())
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    for step in range(6):
        z, mask = (x[60 * rank : 60 * rank + 60] for x in _batch(1 + step))
        eager(z, mask)
        compiled(z, mask)
    return {"eager": eager.state_dict(), "compiled": twin.state_dict(), "graphs": counter.frame_count}


@pytest.mark.slow
def test_compiled_ranks_do_what_eager_ranks_do_in_two_graphs() -> None:
    first, second = run_on_ranks(_compiled)
    assert first["graphs"] == second["graphs"] == 2
    for name, value in first["compiled"].items():
        assert torch.equal(value, second["compiled"][name]), f"{name} differs between ranks"
        torch.testing.assert_close(value, first["eager"][name], rtol=1e-5, atol=1e-5, msg=name)


# --- what they say to each other ------------------------------------------------------------------------------------

# Messages of a training step after the init. What is known at the same time travels together: before the search the
# ranks' shares and the batch's moments, after it counts, sums and the groups' moments. Vectors for dead codes can only
# be asked for in between.
UPDATES = {
    "gradient": svq.GradientUpdate,
    "ema": svq.EMAUpdate,
    "alternated": svq.AlternatedUpdate,
    "alternated, 3 steps": lambda: svq.AlternatedUpdate(steps=3),
    "alternated, assigned once": lambda: svq.AlternatedUpdate(reassign=False),
}
MAPS = {
    "direct": svq.Direct,
    "affine": svq.Affine,
    "running": svq.RunningAffine,
    "running in groups": lambda: svq.RunningAffine(groups=4),
}
#                              without reset            with reset
#             direct, affine, running, in groups  direct, affine, running, in groups
MESSAGES = {
    "gradient": ((0, 0, 1, 2), (3, 3, 3, 3)),
    "ema": ((1, None, 2, 2), (3, None, 3, 3)),
    "alternated": ((1, 1, 2, 2), (3, 3, 3, 3)),
    "alternated, 3 steps": ((3, 3, 4, 4), (5, 5, 5, 5)),
    "alternated, assigned once": ((1, 1, 2, 2), (3, 3, 3, 3)),
}


@pytest.mark.parametrize("reset", [False, True], ids=["no reset", "reset"])
@pytest.mark.parametrize("kind", list(MAPS))
@pytest.mark.parametrize("update", list(UPDATES))
def test_messages_of_a_training_step(update: str, kind: str, reset: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = MESSAGES[update][reset][list(MAPS).index(kind)]
    if expected is None:
        pytest.skip("refused: see the gradient contract")
    book = svq.Codebook(
        SIZE, parametrization=MAPS[kind](), update=UPDATES[update](), reset=svq.DeadCodeReset() if reset else None
    )
    layer = svq.VectorQuantizer(DIM, book)
    layer(_batch(0)[0])
    sent = pretend_ranks(monkeypatch)
    for step in range(1, 4):
        sent.clear()
        layer(*_batch(step))
        assert len(sent) == expected, sent


@pytest.mark.parametrize("mode", ["evaluation", "frozen"])
def test_ranks_send_nothing_where_nothing_changes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _recipe(svq.RunningAffine(groups=4), svq.EMAUpdate(), svq.NormalInit())
    layer(_batch(0)[0])
    sent = pretend_ranks(monkeypatch)
    if mode == "frozen":
        layer.codebook.freeze()
    else:
        layer.eval()
    layer(*_batch(1))
    layer.decode(layer.encode(_batch(2)[0]))
    assert not sent
