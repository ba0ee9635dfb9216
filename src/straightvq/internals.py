"""Private names of other libraries, each behind a function that says why no public one will do.

Tried with torch 2.13 and lightning 2.6; tests/unit/test_internals.py says which name is gone when one is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

# Whether `torch.export` is tracing. Torch 2.6 cannot be asked; what is exported with it holds our own operators.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def in_backward() -> bool:
    """Whether this runs inside a backward pass, as a recomputed forward does. Torch tells nobody in public."""
    return torch._C._current_graph_task_id() != -1


def in_transform() -> bool:
    """Whether this runs inside a transform of ``torch.func``, which custom operators with a gradient refuse."""
    return torch._C._are_functorch_transforms_active()


def register_named_tuple(kind: type, name: str) -> None:
    """Gives a named tuple the name by which `torch.export` saves it. Dataclasses have a public function, tuples not."""
    _pytree._register_namedtuple(kind, serialized_type_name=name)


def logged_step(trainer: Any) -> int:
    """The step that the loggers count: batches that stepped. ``global_step`` counts each of several optimizers."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def validation_follows(trainer: Any) -> bool:
    """Whether the Trainer validates between this batch and the next; it decides after the batch's callbacks."""
    loop = trainer.fit_loop.epoch_loop
    return bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher)) and sum(trainer.num_val_batches) > 0


def log_step(trainer: Any) -> None:
    """Hands the values of this step to the loggers now; Lightning does so after the batch's callbacks."""
    trainer._logger_connector.update_train_step_metrics()


def restore_loader(trainer: Any) -> None:
    """Gives the training loader its state if Lightning has not.

    A schedule over ``max_epochs`` asks for the number of batches, which makes the loader before the checkpoint is read,
    and Lightning 2.6 loads the states of new loaders only.
    """
    loop = trainer.fit_loop
    states, loader = loop._combined_loader_states_to_load, loop._combined_loader
    if states and loader is not None:
        loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []
