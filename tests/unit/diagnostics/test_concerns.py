"""What is judged of a codebook's windows, without a trainer; with one, see the monitor's tests."""

import pytest
import torch

import straightvq as svq
from straightvq.diagnostics.concerns import Concerns, list_cures
from straightvq.diagnostics.following import follow


def concerns(quantizer, **settings):
    (followed,) = follow(quantizer, lambda *_: None)
    return Concerns(followed, **{"threshold": 0.1, "patience": 1, **settings})


WINDOW = {"commitment": 1.0, "error": 1.0}


def test_cures_already_in_place_are_not_named():
    cures = list_cures(svq.VectorQuantizer(64, svq.Codebook(16)))
    assert cures[0].startswith("revive dead codes")
    assert len(cures) == 6
    codebook = svq.Codebook(16, init=svq.KMeansInit(), update=svq.EMAUpdate(), reset=svq.DeadCodeReset())
    losses = [svq.CommitmentLoss(0.01), svq.CodebookLoss()]
    assert list_cures(svq.VectorQuantizer(8, codebook, losses=losses)) == []


@pytest.mark.parametrize(
    ("quantizer", "cures"),
    [
        (
            svq.presets.fsq(2, [4, 4]),
            ["a learned map onto the grid: svq.FiniteScalarQuantizer(..., transform=svq.Proj"],
        ),
        (svq.presets.fsq(4, [4, 4]), []),
        (
            svq.LookupFreeQuantizer(4, 4, losses=[]),
            ["reward the use of all codes: svq.LookupFreeQuantizer(..., losses=[svq.EntropyLoss()])", "a learned map"],
        ),
        (svq.presets.lfq(8, 4), []),
        (svq.presets.best_rq(4, 8), []),
        (svq.RandomProjectionQuantizer(4, 8, normalize=False), ["bring every vector to mean 0 and variance 1"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_without_a_codebook_no_cure_of_one_is_named(quantizer, cures):
    named = list_cures(quantizer)
    assert len(named) == len(cures)
    assert all(text.startswith(start) for text, start in zip(named, cures, strict=True))


def test_a_concern_is_told_once_and_remembered():
    quantizer = svq.VectorQuantizer(2, svq.Codebook(20))
    one_code = 80 * (torch.arange(20) == 0)
    quantizer.codebook.freeze()
    first = concerns(quantizer, patience=2)
    assert first.judge(WINDOW, one_code, []) == []
    resumed = concerns(quantizer, patience=2)
    resumed.load_state_dict(first.state_dict())
    (told,) = resumed.judge(WINDOW, one_code, [])
    assert told.startswith("the codebook has collapsed: 1 of 20 codes (5.0%) were used for 80 vectors")
    assert resumed.judge(WINDOW, one_code, []) == []


@pytest.mark.parametrize(("later", "lost"), [((1000, 3), 1), ((1000, 1), 0), ((50, 3), 0), ((float("nan"),) * 2, 1)])
def test_divergence_needs_both_to_grow(later, lost):
    quantizer = svq.VectorQuantizer(2, svq.Codebook(4))
    judge, counts = concerns(quantizer), torch.full((4,), 5)
    optimizer = torch.optim.SGD(quantizer.parameters())
    assert judge.judge(WINDOW, counts, [optimizer]) == []
    told = judge.judge(dict(zip(WINDOW, later, strict=True)), counts, [optimizer])
    assert len([text for text in told if "loses the embeddings" in text]) == lost


def test_a_window_without_vectors_is_not_judged():
    judge = concerns(svq.VectorQuantizer(2, svq.Codebook(4)))
    judge.open_window()
    assert judge.judge({}, torch.zeros(4, dtype=torch.int64), []) == []
    assert len(judge.judge(WINDOW, torch.full((4,), 5), [])) == 1  # no optimizer has heard of the codes
