import pytest
import torch

from straightvq.diagnostics.sound import rate_distortion, spectrograms

ROWS = [
    {"bits_per_second": 1000 * k, "si_sdr": 2.0 * k, "mel": 1 / k, "si_sdr_std": 0.1, "mel_std": 0.1} for k in (1, 2)
]


def test_spectrograms_stand_below_each_other():
    clips = {name: torch.sin(torch.arange(4000) * 0.2) * level for name, level in (("original", 1.0), ("1 level", 0.1))}
    axes = spectrograms(clips, 8000, "Clip 1").axes
    assert [ax.texts[0].get_text() for ax in axes] == ["original", "1 level"]
    first, second = (ax.images[0] for ax in axes)
    assert first.get_clim() == second.get_clim()
    assert first.get_array().max() - second.get_array().max() == pytest.approx(20, abs=0.1)
    assert first.get_extent() == [0, 0.5, 0, 4]


@pytest.mark.parametrize("samples", [1, 2, 20])
def test_short_clips_are_drawn(samples):
    assert len(spectrograms({"original": torch.ones(samples)}, 8000).axes) == 1


def test_clips_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"`spectrograms`: `clips` must be at least one, all of one shape"):
        spectrograms({"a": torch.ones(3), "b": torch.ones(4)}, 8000)
    with pytest.raises(ValueError, match="`spectrograms`"):
        spectrograms({}, 8000)


@pytest.mark.parametrize("error", [None, "_std"])
def test_each_codec_is_a_line_over_the_rate(error):
    figure = rate_distortion({"ours": ROWS, "theirs": ROWS[:1]}, "Title", error)
    for ax, name in zip(figure.axes, ("si_sdr", "mel"), strict=True):
        line = ax.containers[0].lines[0]
        assert line.get_xdata().tolist() == [1, 2]
        assert line.get_ydata().tolist() == [row[name] for row in ROWS]


@pytest.mark.parametrize("number", [0, 7])
def test_too_many_curves_or_none_are_refused(number):
    with pytest.raises(ValueError, match=r"`rate_distortion`: `curves` must be 1 to 6"):
        rate_distortion({str(i): ROWS for i in range(number)})
