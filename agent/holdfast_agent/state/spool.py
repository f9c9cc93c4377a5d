"""Unnamed files for what does not fit memory; in memory where the disk has no room for them.

A spool holds what a job sorts on the way: ids, keys, the refs object. A full state directory must
not stop a backup, so what cannot be written goes on in memory, as far as the ceiling allows.
"""

from __future__ import annotations

import errno
import io
import os
from typing import BinaryIO, Final, cast

from holdfast_contract.errors import NoSpace
from holdfast_contract.limits import MIB

MEMORY_BYTES_MAX: Final = 16 * MIB
"""Most bytes of one spool in memory: the ids of half a terabyte. A handful exist at once."""
_BUFFER_BYTES: Final = 256 << 10
_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class _Raw(io.RawIOBase):
    """A file that becomes memory at the first write that the disk does not take."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._memory = bytearray()
        self._position = 0
        self._is_lost = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length()}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        length = len(buffer)
        if self._fd is not None:
            data = os.pread(self._fd, length, self._position)
        else:
            data = bytes(self._memory[self._position : self._position + length])
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        taken = self._to_file(data) if self._fd is not None else self._to_memory(data)
        self._position += taken
        return taken

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._memory = bytearray()
        super().close()

    def _length(self) -> int:
        return len(self._memory) if self._fd is None else os.fstat(self._fd).st_size

    def _to_file(self, data: bytes | memoryview) -> int:
        assert self._fd is not None
        try:
            return os.pwrite(self._fd, data, self._position)
        except OSError as exc:
            if exc.errno not in _UNWRITABLE:
                raise
        self._move()
        return self._to_memory(data)

    def _move(self) -> None:
        assert self._fd is not None
        length = self._length()
        if length > MEMORY_BYTES_MAX:
            raise self._no_room()
        self._memory = bytearray(os.pread(self._fd, length, 0))
        os.close(self._fd)
        self._fd = None

    def _to_memory(self, data: bytes | memoryview) -> int:
        end = self._position + len(data)
        # Said once: closing writes what is buffered, and must not say it again.
        if end > MEMORY_BYTES_MAX and not self._is_lost:
            raise self._no_room()
        if not self._is_lost:
            self._memory[self._position : end] = data
        return len(data)

    def _no_room(self) -> NoSpace:
        self._is_lost = True
        return NoSpace(
            "the state directory is full, and memory has no room for what this backup sorts",
            hint="give HOLDFAST_STATE more room",
        )


def open_spool(directory: str) -> BinaryIO:
    """Return an empty unnamed file in `directory`; in memory where it cannot hold one."""
    import tempfile  # with what it needs half a megabyte of an idle agent

    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            fd: int | None = os.dup(file.fileno())
    except OSError:
        fd = None
    raw = cast("io.RawIOBase", _Raw(fd))
    return cast("BinaryIO", io.BufferedRandom(raw, _BUFFER_BYTES))
