"""One file on its way: written under a temporary name, complete before it gets its own."""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Final, Protocol, Self

from holdfast_agent.restore.failures import KERNEL_ERRORS, EntryFailed, failure_from
from holdfast_agent.restore.metadata import Loss, Policy, apply
from holdfast_agent.sources.directory import Identity, open_unstamped, status_by_name
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.syscalls import begin_write_back
from holdfast_agent.tree.entry import Content, Stat

NEW_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_MODE: Final = 0o600
DIRTY_BYTES_MAX: Final = 16 << 20
"""The disk is at work while more is fetched, instead of when all has been written."""
REST_BYTES_MIN: Final = 1 << 20
"""The end of a file is not kept for later from this length on: a call for less costs too much."""
_EXISTING: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_COPY_BYTES: Final = 1 << 20
_NOT_COPIED_BY_KERNEL: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class Home(Protocol):
    """What a writer needs of its directory (a TargetDirectory)."""

    descriptor: int
    holders: int

    def temporary_name(self) -> bytes:
        """Return a name that nothing uses."""

    def rename(self, temporary: bytes, name: bytes) -> None:
        """Give the finished file its name."""

    def discard(self, temporary: bytes) -> None:
        """Remove the file where that can be done."""


class ExistingFile:
    """A regular file of the target open for reading; a context manager that closes it."""

    def __init__(self, descriptor: int, info: os.stat_result) -> None:
        self.descriptor = descriptor
        self.info = info

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on and return how much came; less only at the end.

        Raises:
            EntryFailed: the kernel refuses.
        """
        with KERNEL_ERRORS:
            return _read_into(self.descriptor, buffer, offset)

    def close(self) -> None:
        """Give the descriptor back; doing so twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_existing(parent: int, name: bytes) -> ExistingFile | None:
    """Return the regular file `name`; None when there is no such file that can be read."""
    try:
        descriptor = open_unstamped(name, _EXISTING, parent)
    except OSError:
        return None
    info = status_by_name(parent, name, descriptor)
    if info is None or not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        return None
    return ExistingFile(descriptor, info)


class Writer:
    """A new file; a context manager that removes it again unless it was committed."""

    def __init__(self, home: Home, name: bytes) -> None:
        """Create the temporary file.

        Raises:
            EntryFailed, NoSpace, Refused: it cannot be made.
        """
        self.name = name
        self._home = home
        self._written_to = 0
        """Where what was written ends."""
        self._dirty = 0
        """Bytes that were written since the kernel began to bring them to the disk."""
        self._temporary = home.temporary_name()
        # Here and below no context manager: of every file, and one costs as much as a short call.
        try:
            self.descriptor = os.open(self._temporary, NEW_FLAGS, NEW_MODE, dir_fd=home.descriptor)
        except OSError as exc:
            raise failure_from(exc) from exc
        home.holders += 1

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write `data` at `offset`; what is never written stays a hole.

        Raises:
            EntryFailed, NoSpace: the kernel refuses.
        """
        end = offset + len(data)
        try:
            done = os.pwrite(self.descriptor, data, offset)
            while offset + done < end:
                offset += done
                done = os.pwrite(self.descriptor, memoryview(data)[offset - end :], offset)
        except OSError as exc:
            raise failure_from(exc) from exc
        self._wrote(len(data), end)

    def clone(self, source: ExistingFile, offset: int, length: int) -> None:
        """Copy a range of an existing file to the same place here, without user space if possible.

        Another process may change the source meanwhile: what counts is what `read_into` then finds
        in this file.

        Raises:
            EntryFailed: the source has become shorter, or the kernel refuses.
            NoSpace: the target is full.
        """
        end = offset + length
        with KERNEL_ERRORS:
            while offset < end:
                done = self._cloned(source.descriptor, offset, end - offset)
                if done == 0:
                    raise EntryFailed(Reason.CHANGED, "the existing file has become shorter")
                offset += done
        self._wrote(length, end)

    def _wrote(self, length: int, end: int) -> None:
        self._written_to = max(self._written_to, end)
        self._dirty += length
        if self._dirty >= DIRTY_BYTES_MAX:
            begin_write_back(self.descriptor)
            self._dirty = 0

    def _cloned(self, source: int, offset: int, length: int) -> int:
        try:
            return os.copy_file_range(source, self.descriptor, length, offset, offset)
        except OSError as exc:
            if exc.errno not in _NOT_COPIED_BY_KERNEL:
                raise
        piece = os.pread(source, min(length, _COPY_BYTES), offset)
        self.write(piece, offset)
        return len(piece)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` with what was written at `offset`; return how much came.

        Raises:
            EntryFailed: the kernel refuses.
        """
        with KERNEL_ERRORS:
            return _read_into(self.descriptor, buffer, offset)

    def finish(self, size: int, entry: Stat, content: Content, policy: Policy) -> list[Loss]:
        """Set the file's length and its metadata; return what could not be given.

        Raises:
            EntryFailed, NoSpace: the kernel refuses.
        """
        try:
            if self._written_to != size:
                os.ftruncate(self.descriptor, size)
            if self._dirty >= REST_BYTES_MIN:
                begin_write_back(self.descriptor)
            return apply(self.descriptor, entry, content, policy)
        except OSError as exc:
            raise failure_from(exc) from exc

    def identity(self) -> Identity:
        """Return which file it is: what further names of it are linked to.

        Raises:
            EntryFailed: the kernel refuses.
        """
        with KERNEL_ERRORS:
            info = os.fstat(self.descriptor)
        return info.st_dev, info.st_ino

    def commit(self) -> None:
        """Give the file its name in place of what is no directory, and close it.

        Raises:
            InTheWay: a directory has that name; it may be removed and this called again.
            EntryFailed: the kernel refuses.
        """
        self._home.rename(self._temporary, self.name)
        try:
            self._end()
        except OSError as exc:
            raise failure_from(exc) from exc

    def abort(self) -> None:
        """Remove the temporary file where that can be done; harmless after `commit`."""
        if self.descriptor < 0:
            return
        try:
            self._home.discard(self._temporary)
        finally:
            self._end()

    def _end(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        self._home.holders -= 1
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


def _read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(buffer):
        got = os.preadv(descriptor, [buffer[filled:]], offset + filled)
        if got == 0:
            break
        filled += got
    return filled
