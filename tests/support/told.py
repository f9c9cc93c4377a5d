"""A queue of changes that a test fills, in place of the kernel's."""

from __future__ import annotations

import os
from collections.abc import Iterator

from holdfast_agent.sources.inotify import Happened, NoWatch


class ToldQueue:
    """Tells what a test lets it tell; fits holdfast_agent.sources.inotify.ChangeQueue."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.watched: dict[int, int] = {}
        """Watch by inode, of those that are watched now."""
        self.told: list[Happened] = []
        self.given_back: list[int] = []
        self.refuses: int | None = None
        """Error of the next new watch."""
        self._next = 0

    def watch(self, directory: int) -> int:
        inode = os.fstat(directory).st_ino
        if inode not in self.watched:
            if self.refuses is not None:
                raise NoWatch(self.refuses)
            self._next += 1
            self.watched[inode] = self._next
        return self.watched[inode]

    def unwatch(self, watch: int) -> None:
        """Give a watch back; the kernel says once more that it is over."""
        self.given_back.append(watch)
        self.watched = {inode: w for inode, w in self.watched.items() if w != watch}
        self.told.append(Happened(watch, is_over=True))

    def happened(self) -> Iterator[Happened]:
        while self.told:
            yield self.told.pop(0)

    def close(self) -> None:
        self.watched.clear()

    def change(self, inode: int) -> None:
        """Tell of a change, if somebody watches."""
        if inode in self.watched:
            self.told.append(Happened(self.watched[inode], is_over=False))

    def overflow(self) -> None:
        """Lose what was not told yet."""
        self.told = [Happened(-1, is_over=False)]
