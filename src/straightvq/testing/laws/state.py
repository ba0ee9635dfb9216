"""Law 5: all state is in the state dict, and copies go on alike and apart."""

import copy
import io
import pickle
import sys
from collections.abc import Callable

import torch

from straightvq.nn import Quantizer
from straightvq.testing.law import NotApplicable, hold, law, same, same_state
from straightvq.testing.subject import Subject, Trainer, same_output, state_of


@law("state")
def resume_equals_never_having_stopped(subject: Subject) -> None:
    """Save, load into a new layer, go on: the same losses and state, bit for bit, as never having stopped."""
    straight_on = Trainer(subject)
    done = 0
    for stop in (1, 50):
        straight_on.run(done, stop)
        resumed = Trainer(subject, subject.made(seed=123))
        resumed.load(straight_on.save())
        torch.manual_seed(77)  # the global generator plays no part
        second = resumed.run(stop, stop + 12)
        torch.manual_seed(78)
        first = straight_on.run(stop, stop + 12)
        done = stop + 12
        same(second, first, f"the same losses after resuming at step {stop}")
        same_state(state_of(resumed.net), state_of(straight_on.net), f"the same state after resuming at step {stop}")


@law("state")
def state_dict_is_complete_and_loads_strictly(subject: Subject) -> None:
    """A fresh layer with a trained one's state dict goes on as that one does."""
    layer, fresh = subject.trained(), subject.made(seed=9)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    same_state(state_of(fresh), state_of(layer), "the loaded state")
    for number in range(20, 25):
        same_output(fresh(subject.data(number)), layer(subject.data(number)), "after loading")
    same_state(state_of(fresh), state_of(layer), "the same state after going on")


def _goes_on_alike_and_apart(subject: Subject, how: Callable[[Quantizer], Quantizer]) -> None:
    for layer in subject.of_each_age():
        twin = how(layer)
        before = state_of(layer)
        same_state(state_of(twin), before, "the state of the original")
        twin(subject.data(30))
        same_state(state_of(layer), before, "the original unchanged by its copy")
        layer(subject.data(30))
        same_state(state_of(twin), state_of(layer), "copy and original to go on alike")


@law("state")
def copy_goes_on_alike_and_apart(subject: Subject) -> None:
    """A deep copy goes on as the original does, and shares nothing with it."""
    _goes_on_alike_and_apart(subject, copy.deepcopy)


@law("state")
def pickled_copy_goes_on_alike_and_apart(subject: Subject) -> None:
    """So does a copy by pickle, and by ``torch.save`` of the whole layer."""
    for kind in {type(module) for module in subject.made().modules()}:
        if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
            raise NotApplicable(f"{kind.__qualname__} is defined where pickle cannot find it")
    _goes_on_alike_and_apart(subject, lambda layer: pickle.loads(pickle.dumps(layer)))
    file = io.BytesIO()
    torch.save(subject.trained(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    same_state(state_of(loaded), state_of(subject.trained()), "the state of the saved layer")


@law("state")
def every_buffer_that_training_changes_is_saved(subject: Subject) -> None:
    """What training changes in the layer's tensors is in its state dict."""
    layer = subject.made()
    names = set(layer.state_dict())
    tensors = dict(layer.named_parameters()) | dict(layer.named_buffers())
    hold(set(tensors) <= names, "every parameter and buffer in the state dict", sorted(set(tensors) - names))
    trained = subject.trained()
    saved = set(trained.state_dict())
    loose = [
        f"{type(module).__name__}.{name}"
        for path, module in trained.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and ".".join([*path.split("."), name]).lstrip(".") not in saved
    ]
    hold(not loose, "no tensor outside the state dict", loose)
