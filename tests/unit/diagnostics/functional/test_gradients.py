"""Gradients and the delay of a step: hand-computed values, naive twins, limits."""

import math

import numpy as np
import pytest
import torch

from straightvq import diagnostics as dx


class TestGradients:
    def test_relative_and_cosine_ignore_the_scale_of_the_loss(self):
        a, b = torch.randn(2, 9, 5)
        small, large = dx.gradient_gap(1e-30 * a, 1e-30 * b), dx.gradient_gap(a, b)
        torch.testing.assert_close(small[1:], large[1:])
        torch.testing.assert_close(large.cosine, torch.cosine_similarity(a.flatten(), b.flatten(), 0))

    def test_gap_of_zero_gradients_is_defined(self):
        zero, one = torch.zeros(2), torch.ones(2)
        assert [float(v) for v in dx.gradient_gap(zero, zero)] == [0.0, 0.0, 1.0]
        assert float(dx.gradient_gap(zero, one).relative) == math.inf

    def test_sparsity_counts_rows_that_selected_codes_own(self):
        table = torch.zeros(5, 2, requires_grad=True)
        table[torch.tensor([1, 1, 3])].sum().backward()
        assert float(dx.gradient_sparsity(table.grad)) == pytest.approx(2 / 5)

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"the shape of `grad_at_z`, \(2,\)\. Got \(3,\)"):
            dx.gradient_gap(torch.ones(2), torch.ones(3))
        with pytest.raises(ValueError, match=r"at least one row\. Got \(0, 3\)"):
            dx.gradient_sparsity(torch.zeros(0, 3))


class TestEstimatorGap:
    def test_of_the_identity_head_is_the_quantization_error(self):
        # L = |u|^2 / 2 at z = (3, 4) and q = 0: gradients (3, 4) and 0.
        gap = dx.estimator_gap(lambda u: u.square().sum() / 2, torch.tensor([3.0, 4.0]), torch.zeros(2))
        assert [float(v) for v in gap] == [5.0, 1.0, 0.0]

    def test_of_a_linear_head_is_zero(self):
        weight, z = torch.randn(2, 5, 3)
        gap = dx.estimator_gap(lambda u: (u * weight).sum(), z, torch.zeros(5, 3))
        assert [float(v) for v in gap] == [0.0, 0.0, pytest.approx(1.0)]

    def test_equals_central_differences(self):
        target = torch.randn(4, dtype=torch.float64)
        z, quantized = torch.randn(2, 4, dtype=torch.float64)

        def head(u):
            return (u.sin() - target).square().mean()

        def slope(at):
            steps = 1e-6 * torch.eye(4, dtype=torch.float64)
            return torch.stack([(head(at + h) - head(at - h)) / 2e-6 for h in steps])

        torch.testing.assert_close(
            dx.estimator_gap(head, z, quantized), dx.gradient_gap(slope(z), slope(quantized)), rtol=1e-6, atol=1e-8
        )

    def test_touches_neither_parameters_nor_random_state(self):
        head = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 1))
        z = torch.randn(8, 3, requires_grad=True)
        before = torch.get_rng_state()
        with torch.no_grad():
            gap = dx.estimator_gap(lambda u: head(u).sum(), z, z)
        assert float(gap.norm) == 0.0  # the same mask in both passes
        assert torch.equal(torch.get_rng_state(), before)
        assert z.grad is None
        assert all(p.grad is None for p in head.parameters())

    def test_bad_heads_and_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"the shape of `z`, \(2,\)\. Got \(3,\)"):
            dx.estimator_gap(torch.sum, torch.ones(2), torch.ones(3))
        with pytest.raises(ValueError, match=r"a scalar loss .* Got the shape \(2,\)"):
            dx.estimator_gap(lambda u: u, torch.ones(2), torch.ones(2))
        with pytest.raises(ValueError, match="requires_grad=False"):
            dx.estimator_gap(lambda u: torch.tensor(1.0), torch.ones(2), torch.ones(2))


def naive_error(z, codes, unit):
    return np.mean([min(((v - c) ** 2).sum() for c in codes) for v in z]) / unit


class TestUpdateDelay:
    def test_equals_the_naive_twin(self):
        z, moved = torch.randn(2, 7, 9, 5, dtype=torch.float64)
        before, after = torch.randn(2, 13, 5, dtype=torch.float64)
        flat, flat_moved = (x.reshape(-1, 5).numpy() for x in (z, moved))
        unit = flat.var(0).sum()
        expected = [naive_error(x, c.numpy(), unit) for x, c in ((flat, before), (flat, after), (flat_moved, after))]
        np.testing.assert_allclose(dx.update_delay(z, moved, before, after), expected, rtol=1e-9)

    def test_is_unchanged_by_shift_and_scale(self):
        z, moved = torch.randn(2, 40, 3, dtype=torch.float64)
        before, after = torch.randn(2, 8, 3, dtype=torch.float64)
        there = dx.update_delay(*(3 * x + 1e5 for x in (z, moved, before, after)))
        torch.testing.assert_close(there, dx.update_delay(z, moved, before, after), rtol=1e-7, atol=0)

    def test_assigns_by_the_given_distance(self):
        z, codes = torch.tensor([[4.0, 0.0], [4.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])
        euclidean, cosine = (dx.update_delay(z, z, codes, codes, distance=d) for d in ("euclidean", "cosine"))
        # Variance 1/4. Errors to (3, 3): 10, 5; to (1, 0): 9, 10. Nothing moves.
        assert [float(v) for v in euclidean] == [pytest.approx((9 + 5) / 2 * 4)] * 3
        assert [float(v) for v in cosine] == [pytest.approx((9 + 10) / 2 * 4)] * 3

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((4, 2), (3, 2), (5, 2), (5, 2)), r"the shape of `z_before`, \(4, 2\)\. Got \(3, 2\)"),
            (((4, 2), (4, 2), (5, 2), (6, 2)), r"the shape of `codes_before`, \(5, 2\)\. Got \(6, 2\)"),
            (((4, 2), (4, 2), (5, 3), (5, 3)), r"last axis of the embeddings, \(4, 2\)\. Got \(5, 3\)"),
        ],
    )
    def test_shapes_that_do_not_fit_are_refused(self, shapes, message):
        with pytest.raises(ValueError, match=message):
            dx.update_delay(*(torch.ones(shape) for shape in shapes))
