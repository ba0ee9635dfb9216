import pytest

from straightvq.data.sets import Source
from straightvq.data.split import divide, share

from .conftest import Numbers


def keys(parts):
    return {name: [part.key(i) for i in range(len(part))] for name, part in parts.items()}


def test_share_is_a_fixed_function_of_its_arguments():
    # Written down once: a changed hash would move test pictures into training sets.
    assert share("cat/1.png", 0, "split") == pytest.approx(0.7764937757271965, abs=1e-12)
    assert share("cat/1.png", 0, "split") != share("cat/1.png", 1, "split")


def test_missing_splits_are_taken_from_training_without_overlap():
    rows = keys(divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0))
    assert {*rows["train"], *rows["validation"], *rows["test"]} == {f"n{i}" for i in range(1000)}
    assert sum(map(len, rows.values())) == 1000
    assert 70 < len(rows["validation"]) < 130
    assert 70 < len(rows["test"]) < 130


def test_new_files_move_no_old_one_and_a_test_split_moves_no_validation_picture():
    small = keys(divide(Source({"train": Numbers(500)}), 0.1, None, None, seed=0))
    large = keys(divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0))
    with_test = Source({"train": Numbers(500), "test": Numbers(9, prefix="t")})
    given = keys(divide(with_test, 0.1, None, None, seed=0))
    for name in ("train", "validation", "test"):
        assert small[name] == [key for key in large[name] if int(key[1:]) < 500]
    assert given["validation"] == small["validation"]
    assert given["test"] == [f"t{i}" for i in range(9)]


def test_limit_counts_training_and_validation_together_and_keeps_the_split():
    whole = keys(divide(Source({"train": Numbers(1000)}), 0.1, None, None, seed=0))
    part = keys(divide(Source({"train": Numbers(1000)}), 0.1, 100, 7, seed=0))
    assert len(part["train"]) + len(part["validation"]) == 100
    assert len(part["test"]) == 7
    for name in ("train", "validation", "test"):
        assert set(part[name]) <= set(whole[name])
    assert max(int(key[1:]) for key in part["train"]) > 500  # spread over the set, which may be sorted by class


def test_limit_on_training_leaves_a_given_validation_split_alone():
    given = Source({"train": Numbers(50), "validation": Numbers(9, prefix="v")})
    parts = divide(given, 0.1, 10, None, seed=0)
    assert (len(parts["train"]), len(parts["validation"])) == (10, 9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_set_always_leaves_something_to_train_on(count):
    for seed in range(20):
        for limit in (None, 1):
            assert len(divide(Source({"train": Numbers(count)}), 0.49, limit, None, seed)["train"]) > 0
