"""What the model knows: the catalog, the store, agents, the collector. Plain values, no behaviour.

Chunks and packs are small numbers. A pack's number is its name: numbers are given out in order and
belong to one pack for ever, as long as the rules say so.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Row(StrEnum):
    """State of a chunk's copy; the product's `CopyState`."""

    LIVE = "L"
    CONDEMNED = "C"
    DELETING = "D"
    DAMAGED = "X"
    SPARE = "S"


class Name(StrEnum):
    """State of a pack's name in the catalog; the product's `ObjectState`, and not known at all."""

    UNKNOWN = "-"
    REGISTERED = "r"
    STORED = "s"
    FENCED = "f"


class Kept(StrEnum):
    """Whether a snapshot is there; the product's `SnapshotState`."""

    STANDING = "s"
    TRASHED = "t"
    PURGED = "p"


class Copy(NamedTuple):
    """One copy of a chunk, by the pack that holds it."""

    pack: int
    row: Row


Copies = tuple[Copy, ...]


class Snapshot(NamedTuple):
    """A commit. `is_whole`: it claims that nothing of it is damaged. `client` owns it."""

    client: int
    refs: tuple[int, ...]
    kept: Kept = Kept.STANDING
    is_whole: bool = True


class Packed(NamedTuple):
    """Bytes of a pack in the store. `is_true`: they are what an honest agent sealed."""

    chunks: tuple[int, ...]
    is_true: bool = True


class Record(NamedTuple):
    """A journal record: `commit` (snapshot), `intent` (pack), `damaged` (chunk, pack), `kept`."""

    verb: str
    what: tuple[int, ...]
    snapshot: Snapshot | None = None


class Catalog(NamedTuple):
    """What rolls back when an older copy of the database is put in place."""

    copies: tuple[Copies, ...]
    """By chunk, in the order of arrival."""
    names: tuple[Name, ...] = ()
    """By pack."""
    snapshots: tuple[Snapshot, ...] = ()
    """By commit number. Purged ones stay as numbers."""
    outbox: tuple[Record, ...] = ()
    records: int = 0
    """Records known to be durable in the store's journal."""


class Session(NamedTuple):
    """An agent's upload, and what it has under way at the server."""

    phase: str = ""
    """Empty: none. `open`; `sending`: a name is registered; `sent`: its bytes are; `checked`."""
    got: frozenset[int] = frozenset()
    """What the agent believes to be there."""
    parent: int | None = None
    """The snapshot that it starts from."""
    sending: int = -1
    """The pack under way."""
    carries: tuple[int, ...] = ()
    """The chunks of that pack."""
    left: frozenset[int] = frozenset()
    """What stopped being live since the check: the leave-live log from there on."""
    uses_parent: bool = False
    """The check counted what the parent shares as there."""
    is_whole: bool = True
    """Whether the manifest under way claims that nothing is damaged."""


class Collector(NamedTuple):
    """The one garbage collector and its steps: mark outside, condemn, sweep."""

    phase: str = ""
    """Empty: idle. `walking`, `marked`, `condemned`."""
    marked: frozenset[int] = frozenset()
    at: int = 0
    """Commit number of the mark."""
    todo: tuple[int, ...] = ()
    """Snapshots still to be read, where the mark is not one moment."""
    runs: int = 0


class Move(NamedTuple):
    """A compaction under way: live rows of `source` are copied into `target`."""

    source: int
    target: int
    chunks: tuple[int, ...]


class State(NamedTuple):
    """One moment of the whole world."""

    catalog: Catalog
    store: tuple[Packed | None, ...] = ()
    """By pack; grows with names and never shrinks, so that no number is given out twice."""
    sessions: tuple[Session, ...] = ()
    collector: Collector = Collector()
    doomed: frozenset[int] = frozenset()
    """Packs whose deletion is on its way: it may come late, or again from a former leader."""
    move: Move | None = None
    journal: tuple[Record, ...] = ()
    acknowledged: frozenset[int] = frozenset()
    """Commit numbers, counted over all catalogs, that an agent was told of."""
    backup: Catalog | None = None
    """An older copy of the catalog that somebody keeps."""
    rollbacks: int = 0
    harms: int = 0
    refusal: bool = False
    """The catalog is older than the store and says so: nothing is stored or answered."""
    broken: str = ""
    """What a step has just done that no step may do."""


class Step(NamedTuple):
    """One thing that happens: a verb, who does it, and with which chunks, packs or snapshots."""

    verb: str
    who: int = -1
    what: tuple[int, ...] = ()

    def __str__(self) -> str:
        who = "" if self.who < 0 else f"s{self.who}."
        return f"{who}{self.verb}" + (f"({','.join(map(str, self.what))})" if self.what else "")


Reached = tuple[Step, State]
