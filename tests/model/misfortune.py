"""What happens to the server: forgotten snapshots, damage, restarts, an older catalog put back."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.rules import Rules, Scene
from tests.model.state import (
    Catalog,
    Collector,
    Copies,
    Copy,
    Kept,
    Name,
    Reached,
    Record,
    Row,
    Session,
    Snapshot,
    State,
    Step,
)
from tests.model.world import (
    flushed,
    is_damaged,
    is_live,
    left,
    named,
    recorded,
    replaced,
    roots,
    with_row,
    without_rows_of,
)


def steps(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """Yield what may befall the server now."""
    if not state.refusal:
        yield from _forget(state, scene)
        yield from _harm(state, scene)
    if scene.splits_journal and state.catalog.outbox and not state.refusal:
        yield Step("journal"), flushed(state)
    if scene.has_restarts:
        yield Step("restart"), _restarted(state)
    if scene.rollbacks:
        yield from _roll_back(state, scene, rules)


# --- snapshots go and come back


def _forget(state: State, scene: Scene) -> Iterator[Reached]:
    for number, snapshot in enumerate(state.catalog.snapshots):
        if snapshot.kept is Kept.PURGED:
            continue
        if not scene.has_trash:
            # Only a run that collects notices that a snapshot is gone.
            if scene.collections:
                yield Step("purge", what=(number,)), _kept(state, scene, number, Kept.PURGED)
        elif snapshot.kept is Kept.STANDING:
            yield Step("forget", what=(number,)), _kept(state, scene, number, Kept.TRASHED)
        else:
            yield Step("undelete", what=(number,)), _kept(state, scene, number, Kept.STANDING)
            yield Step("purge", what=(number,)), _kept(state, scene, number, Kept.PURGED)


def _kept(state: State, scene: Scene, number: int, kept: Kept) -> State:
    snapshots = state.catalog.snapshots
    changed = snapshots[number]._replace(kept=kept)
    catalog = state.catalog._replace(snapshots=replaced(snapshots, number, changed))
    done = state._replace(catalog=catalog)
    return recorded(done, scene, Record("kept", (number,), changed))


# --- damage


def _harm(state: State, scene: Scene) -> Iterator[Reached]:
    """A copy is found damaged: its bytes rotted, or two readers say that it does not open."""
    if state.harms >= scene.harms:
        return
    for chunk, copies in enumerate(state.catalog.copies):
        for copy in copies:
            if copy.row not in (Row.LIVE, Row.SPARE) or state.store[copy.pack] is None:
                continue
            if scene.liars and state.store[copy.pack].is_true:  # type: ignore[union-attr]
                continue
            hurt = _harmed(state, chunk, copy)._replace(harms=state.harms + 1)
            said = recorded(hurt, scene, Record("damaged", (chunk, copy.pack)))
            # Who reports hears of it when the record is durable, and what waited before it too.
            yield Step("damage", what=(chunk, copy.pack)), flushed(said)


def _harmed(state: State, chunk: int, copy: Copy) -> State:
    copies = state.catalog.copies[chunk]
    if copy.row is Row.SPARE:
        rest = tuple(other for other in copies if other != copy)
        return _with_copies(state, chunk, rest)
    spare = next((other for other in copies if other.row is Row.SPARE), None)
    if spare is not None:
        healed = tuple(
            other._replace(row=Row.LIVE) if other == spare else other
            for other in copies
            if other != copy
        )
        return _with_copies(state, chunk, healed)
    hurt = state._replace(catalog=with_row(state.catalog, chunk, copy, Row.DAMAGED))
    return left(hurt, [chunk])


def _with_copies(state: State, chunk: int, copies: Copies) -> State:
    catalog = state.catalog
    return state._replace(catalog=catalog._replace(copies=replaced(catalog.copies, chunk, copies)))


# --- restarts and rollbacks


def _restarted(state: State) -> State:
    """What was under way is gone; sessions, names and what agents believe stay."""
    sessions = tuple(_interrupted(session) for session in state.sessions)
    collector = Collector(runs=state.collector.runs)
    done = state._replace(sessions=sessions, collector=collector, move=None)
    # At start the outbox is written before anything else.
    return flushed(done)


def _interrupted(session: Session) -> Session:
    if not session.phase:
        return session
    return Session("open", session.got, session.parent)


def _roll_back(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    if state.backup is None and state.rollbacks < scene.rollbacks and not state.refusal:
        yield Step("catalog.copy"), state._replace(backup=state.catalog)
    elif state.backup is not None:
        yield Step("catalog.rollback"), _rolled_back(state, rules)


def _rolled_back(state: State, rules: Rules) -> State:
    assert state.backup is not None
    older = state._replace(
        catalog=state.backup,
        backup=None,
        rollbacks=state.rollbacks + 1,
        sessions=(Session(),) * len(state.sessions),
        collector=Collector(runs=state.collector.runs),
        move=None,
    )
    if not rules.start_follows_journal:
        return flushed(older)
    unknown = state.journal[state.backup.records :]
    catalog: Catalog | None = older.catalog
    # What waited in the older outbox is in the journal already, as the first of the unknown.
    for record in unknown:
        assert catalog is not None
        catalog = _replayed(catalog, record, rules)
        if catalog is None:
            return older._replace(refusal=True)
    assert catalog is not None
    rest = older.catalog.outbox[len(unknown) :]
    followed = catalog._replace(outbox=rest, records=len(state.journal))
    return flushed(older._replace(catalog=followed))


def _replayed(catalog: Catalog, record: Record, rules: Rules) -> Catalog | None:
    """Return a catalog in which a record of the journal is true; None: what it names is missing."""
    match record.verb:
        case "commit":
            return _replayed_commit(catalog, record)
        case "kept":
            assert record.snapshot is not None
            return _replayed_kept(catalog, record.what[0], record.snapshot)
        case "intent":
            return _replayed_intent(catalog, record.what[0], rules)
        case _:
            return _replayed_damage(catalog, *record.what)


def _replayed_commit(catalog: Catalog, record: Record) -> Catalog | None:
    snapshot = record.snapshot
    assert snapshot is not None
    if record.what[0] < len(catalog.snapshots):
        return catalog  # it waited in the outbox of the older catalog
    is_there = all(
        is_live(copies) or (is_damaged(copies) and not snapshot.is_whole)
        for copies in (catalog.copies[chunk] for chunk in snapshot.refs)
    )
    if not is_there:
        return None
    return catalog._replace(snapshots=(*catalog.snapshots, snapshot))


def _replayed_intent(catalog: Catalog, pack: int, rules: Rules) -> Catalog | None:
    rest = without_rows_of(catalog, pack)
    without = rest._replace(copies=tuple(_with_spare(copies) for copies in rest.copies))
    lost = [
        chunk
        for chunk, copies in enumerate(without.copies)
        if not any(copy.row in (Row.LIVE, Row.CONDEMNED, Row.DAMAGED) for copy in copies)
    ]
    if rules.replay_keeps_snapshots_whole and roots(catalog.snapshots, rules).intersection(lost):
        return None
    return named(without, pack, Name.FENCED)


def _with_spare(copies: Copies) -> Copies:
    """The first spare takes the place of a live copy that has gone."""
    spare = next((copy for copy in copies if copy.row is Row.SPARE), None)
    if is_live(copies) or spare is None:
        return copies
    return tuple(copy._replace(row=Row.LIVE) if copy == spare else copy for copy in copies)


def _replayed_kept(catalog: Catalog, number: int, snapshot: Snapshot) -> Catalog:
    return catalog._replace(snapshots=replaced(catalog.snapshots, number, snapshot))


def _replayed_damage(catalog: Catalog, chunk: int, pack: int) -> Catalog:
    for copy in catalog.copies[chunk]:
        if copy.pack == pack:
            return with_row(catalog, chunk, copy, Row.DAMAGED)
    return catalog
