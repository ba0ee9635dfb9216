"""Files that hold either the whole of what was written or what was there before."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing", "results_folder", "write_text"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name in the same folder, made if it is missing; what is written there takes the place of ``path``.

    It does so when the block ends, and not if it raises. A rename is atomic only within one file system.

    Example:
        >>> import tempfile
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
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Makes a folder for the results of the block, which is gone again if the block raises before it wrote some.

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
