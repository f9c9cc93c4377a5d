"""The port through which the local store touches the disk, so that a simulation can stand there.

Every name is one component, looked up in an open directory and never followed through a symbolic
link. Methods raise OSError as the kernel would; `local.py` translates.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
BLOCK_BYTES: Final = 4096
"""To a multiple of this in memory, in the file and in length a disk takes bytes directly."""
_DIRECT_BYTES_MIN: Final = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class FreeSpace:
    """What `statvfs` says, in bytes."""

    total_bytes: int
    """Zero: the file system does not tell."""
    available_bytes: int
    """For a process without special rights."""


@dataclass(frozen=True)
class FileStatus:
    """What the store wants to know about an open file."""

    size: int
    is_file: bool
    is_directory: bool = False


class FileSystem(Protocol):
    """Operations on directory descriptors, each one kernel call."""

    def open_root(self, path: str) -> int:
        """Open the directory at `path`, which the administrator chose and may be a link."""

    def make_root(self, path: str) -> None:
        """Make the directory `path` in an existing one, both durable."""

    def open_directory(self, name: str, parent: int) -> int:
        """Open a directory."""

    def make_directory(self, name: str, parent: int) -> None:
        """Make a directory that only its owner can enter."""

    def create(self, name: str, parent: int) -> int:
        """Create a file that must not exist, for writing."""

    def open_file(self, name: str, parent: int) -> int:
        """Open a file for reading; never waits, whatever lies there."""

    def lock(self, name: str, parent: int) -> int | None:
        """Open or create the lock file and lock it till it is closed; None: another holds it."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at the end; return how many bytes were taken."""

    def read_at(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read at most `length` bytes; empty only at the end."""

    def read_into(self, descriptor: int, rooms: Sequence[memoryview], offset: int) -> int:
        """Read into `rooms`, at most 1024, one after the other; 0 only at the end."""

    def status(self, descriptor: int) -> FileStatus:
        """Return size and kind of an open file."""

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or a directory's names, durable."""

    def link(self, name: str, parent: int, new_name: str, new_parent: int) -> None:
        """Give a file a second name; fails when that name exists."""

    def unlink(self, name: str, parent: int) -> None:
        """Take a name off a file."""

    def names(self, directory: int) -> list[tuple[str, bool]]:
        """Return the names in a directory, and for each whether it is a directory."""

    def free(self, directory: int) -> FreeSpace:
        """Return the room of the file system."""

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""


class LinuxFileSystem:
    """The kernel's."""

    def open_root(self, path: str) -> int:
        """Open the directory at `path`, which the administrator chose and may be a link."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def make_root(self, path: str) -> None:
        """Make the directory `path` in an existing one, both durable."""
        parent = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.mkdir(Path(path).name, DIRECTORY_MODE, dir_fd=parent)
            os.fsync(parent)
        finally:
            os.close(parent)

    def open_directory(self, name: str, parent: int) -> int:
        """Open a directory."""
        return os.open(name, _DIRECTORY, dir_fd=parent)

    def make_directory(self, name: str, parent: int) -> None:
        """Make a directory that only its owner can enter."""
        os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)

    def create(self, name: str, parent: int) -> int:
        """Create a file that must not exist, for writing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, FILE_MODE, dir_fd=parent)

    def open_file(self, name: str, parent: int) -> int:
        """Open a file for reading; never waits, whatever lies there."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=parent)

    def lock(self, name: str, parent: int) -> int | None:
        """Open or create the lock file and lock it till it is closed; None: another holds it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, FILE_MODE, dir_fd=parent)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at the end; return how many bytes were taken.

        What is long and lies in blocks goes past the page cache: nobody reads a pack soon, and
        pages for it cost the processor ten times as much as the disk does.
        """
        if len(data) >= _DIRECT_BYTES_MIN and _is_in_blocks(descriptor, data):
            taken = _write_directly(descriptor, data[: len(data) // BLOCK_BYTES * BLOCK_BYTES])
            if taken:
                return taken
        return os.write(descriptor, data)

    def read_at(self, descriptor: int, length: int, offset: int) -> bytes:
        """Read at most `length` bytes; empty only at the end."""
        return os.pread(descriptor, length, offset)

    def read_into(self, descriptor: int, rooms: Sequence[memoryview], offset: int) -> int:
        """Read into `rooms`, at most 1024, one after the other; 0 only at the end."""
        return os.preadv(descriptor, rooms, offset)

    def status(self, descriptor: int) -> FileStatus:
        """Return size and kind of an open file."""
        found = os.fstat(descriptor)
        mode = found.st_mode
        return FileStatus(found.st_size, stat.S_ISREG(mode), stat.S_ISDIR(mode))

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or a directory's names, durable."""
        os.fsync(descriptor)

    def link(self, name: str, parent: int, new_name: str, new_parent: int) -> None:
        """Give a file a second name; fails when that name exists."""
        os.link(name, new_name, src_dir_fd=parent, dst_dir_fd=new_parent, follow_symlinks=False)

    def unlink(self, name: str, parent: int) -> None:
        """Take a name off a file."""
        os.unlink(name, dir_fd=parent)

    def names(self, directory: int) -> list[tuple[str, bool]]:
        """Return the names in a directory, and for each whether it is a directory."""
        with os.scandir(directory) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]

    def free(self, directory: int) -> FreeSpace:
        """Return the room of the file system."""
        found = os.fstatvfs(directory)
        return FreeSpace(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)


def block_buffer(length: int) -> memoryview:
    """Return zeros that `write` can hand to a disk directly."""
    memory = bytearray(length + BLOCK_BYTES)
    start = -_address(memoryview(memory)) % BLOCK_BYTES
    return memoryview(memory)[start : start + length]


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _is_in_blocks(descriptor: int, data: memoryview) -> bool:
    if data.readonly or _address(data) % BLOCK_BYTES:
        return False
    return os.lseek(descriptor, 0, os.SEEK_CUR) % BLOCK_BYTES == 0


def _write_directly(descriptor: int, data: memoryview) -> int:
    """Write past the page cache; return how much was taken, 0 where this file cannot be so."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        try:
            return os.write(descriptor, data)
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return 0
