"""The server's disk: slow at every step, full or broken at some, and forgetful when it stops."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from holdfast_server.stores.filesystem import FileStatus, FreeSpace
from tests.simulation.loop import Machine, pause
from tests.support.filesystem import Crash, SimulatedFile, SimulatedFileSystem

_FAILING = frozenset({"create", "write", "sync", "link", "open_file", "read_at", "make_directory"})
_SLOW = frozenset({"sync", "link", "create", "read_at"})
_TOTAL_BYTES = 1 << 34


@dataclass
class DiskWeather:
    """Chances of what may happen at one step of the disk."""

    fails: float = 0.0
    sync_fails: float = 0.0
    """Of a sync beyond that: a disk that wears out tells so when the kernel writes back."""
    is_full: bool = False
    """Nothing more can be written, as far as anybody but refs, manifests and journal goes."""
    is_crammed: bool = False
    """Nothing at all can be written."""
    crash: float = 0.0


class SimDisk(SimulatedFileSystem):
    """A disk that belongs to one machine at a time."""

    def __init__(self, rng: Random, trace: Callable[..., None]) -> None:
        super().__init__()
        self.rng = rng
        self.trace = trace
        self.weather = DiskWeather()
        self.machine: Machine | None = None
        self.on_crash: Callable[[Machine], None] = lambda machine: None

    @contextmanager
    def _step(self, step: str) -> Iterator[None]:
        machine = self.machine
        assert machine is not None
        machine.check()
        if step == "close":
            yield
            return
        self._maybe_crash(machine, step)
        if step in _SLOW:
            pause(self.rng.uniform(0, 0.003))
        opened = set(self._open) if step in _FAILING else None
        fails = self.weather.fails + (self.weather.sync_fails if step == "sync" else 0.0)
        if step in _FAILING and self.rng.random() < fails:
            # A call that failed may have done its work, or a part of it.
            if self.rng.random() < 0.5:
                yield
                assert opened is not None
                for descriptor in self._open.keys() - opened:
                    del self._open[descriptor]
            self.trace("disk fails", step)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.weather.is_crammed and step in ("create", "write", "make_directory", "link"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
        self._maybe_crash(machine, step)

    def stop(self) -> None:
        """End the process that works with the disk: what the kernel has is not lost."""
        self._open.clear()
        for file in self._files():
            file.locked_by = None

    def _maybe_crash(self, machine: Machine, step: str) -> None:
        if self.weather.crash and self.rng.random() < self.weather.crash:
            self.trace("crash at", step)
            self.on_crash(machine)
            raise Crash(step)

    def write(self, descriptor: int, data: memoryview) -> int:
        with self._step("write"):
            taken = len(data)
            if taken > 1 and self.rng.random() < 0.1:
                taken = self.rng.randint(1, taken)
            self._file(descriptor).data += data[:taken]
            return taken

    def read_at(self, descriptor: int, length: int, offset: int) -> bytes:
        with self._step("read_at"):
            return bytes(self._file(descriptor).data[offset : offset + length])

    def status(self, descriptor: int) -> FileStatus:
        machine = self.machine
        assert machine is not None
        machine.check()
        return super().status(descriptor)

    def free(self, directory: int) -> FreeSpace:
        assert self.machine is not None
        self.machine.check()
        free = 1 << 20 if self.weather.is_full or self.weather.is_crammed else _TOTAL_BYTES
        return FreeSpace(_TOTAL_BYTES, free)

    def close(self, descriptor: int) -> None:
        node = self._open.pop(descriptor, None)
        if isinstance(node, SimulatedFile) and node.locked_by == descriptor:
            node.locked_by = None

    def sync(self, descriptor: int) -> None:
        if self._open.get(descriptor) is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        super().sync(descriptor)
