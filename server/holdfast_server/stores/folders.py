"""The folders of a local store: opened name by name, made durable before they are relied on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

from holdfast_server.stores.filesystem import FileSystem

DURABLE_FOLDERS_MAX = 4096
"""How many folders are remembered as synced; forgetting one costs an fsync."""


class Folders:
    """Directories below one root; safe to use from several threads. Raises OSError."""

    def __init__(self, root: int, filesystem: FileSystem) -> None:
        self._root = root
        self._filesystem = filesystem
        self._lock = Lock()
        self._durable: set[tuple[str, ...]] = set()

    @contextmanager
    def existing(self, folders: Sequence[str]) -> Iterator[int]:
        """Open a folder that exists; none of its names may be a symbolic link."""
        here = self._root
        try:
            for name in folders:
                below = self._filesystem.open_directory(name, here)
                self._close(here)
                here = below
            yield here
        finally:
            self._close(here)

    @contextmanager
    def durable(self, folders: tuple[str, ...]) -> Iterator[int]:
        """Open a folder, made and synced up to the root where it was not.

        A folder found on the disk may stem from a process that died before its sync, so the
        first use by this process syncs its parent in any case.
        """
        with self._lock:
            descriptor = self._open_made(folders)
        try:
            yield descriptor
        finally:
            self._close(descriptor)

    def _open_made(self, folders: tuple[str, ...]) -> int:
        here = self._root
        for depth in range(1, len(folders) + 1):
            try:
                below = self._open_synced(folders[:depth], here)
            finally:
                self._close(here)
            here = below
        return here

    def _open_synced(self, folders: tuple[str, ...], parent: int) -> int:
        below = self._open_or_make(folders[-1], parent)
        if folders in self._durable:
            return below
        try:
            self._filesystem.sync(parent)
        except BaseException:
            self._close(below)
            raise
        if len(self._durable) >= DURABLE_FOLDERS_MAX:
            self._durable.clear()
        self._durable.add(folders)
        return below

    def _open_or_make(self, name: str, parent: int) -> int:
        try:
            return self._filesystem.open_directory(name, parent)
        except FileNotFoundError:
            self._filesystem.make_directory(name, parent)
            return self._filesystem.open_directory(name, parent)

    def _close(self, descriptor: int) -> None:
        if descriptor != self._root:
            # A directory's descriptor holds no data: nothing is lost by an error here.
            with suppress(OSError):
                self._filesystem.close(descriptor)
