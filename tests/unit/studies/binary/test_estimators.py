import math

import pytest
import torch

import straightvq as svq
from straightvq.studies.binary.estimators import CLIPPED, ENDS, METHODS, TANH, rectified


def test_schedules_follow_the_share_of_the_training_that_is_done() -> None:
    for end in ENDS:
        method = METHODS[rectified(end)]
        estimator = method.make()
        powers = []
        for progress in (0.0, 0.5, 1.0):
            method.follow(estimator, progress)
            powers.append(estimator.power)
        assert powers == pytest.approx([1.0, 1 + (1 - math.sqrt(0.5)) * (end - 1), end])
    tanh = METHODS[TANH].make()
    METHODS[TANH].follow(tanh, 0.5)
    assert tanh.sharpness == pytest.approx(1.0)


def test_an_estimator_without_a_schedule_stays() -> None:
    plain = METHODS[CLIPPED].make()
    METHODS[CLIPPED].follow(plain, 0.9)
    assert (plain.power, plain.limit) == (1.0, 1.0)


def test_straight_through_and_the_first_rectified_one_differ_in_the_limit_alone() -> None:
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    plain, first = METHODS[CLIPPED].make(), METHODS[rectified(1)].make()
    METHODS[rectified(1)].follow(first, 0.7)
    assert torch.equal(plain.factor(x), (x.abs() <= 1.0).double())
    assert torch.equal(first.factor(x), (x.abs() <= 1.5).double())


def test_every_method_makes_a_new_estimator() -> None:
    for method in METHODS.values():
        assert method.make() is not method.make()
        assert isinstance(method.make(), svq.SignEstimator)


def test_authors_secant_is_o_times_as_large_near_zero() -> None:
    ours, theirs = METHODS[rectified(3)], METHODS[rectified(3, "authors")]
    assert ours is not theirs
    pair = [method.make() for method in (ours, theirs)]
    for method, estimator in zip((ours, theirs), pair, strict=True):
        method.follow(estimator, 1.0)
    x = torch.tensor([0.05, 0.5], dtype=torch.float64)
    near, far = (pair[1].factor(x) / pair[0].factor(x)).tolist()
    assert (near, far) == pytest.approx((3.0, 1.0))
    assert rectified(1, "authors") == rectified(1)
