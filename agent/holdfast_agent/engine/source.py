"""What the engine asks of the file system: one place in the tree at a time, never a path.

Whatever cannot be read is an `Unreadable`: one row of the report, never the end of a backup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from holdfast_agent.tree.entry import Content, Stat
from holdfast_agent.tree.known import KnownPage

VANISHED = "vanished"
REPLACED = "replaced"
CHANGED = "changed"
DAMAGED = "damaged"
"""Reasons that the engine itself knows; others come from the file system's side as they are."""


class Row(NamedTuple):
    """One name that is missing from the snapshot, or not whole in it."""

    path: bytes
    reason: str
    message: str


class Unreadable(Exception):
    """Something could not be read; the reason is a word for programs, the message a line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Attributes(NamedTuple):
    """What of an entry is not in its stat part."""

    content: Content
    """Owners, attributes, target, device; nothing of the file's content yet."""
    type: int
    """EntryType of what was asked: between two looks another thing may have taken the name."""
    device: int
    inode: int
    links: int
    """Number of names."""
    size: int
    mtime_ns: int
    ctime_ns: int
    failures: tuple[tuple[str, str], ...]
    """(reason, message) of extended attributes that could not be read."""


class DoubtKey(NamedTuple):
    """A file that was young when read; once settled it may have to be read again."""

    base: bytes
    parents: tuple[bytes, ...]
    name: bytes


class Reader(Protocol):
    """A regular file open for reading. Every method may raise Unreadable but `close`."""

    @property
    def entry(self) -> Stat:
        """The stat part as it was when opened."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on and return how much came; less only at the end."""

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not a hole, in order."""

    def is_unchanged(self) -> bool:
        """Tell whether the file still looks as it did when it was opened."""

    def attributes(self) -> Attributes:
        """Return owners, attributes and link count of what is open."""

    def close(self) -> None:
        """Close the file."""


class AtRest(NamedTuple):
    """A directory about which nothing needs to be looked at, and what the parent has of it."""

    files: int
    """Entries; none is a directory, none has other names."""
    bytes: int


class Listing(Protocol):
    """The entries of one directory, ascending by name, taken part by part.

    Used while the walk stands in that directory; only the names are held, and few of those.
    """

    at_rest: AtRest | None
    """Not None: all entries are the parent's, and need not be taken one by one."""

    def has(self, last: bytes | None = None) -> bool:
        """Tell whether a name up to and including `last` (None: any) is left."""

    def take(self, last: bytes | None, entries_max: int) -> list[Stat]:
        """Return the next entries up to and including `last` (None: all), as they are now.

        They are of at most `entries_max` names; what has vanished is not among them.
        """

    def rows(self) -> list[Row]:
        """Return, once each, what could not be looked at so far."""

    def note_kept(self) -> None:
        """Take in, when all is taken, that every page of the directory stays as the parent's."""

    def close(self) -> None:
        """Forget the names."""


class Place(Protocol):
    """Where the walk stands: in one directory below one of the backup's paths."""

    def enter(self, name: bytes) -> bool:
        """Go down into a directory; False: it shows no data (a view of the kernel), not entered.

        Raises:
            Unreadable: it cannot be entered; the walk stands as before.
        """

    def leave(self) -> Row | None:
        """Go back up; a row when the directory above can no longer be read."""

    def path(self) -> bytes:
        """Return the absolute path of the current directory, as the snapshot shows it."""

    def device(self) -> int:
        """Return the device number of the current directory."""

    def listing(self, parent: Iterator[KnownPage]) -> Listing:
        """Return the entries of the current directory that are to be backed up.

        Asked once, just after it was entered. `parent` yields the pages that the parent has of it:
        what is known not to have changed since is taken from there, unread.
        """

    def look(self, name: bytes) -> Stat:
        """Return the stat part of one name as it is now."""

    def attributes(self, name: bytes) -> Attributes:
        """Return the attributes of any kind of entry without opening it."""

    def read_plain(self, entries: Sequence[Stat], buffer: memoryview) -> list[Content]:
        """Read small files in one go: fill `buffer` with the `entry.size` bytes of each in turn.

        Returns owners and attributes of as many as are ordinary. The first of `entries` that is
        missing is to be opened: something about it is not (it is young, changes, has holes or
        other names, cannot be read, ...).
        """

    def open(self, entry: Stat) -> Reader:
        """Open the regular file that `entry` was scanned as.

        Raises:
            Unreadable: `vanished`; `changed`: another file has its name; `replaced`: another kind
                of thing has; anything else.
        """

    def link_group(self, inode: int) -> bytes:
        """Return the hard-link group of an inode of the current directory's file system."""

    def doubt(self, reader: Reader) -> DoubtKey | None:
        """Remember a file that has just been read and was young: `Source.settle` looks again."""


class Top(NamedTuple):
    """One path of a backup."""

    path: bytes
    """Absolute, as the snapshot shows it."""
    place: Place
    """Stands in the directory above the path (for `/`: in it)."""


class Source(Protocol):
    """The file system as one backup may read it."""

    def tops(self) -> Sequence[bytes]:
        """Return the backup's paths, sorted, none below another."""

    def open_top(self, path: bytes) -> Place:
        """Return the place from which `path` is read: the directory above it; for `/` itself.

        Raises:
            Unreadable: there is no such directory, or it cannot be entered.
        """

    def close_top(self, place: Place) -> None:
        """Give back what `open_top` opened."""

    def is_full(self) -> bool:
        """Tell whether no further file can be remembered for a second look."""

    def settle(self) -> set[DoubtKey]:
        """Look again at every remembered file; return those that have to be read again."""

    def reopen(self, key: DoubtKey) -> Place:
        """Return a place that stands in the directory of a file in doubt.

        Raises:
            Unreadable: the way there is gone.
        """
