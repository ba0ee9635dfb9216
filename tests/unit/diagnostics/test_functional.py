"""Hand-computed values, naive numpy twins and limits of the diagnostic functions."""

import math

import numpy as np
import pytest
import torch

from straightvq import diagnostics as dx


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class TestUsage:
    def test_counts_ignore_masked_positions(self):
        indices = torch.tensor([[0, 2, -1], [2, -1, 1]])
        assert dx.usage_counts(indices, 4).tolist() == [1, 1, 2, 0]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
    def test_counts_equal_numpy_bincount(self, dtype):
        indices = torch.randint(0, 63, (7, 11, 13), generator=generator()).to(dtype)
        expected = np.bincount(indices.numpy().ravel(), minlength=100)
        counts = dx.usage_counts(indices, 100)
        assert counts.dtype == torch.int64
        np.testing.assert_array_equal(counts.numpy(), expected)

    def test_counts_of_nothing_are_zero(self):
        assert dx.usage_counts(torch.empty(0, 3, dtype=torch.int64), 2).tolist() == [0, 0]
        assert dx.usage_counts(torch.full((5,), -1), 2).tolist() == [0, 0]

    def test_perplexity_of_half_quarter_quarter_is_two_root_two(self):
        counts = torch.tensor([2, 1, 1, 0])
        assert float(dx.perplexity(counts)) == pytest.approx(2 * math.sqrt(2), rel=1e-6)
        assert float(dx.usage(counts)) == 0.75
        assert int(dx.dead_codes(counts)) == 1

    def test_perplexity_lies_between_one_and_all_codes(self):
        assert float(dx.perplexity(torch.tensor([9, 0, 0]))) == 1.0
        assert float(dx.perplexity(torch.full((1000,), 7))) == pytest.approx(1000, rel=1e-6)

    def test_nothing_counted_gives_zero(self):
        counts = torch.zeros(3, dtype=torch.int64)
        assert float(dx.perplexity(counts)) == 0.0
        assert float(dx.usage(counts)) == 0.0
        assert int(dx.dead_codes(counts)) == 3

    def test_perplexity_accepts_frequencies_and_levels(self):
        levels = torch.tensor([[0.5, 0.5], [0.25, 0.0]])
        torch.testing.assert_close(dx.perplexity(levels), torch.tensor([2.0, 1.0]))

    def test_perplexity_survives_counts_beyond_float32_integers(self):
        counts = torch.tensor([2**40, 2**40 + 1, 1])
        assert float(dx.perplexity(counts)) == pytest.approx(2.0, rel=1e-6)

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


class TestMoments:
    def test_equal_the_naive_two_pass(self):
        x = torch.randn(3, 5, 7, generator=generator()) * 2 + 1
        mean, var = dx.moments(x)
        flat = x.numpy().reshape(-1, 7).astype(np.float64)
        np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-6)
        np.testing.assert_allclose(var, flat.var(0), rtol=1e-6)

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
        z = torch.randn(50, 4, generator=generator()) + 100
        assert float(dx.normalized_quantization_error(z, z.mean(0).expand_as(z))) == pytest.approx(1, abs=1e-5)

    def test_is_unchanged_by_shift_and_scale(self):
        z = torch.randn(50, 4, dtype=torch.float64, generator=generator())
        q = z + 0.1 * torch.randn(50, 4, dtype=torch.float64, generator=generator(1))
        here = dx.normalized_quantization_error(z, q)
        there = dx.normalized_quantization_error(3 * z + 1e6, 3 * q + 1e6)
        torch.testing.assert_close(there, here, rtol=1e-6, atol=0)

    def test_of_equal_embeddings_is_zero_or_infinite(self):
        z = torch.ones(3, 2)
        assert float(dx.normalized_quantization_error(z, z)) == 0.0
        assert float(dx.normalized_quantization_error(z, z + 1)) == math.inf

    def test_of_other_shapes_is_refused(self):
        with pytest.raises(ValueError, match=r"the shape of `z`, \(3, 2\)\. Got \(2, 3\)"):
            dx.normalized_quantization_error(torch.ones(3, 2), torch.ones(2, 3))


class TestMomentDistance:
    def test_by_hand(self):
        # z: mean 0, variance 1. codes: mean 4, variance 4.
        gap = dx.moment_distance(torch.tensor([[-1.0], [1.0]]), torch.tensor([[2.0], [6.0]]))
        assert float(gap.mean) == 4.0
        assert float(gap.std) == 1.0
        assert float(gap.wasserstein) == pytest.approx(math.sqrt(17))
        assert float(gap.symmetric_kl) == pytest.approx((1 / 4 + 4 - 2 + 16 * (1 + 1 / 4)) / 2)

    def test_vanishes_for_the_embeddings_themselves(self):
        z = torch.randn(20, 3, generator=generator())
        assert all(float(value) == 0 for value in dx.moment_distance(z, z))

    def test_is_unchanged_by_shift_and_scale(self):
        z = torch.randn(200, 5, dtype=torch.float64, generator=generator())
        codes = 2 * torch.randn(64, 5, dtype=torch.float64, generator=generator(1)) + 1
        for here, there in zip(
            dx.moment_distance(z, codes), dx.moment_distance(7 * z - 1e5, 7 * codes - 1e5), strict=True
        ):
            torch.testing.assert_close(there, here, rtol=1e-8, atol=0)

    def test_kl_is_the_sum_of_both_directions(self):
        mean_a, mean_b = torch.randn(2, 3, generator=generator())
        var_a, var_b = torch.rand(2, 3, generator=generator(1)) + 0.1
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

    def test_of_other_widths_is_refused(self):
        with pytest.raises(ValueError, match=r"last axis of `z`, \(4, 2\)\. Got \(3, 5\)"):
            dx.moment_distance(torch.ones(4, 2), torch.ones(3, 5))


