"""What the pictures of a training show: the drawn data, not their pixels, and the degenerate cases."""

import numpy as np
import pytest
import torch

from straightvq import diagnostics as dx


def snapshot(step, dim=6, n=300, k=16, used=8):
    return dx.Snapshot(step, torch.randn(n, dim), torch.randn(k, dim), 5 * (torch.arange(k) < used))


class TestSnapshot:
    def test_assigned_are_the_codes_with_a_count(self):
        codes = torch.arange(6.0).reshape(3, 2)
        taken = dx.Snapshot(1, torch.ones(1, 2), codes, torch.tensor([2, 0, 1])).assigned
        assert taken.tolist() == [[0.0, 1.0], [4.0, 5.0]]

    @pytest.mark.parametrize("shapes", [((3, 2), (4, 3), (4,)), ((3, 2), (4, 2), (3,)), ((0, 2), (4, 2), (4,))])
    def test_shapes_that_do_not_fit_are_refused(self, shapes):
        with pytest.raises(ValueError, match="`Snapshot`: `z`, `codes` and `counts` must have the shapes"):
            dx.Snapshot(1, *(torch.ones(shape) for shape in shapes))


class TestDivergence:
    def test_has_three_panels_with_a_curve_for_each_snapshot(self, overlapping):
        figure = dx.divergence_over_time([snapshot(10 * i) for i in (1, 2, 3)], title="a run")
        assert overlapping(figure) == []
        assert [len(ax.lines) for ax in figure.axes] == [3, 3, 3]
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["30", "20", "10"]

    def test_curves_stand_over_the_projections_on_the_last_embeddings_first_component(self):
        # The last embeddings spread along the first channel around 5; codes sit at 5 - 4 and 5 + 2, one unassigned.
        z = torch.tensor([[1.0, 0.0], [9.0, 0.0], [5.0, 1.0], [5.0, -1.0]])
        last = dx.Snapshot(9, z, torch.tensor([[1.0, 0.0], [7.0, 0.0]]), torch.tensor([4, 0]))
        figure = dx.divergence_over_time([last])
        (all_codes,), (assigned,) = figure.axes[1].lines, figure.axes[2].lines
        for line, peaks in ((all_codes, (-4, 2)), (assigned, (-4,))):
            x, y = line.get_data()
            rising = np.flatnonzero((y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:])) + 1
            np.testing.assert_allclose(x[rising], peaks, atol=0.1)

    def test_codes_that_are_some_of_many_are_called_so(self):
        some = dx.Snapshot(1, torch.randn(20, 2), torch.randn(3, 2), torch.ones(3), size=1 << 40)
        title = dx.divergence_over_time([some]).axes[1].get_title(loc="left")
        assert title == "C: taken of 1,099,511,627,776 codes"

    def test_the_last_curve_is_the_darkest(self):
        figure = dx.divergence_over_time([snapshot(1), snapshot(2)])
        light, dark = (sum(int(line.get_color()[i : i + 2], 16) for i in (1, 3, 5)) for line in figure.axes[1].lines)
        assert dark < light

    def test_far_codes_are_counted_and_do_not_squash_the_view(self):
        far = snapshot(1, k=200)
        far.codes[:2] = 1e4
        figure = dx.divergence_over_time([far])
        assert np.ptp(figure.axes[0].get_xlim()) < 30
        assert [text.get_text() for text in figure.axes[1].texts] == ["2 outside the view at the end"]

    @pytest.mark.parametrize("used", [0, 1])
    @pytest.mark.parametrize("dim", [1, 3])
    def test_degenerate_codebooks_are_drawn(self, used, dim):
        equal = dx.Snapshot(0, torch.full((5, dim), 0.1), torch.full((2, dim), 0.1), torch.tensor([used, 0]))
        dx.divergence_over_time([equal, equal]).draw_without_rendering()

    def test_many_snapshots_keep_readable_steps(self, overlapping):
        figure = dx.divergence_over_time([snapshot(i, n=20) for i in range(40)])
        assert 8 <= len(figure.axes[0].get_yticks()) <= 14
        assert overlapping(figure) == []

    def test_none_or_two_widths_are_refused(self):
        with pytest.raises(ValueError, match="`divergence_over_time`: `snapshots` must be at least one"):
            dx.divergence_over_time([])
        with pytest.raises(ValueError, match=r"Got 2 of the widths \[3, 6\]"):
            dx.divergence_over_time([snapshot(1), snapshot(2, dim=3)])


