"""What can be asked for, how file and command line go together, and that tuning is as much for all."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from straightvq.studies.comparing.methods import described, of_presets
from straightvq.studies.comparing.request import Request, read_grid, read_request, settings

GRID = {"lr": [1e-3, 4e-3], "codebook_lr": [1e-2, 1e-1], "commitment": [0.25, 0.5, 1.0]}
OWN = {"class_path": "straightvq.presets.ema", "init_args": {"decay": 0.9}}


def test_the_command_line_takes_the_place_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"quantizers": {"mine": OWN}, "seeds": 5, "data": "digits", "grid": {"lr": [0.1]}}))
    asked = read_request(file, {"seeds": 2, "presets": ["ema"], "steps": None})
    assert (asked.seeds, asked.data, asked.grid, list(asked.presets)) == (2, "digits", {"lr": [0.1]}, ["ema"])
    assert asked.quantizers == {"mine": OWN}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset: [ema]", "has no key 'preset'. Did you mean 'presets'? It takes presets, quantizers, data"),
        ("- ema", "must be a section with keys. Got ['ema']"),
        ("a: [", "cannot be read as YAML"),
        ("a: &x [*x]", "cannot be read as YAML: Circular reference"),
        (None, "cannot be read as YAML: [Errno 2] No such file"),
    ],
)
def test_a_wrong_file_is_named(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_request(file, {})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"presets": []}, "there must be something to compare"),
        ({"presets": "ema"}, "`presets` must be a list of names. Got 'ema'"),
        ({"presets": [1]}, "`presets` must be a list of names"),
        ({"quantizers": ["ema"]}, "`quantizers` must be a section of quantizers by name"),
        ({"quantizers": {"mine": "ema"}}, "the quantizer 'mine' must be a section with `class_path`. Got 'ema'"),
        ({"quantizers": {"e ma": OWN, "e-ma": OWN}}, "names that differ in letters or digits. Got 'e ma' and 'e-ma'"),
        ({"quantizers": {"unquantized": OWN}}, "names that differ in letters or digits. Got 'unquantized'"),
        ({"quantizers": {"ema": OWN}}, "names that differ in letters or digits. Got 'ema' and 'ema'"),
        ({"quantizers": {"...": OWN}}, "the name '...' must have letters or digits"),
        ({"data": 3}, "`data` must be a text. Got 3"),
        ({"size": None}, "`size` must be a text"),
        ({"accelerator": 1}, "`accelerator` must be a text"),
        ({"codebook_size": 1}, "`codebook_size` must be an integer >= 2. Got 1"),
        ({"steps": 1}, "`steps` must be an integer >= 2. Got 1"),
        ({"seeds": 0}, "`seeds` must be an integer >= 1. Got 0"),
        ({"pixels": 4}, "`pixels` must be an integer >= 8. Got 4"),
        ({"init": "zero"}, "`init` must be one of 'own', 'kmeans'"),
        ({"reset": "always"}, "`reset` must be one of 'own', 'with', 'without'"),
        ({"grid": [0.1]}, "`grid` must be a section of lists by axis"),
        ({"grid": {"comitment": [0.1]}}, "`grid` has no axis 'comitment'. Did you mean 'commitment'? It takes lr"),
        ({"grid": {"lr": 0.1}}, "`grid` must give 'lr' a list of numbers. Got 0.1"),
        ({"grid": {"lr": []}}, "`grid` must give 'lr' a list of numbers"),
        ({"grid": {"lr": [0.0]}}, "`grid.lr` must be a finite number"),
        ({"grid": {"lr": ["a"]}}, "`grid.lr` must be a number"),
        ({"grid": {"lr": [0.1, 0.1]}}, "`grid` must give 'lr' different values"),
    ],
)
def test_bad_values_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Request(**{"presets": ["ema"], **changed})
    assert words in str(caught.value)


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`--grid` must have an axis once, as lr=VALUE,VALUE\. Got 'lr' twice"):
        read_grid(["lr=1e-3", "commitment=1", "lr=3e-3"])


def test_all_presets_are_asked_for_by_a_word(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("presets: all")
    assert list(read_request(file, {}).presets) == ["all"]


@pytest.mark.parametrize("word", ["lr", "lr=", "lr=1e-3,x"])
def test_a_grid_is_axis_and_values(word: str) -> None:
    with pytest.raises(ValueError, match=r"`--grid` must be AXIS=VALUE,VALUE, such as lr=1e-3,3e-3\. Got"):
        read_grid([word])


def test_every_row_tries_as_many_settings_and_each_of_them_does_something() -> None:
    rows = {name: described(name, config, 8, 16, 1, commitment=None) for name, config in of_presets(["all"]).items()}
    tried = {name: settings(row, GRID, 1e-3) for name, row in rows.items()} | {"none": settings(None, GRID, 1e-3)}
    assert {len(one) for one in tried.values()} == {12}
    assert "lr 0.001, codebook_lr 0.01, commitment 0.25" in tried["vq_vae"]
    assert not any("codebook_lr" in name for name in tried["ema"])
    assert not any("commitment" in name for name in tried["fsq"])
    rates = [one["model"]["init_args"]["optimizer"]["lr"] for one in tried["none"].values()]
    assert rates[0] == 0.0005
    assert rates[-1] == 0.008
    ratios = [after / before for before, after in itertools.pairwise(rates)]
    assert ratios == pytest.approx([16 ** (1 / 11)] * 11, rel=1e-3)


def test_a_grid_without_a_rate_takes_the_usual_one() -> None:
    row = described("ema", of_presets(["ema"])["ema"], 8, 16, 1, commitment=None)
    first = next(iter(settings(row, {"commitment": [0.5]}, 3e-3).values()))
    inner = first["model"]["init_args"]
    assert inner["optimizer"]["lr"] == 3e-3
    assert inner["model"]["init_args"]["quantizer"]["init_args"] == {"commitment": 0.5}
