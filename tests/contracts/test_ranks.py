"""Law 4: all ranks hold the same codebook, and p processes do what one does with the whole batch.

Real processes with gloo on this machine. Each case runs once in one process on whole batches and once in two
processes on uneven shards (one of them empty at times, some vectors masked), and the codebooks are compared.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import straightvq as svq
from tests.ranks import pretend_ranks, run_on_ranks

DIM, SIZE, STEPS = 6, 24, 12


def _recipe(parametrization: svq.Parametrization, update: svq.Update, init: svq.Init) -> svq.VectorQuantizer:
    book = svq.Codebook(
        SIZE, parametrization=parametrization, init=init, update=update, reset=svq.DeadCodeReset(patience=2)
    )
    return svq.VectorQuantizer(DIM, book)


CASES: dict[str, Callable[[], svq.VectorQuantizer]] = {
    "ema, k-means": lambda: svq.presets.ema(DIM, SIZE, patience=2),
    "alternated with momentum, sample": lambda: _recipe(
        svq.Direct(), svq.AlternatedUpdate(steps=2, momentum=0.5), svq.SampleInit()
    ),
    "alternated sgd, running affine in groups": lambda: _recipe(
        svq.RunningAffine(groups=3), svq.AlternatedUpdate(lr=2.0, reassign=False), svq.KMeansInit()
    ),
    "ema, running affine": lambda: _recipe(svq.RunningAffine(), svq.EMAUpdate(0.9), svq.NormalInit()),
    "gradient, affine": lambda: _recipe(svq.Affine(groups=2), svq.GradientUpdate(), svq.KMeansInit()),
}


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    z = 5 + torch.randn(120, DIM, generator=generator) * (1 + step / 10)
    return z, torch.rand(120, generator=generator) > 0.2


def _cut(step: int) -> int:
    """Rows of the first rank: uneven, and nothing at all in every fourth step."""
    return (0, 75, 31, 120)[step % 4]


def _train(layer: svq.VectorQuantizer, shard: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
    """Training forwards, no optimizer: everything that a forward changes, after each step."""
    tables = []
    for step in range(STEPS):
        z, mask = _batch(step)
        layer(shard(step, z), mask=shard(step, mask))
        tables.append(layer.codes())
    return tables


def _rank_of_two(rank: int, join: Callable[[], None]) -> dict[str, dict[str, Any]]:
    torch.manual_seed(rank)  # different on purpose: the first training step makes the ranks equal
    layers = {case: make() for case, make in CASES.items()}  # before the group exists
    join()

    def shard(step: int, x: Tensor) -> Tensor:
        return x[: _cut(step)] if rank == 0 else x[_cut(step) :]

    return {case: {"tables": _train(layer, shard), "state": layer.state_dict()} for case, layer in layers.items()}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, Any]]]:
    return run_on_ranks(_rank_of_two)


@pytest.mark.parametrize("case", list(CASES))
def test_two_uneven_ranks_do_what_one_process_does(case: str, two_ranks: list[dict[str, dict[str, Any]]]) -> None:
    first, second = (rank[case] for rank in two_ranks)
    for name, value in first["state"].items():
        torch.testing.assert_close(value, second["state"][name], rtol=0, atol=0, msg=f"{name} differs between ranks")
    torch.manual_seed(0)
    layers = {name: make() for name, make in CASES.items()}
    alone = _train(layers[case], lambda step, x: x)
    for step, (table, other) in enumerate(zip(first["tables"], alone, strict=True)):
        torch.testing.assert_close(table, other, rtol=1e-4, atol=1e-4, msg=f"step {step} differs from one process")


def _one_sided(rank: int, join: Callable[[], None]) -> int:
    join()
    layer = svq.presets.straight(DIM, SIZE)
    layer.codebook.process_group = False
    if rank == 0:
        layer(_batch(0)[0])  # would wait for the other rank
    return rank


def test_synchronisation_can_be_switched_off() -> None:
    assert run_on_ranks(_one_sided) == [0, 1]


def _compiled(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    join()
    torch.manual_seed(rank)
    update = svq.AlternatedUpdate(fraction=0.5)
    eager = _recipe(svq.RunningAffine(groups=3), update, svq.KMeansInit())
    twin = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, fullgraph=True, backend=counter)
    for step in range(6):
        z, mask = (x[60 * rank : 60 * rank + 60] for x in _batch(step))
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
    "running in groups": lambda: svq.RunningAffine(groups=3),
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
    layer = _recipe(svq.RunningAffine(groups=3), svq.EMAUpdate(), svq.NormalInit())
    layer(_batch(0)[0])
    sent = pretend_ranks(monkeypatch)
    if mode == "frozen":
        layer.codebook.freeze()
    else:
        layer.eval()
    layer(*_batch(1))
    layer.decode(layer.encode(_batch(2)[0]))
    assert not sent
