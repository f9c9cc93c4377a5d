"""What each step needs to know of a state, and the changes that several steps share."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.rules import Rules, Scene
from tests.model.state import (
    Catalog,
    Copies,
    Copy,
    Kept,
    Name,
    Packed,
    Record,
    Row,
    Session,
    Snapshot,
    State,
)

DEAD = (Row.DELETING,)


def begin(scene: Scene) -> State:
    """Return an empty world."""
    catalog = Catalog(copies=((),) * scene.chunks)
    return State(catalog, sessions=(Session(),) * len(scene.plans))


def replaced(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """Return `items` with another one at `index`."""
    return (*items[:index], item, *items[index + 1 :])


def is_live(copies: Copies) -> bool:
    """Tell whether a chunk has a live copy."""
    return any(copy.row is Row.LIVE for copy in copies)


def is_damaged(copies: Copies) -> bool:
    """Tell whether a chunk has a damaged copy and no live one."""
    return not is_live(copies) and any(copy.row is Row.DAMAGED for copy in copies)


def served(copies: Copies) -> Copy | None:
    """Return the copy that a reader gets: the live one, else the first condemned one."""
    for row in (Row.LIVE, Row.CONDEMNED):
        for copy in copies:
            if copy.row is row:
                return copy
    return None


def is_readable(state: State, copies: Copies) -> bool:
    """Tell whether a reader gets bytes of a chunk."""
    copy = served(copies)
    return copy is not None and state.store[copy.pack] is not None


def is_true(state: State, copies: Copies) -> bool:
    """Tell whether a reader gets the bytes that an honest agent sealed."""
    copy = served(copies)
    packed = None if copy is None else state.store[copy.pack]
    return packed is not None and packed.is_true


def roots(snapshots: Iterable[Snapshot], rules: Rules) -> frozenset[int]:
    """Return the chunks that snapshots need which are there or may come back."""
    return frozenset(
        chunk
        for snapshot in snapshots
        if snapshot.kept is Kept.STANDING or (snapshot.kept is Kept.TRASHED and rules.trash_is_root)
        for chunk in snapshot.refs
    )


def name_of(catalog: Catalog, pack: int) -> Name:
    """Return what the catalog knows of a pack's name."""
    return catalog.names[pack] if pack < len(catalog.names) else Name.UNKNOWN


def named(catalog: Catalog, pack: int, name: Name) -> Catalog:
    """Return a catalog in which the pack's name has that state."""
    gap = (Name.UNKNOWN,) * (pack + 1 - len(catalog.names))
    return catalog._replace(names=replaced(catalog.names + gap, pack, name))


def rows_of(catalog: Catalog, pack: int) -> list[tuple[int, Row]]:
    """Return (chunk, state) of the rows that lie in a pack."""
    return [
        (chunk, copy.row)
        for chunk, copies in enumerate(catalog.copies)
        for copy in copies
        if copy.pack == pack
    ]


def without_rows_of(catalog: Catalog, pack: int, rows: tuple[Row, ...] = tuple(Row)) -> Catalog:
    """Return a catalog without the rows of a pack that are in one of these states."""
    copies = tuple(
        tuple(copy for copy in each if copy.pack != pack or copy.row not in rows)
        for each in catalog.copies
    )
    return catalog._replace(copies=copies)


def with_row(catalog: Catalog, chunk: int, copy: Copy, row: Row) -> Catalog:
    """Return a catalog in which one copy is in another state."""
    each = tuple(
        other._replace(row=row) if other == copy else other for other in catalog.copies[chunk]
    )
    return catalog._replace(copies=replaced(catalog.copies, chunk, each))


def indexed(catalog: Catalog, pack: int, chunks: Iterable[int], rules: Rules) -> Catalog:
    """Return a catalog with the rows that a stored pack brings."""
    copies = list(catalog.copies)
    for chunk in chunks:
        copies[chunk] = _arrived(copies[chunk], pack, rules)
    return named(catalog._replace(copies=tuple(copies)), pack, Name.STORED)


def _arrived(copies: Copies, pack: int, rules: Rules) -> Copies:
    """A copy arrives: a spare where one is live, otherwise live in place of what is damaged."""
    if not is_live(copies):
        sound = tuple(copy for copy in copies if copy.row is not Row.DAMAGED)
        return (*sound, Copy(pack, Row.LIVE))
    if rules.first_copy_wins:
        return (*copies, Copy(pack, Row.SPARE))
    demoted = tuple(
        copy._replace(row=Row.SPARE) if copy.row is Row.LIVE else copy for copy in copies
    )
    return (*demoted, Copy(pack, Row.LIVE))


def left(state: State, chunks: Iterable[int]) -> State:
    """Return a state whose leave-live log names `chunks`."""
    gone = frozenset(chunks)
    sessions = tuple(
        session._replace(left=session.left | gone) if session.phase == "checked" else session
        for session in state.sessions
    )
    return state._replace(sessions=sessions)


def recorded(state: State, scene: Scene, record: Record) -> State:
    """Return a state in which a record is true: in the outbox, or at once in the journal."""
    if not (scene.rollbacks or scene.splits_journal):
        return state
    waiting = state._replace(catalog=state.catalog._replace(outbox=(*state.catalog.outbox, record)))
    return waiting if scene.splits_journal else flushed(waiting)


def flushed(state: State) -> State:
    """Return a state whose journal holds all that waited: commits are told, deletions may begin."""
    catalog, waiting = state.catalog, state.catalog.outbox
    if not waiting:
        return state
    journal = (*state.journal, *waiting)
    told = [record.what[0] for record in waiting if record.verb == "commit"]
    intended = [record.what[0] for record in waiting if record.verb == "intent"]
    return state._replace(
        catalog=catalog._replace(outbox=(), records=len(journal)),
        journal=journal,
        acknowledged=state.acknowledged.union(told),
        doomed=state.doomed.union(intended),
    )


def is_shown(catalog: Catalog, number: int) -> bool:
    """Tell whether the commit record of a snapshot is durable."""
    return not any(
        record.verb == "commit" and record.what == (number,) for record in catalog.outbox
    )


def next_pack(state: State, rules: Rules) -> int:
    """Return the number of a new pack."""
    if not rules.names_are_unique:
        for pack, name in enumerate(state.catalog.names):
            if name is Name.FENCED:
                return pack
    return len(state.store)


def with_bytes(state: State, pack: int, packed: Packed | None) -> State:
    """Return a state whose store has (or has not) bytes under a pack's name."""
    gap = (None,) * (pack + 1 - len(state.store))
    return state._replace(store=replaced(state.store + gap, pack, packed))
