"""What is to be done, in order: the planner decides, the execution does (or only counts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from holdfast_agent.crypto.keys import ContentHasher
from holdfast_agent.restore.destination import Spot
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.pipeline import Need
from holdfast_agent.restore.selection import Hidden, Selection
from holdfast_agent.restore.tally import Action
from holdfast_agent.restore.target import Place, Target
from holdfast_agent.restore.writer import Writer
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.sources.directory import Identity
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, Extent, Stat


@dataclass
class Portion:
    """One item of an order: a part of a snapshot and how it is to be restored."""

    snapshot: Snapshot
    found: Found
    dropped: bytes
    """Prefix of the snapshot's paths that --strip drops."""
    selection: Selection
    policy: Policy
    hidden: Hidden | None = None
    """With --delete: what must stay."""
    groups: dict[bytes, LinkGroup] = field(default_factory=dict)


@dataclass(slots=True)
class Level:
    """One directory of the walk and what stands in its place in the target."""

    found: Found
    parent: Level | None
    spot: Spot | None
    """None: above everything that is restored."""
    exists: bool
    """Whether a directory stands there now."""
    is_included: bool
    is_own: bool
    """Whether its own metadata is restored: neither implied nor the target itself."""
    content: Content
    action: Action = Action.UNCHANGED
    touches: bool = False
    """Whether an existing directory gets the snapshot's metadata."""
    entered: bool = False
    clears: bool = False
    """Whether something that is no directory has to go first."""
    has_symlinks: bool = False
    seen: set[bytes] | None = None
    """With --delete: names of the snapshot's directory."""
    is_whole: bool = True
    """Whether every name of the snapshot's directory could be read."""
    failed: bool = False
    was_created: bool = False
    former_mode: int | None = None

    @property
    def path(self) -> bytes:
        """Absolute, as in the snapshot."""
        return self.found.path

    @property
    def name(self) -> bytes:
        """Of the entry."""
        return self.found.entry.stat.name

    @property
    def counts(self) -> bool:
        """Whether it is an entry that is restored, not only passed."""
        return self.is_own and (self.is_included or not self.exists)

    @property
    def is_lost(self) -> bool:
        """Whether this directory or one above it cannot be made."""
        level: Level | None = self
        while level is not None:
            if level.failed:
                self.failed = True
                return True
            level = level.parent
        return False

    @property
    def target(self) -> Target:
        """Where it lies."""
        assert self.spot is not None and self.spot.target is not None
        return self.spot.target

    @property
    def place(self) -> Place:
        """Below the target."""
        assert self.spot is not None
        return self.spot.place


@dataclass(slots=True)
class LinkGroup:
    """The names of one file: the first is written or kept, the others are linked to it."""

    kept: Identity | None = None
    """The file that stands there already and is right; None: it is written anew."""
    written: Identity | None = None
    """The file that was written or kept: what links are made to."""
    level: Level | None = None
    name: bytes = b""


class FileWork(msgspec.Struct, eq=False):
    """One file on its way; its pieces share it."""

    portion: Portion
    level: Level
    found: Found
    content: Content
    """With all attributes."""
    action: Action
    group: LinkGroup | None = None
    is_further: bool = False
    """Another name of a file whose bytes are counted already."""
    clears: bool = False
    """Whether a directory has to go first (--delete)."""
    standing: tuple[int, ...] = ()
    """What is right already and may only get metadata, as `standing_of` knows it."""
    writer: Writer | None = None
    hasher: ContentHasher | None = None
    offset: int = 0
    failed: bool = False

    @property
    def name(self) -> bytes:
        """Of the entry."""
        return self.found.entry.stat.name


@dataclass(frozen=True, slots=True)
class Enter:
    """Make or open a directory."""

    level: Level


@dataclass(frozen=True, slots=True)
class Leave:
    """Delete what is not in the snapshot, then give the directory its metadata."""

    portion: Portion
    level: Level


class Part(msgspec.Struct, frozen=True):
    """An extent of a file's content."""

    extent: Extent
    is_there: bool
    """The existing file has it at the same place: it is cloned from there."""


class Piece(msgspec.Struct, frozen=True):
    """Some parts of a file's content, in order."""

    work: FileWork
    parts: Sequence[Part]
    is_last: bool

    def wanted(self) -> Sequence[Extent]:
        """Return the extents whose chunks have to be fetched."""
        return [
            part.extent
            for part in self.parts
            if not part.is_there and part.extent.chunk != HOLE_CHUNK
        ]


class Bundle(msgspec.Struct, frozen=True):
    """Ordinary files of one directory that was not there, neighbours in one chunk."""

    portion: Portion
    level: Level
    stats: Sequence[Stat]
    contents: Sequence[Content]
    chunk: bytes
    used: int
    """Bytes of the chunk up to the end of the last part."""


class Whole(msgspec.Struct, frozen=True):
    """A small file that is new, and one part of one chunk, but not in a `Bundle`."""

    work: FileWork
    extent: Extent


@dataclass(frozen=True, slots=True)
class LinkName:
    """Make another name of a file of the group."""

    work: FileWork


@dataclass(frozen=True, slots=True)
class Node:
    """Make a symlink, FIFO, socket or device."""

    work: FileWork


@dataclass(frozen=True, slots=True)
class Touch:
    """Content is right: set metadata (action METADATA), list losses, or only count."""

    work: FileWork
    applies: bool


_NOTHING: Final = Need()

Step = Enter | Leave | Bundle | Whole | Piece | LinkName | Node | Touch


def need_of(step: Step) -> Need:
    """Return what a step needs to be done."""
    if isinstance(step, Bundle):
        return Need(((step.chunk, step.used),), len(step.stats))
    if isinstance(step, Whole):
        return Need((_used(step.extent),))
    if isinstance(step, Piece):
        return Need([_used(extent) for extent in step.wanted()])
    return _NOTHING


def _used(extent: Extent) -> tuple[bytes, int]:
    return extent.chunk, extent.offset + extent.length
