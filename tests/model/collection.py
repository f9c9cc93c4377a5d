"""What the collector does: mark, condemn, sweep, delete packs, compact, remove orphans."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.rules import Rules, Scene
from tests.model.state import (
    Catalog,
    Collector,
    Copies,
    Copy,
    Move,
    Name,
    Packed,
    Reached,
    Record,
    Row,
    State,
    Step,
)
from tests.model.world import (
    is_live,
    left,
    name_of,
    named,
    recorded,
    replaced,
    roots,
    rows_of,
    with_bytes,
    without_rows_of,
)


def steps(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """Yield what the collector may do now; late deletions come whatever else happens."""
    yield from _deletions(state, scene)
    if state.refusal:
        return
    if scene.collections:
        yield from _collect(state, scene, rules)
        yield from _fence_packs(state, scene, rules)
    if scene.has_compaction:
        yield from _compact(state, scene, rules)
    if scene.has_orphan_sweep:
        yield from _sweep_orphans(state, rules)


# --- chunks


def _collect(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    collector = state.collector
    if not collector.phase:
        if collector.runs < scene.collections:
            yield from _mark(state, rules)
        return
    if collector.phase == "walking":
        yield from _walk(state, rules)
    elif collector.phase == "marked":
        yield Step("gc.condemn"), _condemned(state, rules)
    else:
        yield Step("gc.sweep"), _swept(state, rules)
    yield Step("gc.crash"), state._replace(collector=Collector(runs=collector.runs))


def _mark(state: State, rules: Rules) -> Iterator[Reached]:
    snapshots, runs = state.catalog.snapshots, state.collector.runs + 1
    if rules.mark_is_one_moment:
        marked = Collector("marked", roots(snapshots, rules), len(snapshots), runs=runs)
        yield Step("gc.mark"), state._replace(collector=marked)
    else:
        walking = Collector("walking", todo=tuple(range(len(snapshots))), runs=runs)
        yield Step("gc.list"), state._replace(collector=walking)


def _walk(state: State, rules: Rules) -> Iterator[Reached]:
    collector, snapshots = state.collector, state.catalog.snapshots
    if collector.todo:
        found = collector.marked | roots([snapshots[collector.todo[0]]], rules)
        walked = collector._replace(marked=found, todo=collector.todo[1:])
        yield Step("gc.read", what=collector.todo[:1]), state._replace(collector=walked)
    else:
        marked = collector._replace(phase="marked", at=len(snapshots))
        yield Step("gc.marked"), state._replace(collector=marked)


def _needed(state: State, rules: Rules) -> frozenset[int]:
    """Return what the mark found, and what was committed behind its number."""
    collector = state.collector
    if not rules.steps_read_commit_log:
        return collector.marked
    later = state.catalog.snapshots[collector.at :]
    return collector.marked.union(*(snapshot.refs for snapshot in later))


def _condemned(state: State, rules: Rules) -> State:
    needed = _needed(state, rules)
    hit = [chunk for chunk in range(len(state.catalog.copies)) if chunk not in needed]
    gone = [chunk for chunk in hit if is_live(state.catalog.copies[chunk])]
    copies = tuple(
        tuple(_condemn(copy) for copy in each) if chunk in hit else each
        for chunk, each in enumerate(state.catalog.copies)
    )
    done = state._replace(
        catalog=state.catalog._replace(copies=copies),
        collector=state.collector._replace(phase="condemned"),
    )
    return left(done, gone)


def _condemn(copy: Copy) -> Copy:
    if copy.row in (Row.LIVE, Row.SPARE, Row.DAMAGED):
        return copy._replace(row=Row.CONDEMNED)
    return copy


def _swept(state: State, rules: Rules) -> State:
    needed = _needed(state, rules)
    copies = tuple(
        tuple(_sweep(copy, each, is_needed=chunk in needed) for copy in each)
        for chunk, each in enumerate(state.catalog.copies)
    )
    return state._replace(
        catalog=state.catalog._replace(copies=copies),
        collector=Collector(runs=state.collector.runs),
    )


def _sweep(copy: Copy, each: Copies, *, is_needed: bool) -> Copy:
    """A condemned copy goes, unless its chunk is needed and has no other copy that is live."""
    if copy.row is not Row.CONDEMNED or (is_needed and not is_live(each)):
        return copy
    return copy._replace(row=Row.DELETING)


# --- packs


def _fence_packs(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    """One transaction finds a pack dead, fences its name and says so in the journal."""
    spared = () if rules.packs_are_wholly_dead else (Row.SPARE,)
    for pack, name in enumerate(state.catalog.names):
        if name is not Name.STORED:
            continue
        rows = [row for _, row in rows_of(state.catalog, pack)]
        if all(row is Row.DELETING or row in spared for row in rows):
            yield Step("gc.fence", what=(pack,)), _fenced(state, pack, scene, rules)


def _fenced(state: State, pack: int, scene: Scene, rules: Rules) -> State:
    catalog = without_rows_of(state.catalog, pack, (Row.DELETING,))
    doing = state._replace(catalog=named(catalog, pack, Name.FENCED))
    doing = recorded(doing, scene, Record("intent", (pack,)))
    is_said = not any(record.verb == "intent" for record in doing.catalog.outbox)
    if is_said or not rules.intent_comes_first:
        return doing._replace(doomed=doing.doomed | {pack})
    return doing


def _deletions(state: State, scene: Scene) -> Iterator[Reached]:
    for pack in state.doomed:
        gone = with_bytes(state, pack, None)
        over = gone._replace(doomed=state.doomed - {pack})
        yield Step("delete", what=(pack,)), over
        if scene.loses_answers and state.store[pack] is not None:
            yield Step("delete-unanswered", what=(pack,)), gone


# --- compaction


def _compact(state: State, scene: Scene, rules: Rules) -> Iterator[Reached]:
    if state.move is not None:
        yield Step("compact.switch", what=state.move[:2]), _switched(state, rules)
        yield Step("compact.crash"), state._replace(move=None)
        return
    target = len(state.store)
    for pack, packed in enumerate(state.store):
        rows = rows_of(state.catalog, pack)
        chunks = tuple(chunk for chunk, row in rows if row is Row.LIVE)
        if chunks and packed is not None and target < scene.packs:
            copied = with_bytes(state, target, Packed(chunks, packed.is_true))
            catalog = named(copied.catalog, target, Name.REGISTERED)
            move = Move(pack, target, chunks)
            yield (
                Step("compact.copy", what=(pack, target)),
                copied._replace(catalog=catalog, move=move),
            )


def _switched(state: State, rules: Rules) -> State:
    move = state.move
    assert move is not None
    catalog = named(state.catalog, move.target, Name.STORED)
    for chunk in move.chunks:
        each = tuple(_moved(copy, move, rules) for copy in catalog.copies[chunk])
        catalog = catalog._replace(copies=replaced(catalog.copies, chunk, each))
    # A spare is of no use in a pack that goes: its chunk has a live copy elsewhere.
    catalog = _without_needless_spares(catalog, move.source)
    return state._replace(catalog=catalog, move=None)


def _moved(copy: Copy, move: Move, rules: Rules) -> Copy:
    if rules.compaction_compares:
        is_same = copy == Copy(move.source, Row.LIVE)
    else:
        is_same = copy.row is Row.LIVE
    return Copy(move.target, Row.LIVE) if is_same else copy


def _without_needless_spares(catalog: Catalog, pack: int) -> Catalog:
    copies = tuple(
        tuple(copy for copy in each if copy != Copy(pack, Row.SPARE)) if is_live(each) else each
        for each in catalog.copies
    )
    return catalog._replace(copies=copies)


# --- orphans


def _sweep_orphans(state: State, rules: Rules) -> Iterator[Reached]:
    """Any name without an index may be old enough: age proves nothing here."""
    for pack, packed in enumerate(state.store):
        name = name_of(state.catalog, pack)
        if name is Name.REGISTERED:
            if rules.orphans_are_fenced:
                fenced = state._replace(catalog=named(state.catalog, pack, Name.FENCED))
            else:
                fenced = state
            doomed = fenced._replace(doomed=state.doomed | {pack})
            yield Step("orphans.fence", what=(pack,)), doomed
        elif name is Name.UNKNOWN and packed is not None and not rules.names_come_first:
            yield (
                Step("orphans.unknown", what=(pack,)),
                state._replace(doomed=state.doomed | {pack}),
            )
