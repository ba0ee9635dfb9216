"""Use of the codes: hand-computed values, naive twins, limits."""

import math

import numpy as np
import pytest
import torch

from straightvq import diagnostics as dx


class TestUsage:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    def test_counts_equal_numpy_bincount(self, dtype):
        indices = torch.randint(0, 63, (7, 11, 13)).to(dtype)
        expected = np.bincount(indices.numpy().ravel(), minlength=100)
        counts = dx.usage_counts(indices, 100)
        assert counts.dtype == torch.int64
        np.testing.assert_array_equal(counts.numpy(), expected)

    def test_counts_of_nothing_are_zero(self):
        assert dx.usage_counts(torch.empty(0, 3, dtype=torch.int64), 2).tolist() == [0, 0]
        assert dx.usage_counts(torch.full((5,), -1), 2).tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("counts", "perplexity", "usage", "dead"),
        [
            ([2, 1, 1, 0], 2 * math.sqrt(2), 0.75, 1),
            ([9, 0, 0], 1, 1 / 3, 2),
            ([7] * 1000, 1000, 1, 0),
            ([0, 0, 0], 0, 0, 3),
            ([2**40, 2**40 + 1, 1], 2, 1, 0),  # beyond the integers of float32
            ([[0.5, 0.5], [0.25, 0.0]], [2, 1], [1, 0.5], [0, 1]),  # frequencies of two levels
        ],
    )
    def test_of_counts_by_hand(self, counts, perplexity, usage, dead):
        counts = torch.tensor(counts)
        assert dx.perplexity(counts).tolist() == pytest.approx(perplexity, rel=1e-6)
        assert dx.usage(counts).tolist() == pytest.approx(usage)
        assert dx.dead_codes(counts).tolist() == dead

    @pytest.mark.parametrize(
        ("indices", "size", "error", "message"),
        [
            (torch.tensor([0, 7]), 4, ValueError, r"integers below codebook_size=4\. Got 7\."),
            (torch.tensor([0.0]), 4, TypeError, r"`indices` must be integers\. Got torch\.float32"),
            (torch.tensor([True]), 4, TypeError, r"must be integers\. Got torch\.bool"),
            (torch.tensor([0]), 0, ValueError, r"`codebook_size` must be an integer >= 1\. Got 0"),
        ],
    )
    def test_bad_indices_are_refused(self, indices, size, error, message):
        with pytest.raises(error, match=message):
            dx.usage_counts(indices, size)


class TestSlidingUsage:
    @pytest.mark.parametrize("window", [1, 2, 7, 63, 100])
    def test_equals_the_set_of_codes_in_each_window(self, window):
        indices = torch.randint(0, 30, (63, 5))
        counts = torch.stack([dx.usage_counts(step, 30) for step in indices])
        naive = [len(set(indices[max(0, t - window + 1) : t + 1].flatten().tolist())) / 30 for t in range(63)]
        np.testing.assert_allclose(dx.sliding_usage(counts, window), naive, rtol=1e-6)

    def test_of_no_step_is_empty(self):
        assert dx.sliding_usage(torch.zeros(0, 4), 3).shape == (0,)

    @pytest.mark.parametrize(
        ("counts", "window", "message"),
        [
            (torch.ones(3), 1, r"\(steps, k\), k >= 1\. Got \(3,\)"),
            (torch.ones(3, 0), 1, r"Got \(3, 0\)"),
            (torch.ones(3, 2), 0, r"`window` must be an integer >= 1\. Got 0"),
        ],
    )
    def test_bad_input_is_refused(self, counts, window, message):
        with pytest.raises(ValueError, match=message):
            dx.sliding_usage(counts, window)
