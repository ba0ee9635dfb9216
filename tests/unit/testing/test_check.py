"""``check_quantizer`` passes sound parts and names the law that a faulty one breaks."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.versions import one_graph
from torch import Tensor, nn

import straightvq as svq
from straightvq.functional import code_sums
from straightvq.nn.ranks import num_ranks, rank, sum_over_ranks
from straightvq.nn.slots.updates import Assigned
from straightvq.testing import LAWS, LawError, check_quantizer
from straightvq.testing.law import hold, near, same, same_state
from straightvq.testing.ranks import Ranks


class Clipped(svq.Estimator):
    """A sound estimator: the gradient of far vectors is clipped."""

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        weight = (1 / (z - code).detach().norm(dim=1, keepdim=True)).clamp(max=1)
        return code.detach() + weight * (z - z.detach())


class Signs(svq.Quantizer):
    """A quantizer without a table: the sign of each channel, packed into one integer."""

    codebook_size = 64

    def __init__(self) -> None:
        super().__init__(6)
        self.register_buffer("bits", 2 ** torch.arange(6))

    def assign(self, z: Tensor) -> Tensor:
        return ((z > 0) * self.bits).sum(1)

    def lookup(self, indices: Tensor) -> Tensor:
        return 2.0 * (indices[:, None] & self.bits).bool() - 1


# --- planted mistakes ------------------------------------------------------------------------------------------------


def estimator(rule: Callable[[Tensor, Tensor], Tensor], **attributes: Any) -> type[svq.Estimator]:
    return type("Faulty", (svq.Estimator,), {"forward": lambda self, z, code: rule(z, code), **attributes})


Rounding = estimator(lambda z, code: z + (code - z).detach())
Noisy = estimator(lambda z, code: code.detach() + (z - z.detach()) + 0.1 * torch.randn_like(z))
Blocked = estimator(lambda z, code: code.detach())
Silent = estimator(lambda z, code: code.detach() + (z - z.detach()), trains_codes=True)
Branching = estimator(lambda z, code: code.detach() + (2 if z.sum() > 0 else 1) * (z - z.detach()))


class Counting(svq.Estimator):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(())

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return code.detach() + self.seen * (z - z.detach())


class Wide(svq.Estimator):
    def __init__(self) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.ones(6, 16))

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        weights = (z @ self.directions).softmax(1)  # keeps (n, k)
        return code.detach() + (z - z.detach()) * (1 + 0 * weights.sum(1, keepdim=True))


class Unmasked(svq.Loss):
    name = "commitment"
    trains = "encoder"

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        return (z - code.detach()).square().mean()


class Undetached(svq.Loss):
    name = "commitment"
    trains = "encoder"

    def forward(self, z: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        x = (z - code).square()
        return x.mean() if valid is None else x[valid].sum() / (valid.sum() * z.shape[1]).clamp(min=1)


class Mean(svq.Update):
    """Moves used codes half of the way to their mean; ``fault`` plants a mistake."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def step(self, table: Any, batch: svq.Batch, search: Callable[[Tensor], Tensor]) -> Assigned | None:
        z, codes = batch.z, table.codes()
        indices = search(codes)
        match self.fault:
            case "mask":
                indices = indices.clamp(min=0)
            case "one rank":
                counts, pull = code_sums(z - codes[indices.clamp(min=0)], indices, len(codes))
                table.write(codes + 0.5 * pull / counts.clamp(min=1)[:, None], counts > 0)
                return None
            case "waits alone" if rank(None) == 0:
                sum_over_ranks(z.sum(), None)
        counts, pull = table.pull(z, codes, indices)
        noise = torch.randn_like(codes) if self.fault == "noise" else 0
        table.write(codes + 0.5 * pull / counts.clamp(min=1)[:, None] + noise, counts > 0)
        return Assigned(None, counts)


class Halved(svq.Parametrization):
    def forward(self, raw: Tensor) -> Tensor:
        return raw / 2

    def inverse(self, codes: Tensor) -> Tensor:
        return codes


class Expanded(svq.Assigner):
    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        return (codes.square().sum(1) - 2 * z @ codes.T).argmin(1)


class Eager(svq.Init):
    """Draws from the global generator after construction."""

    needs_data = True

    def start(self, size: int, dim: int) -> Tensor:
        return torch.randn(size, dim)

    def fit(self, z: Tensor, size: int, generator: torch.Generator) -> Tensor:
        return z.mean(0) + torch.randn(size, z.shape[1], dtype=z.dtype)


def unchecked() -> svq.VectorQuantizer:
    layer = svq.presets.ema(6, 16)
    layer.check_finite = False
    return layer


