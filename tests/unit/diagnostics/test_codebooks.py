"""What the pictures of a codebook show: the drawn data, not their pixels, and the degenerate codebooks."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from straightvq import diagnostics as dx
from straightvq.diagnostics.codebooks import MAX_POINTS


def axes_of(figure):
    """The only axes, laid out and drawn: warnings, which are errors here, come only then."""
    figure.draw_without_rendering()
    (ax,) = figure.axes
    return ax


def drawn(ax):
    """The markers by label."""
    return {c.get_label(): c for c in ax.collections}


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.fixture
def cloud():
    return torch.randn(300, 6) + 20


class TestCodebookScatter:
    def test_tells_used_from_unused_codes(self, cloud):
        ax = axes_of(dx.codebook_scatter(None, cloud, cloud[:6], torch.tensor([1, 0, 100, 0, 0, 10])))
        assert {name: len(c.get_offsets()) for name, c in drawn(ax).items()} == {
            "embedding": 300,
            "unused": 3,
            "used": 3,
        }
        assert texts(ax) == []
        small, large, middle = drawn(ax)["used"].get_sizes()
        assert small < middle < large

    def test_far_codes_are_counted_and_do_not_squash_the_view(self, cloud):
        codes = torch.cat([cloud[:2], cloud[:3] + 1000])
        ax = axes_of(dx.codebook_scatter(None, cloud, codes, torch.tensor([4, 4, 4, 0, 0])))
        assert np.ptp(ax.get_xlim()) < 20
        assert texts(ax) == ["3 codes outside the view, 1 in use"]

    def test_positions_are_the_principal_coordinates(self):
        z = torch.tensor([[0.0, -4.0], [0.0, 4.0], [1.0, 0.0], [-1.0, 0.0]])
        ax = axes_of(dx.codebook_scatter(None, z, torch.tensor([[0.5, 2.0]]), torch.tensor([1])))
        np.testing.assert_allclose(drawn(ax)["used"].get_offsets(), [[2.0, 0.5]], atol=1e-6)
        assert ax.get_xlabel() == "component 1 (94% of variance)"

    def test_many_embeddings_are_thinned_evenly(self):
        z = torch.randn(3 * MAX_POINTS, 2)
        ax = axes_of(dx.codebook_scatter(None, z, z[:1], torch.tensor([1])))
        assert len(drawn(ax)["embedding"].get_offsets()) == MAX_POINTS

    @pytest.mark.parametrize("dim", [1, 2, 5])
    @pytest.mark.parametrize("counts", [[7], [0], [0, 9, 0]])
    @pytest.mark.parametrize("equal", [False, True])
    def test_degenerate_codebooks_are_drawn(self, dim, counts, equal):
        z = torch.full((9, dim), 0.1) if equal else torch.arange(9.0 * dim).reshape(9, dim)
        z.requires_grad_()
        axes_of(dx.codebook_scatter(None, z, z[: len(counts)], torch.tensor(counts)))

    def test_accepts_axes_a_figure_or_a_subfigure(self, cloud):
        whole = Figure(figsize=(10, 5))
        left, right = whole.subfigures(1, 2)
        assert dx.codebook_scatter(left, cloud, cloud[:2], torch.tensor([1, 0]), title="a $ b") is whole
        assert dx.codebook_scatter(right.subplots(), cloud, cloud[:2], torch.tensor([1, 0])) is whole
        whole.draw_without_rendering()

    def test_shapes_that_do_not_fit_are_refused(self, cloud):
        with pytest.raises(ValueError, match=r"Got \(300, 6\), \(4, 5\) and \(4,\)"):
            dx.codebook_scatter(None, cloud, torch.ones(4, 5), torch.ones(4))
        with pytest.raises(ValueError, match=r"Got \(300, 6\), \(4, 6\) and \(3,\)"):
            dx.codebook_scatter(None, cloud, torch.ones(4, 6), torch.ones(3))


class TestUsageHistogram:
    def test_sorts_shares_on_a_log_axis(self):
        ax = axes_of(dx.usage_histogram(None, torch.tensor([1, 0, 2, 1])))
        np.testing.assert_allclose(ax.patches[1].get_data().values, [0.5, 0.25, 0.25])
        assert ax.get_yscale() == "log"
        assert texts(ax) == ["3 of 4 codes used, perplexity 2.8"]

    @pytest.mark.parametrize("counts", [[0, 0, 0], [5], [0], [3, 3, 3]])
    def test_degenerate_counts_are_drawn(self, counts):
        axes_of(dx.usage_histogram(None, torch.tensor(counts)))

    def test_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match=r"\(k,\) with k >= 1\. Got \(2, 3\)"):
            dx.usage_histogram(None, torch.ones(2, 3))