class TestParts:
    def test_each_part_is_drawn_along_its_own_first_component(self):
        # Along the second channel, around 3, codes at 3 - 2 and 3 + 2; and one channel alone, a code at 0.
        wide = torch.tensor([[0.0, -1.0], [0.0, 7.0], [0.5, 3.0], [-0.5, 3.0]])
        first = dx.Snapshot(5, wide, torch.tensor([[0.0, 1.0], [0.0, 5.0]]), torch.tensor([3, 1]))
        second = dx.Snapshot(5, torch.tensor([[-1.0], [1.0]]), torch.zeros(1, 1), torch.tensor([2]))
        figure = dx.divergence_of_parts({"level 0": first, "level 1": second}, title="a run")
        for line, peaks in zip(figure.axes[1].lines, ((-2, 2), (0,)), strict=True):
            x, y = line.get_data()
            rising = np.flatnonzero((y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:])) + 1
            np.testing.assert_allclose(x[rising], peaks, atol=0.1)
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["level 1", "level 0"]
        assert "3 codes in all" in figure.axes[1].get_title(loc="left")

    def test_many_parts_are_drawn_without_overlap(self, overlapping):
        parts = {f"level {number}, group 0": snapshot(1) for number in range(9)}
        assert overlapping(dx.divergence_of_parts(parts, title="a run")) == []

    def test_none_are_refused(self):
        with pytest.raises(ValueError, match="`divergence_of_parts`: `parts` must be at least one"):
            dx.divergence_of_parts({})


class TestTsne:
    def test_panels_have_the_names_that_are_given(self):
        figure = dx.tsne_map([snapshot(1, n=20), snapshot(1, dim=3, n=20)], names=["level 0", "level 1"])
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["level 0: 8 of 16 codes assigned", "level 1: 8 of 16 codes assigned"]

    def test_is_deterministic_and_keeps_apart_what_is_apart(self):
        z, codes = torch.randn(60, 5), torch.randn(30, 5) + 50
        state = np.random.get_state()[1].copy()
        first, second = dx.joint_tsne(z, codes, perplexity=10), dx.joint_tsne(z, codes, perplexity=10)
        assert torch.equal(torch.cat(first), torch.cat(second))
        assert np.array_equal(np.random.get_state()[1], state)
        centre_z, centre_codes = (x.mean(0) for x in first)
        spread = (first[0] - centre_z).norm(dim=1).mean()
        assert (centre_z - centre_codes).norm() > 2 * spread

    @pytest.mark.parametrize(("n", "k", "dim"), [(3, 1, 2), (9, 2, 1), (6, 6, 3)])
    def test_few_or_equal_vectors_are_placed(self, n, k, dim):
        z, codes = dx.joint_tsne(torch.ones(n, dim), torch.ones(k, dim))
        assert (z.shape, codes.shape) == ((n, 2), (k, 2))
        assert torch.isfinite(z).all()

    def test_map_draws_each_set_in_each_panel(self, overlapping):
        figure = dx.tsne_map([snapshot(1, n=40), snapshot(2, n=40, used=16)], title="a run")
        assert overlapping(figure) == []
        assert [[len(c.get_offsets()) for c in ax.collections] for ax in figure.axes] == [[40, 8, 8], [40, 0, 16]]
        assert figure.axes[0].get_title(loc="left") == "Step 1: 8 of 16 codes assigned"

    def test_map_thins_large_sets(self):
        figure = dx.tsne_map([snapshot(1, n=100, k=50)], max_vectors=20)
        assert len(figure.axes[0].collections[0].get_offsets()) == 20
        assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 40

    def test_too_few_vectors_and_too_many_snapshots_are_refused(self):
        with pytest.raises(ValueError, match=r"n \+ k >= 4\. Got \(2, 3\) and \(1, 3\)"):
            dx.joint_tsne(torch.ones(2, 3), torch.ones(1, 3))
        with pytest.raises(ValueError, match=r"`tsne_map`: `snapshots` must be 1 to 3\. Got 4"):
            dx.tsne_map([snapshot(1)] * 4)
