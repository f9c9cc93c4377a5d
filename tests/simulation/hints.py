"""What the kernel tells an agent of the directories of a volume in memory; in place of inotify."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from holdfast_agent.sources.inotify import Happened, NoWatch
from holdfast_agent.sources.watches import Watches
from tests.simulation.loop import loop_now

if TYPE_CHECKING:
    from tests.simulation.volume import Volume

_TOLD_SECONDS = 0.001
"""From an event until an agent that does nothing else takes it in."""


class SimQueue:
    """A ChangeQueue; the descriptor of a directory is its inode."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._by_inode: dict[int, int] = {}
        self._numbers = count(1)
        self._waiting: list[Happened] = []
        self._is_full = False
        self.descriptor = id(self)
        volume.queues.append(self)

    def watch(self, directory: int) -> int:
        if not any(node.inode == directory for node in self._volume.nodes.values()):
            raise NoWatch(errno.ENOENT)
        if directory not in self._by_inode:
            self._by_inode[directory] = next(self._numbers)
        return self._by_inode[directory]

    def unwatch(self, watch: int) -> None:
        for inode, number in self._by_inode.items():
            if number == watch:
                self._end(inode)
                return

    def tell(self, inode: int, *, is_gone: bool = False) -> None:
        """Have something happen in a directory, or to it; `is_gone`: it was removed."""
        watch = self._by_inode.get(inode)
        if watch is None:
            return
        self._add(Happened(watch, is_over=False))
        if is_gone:
            self._end(inode)

    def overflow(self) -> None:
        """Lose what happens until the queue is asked the next time."""
        self._add(Happened(-1, is_over=False))
        self._is_full = True

    def happened(self) -> Iterator[Happened]:
        waiting, self._waiting, self._is_full = self._waiting, [], False
        return iter(waiting)

    def close(self) -> None:
        if self in self._volume.queues:
            self._volume.queues.remove(self)

    # --- inside
    def _end(self, inode: int) -> None:
        self._add(Happened(self._by_inode.pop(inode), is_over=True))

    def _add(self, happened: Happened) -> None:
        if self._is_full:
            return
        self._waiting.append(happened)
        if len(self._waiting) == 1:
            loop_now().readable(self.descriptor, _TOLD_SECONDS)


def watches_of(clock: Any) -> Watches:
    """Return what an agent whose clock this is takes for its watches."""
    return Watches(clock, watched_max=64, open_queue=partial(SimQueue, clock.volume))
