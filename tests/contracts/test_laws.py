"""Every law of ``straightvq.testing`` over the whole table of cases, and what the table must hold."""

import functools
import inspect

import pytest
import torch
from torch import nn

import straightvq as svq
from straightvq.testing import LAWS, Law
from straightvq.testing.check import outcome
from straightvq.testing.subject import Subject
from tests.contracts.cases import CASES, DIM, EXCEPTIONS, FREE, FREE_PRESETS, OF_TABLES, PRESETS, SLOW, every
from tests.contracts.test_families import CASES as FAMILIES

EVERY = CASES | FREE


@functools.cache
def subject(name: str) -> Subject:
    return Subject(EVERY[name])


# Graphs have a suite of their own, which asks for more.
@pytest.mark.parametrize("law", [law for law in LAWS.values() if law.chapter != "graphs"], ids=str)
@every("name", EVERY)
def test_law_holds(name: str, law: Law) -> None:
    reason = EXCEPTIONS.get(name, {}).get(law.name)
    report = outcome(law, subject(name), reason)
    if name in FREE and law.name in OF_TABLES:
        assert report.startswith("does not apply"), report
    else:
        assert (report == "holds") == (reason is None), report


def test_table_holds_every_preset_and_every_concrete_part() -> None:
    quick = {name: make for name, make in (EVERY | FAMILIES).items() if name not in SLOW}
    used = {type(module) for make in quick.values() for module in make().modules()}
    for name in svq.__all__:
        item = getattr(svq, name)
        if inspect.isclass(item) and issubclass(item, nn.Module) and not inspect.isabstract(item):
            assert item in used, f"{name} appears in no quick case"
    for name in svq.presets.__all__:
        assert any(key.split("-")[0] == name for key in PRESETS | FREE_PRESETS | FAMILIES), f"preset {name} has no case"


def test_table_holds_both_values_of_every_switch() -> None:
    """Options that change what happens, not only how much: each is set and not set in some case."""
    modules = [module for make in EVERY.values() for module in make().modules()]

    def values(kind: type[nn.Module], name: str) -> set[object]:
        return {bool(getattr(module, name)) for module in modules if isinstance(module, kind)}

    for kind, name in [
        (svq.AlternatedUpdate, "lr"),
        (svq.AlternatedUpdate, "momentum"),
        (svq.AlternatedUpdate, "reassign"),
        (svq.StraightThrough, "sync"),
        (svq.DeadCodeReset, "noise"),
        (svq.Codebook, "reset"),
        (svq.Linear, "freeze_basis"),
        (svq.Linear, "bias"),
        (svq.FiniteScalarQuantizer, "clamp"),
        (svq.FiniteScalarQuantizer, "noise"),
        (svq.RandomProjectionQuantizer, "normalize"),
        (svq.RandomProjectionQuantizer, "is_composite"),
    ]:
        assert values(kind, name) == {False, True}, f"{kind.__name__}.{name} has one value only in the table"
    distances = {module.distance for module in modules if isinstance(module, svq.Nearest)}
    assert distances == {"euclidean", "cosine"}
    anchors = {module.anchor for module in modules if isinstance(module, svq.AnchoredReset)}
    assert anchors == {"closest", "random"}
    forms = {module.form for module in modules if isinstance(module, svq.FiniteScalarQuantizer)}
    assert forms == {"paper", "symmetric", "atanh"}
    for kind in (svq.Affine, svq.RunningAffine):
        groups = {module.groups > 1 for module in modules if isinstance(module, kind)}
        assert groups == {False, True}, f"{kind.__name__} with one group or with several is missing"


def test_exceptions_name_cases_and_laws_and_have_a_reason() -> None:
    assert set(EXCEPTIONS) <= set(EVERY)
    assert all(set(column) <= set(LAWS) for column in EXCEPTIONS.values())
    assert set(OF_TABLES) <= set(LAWS)
    assert all(reason for column in EXCEPTIONS.values() for reason in column.values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
@pytest.mark.parametrize("size", [16, 100])
def test_decode_takes_every_integer_dtype(size: int, dtype: torch.dtype) -> None:
    layer = svq.presets.vq_vae(DIM, size)
    indices = torch.arange(size)
    assert torch.equal(layer.decode(indices.to(dtype)), layer.decode(indices))


def test_bytes_hold_the_indices_of_256_codes() -> None:
    layer = svq.presets.vq_vae(DIM, 256)
    assert torch.equal(layer.decode(torch.arange(256).to(torch.uint8)), layer.codes())
