"""The network of a finished run as a folder that anybody can load, with what the run measured on its card."""

import os
from pathlib import Path

from torch import nn

from straightvq.errors import InvalidValueError
from straightvq.hub.card import Notes
from straightvq.hub.folder import save
from straightvq.hub.pretrained import Pretrained
from straightvq.hub.transfer import push
from straightvq.runs import Checkpoint, RunFolder, load_weights, log_rows

FOLDER = "pretrained"
# Of the pictures that a run may have, the first kind of which there is one; of several the last in order.
_PICTURES = ("pictures/reconstructions-*.png", "*.png", "pictures/*.png")


def publish(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | None = None,
    push_to: str | None = None,
) -> str:
    """Saves a run's network, without the task around it, as ``save_pretrained`` does.

    The card has the measures of the test set that the run has logged, or else those of the validation set at the
    checkpoint, and one of the run's pictures.

    Args:
        run: folder that `straightvq fit` made.
        out: folder to write; None takes ``pretrained`` in the run's.
        checkpoint: name of one of its checkpoints; None takes the best, or else the last.
        push_to: ``owner/name`` on the Hugging Face Hub; the folder is then uploaded as well.

    Returns:
        The folder, or the address on the Hub.

    Raises:
        TypeError, ValueError: for what is no run, or has no such checkpoint; whatever ``save_pretrained`` and
            ``push_to_hub`` raise.
        OSError: if nothing can be written to ``out``.
    """
    folder = RunFolder(Path(run), "publish")
    chosen = folder.checkpoint(checkpoint)
    task = folder.build_task()
    load_weights(task, chosen, "publish")
    model = getattr(task, "model", None)
    if not (isinstance(model, Pretrained) and isinstance(model, nn.Module)):
        raise InvalidValueError(
            f"`publish`: the task must have a network of straightvq as `model`. Got {type(task).__name__} with "
            f"{type(model).__name__}."
        )
    notes = _notes(folder, chosen, push_to)
    target = save(model, folder.folder / FOLDER if out is None else out, notes)
    return str(target) if push_to is None else push(model, push_to, notes=notes)


def _notes(folder: RunFolder, checkpoint: Checkpoint, push_to: str | None) -> Notes:
    task = str(folder.config["model"].get("class_path", "")).rpartition(".")[2]
    about = f"Trained by `straightvq fit` as a `{task}`; these are the weights of step {checkpoint.step:,}."
    name = push_to or folder.folder.resolve().name
    metrics, measured_on = _measured(folder, "test", None), "the test set"
    if not metrics:
        metrics, measured_on = _measured(folder, "val", checkpoint.step), "the validation set"
    pictures = (sorted(folder.folder.glob(pattern)) for pattern in _PICTURES)
    picture = next((found[-1] for found in pictures if found), None)
    return Notes(name, about, metrics, measured_on, picture)


def _measured(folder: RunFolder, stage: str, most_steps: int | None) -> dict[str, float]:
    """The last values of the task's own measures, up to a step."""
    names = {name for row in log_rows(folder.folder) for name in row if name and name.startswith(f"{stage}/")}
    values = {}
    for name in sorted(name for name in names if name.count("/") == 1):
        course = [value for step, value in zip(*folder.log(name), strict=True) if not most_steps or step <= most_steps]
        if course:
            values[name.removeprefix(f"{stage}/")] = course[-1]
    return values