FAULTS: list[tuple[str, Any, str]] = [
    ("an output that is rounded", Rounding, "training_forward_returns_rows_of_the_table_it_leaves_behind"),
    ("noise in evaluation", Noisy, "evaluation_changes_no_state_and_draws_nothing"),
    ("no gradient", Blocked, "task_gradient_reaches_the_encoder"),
    ("a gradient that is declared and not sent", Silent, "task_gradient_reaches_the_encoder"),
    ("state in an attribute", Counting, "every_buffer_that_training_changes_is_saved"),
    ("a matrix kept", Wide, "no_matrix_of_vectors_times_codes_is_made"),
    ("a loss over masked rows", lambda: Unmasked(0.25), "masked_batch_equals_the_batch_of_its_valid_vectors"),
    ("a loss that trains both", lambda: Undetached(0.25), "each_loss_trains_its_sides"),
    ("masked rows in an update", lambda: Mean("mask"), "masked_batch_equals_the_batch_of_its_valid_vectors"),
    ("sums of one rank", lambda: Mean("one rank"), "ranks_do_what_one_process_does"),
    ("a message of one rank", lambda: Mean("waits alone"), "ranks_do_what_one_process_does"),
    ("noise of the global generator", lambda: Mean("noise"), "resume_equals_never_having_stopped"),
    ("a wrong inverse", Halved, "set_codes_writes_effective_codes"),
    ("cancellation far away", Expanded, "far_from_the_origin_the_nearest_code_is_found"),
    ("an init of the global generator", Eager, "state_changes_do_not_depend_on_gradient_mode"),
    ("NaN let through", unchecked, "bad_input_is_refused_and_changes_nothing"),
]


def broken_by(make: Any, law: str) -> str:
    with pytest.raises(LawError) as caught:
        check_quantizer(make, laws=[law])
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        *[pytest.param(make, law, id=what) for what, make, law in FAULTS],
        pytest.param(Branching, "compiled_forward_equals_eager", id="a branch on a value", marks=one_graph),
    ],
)
def test_planted_mistake_breaks_its_law(make: Any, law: str) -> None:
    message = broken_by(make, law)
    assert re.match(rf"1 of 1 laws is broken:\n- {law} \(\w+\): .*\. Here: expected .*\. Got .*\.$", message), message


def test_sound_estimator_keeps_every_law_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    report = check_quantizer(Clipped)
    assert list(report) == list(LAWS)
    in_one_graph = report.pop("compiled_forward_equals_eager")
    assert in_one_graph == "holds" or torch.__version__ < "2.13", in_one_graph
    assert set(report.values()) == {"holds"}
    assert torch.equal(before, torch.get_rng_state())


def test_quantizer_without_a_table_keeps_the_laws_that_speak_of_it() -> None:
    report = check_quantizer(Signs, laws=[law.chapter for law in LAWS.values() if law.chapter != "graphs"])
    silent = [name for name, outcome in report.items() if outcome != "holds"]
    assert all(re.search("no table of codes|not one table", report[name]) for name in silent)
    spoken = {"decode_gives_what_the_evaluation_forward_gave", "masked_positions_take_part_in_nothing"}
    spoken |= {"resume_equals_never_having_stopped", "autocast_changes_nothing"}
    assert not (spoken | {"bad_input_is_refused_and_changes_nothing"}) & set(silent)


@pytest.mark.parametrize(
    "item",
    [
        svq.presets.ema(5, 12, channel_dim=1),
        svq.presets.straight,
        svq.Codebook(8, 3, update=svq.EMAUpdate()),
        svq.CodebookLoss(0.5),
        svq.CommitmentLoss,
        svq.Nearest("cosine"),
        svq.Projection(2),
        svq.RunningAffine(groups=4),
        svq.KMeansInit(2),
        lambda: svq.AlternatedUpdate(steps=2),
        svq.DeadCodeReset(2),
    ],
    ids=lambda item: getattr(item, "__name__", type(item).__name__),
)
def test_quantizers_parts_classes_and_functions_are_taken(item: Any) -> None:
    make = (lambda: svq.presets.straight(6, 16)) if item is svq.presets.straight else item
    before = {k: v.clone() for k, v in item.state_dict().items()} if isinstance(item, nn.Module) else {}
    report = check_quantizer(make, laws=["round_trip", "masks"])  # which train, too
    assert len(report) == sum(law.chapter in ("round_trip", "masks") for law in LAWS.values())
    if isinstance(item, nn.Module):
        after = item.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items()), "the instance itself was used"


@pytest.mark.parametrize("part", [svq.Gumbel, svq.ReinMax])
def test_an_estimator_of_a_drawn_code_gets_an_assigner_that_draws(part: type[svq.Estimator]) -> None:
    report = check_quantizer(part, laws=["round_trip"])
    assert set(report.values()) == {"holds"}


