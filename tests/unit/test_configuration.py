"""A mistake in a configuration becomes one sentence that says what, where, and what would be right."""

from argparse import ArgumentError
from typing import Any

import pytest

import straightvq.models  # noqa: F401 (only modules that the parser has imported are looked at)
from straightvq.configuration import explained, trees_of
from straightvq.errors import InvalidValueError

NETWORK = {"class_path": "straightvq.models.Autoencoder", "init_args": {"hidden": 8}}


def refused(*trees: Any) -> str:
    with pytest.raises(InvalidValueError) as told, explained(*trees):
        raise ArgumentError(None, "what jsonargparse says")
    return str(told.value)


@pytest.mark.parametrize(
    "wrong", [{"model": {"init_args": {"hiden": 8}}}, *trees_of(["--model.hiden=8", "--model.init_args.hiden", "8"])]
)
def test_a_misspelt_option_is_told_with_what_is_accepted(wrong: Any) -> None:
    said = refused({"model": NETWORK}, wrong)
    assert said.startswith("Option 'hiden' is not accepted (in model, straightvq.models.Autoencoder).")
    assert "Did you mean 'hidden'? It accepts quantizer, in_channels, hidden," in said


def test_an_option_is_one_of_the_class_that_is_laid_over() -> None:
    other = {"model": {"class_path": "straightvq.models.AlexNet", "init_args": {"width": 8}}}
    assert refused({"model": NETWORK}, other) == "what jsonargparse says"
    assert "Option 'hidden' is not accepted" in refused(other, {"model": {"init_args": {"hidden": 8}}})
    short = {"model": "straightvq.models.Autoencoder"}
    assert "Option 'width' is not accepted" in refused(other, short, {"model": {"width": 8}})


def test_the_innermost_error_is_told_behind_the_key_that_it_is_about() -> None:
    inner = ArgumentError(None, 'Parser key "lr":\n  Expected a number.')
    inner.__cause__ = ValueError("Expected a number.")
    with pytest.raises(InvalidValueError) as told, explained():
        raise ArgumentError(None, 'Parser key "model":\n  and so on') from inner
    assert str(told.value) == 'Parser key "lr": Expected a number.'


def test_a_sentence_of_a_class_that_was_built_stands_alone() -> None:
    with pytest.raises(InvalidValueError, match=r"^`A`: `b` must be 1\.$"), explained():
        raise ArgumentError(None, "in a slot") from InvalidValueError("`A`: `b` must be 1.")
