"""The private names of other libraries that this package leans on are still there."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import lightning
import pytest
import torch

from straightvq import internals

# Where the name is, and who breaks without it.
NAMES: dict[str, Callable[..., Any]] = {
    "torch._C._current_graph_task_id": internals.in_backward,
    "torch._C._are_functorch_transforms_active": internals.in_transform,
    "torch.utils._pytree._register_namedtuple": internals.register_named_tuple,
    "trainer.fit_loop.epoch_loop._batches_that_stepped": internals.logged_step,
    "trainer.fit_loop.epoch_loop._should_check_val_fx": internals.validation_follows,
    "trainer.fit_loop._data_fetcher": internals.validation_follows,
    "trainer._logger_connector.update_train_step_metrics": internals.log_step,
    "trainer.fit_loop._combined_loader": internals.restore_loader,
    "trainer.fit_loop._combined_loader_states_to_load": internals.restore_loader,
}


@pytest.fixture(scope="module")
def roots() -> dict[str, Any]:
    return {"torch": torch, "trainer": lightning.Trainer(logger=False, accelerator="cpu", barebones=True)}


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_still_there(name: str, roots: dict[str, Any]) -> None:
    root, _, path = name.partition(".")
    try:
        attrgetter(path)(roots[root])
    except AttributeError:
        versions = f"torch {torch.__version__} and lightning {lightning.__version__}"
        pytest.fail(f"{versions} have no {name}: `straightvq.internals.{NAMES[name].__name__}` needs another way.")


def test_inside_a_backward_pass_is_told_from_outside() -> None:
    seen: list[bool] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: seen.append(internals.in_backward()))
    x.sum().backward()
    assert seen == [True]
    assert not internals.in_backward()
