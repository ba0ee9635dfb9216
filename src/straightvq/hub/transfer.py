"""To and from the Hugging Face Hub."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from straightvq.errors import InvalidTypeError, InvalidValueError
from straightvq.hub.card import Notes
from straightvq.hub.folder import CONFIG, WEIGHTS, needing, save

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_folder(
    name: str | os.PathLike[str],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of that path, or else what the Hub has under that name, downloaded into its cache.

    Raises:
        TypeError, ValueError: for what is neither, for a name that the Hub does not have, and if it cannot be reached.
        ImportError: without the package huggingface_hub.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise InvalidTypeError(f"`from_pretrained`: `name` must be a folder or owner/name. Got {name!r}.")
    _check_options("from_pretrained", revision=revision, token=token, cache_dir=cache_dir)
    if Path(name).is_dir():
        return Path(name)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InvalidValueError(
            f"`from_pretrained`: `name` must be a folder, or owner/name on the Hugging Face Hub. Got {str(name)!r}, "
            "which is neither: there is no such folder."
        )
    with needing("from_pretrained"):
        import huggingface_hub
    cache = None if cache_dir is None else Path(cache_dir)
    with _explained("from_pretrained", name, revision):
        found = huggingface_hub.snapshot_download(
            name, revision=revision, token=token, cache_dir=cache, allow_patterns=[CONFIG, WEIGHTS]
        )
    return Path(str(found))


def push(
    module: nn.Module,
    name: str,
    *,
    notes: Notes | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Saves a module and uploads it; see `straightvq.hub.pretrained.Pretrained.push_to_hub`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidValueError(f"`push_to_hub`: `name` must be owner/name. Got {name!r}.")
    _check_options("push_to_hub", revision=revision, token=token, private=private)
    with needing("push_to_hub"):
        import huggingface_hub
    with tempfile.TemporaryDirectory() as folder:
        save(module, folder, notes or Notes(name))
        with _explained("push_to_hub", name, revision):
            api = huggingface_hub.HfApi(token=token)
            address = api.create_repo(name, private=private, exist_ok=True)
            message = f"{type(module).__name__} of straightvq"
            api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    return str(address)


_OPTIONS = {"revision": (str,), "token": (str, bool), "cache_dir": (str, os.PathLike), "private": (bool,)}


def _check_options(owner: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None and not isinstance(value, _OPTIONS[name]):
            kinds = " or ".join(kind.__name__ for kind in _OPTIONS[name])
            raise InvalidTypeError(f"`{owner}`: `{name}` must be None or {kinds}. Got {value!r}.")


@contextmanager
def _explained(owner: str, name: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into a sentence."""
    from huggingface_hub import errors

    which = name if revision is None else f"{name} at the revision {revision!r}"
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise InvalidValueError(
                f"`{owner}`: the Hub cannot be reached, and {which} is not in its cache here. Go online once, or pass "
                "the folder."
            ) from error
        raise InvalidValueError(
            f"`{owner}`: the Hub has no {which}, or nothing that you may see there. Check the name, and pass `token` "
            "for what is private; a folder of that name is not here either."
        ) from error
    except (errors.HFValidationError, OSError) as error:  # the client's errors of the network are kinds of the latter
        raise InvalidValueError(f"`{owner}`: the Hub did not give or take {which}: {error}") from error
