"""How the memory ceiling is divided: everything large comes from here and is counted.

The ceiling is the peak resident size of the whole process. Interpreter, libraries and connections
take about 80 MiB of it; the rest is divided below so that the worst case of every part at once
stays under the ceiling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from holdfast_agent.engine.packing import pack_room_bytes
from holdfast_agent.ports import Cancel
from holdfast_contract.limits import (
    BUNDLE_BYTES_TARGET,
    CHUNK_PLAIN_BYTES_MAX,
    MIB,
    PACK_BYTES_TARGET,
)

PROCESS_BYTES: Final = 80 * MIB
"""Measured: interpreter, imports, TLS connections, SQLite, the walk itself."""
FREE_BYTES_MIN: Final = 24 * MIB
"""Less than this cannot hold one chunk of 4 MiB in each step; a lower ceiling is not kept."""
PACKS_IN_FLIGHT: Final = 3
"""Two are being sent, one is being filled."""
_BUNDLES_MAX: Final = 16
_SEALING_BYTES: Final = 4 * MIB
"""Left for the workers' copies; the last third of a bundle's buffer is rarely touched as well."""
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Sizes and numbers of the large buffers."""

    pack_bytes: int
    """A pack is planned to have this size; `packing.pack_room_bytes` is the memory of one."""
    slab_bytes: int
    """Length of a buffer into which large files are read."""
    slabs: int
    bundle_bytes: int
    """Length of a buffer in which small files are bundled."""
    bundles: int
    groups: int
    """Buffers of 1 MiB in which pages are collected."""
    ask_bytes: int
    """Plaintext that may wait until the server is asked which of it is stored."""


def plan_memory(memory_max: int, small_file_bytes_max: int) -> MemoryPlan:
    """Divide `memory_max` bytes of resident size.

    Worst case of the sum: packs 3/8 and 3 MiB, slabs 2/8 of what is free, bundles most of the rest
    (1/8 where little is free); sealing holds one copy of a chunk in each of two workers, beside its
    place in a pack (8 MiB with chunks of 4 MiB, 2 MiB usually).
    """
    free = max(memory_max - PROCESS_BYTES, FREE_BYTES_MIN)
    pack_bytes = min(max(free // 8, MIB), PACK_BYTES_TARGET)
    is_roomy = free >= 64 * MIB
    slab_bytes = CHUNK_PLAIN_BYTES_MAX + (4 * MIB if is_roomy else MIB)
    slabs = min(max(free // 4 // slab_bytes, 2), 4)
    bundle_bytes = min(BUNDLE_BYTES_TARGET + small_file_bytes_max, CHUNK_PLAIN_BYTES_MAX)
    groups = 4 if is_roomy else 2
    # Half of the bundles wait for the server's answer while the walk fills the other half. A
    # question costs the server 1.5 ms however few ids it names: as many bundles as there is room.
    packs_bytes = PACKS_IN_FLIGHT * pack_room_bytes(pack_bytes)
    rest = free - packs_bytes - slabs * slab_bytes - groups * MIB - _SEALING_BYTES
    room = rest if is_roomy else free // 8
    bundles = min(max(room // bundle_bytes, 2), _BUNDLES_MAX)
    ask_bytes = min(8 * MIB, max(slabs - 1, 1) * slab_bytes, max(bundles // 2, 1) * MIB)
    return MemoryPlan(pack_bytes, slab_bytes, slabs, bundle_bytes, bundles, groups, ask_bytes)


class Slab:
    """A buffer from a pool; it goes back when its last holder lets go."""

    __slots__ = ("_holders", "_pool", "view")

    def __init__(self, pool: SlabPool, buffer: bytearray) -> None:
        self._pool = pool
        self._holders = 1
        self.view = memoryview(buffer)

    def hold(self) -> None:
        """Count one more holder; whoever holds calls `let_go` once."""
        with self._pool.changed:
            self._holders += 1

    def let_go(self) -> None:
        """Count one holder less."""
        with self._pool.changed:
            self._holders -= 1
            assert self._holders >= 0
            if self._holders == 0:
                self._pool.take_back(self)


class SlabPool:
    """A fixed number of equal buffers, made when first needed and used again and again."""

    def __init__(self, count: int, size: int) -> None:
        self.changed = threading.Condition()
        self._size = size
        self._unmade = count
        self._idle: list[Slab] = []

    def get(self, cancel: Cancel, on_wait: Callable[[], None]) -> Slab:
        """Return a buffer held once, waiting for one if need be; `on_wait` is called before.

        Raises:
            Cancelled: while waiting. Whatever `on_wait` raises.
        """
        while True:
            with self.changed:
                if slab := self._ready():
                    return slab
            # Outside the lock: it may have to wake those who give buffers back.
            on_wait()
            with self.changed:
                if not self._idle:
                    self.changed.wait(_POLL_SECONDS)
            cancel.check()

    def _ready(self) -> Slab | None:
        if self._idle:
            slab = self._idle.pop()
            slab._holders = 1
            return slab
        if self._unmade:
            self._unmade -= 1
            return Slab(self, bytearray(self._size))
        return None

    def take_back(self, slab: Slab) -> None:
        """Keep a buffer that nobody holds; called with `changed` held."""
        self._idle.append(slab)
        self.changed.notify()
