"""Directions of the embeddings: hand-computed values, numpy twins."""

import math

import numpy as np
import pytest
import torch

from straightvq import diagnostics as dx


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
        z = torch.randn(40, 5, dtype=torch.float64) * torch.tensor([1, 5, 2, 3, 4])
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
