"""Where pieces of work are done."""

import sys

import pytest

from straightvq.errors import InvalidValueError
from straightvq.executors import InProcess, executor


def test_one_worker_is_this_process_and_errors_are_the_futures() -> None:
    with executor(1) as pool:
        assert isinstance(pool, InProcess)
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        assert isinstance(pool.submit(divmod, 7, 0).exception(), ZeroDivisionError)


def test_several_without_ray_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidValueError, match=r"`workers` must be 1 where Ray is not installed. Got 3"):
        executor(3)
