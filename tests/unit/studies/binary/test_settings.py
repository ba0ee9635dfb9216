from typing import Any

import pytest

from straightvq.studies import load_study
from straightvq.studies.binary.settings import Settings

TINY: dict[str, Any] = load_study("binary").sizes["tiny"].config


def changed(**keys: Any) -> dict[str, Any]:
    return {**TINY, "classifiers": {"digits": {**TINY["classifiers"]["digits"], **keys}}}


@pytest.mark.parametrize("size", load_study("binary").sizes.values(), ids=lambda size: size.name)
def test_every_packaged_size_is_possible_and_has_settings_for_its_sets(size: Any) -> None:
    settings = Settings.of(size.config, size.seeds)
    assert {*size.sets, *size.without_data} <= set(settings.classifiers)


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        (changed(pixels=3), ValueError, "`Classifier`: `pixels` must be an integer >= 4. Got 3"),
        (changed(channels=0), ValueError, "`channels` must be an integer >= 1"),
        (changed(images=-1), ValueError, "`images` must be an integer >= 0"),
        (changed(augment="yes"), TypeError, "`augment` must be True or False"),
        (changed(width=0), ValueError, "`width` must be an integer >= 1"),
        (changed(blocks=1.5), TypeError, "`blocks` must be an integer >= 1"),
        (changed(batch=1), ValueError, "`batch` must be an integer >= 2"),
        (changed(epochs=0), ValueError, "`epochs` must be an integer >= 1"),
        (changed(warmup=2), ValueError, "`warmup` must be below epochs=2. Got 2"),
        (changed(warmup=-1), ValueError, "`warmup` must be an integer >= 0"),
        (changed(lr=0.0), ValueError, "`lr` must be a finite number in"),
        (changed(epoch=3), ValueError, r"`classifiers.digits` has no key 'epoch'. Did you mean 'epochs'\?"),
        ({**TINY, "classifiers": [1]}, TypeError, "`classifiers` must be sections by set"),
        ({**TINY, "tokenizer": {**TINY["tokenizer"], "bits": 5}}, ValueError, "`bits` must be even"),
        ({**TINY, "tokenizer": {**TINY["tokenizer"], "steps": 0}}, ValueError, "`steps` must be an integer >= 1"),
        ({**TINY, "tokenizer": {**TINY["tokenizer"], "batch": 0}}, ValueError, "`batch` must be an integer >= 1"),
        ({**TINY, "tokenizer": {**TINY["tokenizer"], "hidden": 1}}, ValueError, "`hidden` must be an integer >= 2"),
        ({**TINY, "tokenizer": {**TINY["tokenizer"], "lr": -1.0}}, ValueError, "`Tokenizer`: `lr` must be"),
        ({"tokenizer": TINY["tokenizer"]}, ValueError, "classifiers is not there"),
    ],
)
def test_impossible_settings_are_refused(config: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Settings.of(config, 2)


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="`seeds` must be an integer >= 1"):
        Settings.of(TINY, 0)
