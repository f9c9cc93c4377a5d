"""Removing a whole tree of the target: for --delete, and for what is in the way of another type."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from holdfast_agent.restore.directory import TargetDirectory, check_plain
from holdfast_agent.restore.failures import KERNEL_ERRORS, EntryFailed, message_of
from holdfast_agent.sources.findings import Finding, Reason, finding_from, joined
from holdfast_agent.sources.syscalls import is_mount_root

_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEPTH_MAX: Final = 64
"""Deeper directories are moved up first, so that few descriptors are open at any depth."""
MOUNTED: Final = "something is mounted here"
_ATTEMPTS: Final = 3
"""A directory that another process keeps filling is given up after so many tries."""


@dataclass(slots=True)
class Removed:
    """What a removal did."""

    entries: int = 0
    """Names removed that are no directories."""
    directories: int = 0
    kept: list[Finding] = field(default_factory=list)
    """What could not be removed, or is the agent's own; paths below the directory given."""


def remove(directory: TargetDirectory, name: bytes) -> Removed:
    """Remove `name` and all below it; symlinks are removed, never followed.

    What is mounted below (a bind mount too) and the agent's own files stay, and so does what holds
    them.
    The directory must not be open in the target any more (`Target.forget`).

    Raises:
        NoSpace, Refused: the target is full or read-only.
        EntryFailed: `name` itself cannot be looked at.
    """
    check_plain(name)
    done = Removed()
    info = directory.status(name)
    if info is None:
        return done
    removal = _Removal(directory, directory.device, done)
    if stat.S_ISDIR(info.st_mode):
        removal.tree(directory.descriptor, name, b"", 0)
        removal.deep_ones()
    else:
        removal.entry(directory.descriptor, name, b"")
    return done


class _Removal:
    """One call of `remove`."""

    def __init__(self, directory: TargetDirectory, device: int, done: Removed) -> None:
        self._directory = directory
        self._device = device
        self._done = done
        self._deep: list[tuple[bytes, bytes]] = []
        """(temporary name in the starting directory, path it had)."""

    def deep_ones(self) -> None:
        while self._deep:
            temporary, path = self._deep.pop()
            self.tree(self._directory.descriptor, temporary, path, 0, was=path)

    def entry(self, parent: int, name: bytes, above: bytes) -> None:
        path = joined(above, name)
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if self._is_own(info):
                self._keep(path, Reason.OWN_FILE, "the agent's own state or key is left alone")
                return
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._failed(path, exc)
            return
        self._done.entries += 1

    def tree(
        self, parent: int, name: bytes, above: bytes, depth: int, was: bytes | None = None
    ) -> None:
        """Remove a directory, bottom-up; `was` is its path where it has been moved."""
        path = was if was is not None else joined(above, name)
        try:
            descriptor = os.open(name, _LISTED, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._failed(path, exc)
            return
        kept = len(self._done.kept)
        try:
            info = os.fstat(descriptor)
            if self._is_own(info):
                self._keep(path, Reason.OWN_FILE, "the agent's own state is left alone")
                return
            if info.st_dev != self._device or is_mount_root(descriptor):
                self._keep(path, Reason.UNREADABLE, MOUNTED)
                return
            for _ in range(_ATTEMPTS):
                self._emptied(descriptor, path, depth)
                if len(self._done.kept) > kept or self._is_removed(parent, name, path):
                    return
            self._keep(path, Reason.CHANGED, "another process keeps filling it")
        finally:
            os.close(descriptor)

    def _emptied(self, descriptor: int, path: bytes, depth: int) -> None:
        try:
            names = [os.fsencode(name) for name in os.listdir(descriptor)]
        except OSError as exc:
            self._failed(path, exc)
            return
        for name in names:
            if not _is_directory(descriptor, name):
                self.entry(descriptor, name, path)
            elif depth < _DEPTH_MAX:
                self.tree(descriptor, name, path, depth + 1)
            else:
                self._move_up(descriptor, name, joined(path, name))

    def _move_up(self, parent: int, name: bytes, path: bytes) -> None:
        temporary = self._directory.temporary_name()
        try:
            os.rename(name, temporary, src_dir_fd=parent, dst_dir_fd=self._directory.descriptor)
        except OSError as exc:
            self._failed(path, exc)
            return
        self._deep.append((temporary, path))

    def _is_removed(self, parent: int, name: bytes, path: bytes) -> bool:
        """Remove the empty directory; False when it is not empty after all."""
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            self._failed(path, exc)
            return True
        self._done.directories += 1
        return True

    def _is_own(self, info: os.stat_result) -> bool:
        return self._directory.own.is_own((info.st_dev, info.st_ino))

    def _failed(self, path: bytes, exc: OSError) -> None:
        """Keep what one error is about; a full or read-only target ends it all."""
        try:
            with KERNEL_ERRORS:
                raise exc
        except EntryFailed:
            self._done.kept.append(finding_from(path, exc)._replace(message=message_of(exc)))

    def _keep(self, path: bytes, reason: Reason, message: str) -> None:
        self._done.kept.append(Finding(path, reason, message))


def _is_directory(parent: int, name: bytes) -> bool:
    try:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode)
