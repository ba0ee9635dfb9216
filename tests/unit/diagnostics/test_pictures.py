"""Rows of images, the comparison page and atomic saving."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from straightvq import diagnostics as dx
from straightvq.diagnostics import panels
from straightvq.diagnostics.pictures import pixels


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8)


def arm(images, name="plain VQ", dim=4, size=16):
    z, counts = torch.randn(50, dim), torch.arange(size)
    known = {"test_mse": 0.0123, "psnr": 19.1, "codes_used": size - 1, "perplexity": float(dx.perplexity(counts))}
    return dx.Arm(name, images, [0, 10], [0.1, 0.9], z, z[:size], counts, **known)


class TestReconstructionGrid:
    def test_has_one_image_for_each_original_and_row(self, images):
        figure = dx.reconstruction_grid(images, ("a", images), ("b", images), title="rows")
        (ax,) = figure.axes
        assert len(ax.images) == 3 * 4
        shown = ax.images[5].get_array()
        np.testing.assert_allclose(shown, images[1].permute(1, 2, 0))

    def test_shows_bytes_grey_and_out_of_range_values(self, images):
        grey = dx.reconstruction_grid((images[:, :1] * 255).byte(), ("twice", 2 * images[:, :1]))
        first, twice = (grey.axes[0].images[number].get_array() for number in (0, 4))
        np.testing.assert_allclose(first, images[0, 0], atol=1 / 255)
        assert twice.max() == 1.0
        grey.draw_without_rendering()
        assert len(dx.reconstruction_grid(images, max_images=2).axes[0].images) == 2

    @pytest.mark.parametrize("shape", [(0, 3, 8, 8), (4, 2, 8, 8), (3, 8, 8)])
    def test_other_shapes_are_refused(self, images, shape):
        with pytest.raises(ValueError, match=r"`reconstruction_grid`: `originals` must have the shape"):
            dx.reconstruction_grid(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"images of 'a' must have the shape of `originals`, \(4, 3, 8, 8\)\. Got"):
            dx.reconstruction_grid(images, ("a", torch.zeros(shape)))


class TestComparison:
    @pytest.mark.parametrize("count", [1, 2, 3, 6])
    def test_has_a_page_for_every_number_of_arms(self, images, count, tmp_path, overlapping):
        figure = dx.comparison(images, [arm(images, f"arm {i}") for i in range(count)])
        strips, *plots = figure.axes
        assert (len(strips.images), len(plots)) == ((count + 1) * 4, count + 1)
        assert overlapping(figure) == []
        assert figure.get_size_inches()[0] * figure.dpi == 1600
        assert dx.save(figure, tmp_path / "page.png").stat().st_size < 1_000_000

    def test_states_the_numbers_and_keeps_an_arm_in_its_colour(self, images):
        figure = dx.comparison(images, [arm(images, "first"), arm(images, "second")])
        strips, usage, *_ = figure.axes
        labels = {text.get_text(): text.get_color() for text in strips.texts}
        assert [labels["first"], labels["second"]] == list(panels.PALETTE[:2])
        assert [line.get_color() for line in usage.lines] == list(panels.PALETTE[:2])
        assert [text.get_text() for text in figure.texts] == ["first uses 15 of 16 codes, second uses 15"]
        assert "test MSE 0.0123, 19.1 dB" in labels

    def test_long_names_stay_in_their_places(self, images, overlapping):
        names = [f"codebook number {i} with quite a long name" for i in range(3)]
        figure = dx.comparison(images, [arm(images, name) for name in names])
        assert overlapping(figure) == []
        assert figure.texts[0].get_window_extent().x1 < figure.bbox.x1
        first = figure.axes[0].images[0].get_window_extent().x0
        assert all(text.get_window_extent().x1 < first for text in figure.axes[0].texts)

    def test_degenerate_arms_are_drawn(self, images, tmp_path, overlapping):
        one = arm(images[:, :1], "one channel", dim=1, size=1)
        flat = arm(images[:, :1], "all equal")
        flat = dataclasses.replace(flat, z=torch.full((5, 4), 0.1), usage_steps=[], usage_values=[])
        figure = dx.comparison(images[:, :1], [one, flat])
        assert overlapping(figure) == []
        dx.save(figure, tmp_path / "page.png")

    def test_no_arm_or_two_of_one_name_are_refused(self, images):
        for arms in ([], [arm(images), arm(images)]):
            with pytest.raises(ValueError, match=r"1 to 6 runs with different names\. Got"):
                dx.comparison(images, arms)


class TestSave:
    def test_makes_folders_and_leaves_only_the_picture(self, tmp_path):
        path = dx.save(Figure(), tmp_path / "new" / "folder" / "a.png")
        assert [p.name for p in path.parent.iterdir()] == ["a.png"]
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_failure_leaves_the_old_picture(self, tmp_path, monkeypatch):
        path = dx.save(Figure(), tmp_path / "a.png")
        before = path.read_bytes()
        figure = Figure()

        def fail_halfway(target, **_):
            target.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(figure, "savefig", fail_halfway)
        with pytest.raises(OSError, match="disk full"):
            dx.save(figure, path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

    @pytest.mark.parametrize("name", ["a", "a.xyz"])
    def test_unknown_suffix_is_refused_before_anything_is_written(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"`path` must end in one of .*png.* Got"):
            dx.save(Figure(), tmp_path / "folder" / name)
        assert list(tmp_path.iterdir()) == []


def test_pixels_are_those_of_the_figure():
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="#112233")
    assert pixels(figure).shape == (50, 100, 3)
    assert (pixels(figure) == [0x11, 0x22, 0x33]).all()
