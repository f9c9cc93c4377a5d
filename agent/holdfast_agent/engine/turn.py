"""Reading again by turn: silent damage of an unchanged file is found within 30 days.

Which files have their turn follows from a keyed hash of the path and the number of the day, so no
state is needed; days without a backup are made up for by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from zlib import crc32

from holdfast_agent.crypto.keys import DomainKeys, name_hash
from holdfast_agent.tree.entry import EntryType, Stat

PERIOD_DAYS: Final = 30
_DAY_NS: Final = 86_400_000_000_000


class Turn:
    """Which files are read again although nothing about them has changed."""

    def __init__(self, keys: DomainKeys, *, since_ns: int, now_ns: int) -> None:
        """Take the days after the one of `since_ns` (the parent's agent time) up to today's."""
        first, last = since_ns // _DAY_NS + 1, now_ns // _DAY_NS
        first = max(first, last - PERIOD_DAYS + 1)
        if last < first - 2:
            # The clock went back by more than a day: which days were left out nobody knows.
            first = last - PERIOD_DAYS + 1
        self._keys = keys
        self._days = frozenset(day % PERIOD_DAYS for day in range(first, last + 1))

    @property
    def has_days(self) -> bool:
        """Whether any file may have its turn."""
        return bool(self._days)

    def due(self, directory: bytes, entries: Iterable[Stat]) -> frozenset[bytes]:
        """Return the names of files of a directory that have their turn.

        Cost: nothing on a day that had a backup; otherwise 0.3 microseconds an entry.
        """
        days = self._days
        if not days:
            return frozenset()
        # The directory's path goes through the keyed hash, names through a cheap one seeded by it.
        seed = int.from_bytes(name_hash(self._keys, directory)[:4], "little")
        kind = EntryType.FILE
        return frozenset(
            stat.name
            for stat in entries
            if stat.type == kind and stat.size and crc32(stat.name, seed) % PERIOD_DAYS in days
        )
