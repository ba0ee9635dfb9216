"""Law 10: bad input is refused with a sentence, and changes nothing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from straightvq.nn import Quantizer
from straightvq.testing.law import LawError, hold, law, same_state
from straightvq.testing.subject import Subject, state_of


def assert_refused(layer: Quantizer, call: Callable[[], Any], what: str) -> None:
    """The call raises ``ValueError`` or ``TypeError`` with a message, and leaves the layer as it was."""
    before = state_of(layer)
    try:
        call()
    except (ValueError, TypeError) as error:
        hold(str(error), f"a message that says what is wrong with {what}", "none")
    except Exception as error:
        raise LawError(f"expected ValueError or TypeError for {what}. Got {error!r}.") from error
    else:
        raise LawError(f"expected ValueError or TypeError for {what}. Got no error.")
    same_state(state_of(layer), before, f"no state changed by {what}")


@law("bad_input")
def bad_input_is_refused_and_changes_nothing(subject: Subject) -> None:
    """A wrong width, dtype, mask or index, NaN and infinity raise ValueError or TypeError and change nothing."""
    good = subject.data(0)
    mask = torch.ones(len(good), dtype=torch.bool)
    second = torch.arange(len(good))[:, None] == 1
    inputs: dict[str, tuple[Any, ...]] = {
        "a list": (good.tolist(),),
        "integers": (good.long(),),
        "complex numbers": (good.to(torch.complex64),),
        "a scalar": (torch.tensor(1.0),),
        "a wrong width": (torch.cat([good, good], 1),),
        "NaN": (good.masked_fill(second, torch.nan),),
        "infinity": (good.masked_fill(second, torch.inf),),
        "a mask of the wrong shape": (good, mask[:-1]),
        "a mask of integers": (good, mask.long()),
    }
    indices = {
        "float indices": torch.tensor([1.0]),
        "an index below -1": torch.tensor([0, -2]),
        "an index past the last code": torch.tensor([0, 1 << 40]),
    }
    for layer in subject.of_each_age():
        for what, given in inputs.items():
            assert_refused(layer, partial(layer, *given), f"{what} in `forward`")
            assert_refused(layer, partial(layer.encode, *given), f"{what} in `encode`")
        for what, wrong in indices.items():
            assert_refused(layer, partial(layer.decode, wrong), f"{what} in `decode`")
