"""What the pictures of quantities over time show: the drawn data, not their pixels, and the degenerate cases."""

import numpy as np
import pytest

from straightvq import diagnostics as dx


class TestCurves:
    def test_draws_finite_values_and_shares_as_percent(self):
        plot = dx.CurvePanel("usage", "%", {"log": ([1, 2, 3], [0.5, float("nan"), 1.0])}, 0.75, is_share=True)
        figure = dx.curves_over_time([plot])
        figure.draw_without_rendering()
        line, reference = figure.axes[0].lines
        assert line.get_xydata().tolist() == [[1, 50], [3, 100]]
        assert list(reference.get_ydata()) == [75, 75]

    def test_plots_share_the_axis_of_steps_and_fit_the_page(self, overlapping):
        plots = [dx.CurvePanel(f"plot {i}", "unit", {"one": ([i], [1.0]), "two": ([50], [0.1])}) for i in range(7)]
        figure = dx.curves_over_time([*plots, dx.CurvePanel("nothing", "unit")], title="a run")
        assert overlapping(figure) == []
        assert {ax.get_xlim() for ax in figure.axes} == {(0, 52.0)}
        assert [text.get_text() for text in figure.axes[-1].texts] == ["not measured"]

    def test_a_dense_log_has_no_markers(self):
        figure = dx.curves_over_time([dx.CurvePanel("a", "b", {"log": (range(100), np.ones(100)), "few": ([1], [1])})])
        assert [line.get_marker() for line in figure.axes[0].lines] == ["None", "o"]

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match="`curves_over_time`: `plots` must be at least one"):
            dx.curves_over_time([])
        with pytest.raises(ValueError, match="at most 6 lines"):
            dx.curves_over_time([dx.CurvePanel("a", "b", {str(i): ([1], [1]) for i in range(7)})])
        with pytest.raises(ValueError, match=r"`CurvePanel`: the line 'x' must have .* Got 2 and 1\."):
            dx.CurvePanel("a", "b", {"x": ([1, 2], [1])})


class TestUsageOverTime:
    def test_draws_percent_in_the_given_colours(self):
        series = {"a": ([0, 10], [0.0, 0.5]), "b": ([0], [1.0])}
        figure = dx.usage_over_time(None, series, colors=["#111111", "#222222"])
        figure.draw_without_rendering()
        first, second = figure.axes[0].lines
        assert list(first.get_ydata()) == [0.0, 50.0]
        assert (first.get_color(), second.get_color()) == ("#111111", "#222222")

    @pytest.mark.parametrize("series", [{}, {"_empty": ([], [])}, {"a name that is far too long " * 9: ([1], [1])}])
    def test_degenerate_series_are_drawn(self, series):
        dx.usage_over_time(None, series).draw_without_rendering()

    def test_legend_stays_above_the_plot_and_inside_the_page(self):
        names = [f"a rather long name, number {i}" for i in range(6)]
        figure = dx.usage_over_time(None, {name: ([0, 1], [0, 1]) for name in names})
        figure.draw_without_rendering()
        ax = figure.axes[0]
        legend = ax.get_legend().get_window_extent()
        assert legend.y0 >= ax.get_window_extent().y1 - 1
        assert legend.x1 <= figure.bbox.x1

    def test_too_few_colours_are_refused(self):
        with pytest.raises(ValueError, match=r"`colors` must be at least 1\. Got 0"):
            dx.usage_over_time(None, {"a": ([0], [0.5])}, colors=[])
