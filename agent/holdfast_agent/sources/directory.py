"""A directory as an open descriptor, and one name at a time below it.

A hostile process may share the volume and swap directories for symlinks at any moment. So no path
goes to the kernel: every name is opened relative to its parent's descriptor, never following a
symlink, and what was opened is asked for its type afterwards.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Final, Self

from holdfast_agent.sources.clock import FileClock
from holdfast_agent.sources.filesystems import FilesystemKind, Filesystems
from holdfast_agent.sources.findings import Finding, finding_from

_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSED: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Identity = tuple[int, int]
"""(st_dev, st_ino): which thing it is, whatever its name."""


def open_unstamped(name: bytes, flags: int, parent: int | None) -> int:
    """Open `name` without changing its access time where the kernel permits that.

    O_NOATIME is for owners and CAP_FOWNER only; others get EPERM, and open it the usual way.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=parent)
    except PermissionError as exc:
        if exc.errno != errno.EPERM:
            raise
    return os.open(name, flags, dir_fd=parent)


def open_handle(parent: int, name: bytes) -> int:
    """Return an O_PATH descriptor of `name` itself, whatever it is: nothing is opened or followed.

    Raises:
        OSError: it is gone, or the directory may not be searched.
    """
    return os.open(name, _HANDLE, dir_fd=parent)


def status_by_name(parent: int, name: bytes, descriptor: int) -> os.stat_result | None:
    """Return the status of an open thing as its name shows it; None when the name is another's.

    Only so does a link count of 1 say that the thing has no other name. A descriptor's own does
    not: a hard link to a file outside, opened and removed again, leaves a file with one name, and
    that one is outside.

    Raises:
        OSError: the descriptor cannot be asked.
    """
    mine = os.fstat(descriptor)
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return None
    return info if (info.st_dev, info.st_ino) == (mine.st_dev, mine.st_ino) else None


def by_descriptor(descriptor: int) -> str:
    """Return a path that means exactly the thing behind `descriptor`, for calls without an fd form.

    The kernel resolves it to the open thing itself (proc(5)): also for a symlink's O_PATH
    descriptor, which is then not followed. Needs /proc mounted, as every container has it.
    """
    return f"/proc/self/fd/{descriptor}"


class Directory:
    """An open directory; a context manager that closes it."""

    __slots__ = ("descriptor", "device", "inode", "kind", "opened_ns")

    def __init__(
        self, descriptor: int, identity: Identity, kind: FilesystemKind, opened_ns: int
    ) -> None:
        self.descriptor = descriptor
        self.device, self.inode = identity
        self.kind = kind
        self.opened_ns = opened_ns
        """The file-stamp clock just before it was opened: what is younger may still change."""

    @classmethod
    def open(
        cls,
        parent: int | None,
        name: bytes,
        *,
        clock: FileClock,
        filesystems: Filesystems,
        listing: bool = True,
    ) -> Self | Finding:
        """Return the directory `name` below the descriptor `parent` (None: `name` is `/`).

        With `listing=False` it can be passed through only: no permission to read it is needed.
        What is no directory, or a symlink to one, gives a finding with reason `replaced`.
        """
        opened_ns = clock.stamp_ns()
        try:
            if listing:
                descriptor = open_unstamped(name, _LISTED, parent)
            else:
                descriptor = os.open(name, _PASSED, dir_fd=parent)
        except OSError as exc:
            return finding_from(name, exc)
        try:
            info = os.fstat(descriptor)
        except OSError as exc:
            os.close(descriptor)
            return finding_from(name, exc)
        kind = filesystems.kind(descriptor, info.st_dev)
        return cls(descriptor, (info.st_dev, info.st_ino), kind, opened_ns)

    @property
    def identity(self) -> Identity:
        """Which directory it is."""
        return self.device, self.inode

    @property
    def is_open(self) -> bool:
        """Whether the descriptor can still be used."""
        return self.descriptor >= 0

    def status(self, name: bytes) -> os.stat_result | Finding:
        """Return the status of `name` itself; a symlink is not followed."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError as exc:
            return finding_from(name, exc)

    def is_directory(self, name: bytes) -> bool:
        """Return whether `name` is a directory right now; a symlink to one is not."""
        found = self.status(name)
        return not isinstance(found, Finding) and stat.S_ISDIR(found.st_mode)

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