class TestGradients:
    def test_gap_of_the_identity_head_is_the_quantization_error(self):
        # L = |u|^2 / 2 at z = (3, 4) and q = 0: gradients (3, 4) and 0.
        z = torch.tensor([3.0, 4.0], requires_grad=True)
        q = torch.zeros(2, requires_grad=True)
        at_z, at_q = (torch.autograd.grad(u.square().sum() / 2, u)[0] for u in (z, q))
        gap = dx.gradient_gap(at_z, at_q)
        assert (float(gap.norm), float(gap.relative), float(gap.cosine)) == (5.0, 1.0, 0.0)

    def test_gap_of_a_linear_head_is_zero(self):
        weight = torch.randn(2, generator=generator())
        z, q = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(2, requires_grad=True)
        at_z, at_q = (torch.autograd.grad(u @ weight, u)[0] for u in (z, q))
        gap = dx.gradient_gap(at_z, at_q)
        assert (float(gap.norm), float(gap.relative)) == (0.0, 0.0)
        assert float(gap.cosine) == pytest.approx(1.0)

    def test_relative_and_cosine_ignore_the_scale_of_the_loss(self):
        a, b = torch.randn(2, 9, 5, generator=generator())
        small, large = dx.gradient_gap(1e-30 * a, 1e-30 * b), dx.gradient_gap(a, b)
        torch.testing.assert_close(small.relative, large.relative)
        torch.testing.assert_close(small.cosine, large.cosine)
        torch.testing.assert_close(large.cosine, torch.cosine_similarity(a.flatten(), b.flatten(), 0))

    def test_gap_of_zero_gradients_is_defined(self):
        zero, one = torch.zeros(2), torch.ones(2)
        assert [float(v) for v in dx.gradient_gap(zero, zero)] == [0.0, 0.0, 1.0]
        assert float(dx.gradient_gap(zero, one).relative) == math.inf

    def test_gap_of_other_shapes_is_refused(self):
        with pytest.raises(ValueError, match=r"the shape of `grad_at_z`, \(2,\)\. Got \(3,\)"):
            dx.gradient_gap(torch.ones(2), torch.ones(3))

    def test_sparsity_counts_rows_that_selected_codes_own(self):
        table = torch.zeros(5, 2, requires_grad=True)
        table[torch.tensor([1, 1, 3])].sum().backward()
        assert float(dx.gradient_sparsity(table.grad)) == pytest.approx(2 / 5)

    def test_sparsity_of_no_table_is_refused(self):
        with pytest.raises(ValueError, match=r"at least one row\. Got \(0, 3\)"):
            dx.gradient_sparsity(torch.zeros(0, 3))


class TestSpectrum:
    def test_effective_dimension_counts_equal_directions(self):
        axes = torch.eye(6)[:4]
        z = torch.cat([axes, -axes]) + 1000
        assert float(dx.effective_dimension(z)) == pytest.approx(4, rel=1e-5)

    def test_effective_dimension_of_variances_one_and_three(self):
        z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3**0.5], [0.0, -(3**0.5)]])
        expected = math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
        assert float(dx.effective_dimension(z)) == pytest.approx(expected, rel=1e-5)

    def test_effective_dimension_of_equal_vectors_is_zero(self):
        assert float(dx.effective_dimension(torch.full((9, 4), 0.1))) == 0.0

    def test_principal_plane_equals_numpy_svd(self):
        z = torch.randn(40, 5, dtype=torch.float64, generator=generator()) * torch.tensor([1, 5, 2, 3, 4])
        mean, basis = dx.principal_plane(z, k=3)
        centred = z.numpy() - z.numpy().mean(0)
        directions = np.linalg.svd(centred, full_matrices=False)[2][:3].T
        np.testing.assert_allclose(mean, z.numpy().mean(0), rtol=1e-9)
        np.testing.assert_allclose(np.abs(basis.numpy().T @ directions), np.eye(3), atol=1e-9)
        torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))

    def test_principal_plane_has_fixed_signs(self):
        z = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.1, 0.1], [-0.1, -0.1]])
        for points in (z, -z, z.flip(0), z + 50):
            basis = dx.principal_plane(points)[1]
            torch.testing.assert_close(basis, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) / 2**0.5)

    @pytest.mark.parametrize("k", [0, 3])
    def test_principal_plane_beyond_the_width_is_refused(self, k):
        with pytest.raises(ValueError, match=rf"from 1 to dim=2\. Got {k}\."):
            dx.principal_plane(torch.ones(4, 2), k)
