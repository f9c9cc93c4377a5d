"""A simulated disk behind the store's FileSystem port: faults, lies, and crashes of the machine.

A file's bytes survive a crash from its `sync` on, a name from the sync of its directory on; what
came later is lost or, with a random source, partly kept - in an order that no program may rely on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from holdfast_server.stores.filesystem import FileStatus, FreeSpace


class Crash(BaseException):
    """The machine has stopped: no handler of the product may see it as an error."""


@dataclass(eq=False)
class SimulatedFile:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    is_torn: bool = False
    """A sync has failed: the kernel forgot these bytes, and later syncs «succeed»."""
    is_plain: bool = True
    locked_by: int | None = None


@dataclass(eq=False)
class SimulatedDirectory:
    entries: dict[str, SimulatedNode] = field(default_factory=dict)
    durable: dict[str, SimulatedNode] = field(default_factory=dict)


@dataclass(eq=False)
class SimulatedLink:
    """A symbolic link: never followed."""


SimulatedNode = SimulatedFile | SimulatedDirectory | SimulatedLink


@dataclass
class Lies:
    """How a bad file system deceives."""

    link_overwrites: bool = False
    create_overwrites: bool = False
    no_links: bool = False
    cuts_files_at: int | None = None
    cannot_sync_directories: bool = False
    keeps_deleted_names: bool = False


class SimulatedFileSystem:
    """One directory `/`, its descriptors, and a fault at any step."""

    def __init__(self, *, capacity: int = 1 << 40, total: int | None = None) -> None:
        self.root = SimulatedDirectory()
        self.lies = Lies()
        self.capacity = capacity
        self.total = capacity if total is None else total
        self.steps: list[str] = []
        self.before: Callable[[str], None] = lambda step: None
        self.after: Callable[[str], None] = lambda step: None
        self._open: dict[int, SimulatedNode] = {}
        self._next = 3
        self.is_down = False

    # --- what a test does to it

    def crash(self, random: Random | None = None) -> None:
        """Stop the machine and start it again; `random` decides what else survived."""
        self._open.clear()
        self.is_down = False
        self.before = self.after = lambda step: None
        self._forget(self.root, random)

    def _forget(self, directory: SimulatedDirectory, random: Random | None) -> None:
        names = {*directory.entries, *directory.durable}
        kept: dict[str, SimulatedNode] = {}
        for name in sorted(names):
            is_new = random is not None and random.random() < 0.5
            side = directory.entries if is_new else directory.durable
            if name in side:
                kept[name] = side[name]
        directory.entries, directory.durable = dict(kept), dict(kept)
        for node in kept.values():
            if isinstance(node, SimulatedDirectory):
                self._forget(node, random)
            elif isinstance(node, SimulatedFile):
                self._forget_bytes(node, random)

    def _forget_bytes(self, file: SimulatedFile, random: Random | None) -> None:
        survived = file.durable
        if random is not None and not file.is_torn and len(file.data) > len(survived):
            survived = bytes(file.data[: random.randint(len(survived), len(file.data))])
        file.data, file.durable = bytearray(survived), survived
        file.is_torn, file.locked_by = False, None

    @property
    def open_descriptors(self) -> int:
        """Return how many descriptors are open: a leak shows here."""
        return len(self._open)

    def node(self, path: str) -> SimulatedNode:
        """Return what stands at `path`, to look at it or to spoil it."""
        here: SimulatedNode = self.root
        for name in path.split("/"):
            assert isinstance(here, SimulatedDirectory)
            here = here.entries[name]
        return here

    def used(self) -> int:
        """Return bytes of all files, one with two names once."""
        return sum(len(file.data) for file in self._files())

    def _files(self) -> set[SimulatedFile]:
        found, pending = set(), [self.root]
        while pending:
            for node in pending.pop().entries.values():
                if isinstance(node, SimulatedDirectory):
                    pending.append(node)
                elif isinstance(node, SimulatedFile):
                    found.add(node)
        return found

    # --- faults

    @contextmanager
    def _step(self, step: str) -> Iterator[None]:
        if self.is_down:
            raise Crash(step)
        self.steps.append(step)
        opened = set(self._open)
        try:
            self.before(step)
            try:
                yield
            finally:
                self.after(step)
        except Crash:
            self.is_down = True
            raise
        except OSError:  # a call that fails returns no descriptor, whatever it has done
            for descriptor in self._open.keys() - opened:
                del self._open[descriptor]
            raise

    # --- FileSystem

    def open_root(self, path: str) -> int:
        with self._step("open_root"):
            return self._opened(self.root)

    def make_root(self, path: str) -> None:
        raise AssertionError("the simulated root always exists")

    def open_directory(self, name: str, parent: int) -> int:
        with self._step("open_directory"):
            node = self._lookup(name, parent)
            if not isinstance(node, SimulatedDirectory):
                raise _error(errno.ENOTDIR)
            return self._opened(node)

    def make_directory(self, name: str, parent: int) -> None:
        with self._step("make_directory"):
            entries = self._directory(parent).entries
            if name in entries:
                raise _error(errno.EEXIST)
            entries[name] = SimulatedDirectory()

    def create(self, name: str, parent: int) -> int:
        with self._step("create"):
            entries = self._directory(parent).entries
            if name in entries and not self.lies.create_overwrites:
                raise _error(errno.EEXIST)
            entries[name] = file = SimulatedFile()
            return self._opened(file)

    def open_file(self, name: str, parent: int) -> int:
        with self._step("open_file"):
            node = self._lookup(name, parent)
            if isinstance(node, SimulatedLink):
                raise _error(errno.ELOOP)
            return self._opened(node)

    def lock(self, name: str, parent: int) -> int | None:
        with self._step("lock"):
            node = self._directory(parent).entries.setdefault(name, SimulatedFile())
            assert isinstance(node, SimulatedFile)
            if node.locked_by is not None:
                return None
            node.locked_by = self._opened(node)
            return node.locked_by

    def write(self, descriptor: int, data: memoryview) -> int:
        with self._step("write"):
            file = self._file(descriptor)
            room = self.capacity - self.used()
            if room <= 0 and data:
                raise _error(errno.ENOSPC)
            # At most 1000 bytes a call: callers must write on.
            taken = min(len(data), room, 1000)
            file.data += data[:taken]
            if self.lies.cuts_files_at is not None:
                del file.data[self.lies.cuts_files_at :]
            return taken

    def read_at(self, descriptor: int, length: int, offset: int) -> bytes:
        with self._step("read_at"):
            return bytes(self._file(descriptor).data[offset : offset + min(length, 1000)])

    def read_into(self, descriptor: int, rooms: Sequence[memoryview], offset: int) -> int:
        # Nor more than one room, nor all of it.
        room = next((room for room in rooms if room), memoryview(b""))
        data = self.read_at(descriptor, len(room), offset)
        room[: len(data)] = data
        return len(data)

    def status(self, descriptor: int) -> FileStatus:
        with self._step("status"):
            node = self._open[descriptor]
            if isinstance(node, SimulatedFile):
                return FileStatus(len(node.data), node.is_plain)
            return FileStatus(4096, False, isinstance(node, SimulatedDirectory))

    def sync(self, descriptor: int) -> None:
        node = self._open[descriptor]
        try:
            with self._step("sync"):
                if isinstance(node, SimulatedDirectory):
                    if self.lies.cannot_sync_directories:
                        raise _error(errno.EINVAL)
                    node.durable = dict(node.entries)
                elif isinstance(node, SimulatedFile) and not node.is_torn:
                    node.durable = bytes(node.data)
        except OSError:
            if isinstance(node, SimulatedFile):
                node.is_torn = True
            raise

    def link(self, name: str, parent: int, new_name: str, new_parent: int) -> None:
        with self._step("link"):
            if self.lies.no_links:
                raise _error(errno.EPERM)
            node = self._lookup(name, parent)
            entries = self._directory(new_parent).entries
            if new_name in entries and not self.lies.link_overwrites:
                raise _error(errno.EEXIST)
            entries[new_name] = node

    def unlink(self, name: str, parent: int) -> None:
        with self._step("unlink"):
            self._lookup(name, parent)
            if not self.lies.keeps_deleted_names:
                del self._directory(parent).entries[name]

    def names(self, directory: int) -> list[tuple[str, bool]]:
        with self._step("names"):
            entries = self._directory(directory).entries
            return [(name, isinstance(node, SimulatedDirectory)) for name, node in entries.items()]

    def free(self, directory: int) -> FreeSpace:
        with self._step("free"):
            return FreeSpace(self.total, max(self.capacity - self.used(), 0))

    def close(self, descriptor: int) -> None:
        if not self.is_down:
            node = self._open.pop(descriptor)
            if isinstance(node, SimulatedFile) and node.locked_by == descriptor:
                node.locked_by = None
        with self._step("close"):
            pass

    # --- inside

    def _opened(self, node: SimulatedNode) -> int:
        self._next += 1
        self._open[self._next] = node
        return self._next

    def _directory(self, descriptor: int) -> SimulatedDirectory:
        node = self._open[descriptor]
        assert isinstance(node, SimulatedDirectory)
        return node

    def _file(self, descriptor: int) -> SimulatedFile:
        node = self._open[descriptor]
        assert isinstance(node, SimulatedFile)
        return node

    def _lookup(self, name: str, parent: int) -> SimulatedNode:
        try:
            return self._directory(parent).entries[name]
        except KeyError:
            raise _error(errno.ENOENT) from None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
