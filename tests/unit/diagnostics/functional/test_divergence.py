"""Errors, moments and distances: hand-computed values, naive twins, limits."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from straightvq import diagnostics as dx


class TestMoments:
    def test_equal_the_naive_two_pass(self):
        x = torch.randn(3, 5, 7) * 2 + 1
        flat = x.numpy().reshape(-1, 7).astype(np.float64)
        for value, expected in zip(dx.moments(x), (flat.mean(0), flat.var(0)), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_stay_exact_far_from_the_origin(self):
        # In float64 the values 1e12 + {0, 2, 4} are exact; E[x^2] - E[x]^2 would lose all digits of 8/3.
        x = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64) + 1e12
        mean, var = dx.moments(x)
        assert mean.item() == 1e12 + 2
        assert var.item() == pytest.approx(8 / 3, rel=1e-12)

    def test_equal_vectors_have_exactly_no_variance(self):
        assert dx.moments(torch.full((1001, 3), 0.1))[1].tolist() == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_come_back_in_float32_or_wider(self, dtype):
        mean, var = dx.moments(torch.tensor([[60000.0], [-60000.0]], dtype=dtype))
        assert mean.dtype == torch.promote_types(dtype, torch.float32)
        assert var.item() == pytest.approx(3.6e9, rel=0.01)

    @pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(4, 0), torch.tensor(1.0)])
    def test_without_vectors_are_refused(self, x):
        with pytest.raises(ValueError, match=r"`moments`: vectors must have the shape \(\*batch, dim\)"):
            dx.moments(x)


class TestQuantizationError:
    def test_of_one_code_at_the_mean_is_one(self):
        z = torch.randn(50, 4) + 100
        assert float(dx.normalized_quantization_error(z, z.mean(0).expand_as(z))) == pytest.approx(1, abs=1e-5)

    def test_is_unchanged_by_shift_and_scale(self):
        z = torch.randn(50, 4, dtype=torch.float64)
        q = z + 0.1 * torch.randn(50, 4, dtype=torch.float64)
        here = dx.normalized_quantization_error(z, q)
        there = dx.normalized_quantization_error(3 * z + 1e6, 3 * q + 1e6)
        torch.testing.assert_close(there, here, rtol=1e-6, atol=0)

    def test_of_equal_embeddings_is_zero_or_infinite(self):
        z = torch.ones(3, 2)
        assert float(dx.normalized_quantization_error(z, z)) == 0.0
        assert float(dx.normalized_quantization_error(z, z + 1)) == math.inf


class TestMomentDistance:
    def test_by_hand(self):
        # z: mean 0, variance 1. codes: mean 4, variance 4.
        gap = dx.moment_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]]))
        kl = (1 / 4 + 4 - 2 + 16 * (1 + 1 / 4)) / 2
        assert [float(value) for value in gap] == pytest.approx([4, 1, math.sqrt(17), kl])

    def test_vanishes_for_the_embeddings_themselves(self):
        z = torch.randn(20, 3)
        assert all(float(value) == 0 for value in dx.moment_distance(z, z))

    def test_is_unchanged_by_shift_and_scale(self):
        z = torch.randn(200, 5, dtype=torch.float64)
        codes = 2 * torch.randn(64, 5, dtype=torch.float64) + 1
        there = dx.moment_distance(7 * z - 1e5, 7 * codes - 1e5)
        torch.testing.assert_close(there, dx.moment_distance(z, codes), rtol=1e-8, atol=0)

    def test_kl_is_the_sum_of_both_directions(self):
        mean_a, mean_b = torch.randn(2, 3)
        var_a, var_b = torch.rand(2, 3) + 0.1
        a = torch.distributions.Normal(mean_a, var_a.sqrt())
        b = torch.distributions.Normal(mean_b, var_b.sqrt())
        expected = (torch.distributions.kl_divergence(a, b) + torch.distributions.kl_divergence(b, a)).sum()
        torch.testing.assert_close(dx.gaussian_symmetric_kl_diagonal(mean_a, var_a, mean_b, var_b), expected)

    @pytest.mark.parametrize(
        ("mean_b", "var_b", "expected"), [(1.0, 0.0, 0.0), (2.0, 0.0, math.inf), (1.0, 1.0, math.inf)]
    )
    def test_kl_of_a_constant_channel_is_zero_or_infinite(self, mean_b, var_b, expected):
        pair = torch.tensor([[1.0], [0.0], [mean_b], [var_b]])
        assert float(dx.gaussian_symmetric_kl_diagonal(*pair)) == expected

    def test_w2_of_two_constants_is_their_distance(self):
        mean_a, mean_b, nothing = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]), torch.zeros(2)
        assert float(dx.gaussian_w2_diagonal(mean_a, nothing, mean_b, nothing)) == 5.0

    def test_equal_embeddings_have_no_unit(self):
        gap = dx.moment_distance(torch.ones(4, 2), torch.zeros(3, 2))
        assert float(gap.mean) == math.inf
        assert float(gap.std) == 0.0

    def test_vectors_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match=r"last axis of the embeddings, \(4, 2\)\. Got \(3, 5\)"):
            dx.moment_distance(torch.ones(4, 2), torch.ones(3, 5))
        with pytest.raises(ValueError, match=r"the shape of `z`, \(3, 2\)\. Got \(2, 3\)"):
            dx.normalized_quantization_error(torch.ones(3, 2), torch.ones(2, 3))


def naive_w2(mean_a, cov_a, mean_b, cov_b):
    """As in the textbook, with the traces that cancel."""
    root = sqrtm(cov_a)
    cross = np.real(sqrtm(root @ cov_b @ root))
    return math.sqrt(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * cross))


class TestFullGaussians:
    def test_covariance_equals_numpy(self):
        x = torch.randn(5, 7, 4, dtype=torch.float64) + 1e4
        mean, cov = dx.covariance(x)
        flat = x.reshape(-1, 4).numpy()
        np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
        np.testing.assert_allclose(cov, np.cov(flat.T, bias=True), rtol=1e-6)
        torch.testing.assert_close(cov.diagonal(), dx.moments(x)[1])

    def test_w2_by_hand(self):
        # Commuting covariances: (4 - 1)^2 in the second moments' roots, 3 and 4 between the means.
        mean_a, mean_b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        cov_a, cov_b = torch.diag(torch.tensor([16.0, 1.0])), torch.diag(torch.tensor([1.0, 1.0]))
        assert float(dx.gaussian_w2(mean_a, cov_a, mean_b, cov_b)) == pytest.approx(math.sqrt(25 + 9))

    @pytest.mark.parametrize("dim", [1, 2, 5, 17])
    def test_w2_equals_the_textbook_form(self, dim):
        a, b = torch.randn(2, 63, dim, dtype=torch.float64)
        first, second = dx.covariance(a @ torch.randn(dim, dim, dtype=torch.float64)), dx.covariance(2 * b + 1)
        expected = naive_w2(*(x.numpy() for x in (*first, *second)))
        assert float(dx.gaussian_w2(*first, *second)) == pytest.approx(expected, rel=1e-9)
        assert float(dx.gaussian_w2(*second, *first)) == pytest.approx(expected, rel=1e-9)

    def test_w2_of_uncorrelated_channels_is_the_diagonal_one(self):
        (mean_a, var_a), (mean_b, var_b) = (dx.moments(torch.randn(9, 6)) for i in (0, 1))
        full = dx.gaussian_w2(mean_a, torch.diag(var_a), mean_b, torch.diag(var_b))
        torch.testing.assert_close(full, dx.gaussian_w2_diagonal(mean_a, var_a, mean_b, var_b))

    def test_w2_sees_the_orientation_that_the_diagonal_one_misses(self):
        # Two lines of variance 2 in each channel, x = y and x = -y.
        up = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
        first, second = dx.covariance(up), dx.covariance(up * torch.tensor([1.0, -1.0]))
        assert float(dx.gaussian_w2_diagonal(*dx.moments(up), *dx.moments(up))) == 0.0
        assert float(dx.gaussian_w2(*first, *second)) == pytest.approx(4.0)  # sqrt(8 + 8)

    def test_w2_of_close_covariances_keeps_its_digits(self):
        cov = torch.eye(3, dtype=torch.float64)
        moved = (1 + 1e-9) ** 2 * cov  # each standard deviation by 1e-9; the traces would cancel
        zero = torch.zeros(3, dtype=torch.float64)
        assert float(dx.gaussian_w2(zero, cov, zero, moved)) == pytest.approx(math.sqrt(3) * 1e-9, rel=1e-5)
        assert float(dx.gaussian_w2(zero, cov, zero, cov)) < 1e-14

    def test_w2_of_fewer_vectors_than_channels_is_finite(self):
        first, second = (dx.covariance(torch.randn(3, 20)) for i in (0, 1))
        assert float(dx.gaussian_w2(*first, *second)) > 0
        assert float(dx.gaussian_w2(*first, *first)) == pytest.approx(0, abs=1e-5)
        point = dx.covariance(torch.ones(1, 20))
        assert float(dx.gaussian_w2(*point, *point)) == 0.0
