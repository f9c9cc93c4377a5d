"""What agents do: open, ask, send packs, commit, crash."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from tests.model.rules import Rules, Scene
from tests.model.state import (
    Kept,
    Name,
    Packed,
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
    indexed,
    is_damaged,
    is_live,
    is_readable,
    is_shown,
    name_of,
    named,
    next_pack,
    recorded,
    replaced,
    with_bytes,
)


def steps(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """Yield what agents may do now."""
    if state.refusal and rules.refusal_stops_answers:
        return
    for who, session in enumerate(state.sessions):
        if not session.phase:
            yield from _open(state, who, scene)
            continue
        if session.phase == "open":
            yield from _have(state, who, scene, rules)
            yield from _put(state, who, scene, rules)
            yield from _commit(state, who, scene, rules)
        elif session.phase == "checked":
            yield from _write(state, who, scene, rules)
        else:
            yield from _send(state, who, scene, rules)
        yield Step("crash", who), _with(state, who, Session())


def _with(state: State, who: int, session: Session) -> State:
    return state._replace(sessions=replaced(state.sessions, who, session))


def _open(state: State, who: int, scene: Scene) -> Iterator[Reached]:
    yield Step("open", who), _with(state, who, Session("open"))
    own = [
        number
        for number, snapshot in enumerate(state.catalog.snapshots)
        if snapshot.client == who
        and snapshot.kept is Kept.STANDING
        and is_shown(state.catalog, number)
    ]
    if scene.has_parents and own:
        refs = state.catalog.snapshots[own[-1]].refs
        got = frozenset(refs) & frozenset(scene.plans[who])
        session = Session("open", got, parent=own[-1])
        yield Step("open-parent", who, (own[-1],)), _with(state, who, session)


def _have(state: State, who: int, scene: Scene, rules: Rules) -> Iterator[Reached]:
    session = state.sessions[who]
    for chunk in scene.plans[who]:
        if chunk in session.got:
            continue
        copies = state.catalog.copies[chunk]
        says_yes = is_live(copies) or (
            not rules.have_is_live_only and any(copy.row is Row.CONDEMNED for copy in copies)
        )
        got = session.got | {chunk} if says_yes else session.got
        yield Step("have", who, (chunk,)), _with(state, who, session._replace(got=got))


def _put(state: State, who: int, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """An agent sends what it believes to be missing; the server may know better."""
    session = state.sessions[who]
    missing = [chunk for chunk in scene.plans[who] if chunk not in session.got]
    pack = next_pack(state, rules)
    if not missing or pack >= scene.packs:
        return
    sizes = [len(missing)] if scene.one_pack_a_put else range(1, len(missing) + 1)
    for size in sizes:
        for carries in combinations(missing, size):
            sending = session._replace(phase="sending", sending=pack, carries=carries)
            begun = _with(with_bytes(state, pack, None), who, sending)
            if rules.names_come_first:
                begun = begun._replace(catalog=named(begun.catalog, pack, Name.REGISTERED))
            if scene.splits_put:
                yield Step("name", who, carries), begun
                continue
            arrived = with_bytes(begun, pack, Packed(carries, who not in scene.liars))
            yield Step("put", who, carries), _indexed(arrived, who, rules)


def _send(state: State, who: int, scene: Scene, rules: Rules) -> Iterator[Reached]:
    session = state.sessions[who]
    if session.phase == "sending":
        packed = Packed(session.carries, who not in scene.liars)
        sent = _with(state, who, session._replace(phase="sent"))
        yield Step("bytes", who), with_bytes(sent, session.sending, packed)
    else:
        yield Step("index", who), _indexed(state, who, rules)


def _indexed(state: State, who: int, rules: Rules) -> State:
    """The transaction that makes a pack count; it is refused where the name is used up."""
    session = state.sessions[who]
    over = session._replace(phase="open", sending=-1, carries=())
    name = name_of(state.catalog, session.sending)
    is_usable = name is Name.REGISTERED or not rules.names_come_first
    if rules.index_needs_the_name and not is_usable:
        return _with(state, who, over)
    catalog = indexed(state.catalog, session.sending, session.carries, rules)
    got = over._replace(got=over.got.union(session.carries))
    return _with(state._replace(catalog=catalog), who, got)


# --- commit


def _commit(state: State, who: int, scene: Scene, rules: Rules) -> Iterator[Reached]:
    session = state.sessions[who]
    wanted = scene.plans[who]
    if len(state.catalog.snapshots) >= scene.snapshots or not session.got.issuperset(wanted):
        return
    state = _with_durable_head(state, who)
    for is_whole in (True, False) if scene.has_incomplete else (True,):
        suffix = "" if is_whole else "-incomplete"
        checked = _checked(state, who, scene, rules, is_whole=is_whole)
        if checked is None:
            yield Step("rejected" + suffix, who), _avoiding(state, who, scene, rules)
        elif scene.splits_commit:
            yield Step("check" + suffix, who), checked
        else:
            ((_, written),) = _write(checked, who, scene, rules)
            yield Step("commit" + suffix, who), written


def _with_durable_head(state: State, who: int) -> State:
    """A manifest follows on a durable head: one that waits is brought to the store first."""
    waiting = [record.snapshot for record in state.catalog.outbox]
    is_own = any(snapshot is not None and snapshot.client == who for snapshot in waiting)
    return flushed(state) if is_own else state


def _checked(state: State, who: int, scene: Scene, rules: Rules, *, is_whole: bool) -> State | None:
    """Return the state behind a check that found all there; None: it did not."""
    session = state.sessions[who]
    uses_parent = _stands(state, session) or (
        session.parent is not None and not rules.parent_in_transaction
    )
    passed = session._replace(
        phase="checked", left=frozenset(), uses_parent=uses_parent, is_whole=is_whole
    )
    if rules.commit_checks and _unfit(state, passed, scene.plans[who], rules):
        return None
    return _with(state, who, passed)


def _stands(state: State, session: Session) -> bool:
    if session.parent is None:
        return False
    return state.catalog.snapshots[session.parent].kept is Kept.STANDING


def _unfit(state: State, session: Session, wanted: tuple[int, ...], rules: Rules) -> list[int]:
    """Return what a snapshot cannot have: what is not there, and damage where it claims none."""
    shared: tuple[int, ...] = ()
    if session.uses_parent and session.parent is not None:
        shared = state.catalog.snapshots[session.parent].refs
    return [chunk for chunk in wanted if _is_unfit(state, session, chunk, shared, rules)]


def _is_unfit(
    state: State, session: Session, chunk: int, shared: tuple[int, ...], rules: Rules
) -> bool:
    copies = state.catalog.copies[chunk]
    if is_live(copies):
        return False
    if any(copy.row is Row.DAMAGED for copy in copies):
        return session.is_whole and (rules.commit_knows_damage or chunk not in shared)
    return chunk not in shared


def _avoiding(state: State, who: int, scene: Scene, rules: Rules) -> State:
    """The agent learns which references it cannot have, whatever it shared with the parent."""
    session = state.sessions[who]
    unfit = [chunk for chunk in scene.plans[who] if not is_live(state.catalog.copies[chunk])]
    return _with(state, who, Session("open", session.got - frozenset(unfit), session.parent))


def _write(state: State, who: int, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """The one transaction: what left since the check is looked at again, then all rows."""
    session = state.sessions[who]
    wanted = scene.plans[who]
    if rules.commit_checks and rules.commit_reads_leave_log:
        again = session
        if rules.parent_in_transaction and session.uses_parent and not _stands(state, session):
            again = session._replace(uses_parent=False)
            looked_at = wanted
        else:
            looked_at = tuple(chunk for chunk in wanted if chunk in session.left)
        # What left is looked up itself: that a parent shares it says nothing any more.
        fresh = again._replace(uses_parent=again.uses_parent and not session.left)
        if _unfit(state, fresh, looked_at, rules):
            yield Step("write-rejected", who), _avoiding(state, who, scene, rules)
            return
    if len(state.catalog.snapshots) >= scene.snapshots:
        yield Step("crash", who), _with(state, who, Session())
        return
    yield Step("write", who), _written(state, who, scene, rules)


def _written(state: State, who: int, scene: Scene, rules: Rules) -> State:
    session = state.sessions[who]
    wanted = scene.plans[who]
    snapshot = Snapshot(who, wanted, is_whole=session.is_whole)
    number = len(state.catalog.snapshots)
    broken = _wrongly_whole(state, session, wanted)
    catalog = state.catalog._replace(snapshots=(*state.catalog.snapshots, snapshot))
    done = _with(state._replace(catalog=catalog, broken=broken), who, Session())
    done = recorded(done, scene, Record("commit", (number,), snapshot))
    if not rules.journal_before_acknowledgement:
        done = done._replace(acknowledged=done.acknowledged | {number})
    return done


def _wrongly_whole(state: State, session: Session, wanted: tuple[int, ...]) -> str:
    copies = state.catalog.copies
    hurt = [chunk for chunk in wanted if is_damaged(copies[chunk])]
    if hurt and session.is_whole:
        return f"a snapshot that needs damaged chunks {hurt} is called complete"
    gone = [chunk for chunk in wanted if not hurt and not is_readable(state, copies[chunk])]
    return f"a snapshot is committed without chunks {gone}" if state.refusal and gone else ""
