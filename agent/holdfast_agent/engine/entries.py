"""Entries and pages on their way into the tree: what is known of them, and what is still open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from holdfast_agent.engine.drafts import Parts, Place
from holdfast_agent.engine.source import DoubtKey
from holdfast_agent.tree.entry import Content, EntryFlag, EntryType, Stat
from holdfast_agent.tree.known import KnownPage
from holdfast_agent.tree.page import Page

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
    page: Page
    extra: dict[bytes, bytes]
    """Joined ids that blocks of its entries name, by name of the entry."""


@dataclass(slots=True)
class PageDraft:
    """Entries that will make one page (more where they are longer than 1 MiB)."""

    directory: DirectoryDraft
    slot: PageSlot
    entries: list[EntryDraft]
    old: OldPage | None
    """The parent's page, where the entries take exactly its place."""
    extra: dict[bytes, bytes]
    """Joined ids that blocks of unchanged entries name, by name."""
    is_last: bool = False
    """Whether it is the last of its directory."""
