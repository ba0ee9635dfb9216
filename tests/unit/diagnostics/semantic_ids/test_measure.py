"""What is measured on IDs, against loops over pairs; and its picture."""

import itertools

import numpy as np
import pytest
import torch

from straightvq.diagnostics import save
from straightvq.diagnostics.pictures import pixels
from straightvq.diagnostics.semantic_ids import id_picture, number_collisions, prefix_cosines, report_ids


def items(n: int = 30, levels: int = 3, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(n, 4, generator=generator) + 0.5
    return vectors, torch.randint(size, (n, levels), generator=generator)


def test_cosines_are_means_over_pairs() -> None:
    vectors, codes = items()
    x = vectors.double().numpy()
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = list(itertools.combinations(range(30), 2))
    for level, value in enumerate(prefix_cosines(vectors, codes)[0]):
        shared = [(i, j) for i, j in pairs if codes[i, : level + 1].tolist() == codes[j, : level + 1].tolist()]
        assert value == pytest.approx(np.mean([units[i] @ units[j] for i, j in shared]))
    assert prefix_cosines(vectors, codes)[1] == pytest.approx(np.mean([units[i] @ units[j] for i, j in pairs]))


def test_where_no_two_items_share_a_prefix_there_is_no_cosine() -> None:
    codes = torch.tensor([[0, 0], [0, 1]])
    assert prefix_cosines(torch.eye(2), codes) == ([0.0, None], 0.0)
    assert prefix_cosines(torch.ones(1, 2), codes[:1]) == ([None, None], None)


def test_a_zero_vector_is_like_nothing() -> None:
    assert prefix_cosines(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64)) == ([0.0], 0.0)


def test_the_report_by_hand() -> None:
    """Vectors 0, 2 and 4 have mean 2 and squared deviations 8. Prefixes 2, 2, 2 err by 8, prefixes 1, 1, 4 by 2."""
    vectors = torch.tensor([[0.0], [2.0], [4.0]])
    codes = torch.tensor([[0, 0], [0, 0], [0, 1]])
    prefixes = [torch.full((3, 1), 2.0), torch.tensor([[1.0], [1.0], [4.0]])]
    report = report_ids(vectors, codes, number_collisions(codes), prefixes, [4, 2], torch.zeros(3, 1))
    assert report.relative_error_unique == pytest.approx(2.5)
    assert report.relative_error == pytest.approx([1.0, 0.25])
    assert report.codes_used == [1, 2]
    assert report.unique == pytest.approx((2 / 3, 1.0))
    assert report.collisions == pytest.approx((1 / 3, 0.0))
    assert (report.num_items, report.id_length, report.codebook_sizes) == (3, 3, [4, 2])


def test_what_does_not_fit_is_refused() -> None:
    vectors, codes = items()
    with pytest.raises(ValueError, match="must fit 30 items of 3 levels"):
        report_ids(vectors, codes, codes, [vectors], [3, 3, 3])
    with pytest.raises(ValueError, match="shape of `vectors`"):
        report_ids(vectors, codes, codes, [vectors[:, :2]] * 3, [3, 3, 3])
    with pytest.raises(ValueError, match=r"\(30, d\)"):
        prefix_cosines(vectors[:5], codes)


@pytest.mark.parametrize("n", [1, 30])
def test_the_picture_is_drawn_of_many_items_and_of_one(n: int, tmp_path) -> None:
    vectors, codes = items(n)
    report = report_ids(vectors, codes, number_collisions(codes), [vectors] * 3, [3, 3, 3])
    figure = id_picture(report)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "Codes in use",
        "Error of a prefix",
        "Likeness of two items",
    ]
    assert pixels(figure).std() > 5
    save(figure, tmp_path / "ids.png")
