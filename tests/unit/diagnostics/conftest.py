"""The same random draws in every test, and what the tests of all pictures look at."""

import itertools

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)


def overlapping(figure):
    """What covers something else or leaves the page: panels with their labels, images, texts, titles over legends."""
    figure.draw_without_rendering()
    plots = [ax for ax in figure.axes if not ax.images]
    boxes = [(ax.get_title(loc="left"), ax.get_tightbbox()) for ax in plots]
    boxes += [("image", image.get_window_extent()) for ax in figure.axes for image in ax.images]
    texts = [*figure.texts, *(text for ax in figure.axes if ax.images for text in ax.texts)]
    boxes += [(text.get_text(), text.get_window_extent()) for text in texts]
    found = [name for name, box in boxes if box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1 or box.x0 < 0]
    found += [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]
    for ax in (ax for ax in plots if ax.get_legend().get_texts()):
        (title,) = [c for c in ax.get_children() if getattr(c, "get_text", str)() == ax.get_title(loc="left")]
        if title.get_window_extent().overlaps(ax.get_legend().get_window_extent()):
            found.append((title.get_text(), "its legend"))
    return found


@pytest.fixture(name="overlapping")
def _overlapping():
    return overlapping
