"""Every public class of the layer can be described by its attributes, and is made again as it was."""

import inspect
from typing import Any

import pytest
from tests.contracts.cases import CASES, FREE
from tests.contracts.test_families import CASES as FAMILIES
from torch import nn

import straightvq as svq
from straightvq.hub.describe import ROOMS, arguments, build, describe, public_name

SEEN: dict[type, Any] = {}
for make in (*CASES.values(), *FREE.values(), *FAMILIES.values()):
    for module in make().modules():
        SEEN.setdefault(type(module), module)

PARTS = [
    item
    for item in (getattr(svq, name) for name in svq.__all__)
    if isinstance(item, type) and issubclass(item, nn.Module) and not inspect.isabstract(item)
]


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_every_argument_of_a_part_can_be_read_off_it(kind: type) -> None:
    assert kind in SEEN, "no case has one"
    again = build(describe(SEEN[kind]))
    assert type(again) is kind
    assert repr(again) == repr(SEEN[kind]) or not isinstance(again, svq.Quantizer)
    for name, value in arguments(SEEN[kind]).items():
        if not isinstance(value, (nn.Module, list)):
            assert describe(arguments(again)[name]) == describe(value)


def test_arguments_are_what_they_are_now() -> None:
    loss = svq.CommitmentLoss(0.25)
    loss.coefficient = 0.5
    assert describe(loss) == {"class_path": "straightvq.CommitmentLoss", "init_args": {"weight": 0.5}}
    shared = svq.ResidualQuantizer(4, svq.presets.ema(4, 8), num_quantizers=3)
    told = describe(shared)["init_args"]
    assert (told["num_quantizers"], told["levels"]["class_path"]) == (3, "straightvq.VectorQuantizer")
    grid = describe(svq.presets.fsq(4, [3, 5]))["init_args"]
    assert grid["levels"] == [3, 5]


def test_a_description_is_what_a_recipe_would_say() -> None:
    from jsonargparse import ArgumentParser

    layer = svq.presets.vq_ste_pp(6, 16, sync=0.5)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(svq.Quantizer, "quantizer")
    made = parser.instantiate_classes(parser.parse_object({"quantizer": describe(layer)})).quantizer
    assert repr(made) == repr(layer)


def test_names_are_those_that_users_import() -> None:
    assert public_name(svq.Codebook) == "straightvq.Codebook"
    assert public_name(svq.interop.SplitQuantizer) == "straightvq.interop.SplitQuantizer"
    with pytest.raises(TypeError, match=r"Got torch.nn.modules.linear.Linear: of a module of your own"):
        public_name(nn.Linear)


def test_no_other_package_is_imported_for_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("importlib.import_module", asked.append)
    for path in (
        "os.system",
        "torch.nn.Linear",
        "straightvq.nn.Codebook",
        "straightvq.cli.main",
        ".x",
        "x",
        "",
        None,
        [1],
    ):
        with pytest.raises(ValueError, match="class_path must be that of a module in straightvq"):
            build({"class_path": path, "init_args": {}})
    assert set(asked) <= set(ROOMS)
