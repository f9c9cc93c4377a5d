"""The parent's entries of one page, beside the names that are there now."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from holdfast_agent.engine.entries import OldEntry, OldPage
from holdfast_agent.tree.entry import Stat


class ParentEntries:
    """Goes through the entries of a page in the order of names, once."""

    def __init__(self, old: OldPage, touched: AbstractSet[int]) -> None:
        """`touched` are entries that cannot be kept, besides those that are never copied."""
        self.old = old
        self.at = 0
        """Index of the first entry that was not compared yet."""
        self._vanished: list[Stat] = []
        self._alike: list[Stat | None] = [*old.page.stats, None]
        for index in touched | old.page.bound():
            self._alike[index] = None

    def alike(self, due: AbstractSet[bytes]) -> list[Stat | None]:
        """Return what a stat part has to equal, by index, so that its entry is kept unread.

        None: it has to be looked at, as those whose names are `due`; and behind the last.
        """
        if not due:
            return self._alike
        return [None if stat is None or stat.name in due else stat for stat in self._alike]

    def take(self, at: int, name: bytes) -> OldEntry | None:
        """Go on from index `at` to behind `name`; return the parent's entry of that name."""
        stats = self.old.page.stats
        start = at
        while at < len(stats) and stats[at].name < name:
            at += 1
        self._vanished += stats[start:at]
        is_there = at < len(stats) and stats[at].name == name
        self.at = at + is_there
        return self.old.entry(at) if is_there else None

    def vanished(self) -> list[Stat]:
        """Return what was passed over, and what is left: none of it is there any more."""
        return [*self._vanished, *self.old.page.stats[self.at :]]
