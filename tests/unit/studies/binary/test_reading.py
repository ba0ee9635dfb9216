import pandas as pd
import pytest

from straightvq.studies.binary.estimators import rectified
from straightvq.studies.binary.reading import BEST, LEAST, at_the_end, top

SEEDS = [-0.1, 0.0, 0.1]


def table(means: dict[int, float], jitter: float = 0.0) -> pd.DataFrame:
    """Seeds x ends; pairs differ by the means, and by ``jitter`` from seed to seed."""
    return pd.DataFrame(
        {
            rectified(end): [mean + seed + jitter * (number % 2) * end for number, seed in enumerate(SEEDS)]
            for end, mean in means.items()
        }
    )


def test_a_clear_top_is_said_to_be_one() -> None:
    found = table({1: 80.0, 2: 82.0, 3: 85.0, 5: 83.0, 10: 79.0})
    assert top(found, BEST, "continuous") == (
        "With the continuous factor the top is at o_end = 3: every other one is worse by more than two standard errors."
    )


def test_ends_that_cannot_be_told_from_the_top_are_named() -> None:
    found = table({1: 80.0, 2: 84.99, 3: 85.0, 10: 79.0}, jitter=0.1)
    assert top(found, BEST, "continuous").endswith("the best mean is that of o_end = 3, but 2 cannot be told from it.")


@pytest.mark.parametrize(
    ("means", "jitter", "words"),
    [
        ({1: 80.0, 3: 81.0, 5: 83.0}, 0.0, "the best mean is that of o_end = 5, and 3 is worse (-2.00 ± 0.00)."),
        ({1: 80.0, 3: 83.0, 5: 83.01}, 0.5, "the best mean is that of o_end = 5, and 3 is tied with it"),
    ],
)
def test_another_top_is_named(means: dict[int, float], jitter: float, words: str) -> None:
    said = top(table(means, jitter), BEST, "continuous")
    assert said.startswith("With the continuous factor there is no top at o_end = 3")
    assert words in said


def test_for_errors_the_lowest_is_the_top() -> None:
    assert "the top is at o_end = 3" in top(table({1: 20.0, 3: 15.0, 10: 18.0}), LEAST, "continuous")


def test_one_seed_says_nothing() -> None:
    said = top(table({3: 80.0, 5: 81.0}).iloc[:1], BEST, "continuous")
    assert "3 is not repeated often enough to tell" in said


def test_the_authors_secant_has_a_top_of_its_own() -> None:
    found = table({1: 80.0, 3: 70.0, 10: 60.0})
    found[rectified(3, "authors")], found[rectified(10, "authors")] = found[rectified(1)] + 1, found[rectified(1)] - 1
    assert top(found, BEST, "authors").startswith("With the authors' secant the top is at o_end = 3")
    assert top(found.iloc[:, :1], BEST, "authors") == ""


def test_values_at_the_end_are_in_reported_units() -> None:
    rows = [["digits", rectified(1), f"seed {seed}", 0, "test accuracy", 5, 0.5 + seed / 10] for seed in range(2)]
    values = pd.DataFrame(rows, columns=["experiment", "row", "source", "d", "series", "at", "value"])
    assert at_the_end(values, "digits", BEST)[rectified(1)].tolist() == pytest.approx([50.0, 60.0])
