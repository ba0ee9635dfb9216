"""A disk that fills up while checkpoints are written."""

import errno
from typing import Any

import pytest
import torch


def fills_up(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk has room for so many checkpoints, and for the beginning of another one."""
    save, saved = torch.save, []

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 1000

        def write(self, content: bytes) -> int:
            self.left -= len(content)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(content)

        def flush(self) -> None: ...

    def filling(content: Any, file: Any) -> None:
        saved.append(file)
        save(content, file if len(saved) <= after else Full(file))

    monkeypatch.setattr(torch, "save", filling)
