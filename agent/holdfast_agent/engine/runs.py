"""Where a file has data: asked of the file system once, read ahead as far as needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

_FORGOTTEN_MIN: Final = 1024
"""Runs behind the last question are dropped so many at a time."""


class DataRuns:
    """The runs of one file's data; between them are holes. Questions go forward but for a window.

    Memory: the runs between the lowest offset asked for lately and the highest.
    """

    def __init__(self, runs: Iterator[tuple[int, int]]) -> None:
        """Take (offset, length) of each run, ascending, none beside another."""
        self._coming = runs
        self._starts: list[int] = []
        self._ends: list[int] = []

    def next_data(self, offset: int) -> int | None:
        """Return where data begins at or behind `offset`; None: no more up to the end."""
        at = self._at(offset)
        if at is None:
            return None
        if at >= _FORGOTTEN_MIN:
            del self._starts[:at], self._ends[:at]
            at = 0
        return max(self._starts[at], offset)

    def since(self, offset: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the data from `offset` on."""
        position: int | None = offset
        while position is not None and (at := self._at(position)) is not None:
            start, end = max(self._starts[at], position), self._ends[at]
            yield start, end - start
            position = end

    def data_behind(self, offset: int, at_most: int) -> int:
        """Return how many bytes of data lie at or behind `offset`, counted up to `at_most`."""
        found = 0
        for _, length in self.since(offset):
            found += length
            if found >= at_most:
                return at_most
        return found

    def are(self, pieces: tuple[tuple[int, int], ...]) -> bool:
        """Tell whether all data between the first of `pieces` and the end of the last is theirs."""
        end = pieces[-1][0] + pieces[-1][1]
        found = []
        for start, length in self.since(pieces[0][0]):
            if start >= end:
                break
            found.append((start, min(length, end - start)))
            if start + length >= end:
                break
        return tuple(found) == pieces

    def _at(self, offset: int) -> int | None:
        """Return the index of the first run that ends behind `offset`."""
        at = bisect_right(self._ends, offset)
        while at == len(self._ends):
            run = next(self._coming, None)
            if run is None:
                return None
            self._starts.append(run[0])
            self._ends.append(run[0] + run[1])
            at += self._ends[-1] <= offset
        return at