def test_all_broken_laws_are_reported_at_once() -> None:
    with pytest.raises(LawError) as caught:
        check_quantizer(Noisy, laws=["round_trip", "evaluation", "switches"])
    message = str(caught.value)
    assert "decode_gives_what_the_evaluation_forward_gave" in message
    assert "evaluation_changes_no_state_and_draws_nothing" in message
    assert "freezing_is_saved" not in message


def test_exception_is_reported_with_its_reason_and_an_error_where_it_is_not_needed() -> None:
    law = "task_gradient_reaches_the_encoder"
    assert check_quantizer(Blocked, laws=[law], exceptions={law: "on purpose"}) == {law: "exception: on purpose"}
    with pytest.raises(LawError, match=r"expected the exception to be needed \(on purpose\)\. Got: it holds"):
        check_quantizer(Clipped, laws=[law], exceptions={law: "on purpose"})


def test_laws_that_say_nothing_are_reported_as_such() -> None:
    class Local(Clipped):
        pass

    report = check_quantizer(lambda: svq.VectorQuantizer(4, svq.Codebook(8), estimator=Local()), laws=["state"])
    assert report["pickled_copy_goes_on_alike_and_apart"].startswith("does not apply: ")
    assert report["copy_goes_on_alike_and_apart"] == "holds"


def test_an_error_of_the_part_is_the_law_it_breaks() -> None:
    class Failing(Clipped):
        def forward(self, z: Tensor, code: Tensor) -> Tensor:
            raise KeyError("forgotten")

    assert "expected no error. Got KeyError: 'forgotten'" in broken_by(Failing, "autocast_changes_nothing")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"make": 3}, TypeError, "must be a quantizer, a part, or a function"),
        ({"make": lambda: nn.Linear(2, 2)}, TypeError, "must give a quantizer or a part of one"),
        ({"laws": ["mask"]}, ValueError, "`laws` must name laws"),
        ({"laws": "masks"}, TypeError, "write ['masks']"),
        ({"exceptions": {"masks": "chapters have no exceptions"}}, ValueError, "`exceptions` must name laws"),
        ({"exceptions": {"double_stays_double": " "}}, ValueError, "must have a reason"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        check_quantizer(**({"make": Clipped} | arguments))
    assert words in str(caught.value)


def test_every_law_has_a_statement_of_one_sentence() -> None:
    for law in LAWS.values():
        assert law.statement.endswith("."), law.name
        assert law.statement.count(". ") == 0, law.name


# --- comparisons -----------------------------------------------------------------------------------------------------

ONE = torch.tensor([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hold(False, "a", 3), "expected a. Got 3."),
        (lambda: same(ONE, ONE.double(), "x"), "expected x: float64 of shape (2,). Got float32 of shape (2,)."),
        (
            lambda: same(ONE + torch.tensor([0.0, 0.5]), ONE, "x"),
            "expected x, bit for bit. Got 1 of 2 values that differ, the first at flat position 1: 2.5 instead of 2.",
        ),
        (lambda: near(ONE + 1, ONE, "x", 0.1), "expected x, within 0.1. Got 2 of 2 values that differ"),
        (lambda: near(ONE, ONE[:1], "x"), "expected x: float32 of shape (1,). Got float32 of shape (2,)."),
        (lambda: same_state({}, {"a": ONE}, "x"), "expected x: the entries ['a']. Got []."),
    ],
)
def test_comparison_says_what_was_expected_and_what_came(call: Callable[[], None], message: str) -> None:
    with pytest.raises(LawError) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_comparisons_pass_what_is_equal() -> None:
    same(ONE, ONE.clone(), "x")
    near(ONE, ONE + 1e-7, "x")
    same_state({"a": ONE}, {"a": ONE.clone()}, "x")
    hold(True, "x", "y")


# --- ranks as threads ------------------------------------------------------------------------------------------------


def test_threads_do_what_torchs_collectives_do() -> None:
    def body(number: int) -> tuple[Tensor, int, int]:
        return sum_over_ranks(torch.tensor([number + 1.0]), None), num_ranks(None), rank(None)

    results = Ranks(3).run(body)
    assert [r[0].item() for r in results] == [6.0, 6.0, 6.0]
    assert [r[1:] for r in results] == [(3, 0), (3, 1), (3, 2)]
    assert num_ranks(None) == 1, "torch's own are back"


def test_ranks_that_wait_for_different_messages_raise_instead_of_hanging() -> None:
    with pytest.raises(LawError, match=r"expected all ranks to wait for the same message\. Got all_reduce .*, the end"):
        Ranks(2).run(lambda number: sum_over_ranks(torch.ones(1), None) if number == 0 else None)


def test_error_of_one_rank_comes_through() -> None:
    def body(number: int) -> None:
        if number == 1:
            raise KeyError("mine")
        sum_over_ranks(torch.ones(1), None)

    with pytest.raises(KeyError, match="mine"):
        Ranks(2).run(body)
