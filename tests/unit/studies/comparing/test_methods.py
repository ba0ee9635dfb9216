"""What is compared: which presets, at how many bits, under which shared conditions."""

import copy
import itertools
import json
import math
import re
from typing import Any

import pytest
import torch

import straightvq as svq
from straightvq.studies import adjusted
from straightvq.studies.comparing.methods import (
    described,
    nearest_levels,
    of_presets,
    preset_names,
    refuse_unequal,
)
from straightvq.studies.study import Config

EMA = Config({"class_path": "straightvq.presets.ema"})


def test_all_are_the_presets_with_one_codebook_and_those_without_any() -> None:
    names = preset_names()
    assert {"vq_vae", "ema", "vq_ste_pp", "straight", "fsq", "lfq", "bsq"} <= set(names)
    assert not {"dac", "rq_vae", "soundstream", "straight_residual", "best_rq"} & set(names)
    assert list(of_presets(["ema", "all"])) == ["ema", *(name for name in names if name != "ema")]


@pytest.mark.parametrize("size", [25, 60, 100, 128, 256, 1000, 1024, 4096])
def test_levels_come_as_near_as_any_channels_of_5_to_8_levels_can(size: int) -> None:
    every = (levels for n in range(1, 7) for levels in itertools.product(range(5, 9), repeat=n) if n > 1)
    best = min(abs(math.log2(math.prod(levels) / size)) for levels in every)
    assert abs(math.log2(math.prod(nearest_levels(size)) / size)) == pytest.approx(best)


def test_rows_get_the_sizes_of_the_comparison_and_keep_their_own_settings() -> None:
    rows = {name: described(name, config, 8, 64, 1) for name, config in of_presets(["all"]).items()}
    assert {row.bits for row in rows.values()} == {6.0}
    assert rows["fsq"].config["init_args"]["levels"] == [8, 8]
    assert rows["lfq"].config["init_args"]["bits"] == 6
    assert [rows[name].has_reset for name in ("ema", "vq_vae", "fsq")] == [True, False, None]
    assert [rows[name].trains_codes for name in ("ema", "vq_vae", "fsq")] == [False, True, False]
    assert [rows[name].has_commitment for name in ("ema", "fsq")] == [True, False]
    own = described("slow", Config({**EMA, "init_args": {"decay": 0.5}}), 8, 64, 1)
    assert own.config["init_args"] == {"dim": 8, "codebook_size": 64, "channel_dim": 1, "decay": 0.5}


def test_a_composite_of_a_file_is_left_as_it_was_written() -> None:
    levels = [{"class_path": "straightvq.presets.ema", "init_args": {"dim": 8, "codebook_size": 4}} for _ in range(2)]
    config = {"class_path": "straightvq.ResidualQuantizer", "init_args": {"dim": 8, "levels": levels}}
    method = described("res", Config(copy.deepcopy(config)), 8, 16, -1, reset="with")
    assert (method.codes, method.bits, method.has_reset) == (2, 4.0, True)
    assert json.loads(json.dumps(method.config))["init_args"]["quantizer"]["init_args"]["levels"] == levels


def test_other_bits_or_more_codes_belong_in_another_table() -> None:
    def row(name: str, path: str, **own: Any) -> Any:
        return described(name, Config({"class_path": path, "init_args": own}), 8, 256, -1)

    first = row("ema", "straightvq.presets.ema")
    refuse_unequal([first, row("fsq", "straightvq.presets.fsq")])  # 7.98 bits
    with pytest.raises(ValueError, match=r"as many bits per vector.*'ema' has 8, 'large' has 9"):
        refuse_unequal([first, row("large", "straightvq.presets.ema", codebook_size=512)])
    with pytest.raises(ValueError, match=r"as many codes per vector.*'ema' has 1, 'levels' has 2"):
        refuse_unequal([first, row("levels", "straightvq.presets.rq_vae", codebook_size=16, num_quantizers=2)])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["strait"], "the preset 'strait' is not there. Did you mean 'straight'? There are: "),
        (["dac"], "the preset 'dac' has no single codebook of which the number of bits can be set. There are: "),
    ],
)
def test_a_wrong_preset_is_named(names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        of_presets(names)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "'mine' must name a class or a function with `class_path`"),
        ({"class_path": "straightvq.presets.emma"}, "'mine' must name a class or a function with `class_path`"),
        ({"class_path": "torch.nn.Linear"}, "the quantizer 'mine' cannot be made: "),
        ({**EMA, "init_args": {"decai": 0.5}}, "Option 'decai' is not accepted"),
        ({**EMA, "init_args": {"decay": 2.0}}, "`decay` must be a finite number"),
        ({**EMA, "init_args": {"dim": 4}}, "'mine' must have dim=8 and channel_dim=1, for the network that all share"),
    ],
)
def test_a_wrong_quantizer_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        described("mine", Config(config), 8, 16, 1)


def test_a_shared_reset_revives_dead_codes_and_none_does_not() -> None:
    def used(reset: Any) -> int:
        torch.manual_seed(0)
        layer = adjusted(svq.presets.vq_vae(2, 16), reset=reset)
        assert isinstance(layer, svq.VectorQuantizer)
        z = 100 + torch.randn(64, 2)
        for _ in range(60):
            layer(z)
        return int(layer.eval()(z).indices.unique().numel())

    assert used("without") == used("own") == 1
    assert used("with") == 16
    assert adjusted(svq.presets.ema(2, 4), reset="without").codebook.reset is None


def test_a_shared_start_is_that_of_k_means() -> None:
    layer = adjusted(svq.presets.vq_vae(1, 2), init="kmeans")
    layer(torch.tensor([[5.0], [5.0], [9.0], [9.0]]))
    assert sorted(layer.codes().flatten().tolist()) == pytest.approx([5, 9], abs=1e-3)


def test_a_shared_commitment_reaches_the_loss_and_only_that() -> None:
    layer = adjusted(svq.presets.vq_vae(4, 8), commitment=2.5)
    assert [loss.coefficient for loss in layer.losses] == [2.5, 1.0]
    assert len(adjusted(svq.presets.fsq(4, [5, 5]), commitment=2.5).losses) == 0


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("init", "mean", "`init` must be one of 'own', 'kmeans'"),
        ("reset", "on", "`reset` must be one of 'own', 'with', 'without'"),
        ("commitment", -1.0, "`commitment` must be a finite number"),
        ("quantizer", torch.nn.Identity(), "`quantizer` must be"),
    ],
)
def test_bad_conditions_are_refused(name: str, bad: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        adjusted(**{"quantizer": svq.presets.ema(4, 8), name: bad})
    assert words in str(caught.value)
