"""The one way to write a file: whole, and on the disk, or not at all."""

import contextlib
import glob
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another name in the same folder; the file written there replaces ``path`` when the block ends.

    The folder is made if it is missing. The file is flushed to the disk, then renamed, which is atomic: a process that
    is killed leaves the previous file untouched. If the block raises, the previous file stays and the unfinished one
    is removed.

    Raises:
        OSError: naming ``path``, if the disk refuses it, even as a `RuntimeError` of the writer, as `torch.save` does.

    Example:
        >>> file = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> with replacing(file) as unfinished:
        ...     _ = unfinished.write_text("whole")
        >>> file.read_text(), len(list(file.parent.iterdir()))
        ('whole', 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        refusal = error if isinstance(error, OSError) else error.__context__
        if isinstance(refusal, OSError) and refusal.errno and refusal.filename in (None, str(unfinished)):
            raise OSError(refusal.errno, refusal.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def flush_files() -> None:
    """Puts all that was written, by anybody, onto the disk: once for many files, before another one says that they
    are there. Does nothing where the system has no such call, as on Windows."""
    getattr(os, "sync", lambda: None)()


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove_unfinished(path: Path) -> None:
    """Removes what killed writers of ``path`` left; only for files that one process at a time writes."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Makes a folder for the results of the block, and removes it if the block raises before it wrote any.

    Raises:
        OSError: before the block, if nothing can be written there.

    Example:
        >>> place = Path(tempfile.mkdtemp())
        >>> with contextlib.suppress(ValueError), results_folder(place / "new" / "results"):
        ...     raise ValueError
        >>> list(place.iterdir())
        []
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"some")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        yield
    except BaseException:
        for place in missing:
            with contextlib.suppress(OSError):  # there is something in it
                place.rmdir()
        raise
