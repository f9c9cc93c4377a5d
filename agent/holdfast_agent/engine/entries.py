"""Entries and pages on their way into the tree: what is known of them, and what is still open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeAlias

import msgspec

from holdfast_agent.engine import source
from holdfast_agent.engine.drafts import Parts, Place
from holdfast_agent.engine.source import DoubtKey, Unreadable
from holdfast_agent.tree.entry import Content, EntryFlag, EntryType, Stat
from holdfast_agent.tree.known import KnownPage, KnownTreeLost
from holdfast_agent.tree.rows import PageRows, Row
from holdfast_contract.errors import HoldfastError

# Plain integers: arithmetic with members of an enum runs in Python.
_DIRECTORY: Final = int(EntryType.DIRECTORY)
_SKIPPED: Final = int(EntryFlag.SKIPPED)

OldEntry: TypeAlias = tuple[Stat, Content]
"""An entry as the parent has it."""


@dataclass(slots=True)
class PageSlot:
    """Where the pages made of one stretch of a directory's names lie; empty until they are made."""

    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class DirectoryDraft:
    """A directory whose pages may still be open."""

    path: bytes
    slots: list[PageSlot] = field(default_factory=list)
    is_kept: bool = True
    """Whether it has exactly the parent's pages, each where the parent has it."""

    def places(self) -> list[Place]:
        """Return where its pages lie, in order; all of them have to be made."""
        return [place for slot in self.slots for place in slot.places]


class EntryDraft(msgspec.Struct, eq=False):
    """One entry of a page that is not made yet. A Struct: C makes it in a third of the time."""

    stat: Stat
    content: Content
    """Complete but for what the other fields will give."""
    parts: Parts | None = None
    """Content of a file that was read, or found by its content."""
    child: DirectoryDraft | None = None
    old: OldEntry | None = None
    doubt: DoubtKey | None = None
    """Set while the file has to be looked at a second time."""
    blocks: Sequence[Place] = ()
    """Where extents were put that are too many for a page; `content.spill` says how deep."""
    attribute_blocks: Sequence[Place] = ()
    is_gone: bool = False
    """It vanished before the second look: no entry."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.stat.type == _DIRECTORY

    @property
    def is_skipped(self) -> bool:
        """Whether its content or children are not in the snapshot."""
        return bool(self.stat.flags & _SKIPPED)


@dataclass(slots=True)
class OldPage:
    """A page of the parent, decoded."""

    known: KnownPage
    page: PageRows
    extra: dict[bytes, bytes]
    """Joined ids that blocks of its entries name, by name of the entry."""

    def entry(self, index: int) -> OldEntry:
        """Return one of its entries.

        Raises:
            KnownTreeLost: here and below, when the cache does not hold what was put into it.
        """
        try:
            return self.page.stats[index], self.page.content(index)
        except HoldfastError as exc:
            raise KnownTreeLost("a cached page cannot be decoded") from exc

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[OldEntry]:
        """Yield its entries from `start` up to `end`."""
        for index in range(start, len(self.page.stats) if end is None else end):
            yield self.entry(index)


class KeptRun(NamedTuple):
    """Neighbours of a page of the parent that are there as they were: only counted and copied."""

    old: OldPage
    start: int
    end: int

    @property
    def stats(self) -> Sequence[Stat]:
        """Their stat parts."""
        return self.old.page.stats[self.start : self.end]

    @property
    def rows(self) -> Sequence[Row]:
        """Their rows in that page."""
        return self.old.page.rows[self.start : self.end]

    def entries(self) -> Iterator[OldEntry]:
        """Yield them one by one."""
        return self.old.entries(self.start, self.end)

    @property
    def size(self) -> int:
        """Their logical bytes; none of them has other names."""
        return sum([stat.size for stat in self.stats])


Item: TypeAlias = "EntryDraft | KeptRun"
"""What stands in a page that is not made yet."""


def entry_count(items: Iterable[Item]) -> int:
    """Return how many entries there are."""
    return sum(item.end - item.start if isinstance(item, KeptRun) else 1 for item in items)


def stats_of(items: Iterable[Item]) -> list[Stat]:
    """Return the stat part of every entry."""
    stats: list[Stat] = []
    for item in items:
        if isinstance(item, KeptRun):
            stats += item.stats
        else:
            stats.append(item.stat)
    return stats


def taken_apart(items: Iterable[Item]) -> list[EntryDraft]:
    """Return the entries one by one: for a page that cannot copy them."""
    drafts: list[EntryDraft] = []
    for item in items:
        if isinstance(item, KeptRun):
            drafts += (EntryDraft(*old, None, None, old) for old in item.entries())
        else:
            drafts.append(item)
    return drafts


class Entries(Protocol):
    """What makes entries (`visit`, or a dry run that reads nothing)."""

    def plain(self, place: source.Place, stats: Sequence[Stat], at: int) -> list[EntryDraft]:
        """Return the entries of names from `at` on that need no closer look; mostly several."""

    def entry(self, place: source.Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry of anything but a directory; None when it is gone."""

    def described(self, place: source.Place, stat: Stat, old: OldEntry | None) -> EntryDraft | None:
        """Return the entry of a directory, without what is below it."""

    def skipped(
        self, place: source.Place, stat: Stat, why: Unreadable, old: OldEntry | None
    ) -> EntryDraft:
        """List a name; return the entry that only says that it was there."""


@dataclass(slots=True)
class PageDraft:
    """Entries that will make one page (more where they are longer than 1 MiB)."""

    directory: DirectoryDraft
    slot: PageSlot
    entries: Sequence[Item]
    old: OldPage | None
    """The parent's page, where the entries take exactly its place; only then there are runs among
    them, of this page."""
    extra: dict[bytes, bytes]
    """Joined ids that blocks of unchanged entries name, by name."""
    is_last: bool = False
    """Whether it is the last of its directory."""
