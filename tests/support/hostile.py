"""A neighbour that swaps two names of a directory as fast as it can, as a hostile app would."""

from __future__ import annotations

import ctypes
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2


def exchange(directory: int, one: bytes, other: bytes) -> None:
    """Swap two names at once: each always exists. Source: renameat2(2)."""
    exchange_between(directory, one, directory, other)


def exchange_between(here: int, one: bytes, there: int, other: bytes) -> None:
    """Swap a name of the directory `here` with one of the directory `there`."""
    _rename(here, one, there, other, _RENAME_EXCHANGE)


def rename_no_replace(here: int, one: bytes, there: int, other: bytes) -> None:
    """Rename where the new name is free; otherwise FileExistsError."""
    _rename(here, one, there, other, _RENAME_NOREPLACE)


def _rename(here: int, one: bytes, there: int, other: bytes, flags: int) -> None:
    if _LIBC.renameat2(here, one, there, other, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def swapping(folder: Path, one: str, other: str) -> Iterator[None]:
    """Swap two names of `folder` all the time from another process."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        exchange(directory, one.encode(), other.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _swap_until_killed(directory, one.encode(), other.encode())
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        os.close(directory)


def _swap_until_killed(directory: int, one: bytes, other: bytes) -> None:
    try:
        while os.getppid() != 1:
            for _ in range(1000):
                _LIBC.renameat2(directory, one, directory, other, _RENAME_EXCHANGE)
    finally:
        os._exit(0)
