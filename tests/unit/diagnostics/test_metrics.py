"""Accumulators equal one pass over all data: any batches, any ranks, any offset, any dtype of the module."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from tests.ranks import run_on_ranks

import straightvq as svq
from straightvq import diagnostics as dx

# Uneven pieces of 100 vectors, among them empty ones and single ones.
PIECES = (0, 1, 30, 0, 2, 66, 1)


def data(offset=0.0, dim=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100, dim, generator=generator, dtype=torch.float64) * torch.arange(1, dim + 1) + offset
    quantized = z + 0.3 * torch.randn(100, dim, generator=generator, dtype=torch.float64)
    codes = torch.randn(16, dim, generator=generator, dtype=torch.float64) + offset
    return z.to(dtype), quantized.to(dtype), codes.to(dtype)


def fed(metric, pieces, *tensors):
    """The metric after an update with each piece of the tensors."""
    for parts in zip(*(tensor.split(pieces) for tensor in tensors), strict=True):
        metric.update(*parts)
    return metric


def naive_errors(z, quantized):
    z, quantized = z.double().numpy(), quantized.double().numpy()
    squared = (z - quantized) ** 2
    return {"mse": squared.mean(), "normalized": squared.sum() / ((z - z.mean(0)) ** 2).sum()}


def assert_equal_values(values, expected, rtol=1e-6):
    assert values.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(values[name].numpy(), np.asarray(expected[name]), rtol=rtol, err_msg=name)


class TestCodebookUsage:
    def test_does_not_depend_on_the_batches(self):
        indices = torch.randint(-1, 40, (100,))
        counts = dx.usage_counts(indices, 50)
        expected = {name: getattr(dx, name)(counts) for name in ("usage", "perplexity", "dead_codes")}
        assert_equal_values(fed(dx.CodebookUsage(50), PIECES, indices).compute(), expected, rtol=0)

    def test_keeps_levels_apart(self):
        metric = dx.CodebookUsage(4, num_quantizers=2)
        metric.update(torch.tensor([[[0, 1], [0, 2]], [[0, 3], [-1, -1]]]))
        values = metric.compute()
        torch.testing.assert_close(values["usage"], torch.tensor([0.25, 0.75]))
        torch.testing.assert_close(values["perplexity"], torch.tensor([1.0, 3.0]))
        assert values["dead_codes"].tolist() == [3, 1]

    def test_counts_stay_integers_whatever_the_module_becomes(self):
        metric = dx.CodebookUsage(2).half().to(torch.bfloat16).set_dtype(torch.float16)
        for _ in range(3):
            metric.update(torch.zeros(1001, dtype=torch.int64))
        assert metric.counts.tolist() == [3003, 0]
        metric.reset()
        assert metric.counts.dtype == torch.int64

    def test_bad_indices_change_nothing(self):
        metric = dx.CodebookUsage(4, num_quantizers=2)
        with pytest.raises(ValueError, match="last axis of num_quantizers=2"):
            metric.update(torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match=r"Got 4\."):
            metric.update(torch.tensor([[0, 4]]))
        assert metric.counts.sum() == 0


class TestQuantizationError:
    # At 1e9 the naive value itself is exact only as far as its mean is.
    @pytest.mark.parametrize(
        ("offset", "dtype"),
        [(0.0, torch.float64), (1e4, torch.float64), (-1e9, torch.float64), (1e4, torch.float32)],
    )
    def test_equals_one_pass_over_all_batches(self, offset, dtype):
        z, quantized, _ = data(offset, dtype=dtype)
        assert_equal_values(fed(dx.QuantizationError(), PIECES, z, quantized).compute(), naive_errors(z, quantized))

    def test_mask_leaves_positions_out(self):
        z, quantized, _ = data()
        mask = torch.arange(100).reshape(4, 25) % 3 > 0
        z, quantized = z.reshape(4, 25, 5), quantized.reshape(4, 25, 5)
        metric = dx.QuantizationError()
        for i in range(4):
            metric.update(z[i], torch.where(mask[i, :, None], quantized[i], torch.nan), mask[i])
        metric.update(z[0], quantized[0], torch.zeros(25, dtype=torch.bool))
        assert_equal_values(metric.compute(), naive_errors(z[mask], quantized[mask]))

    def test_of_equal_embeddings_is_zero_or_infinite(self):
        z = torch.full((7, 2), 0.1)
        metric = dx.QuantizationError()
        for _ in range(3):
            metric.update(z, z)
        assert float(metric.compute()["normalized"]) == 0.0
        metric.update(z, z + 1)
        assert float(metric.compute()["normalized"]) == math.inf

    @pytest.mark.parametrize(
        "change", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.set_dtype(torch.half)]
    )
    def test_keeps_its_precision_whatever_the_module_becomes(self, change):
        z, quantized, _ = data(100.0)
        metric = change(fed(change(dx.QuantizationError()), 50, z[:50], quantized[:50]))
        assert_equal_values(fed(metric, 50, z[50:], quantized[50:]).compute(), naive_errors(z, quantized))

    def test_forward_gives_the_batch_and_accumulates_all(self):
        z, quantized, _ = data()
        metric = dx.QuantizationError()
        for a, b in zip(z.split(25), quantized.split(25), strict=True):
            assert_equal_values(metric(a, b), naive_errors(a, b))
        assert_equal_values(metric.compute(), naive_errors(z, quantized))

    def test_merges_with_another_metric_in_any_order(self):
        z, quantized, _ = data()
        empty, few, many = (dx.QuantizationError() for _ in range(3))
        few.update(z[:10], quantized[:10])
        many.update(z[10:], quantized[10:])
        empty.merge_state(few)
        empty.merge_state(many.metric_state)
        many.merge_state(few)
        for merged in (empty, many):
            assert_equal_values(merged.compute(), naive_errors(z, quantized))
        with pytest.raises(ValueError, match=r"`QuantizationError`: `incoming_state` must be .* Got MomentDistance"):
            empty.merge_state(dx.MomentDistance())

    @pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
    def test_survives_saving_copying_and_pickling(self):
        z, quantized, _ = data()
        metric = dx.QuantizationError()
        metric.persistent(True)
        metric.update(z[:40], quantized[:40])
        loaded = dx.QuantizationError()
        loaded.load_state_dict(metric.state_dict())
        for copied in (loaded, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
            copied.update(z[40:], quantized[40:])
            assert_equal_values(copied.compute(), naive_errors(z, quantized))

    def test_starts_anew_after_reset(self):
        z, quantized, _ = data()
        metric = dx.QuantizationError()
        metric.update(z + 1e6, quantized)
        metric.reset()
        metric.update(z[:, :3], quantized[:, :3])
        assert_equal_values(metric.compute(), naive_errors(z[:, :3], quantized[:, :3]))

    @pytest.mark.parametrize(
        ("z", "quantized", "mask", "message"),
        [
            (torch.ones(3, 2), torch.ones(3, 1), None, r"the shape of `z`, \(3, 2\)\. Got \(3, 1\)"),
            (torch.ones(3, 2), torch.ones(3, 2), torch.ones(2, dtype=torch.bool), r"boolean of the shape \(3,\)"),
            (torch.ones(3, 2), torch.ones(3, 2), torch.ones(3), r"boolean .* Got torch\.float32"),
            (torch.ones(3, 4), torch.ones(3, 4), None, r"must have dim=2 as before\. Got 4"),
            (torch.tensor(1.0), torch.tensor(1.0), None, r"the shape \(\*batch, dim\)\. Got \(\)"),
        ],
    )
    def test_bad_input_is_refused_and_changes_nothing(self, z, quantized, mask, message):
        metric = dx.QuantizationError()
        metric.update(torch.zeros(1, 2), torch.zeros(1, 2))
        before = metric.table.clone()
        with pytest.raises(ValueError, match=message):
            metric.update(z, quantized, mask)
        assert torch.equal(metric.table, before)


class TestMomentDistance:
    @pytest.mark.parametrize("offset", [0.0, 1e6])
    def test_equals_one_pass_over_all_batches(self, offset):
        z, _, codes = data(offset)
        metric = dx.MomentDistance()
        for piece in z.split(PIECES):
            metric.update(piece, codes)
        assert_equal_values(metric.compute(), dx.moment_distance(z, codes)._asdict())

    def test_pools_the_codes_of_a_moving_codebook(self):
        z, _, codes = data()
        both = torch.cat([codes, codes + 3])
        metric = fed(dx.MomentDistance(), 16, z[:32], both)
        assert_equal_values(metric.compute(), dx.moment_distance(z[:32], both)._asdict())

    def test_mask_leaves_positions_out(self):
        z, _, codes = data()
        mask = torch.arange(100) < 60
        metric = dx.MomentDistance()
        metric.update(torch.where(mask[:, None], z, torch.nan), codes, mask)
        assert_equal_values(metric.compute(), dx.moment_distance(z[:60], codes)._asdict())


class TestEstimatorGap:
    def test_is_that_of_all_gradients_put_end_to_end(self):
        a, b, _ = data()
        metric = fed(dx.EstimatorGap(), PIECES, a, b)
        assert_equal_values(metric.compute(), dx.gradient_gap(a, b)._asdict())
        metric.reset()
        metric.update(a, b)
        assert_equal_values(metric.compute(), dx.gradient_gap(a, b)._asdict())

    @pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (0.0, 2.0), (3.0, 0.0), (3.0, 3.0), (1.0, -1.0)])
    def test_zero_gradients_count_as_in_the_function(self, a, b):
        metric = dx.EstimatorGap()
        metric.update(torch.tensor([a]), torch.tensor([b]))
        assert_equal_values(metric.compute(), dx.gradient_gap(torch.tensor([a]), torch.tensor([b]))._asdict())


class TestGradientSparsity:
    def test_tells_taking_turns_from_never(self):
        turns, never = dx.GradientSparsity(4), dx.GradientSparsity(4)
        for step in range(4):
            turns.update(torch.eye(4)[:, step : step + 1])
            never.update(torch.eye(4)[:, :1])
        assert {name: float(value) for name, value in turns.compute().items()} == {"per_step": 0.25, "ever": 1.0}
        assert {name: float(value) for name, value in never.compute().items()} == {"per_step": 0.25, "ever": 0.25}
        assert float(turns.compute()["per_step"]) == float(dx.gradient_sparsity(torch.eye(4)[:, :1]))


class TestSlidingUsage:
    @pytest.mark.parametrize("window", [1, 2, 5, 50])
    def test_is_the_last_value_of_the_curve_at_every_step(self, window):
        steps = torch.randint(-1, 30, (12, 7))
        curve = dx.sliding_usage(torch.stack([dx.usage_counts(step, 30) for step in steps]), window)
        metric = dx.SlidingUsage(30, window)
        for step, expected in zip(steps, curve, strict=True):
            metric.update(step)
            assert float(metric.compute()) == pytest.approx(float(expected))

    def test_calling_it_is_updating_it_once(self):
        metric = dx.SlidingUsage(4, 2)
        assert [float(metric(torch.tensor([code]))) for code in range(3)] == [0.25, 0.25, 0.25]
        assert int(metric.step) == 3
        assert float(metric.compute()) == 0.5

    def test_bad_input_changes_nothing(self):
        metric = dx.SlidingUsage(4, 2)
        metric.update(torch.tensor([1]))
        with pytest.raises(ValueError, match="codebook_size"):
            metric.update(torch.tensor([4]))
        assert int(metric.step) == 1


class TestCodebookDelay:
    @pytest.mark.parametrize("distance", ["euclidean", "cosine"])
    def test_is_that_of_all_vectors_at_once(self, distance):
        z, moved, codes = data(offset=10.0)
        after = codes * 0.9
        metric = dx.CodebookDelay(distance=distance)
        for before, later in zip(z.split(PIECES), moved.split(PIECES), strict=True):
            metric.update(before, later, codes, after)
        expected = dx.update_delay(z, moved, codes, after, distance=distance)
        assert_equal_values(metric.compute(), {**expected._asdict(), "delay": expected.delay})


class TestIndicatorsOfSigns:
    def test_error_is_that_of_all_elements_each_with_the_surrogate_of_its_update(self):
        z = torch.randn(100, 5)
        metric, sums = dx.EstimatingError(), 0.0
        for power, piece in enumerate(z.split(PIECES), 1):
            metric.update(piece, svq.ReSTE(power).surrogate)
            naive = torch.where(piece >= 0, 1.0, -1.0) - piece.sign() * piece.abs() ** (1 / power)
            sums += naive.double().square().sum().item()
        assert metric.compute().item() == pytest.approx(sums / 500, rel=1e-6)

    def test_instability_is_the_mean_over_updates_not_the_variance_of_all(self):
        metric = dx.GradientInstability()
        metric.update([torch.tensor([1.0, -3.0]), torch.tensor([[2.0]])])  # sizes 1, 3, 2: variance 2/3
        metric.update(torch.tensor([10.0, -10.0]))
        assert metric.compute().item() == pytest.approx(1 / 3)

    @pytest.mark.filterwarnings("ignore:The ``compute`` method")
    def test_of_nothing_is_nan(self):
        metric = dx.EstimatingError()
        metric.update(torch.zeros(0), torch.tanh)
        assert metric.compute().isnan()
        assert dx.GradientInstability().compute().isnan()


NONE, SOME = torch.zeros(0, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("metric", "nothing"),
    [
        (dx.QuantizationError(), (NONE, NONE)),
        (dx.MomentDistance(), (NONE, SOME)),
        (dx.EstimatorGap(), (NONE, NONE)),
        (dx.CodebookDelay(), (NONE, NONE, SOME, SOME)),
        (dx.GradientSparsity(3), None),  # an update is a step
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_of_nothing_is_nan(metric, nothing):
    if nothing is not None:
        metric.update(*nothing)
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dx.CodebookUsage(0), r"`codebook_size` must be an integer >= 1\. Got 0"),
        (lambda: dx.CodebookUsage(4, num_quantizers=0), r"`num_quantizers` must be an integer >= 1\. Got 0"),
        (lambda: dx.SlidingUsage(4, 0), r"`window` must be an integer >= 1\. Got 0"),
        (lambda: dx.GradientSparsity(0), r"`codebook_size` must be an integer >= 1\. Got 0"),
        (lambda: dx.GradientSparsity(4).update(SOME), r"\(codebook_size=4, dim\)\. Got \(2, 3\)"),
        (lambda: dx.MomentDistance().update(SOME, torch.ones(2, 5)), r"of the embeddings, \(2, 3\)\. Got \(2, 5\)"),
        (lambda: dx.EstimatorGap().update(SOME, NONE), r"the shape of `grad_at_z`, \(2, 3\)\. Got \(0, 3\)"),
        (lambda: dx.CodebookDelay().update(*[SOME] * 2, *[torch.ones(2, 5)] * 2), r"`CodebookDelay`: the codes .* 5\)"),
        (lambda: dx.CodebookDelay(distance="manhattan"), r"must be one of 'euclidean', 'cosine'\. Got 'manhattan'"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What each of two ranks sees: uneven shards, then one rank that never calls `update`.
SHARES = (((0, 30), (30, 100)), ((0, 100), (0, 0)), ((0, 0), (0, 100)))


def _measure(start, stop):
    z, quantized, codes = data(1e6)
    usage, error, moments = dx.CodebookUsage(128), dx.QuantizationError(), dx.MomentDistance()
    for batch in torch.arange(start, stop).split(13) if stop > start else ():
        usage.update(batch)
        error.update(z[batch], quantized[batch])
        moments.update(z[batch], codes)
    gap, delay = dx.EstimatorGap(), dx.CodebookDelay()
    sparsity, sliding = dx.GradientSparsity(16), dx.SlidingUsage(128, 2)
    of_signs, instability = dx.EstimatingError(), dx.GradientInstability()
    if stop > start:
        gap.update(z[start:stop], quantized[start:stop])
        delay.update(z[start:stop], quantized[start:stop], codes, codes + 1)
        sparsity.update((torch.arange(16) < 4).float()[:, None])
        of_signs.update(z[start:stop] - 1e6, torch.tanh)
        instability.update(torch.tensor([1.0, -3.0]))
    for step in range(3):  # a rank without vectors takes its steps, too
        sliding.update(torch.arange(start, stop)[step::3])
    metrics = (usage, error, moments, gap, delay, sparsity)
    values = {name: float(value) for metric in metrics for name, value in metric.compute().items()}
    values |= {"of signs": float(of_signs.compute()), "instability": float(instability.compute())}
    return {**values, "sliding": float(sliding.compute())}


def _rank(rank, join):
    join()
    return [_measure(*shares[rank]) for shares in SHARES]


@pytest.mark.slow
def test_two_processes_give_what_one_pass_gives():
    ranks = run_on_ranks(_rank)
    z, quantized, codes = data(1e6)
    delay = dx.update_delay(z, quantized, codes, codes + 1)
    counts = dx.usage_counts(torch.arange(100), 128)
    expected = {
        "usage": float(dx.usage(counts)),
        "perplexity": float(dx.perplexity(counts)),
        "dead_codes": 28,
        **naive_errors(z, quantized),
        **{name: float(value) for name, value in dx.moment_distance(z, codes)._asdict().items()},
        **{name: float(value) for name, value in dx.gradient_gap(z, quantized)._asdict().items()},
        **{name: float(value) for name, value in delay._asdict().items()},
        "delay": float(delay.delay),
        "per_step": 0.25,
        "ever": 0.25,
        "of signs": float(dx.estimating_error(z - 1e6, torch.tanh)),
        "instability": 1.0,
        "sliding": 66 / 128,  # steps 1 and 2 of three, which take every third vector in turn
    }
    assert ranks[0] == ranks[1]
    for values in ranks[0]:
        assert values == pytest.approx(expected, rel=1e-6)


def test_gathering_gives_every_rank_one_shape(monkeypatch):
    """The gathering without processes: a rank that saw nothing, first or last, adds nothing."""
    z, quantized, _ = data(1e6)
    filled, empty = dx.QuantizationError(), dx.QuantizationError()
    filled.update(z, quantized)
    for order in ((filled, empty), (empty, filled)):
        monkeypatch.setattr(
            "straightvq.diagnostics.exact.gather_all_tensors",
            lambda table, group, order=order: [metric.metric_state["table"].to(table) for metric in order],
        )
        gathered = filled.dist_sync_fn(filled.table, group=None)
        assert {tuple(part.shape) for part in gathered} == {(4, 5)}
        merged = dx.QuantizationError()
        merged.merge_state({"table": filled._reductions["table"](torch.stack(gathered))})
        torch.testing.assert_close(merged.table, filled.table)
