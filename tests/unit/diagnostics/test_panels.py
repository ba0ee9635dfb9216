"""The style of the pictures and the layout of a page."""

import runpy
import sys

import numpy as np
import pytest

from straightvq.diagnostics import codebooks, curves, evolution, panels, pictures


def test_texts_are_clipped_to_a_number_of_letters():
    assert panels.clip("straight-through", 9) == "straight…"
    assert panels.clip("straight", 8) == "straight"


def test_colours_are_lightened_towards_white():
    assert [panels.lighten("#000000", amount) for amount in (0.0, 1.0)] == ["#000000", "#ffffff"]
    assert panels.lighten("#0072B2", 0.5) == "#80b8d8"


def test_panels_stand_in_rows_below_the_top():
    # A page of 10 x 5 inches with two rows of 2: plots 1 inch high, and 3.825 wide between margins of 1, 1 and 0.35.
    axes = panels.grid(panels.new_figure(10, 5), 3, 2, top=1.0, above=0.6, below=0.4)
    inches = [ax.get_position().bounds * np.array([10, 5, 10, 5]) for ax in axes]
    np.testing.assert_allclose(inches, [[1, 2.4, 3.825, 1], [5.825, 2.4, 3.825, 1], [1, 0.4, 3.825, 1]])


def test_a_title_is_clipped_to_the_page():
    figure = panels.new_figure(4, 2, "a title that is much too long for a page of this width")
    figure.draw_without_rendering()
    (text,) = figure.texts
    assert text.get_text().endswith("…")
    assert text.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("module", [codebooks, curves, evolution, panels, pictures])
def test_modules_import_without_matplotlib(monkeypatch, module):
    # A fresh copy of each module, run where every import of matplotlib fails.
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert "Axes" not in runpy.run_path(module.__file__)
