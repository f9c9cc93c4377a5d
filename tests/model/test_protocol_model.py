"""Every state of the protocol within bounds: the rules hold, and each of them is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.rules import Rules, Scene
from tests.model.search import explore

ONE_CHUNK = ((0,), (0,))
TWO_CHUNKS = ((0, 1), (0,))
ONE_CLIENT = ((0, 1),)

COLLECT = Scene(TWO_CHUNKS, packs=2, collections=1, loses_answers=True, one_pack_a_put=True)
BETWEEN = Scene(ONE_CHUNK, packs=2, collections=1, splits_commit=True)
PARENTS = Scene(ONE_CLIENT, packs=2, collections=1, has_parents=True, has_trash=True)
DAMAGE = Scene(
    TWO_CHUNKS,
    packs=2,
    harms=1,
    has_parents=True,
    has_incomplete=True,
    splits_commit=True,
    one_pack_a_put=True,
)
NAMES = Scene(ONE_CHUNK, snapshots=1, has_orphan_sweep=True, has_restarts=True, splits_put=True)
SPARES = Scene(((0,), (0, 1)), packs=2, snapshots=1, collections=1, harms=1, one_pack_a_put=True)
COMPACTION = Scene(ONE_CLIENT, snapshots=1, collections=1, has_compaction=True, one_pack_a_put=True)
LIAR = Scene(ONE_CHUNK, snapshots=1, harms=1, liars=(1,), has_compaction=True)
ROLLBACK = Scene(((0,),), packs=2, collections=1, rollbacks=1, splits_journal=True)

SCENES = {
    "collect": COLLECT,
    "between check and transaction": BETWEEN,
    "parents and trash": PARENTS,
    "damage": DAMAGE,
    "names first": NAMES,
    "packs with spares": SPARES,
    "compaction": COMPACTION,
    "a liar": LIAR,
    "catalog rolled back": replace(ROLLBACK, snapshots=1),
}


@pytest.mark.parametrize("name", SCENES)
def test_the_rules_hold_in_every_state(name: str) -> None:
    found = explore(SCENES[name])
    assert not found.wrong, str(found)
    # A scene in which little can happen proves nothing.
    assert found.states > 2_000


MISTAKES: dict[str, tuple[Scene, Rules, str, str]] = {
    "commit does not check": (
        COLLECT,
        Rules(commit_checks=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.mark gc.condemn gc.sweep s0.commit",
    ),
    "have answers yes for condemned, and commit does not check": (
        COLLECT,
        Rules(have_is_live_only=False, commit_checks=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.mark gc.condemn gc.sweep s0.commit",
    ),
    "the mark is no one moment, nothing else looks again": (
        COLLECT,
        Rules(mark_is_one_moment=False, steps_read_commit_log=False, commit_checks=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.list s0.commit gc.marked gc.condemn gc.sweep",
    ),
    "the mark is no one moment, only commit looks again": (
        COLLECT,
        Rules(mark_is_one_moment=False, steps_read_commit_log=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.list s0.commit gc.marked gc.condemn gc.sweep",
    ),
    "the mark takes its commit number after the list": (
        COLLECT,
        Rules(mark_is_one_moment=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.list s0.commit gc.marked gc.condemn gc.sweep",
    ),
    "condemn and sweep trust the mark": (
        COLLECT,
        Rules(steps_read_commit_log=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) gc.mark s0.commit gc.condemn gc.sweep",
    ),
    "names are used again, and a deletion comes late": (
        COLLECT,
        Rules(names_are_unique=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) s1.open gc.mark gc.condemn gc.sweep gc.fence(0) s1.put(0) s1.commit "
        "delete(0)",
    ),
    "write skew: the transaction trusts the check outside": (
        BETWEEN,
        Rules(commit_reads_leave_log=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0) s0.check gc.mark gc.condemn gc.sweep s0.write",
    ),
    "the parent is looked up outside the transaction": (
        PARENTS,
        Rules(parent_in_transaction=False),
        "snapshot 1 stands without chunk 0",
        "s0.open s0.put(0,1) s0.commit s0.open-parent(0) forget(0) purge(0) gc.mark gc.condemn "
        "gc.sweep s0.commit",
    ),
    "trash is not a root": (
        PARENTS,
        Rules(trash_is_root=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0,1) s0.commit forget(0) gc.mark undelete(0) gc.condemn gc.sweep",
    ),
    "damage under what the parent shares is not looked at": (
        DAMAGE,
        Rules(commit_knows_damage=False),
        "a snapshot that needs damaged chunks [0] is called complete",
        "s0.open s0.put(0,1) s0.check s0.write s0.open-parent(0) damage(0,0) s0.check s0.write",
    ),
    "bytes come before their name": (
        NAMES,
        Rules(names_come_first=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.name(0) s0.bytes orphans.unknown(0) s0.index s0.commit delete(0)",
    ),
    "orphans go by age, without a fence": (
        NAMES,
        Rules(orphans_are_fenced=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.name(0) s0.bytes orphans.fence(0) s0.index s0.commit delete(0)",
    ),
    "a pack counts under a fenced name": (
        NAMES,
        Rules(index_needs_the_name=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.name(0) s0.bytes orphans.fence(0) s0.index s0.commit delete(0)",
    ),
    "a pack is deleted with a spare in it": (
        SPARES,
        Rules(packs_are_wholly_dead=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0) s0.commit s0.open s0.put(0) gc.fence(1) damage(0,0) delete(1)",
    ),
    "compaction moves whichever row is live": (
        LIAR,
        Rules(compaction_compares=False),
        "a forged copy of chunk 0 has displaced a good one",
        "s0.open s1.open s1.put(0) s0.put(0) compact.copy(0,2) damage(0,0) compact.switch(0,2)",
    ),
    "the last copy wins": (
        LIAR,
        Rules(first_copy_wins=False),
        "a forged copy of chunk 0 has displaced a good one",
        "s0.open s0.put(0) s1.open s1.put(0)",
    ),
    "bytes go before the journal says so": (
        ROLLBACK,
        Rules(intent_comes_first=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0) s0.commit catalog.copy purge(0) gc.mark gc.condemn gc.sweep gc.fence(0) "
        "catalog.rollback delete(0)",
    ),
    "an acknowledgement before the journal": (
        ROLLBACK,
        Rules(journal_before_acknowledgement=False),
        "acknowledged snapshots [0] are gone",
        "s0.open s0.put(0) catalog.copy s0.commit catalog.rollback",
    ),
    "a rolled-back catalog goes unnoticed": (
        ROLLBACK,
        Rules(start_follows_journal=False),
        "acknowledged snapshots [0] are gone",
        "s0.open s0.put(0) catalog.copy s0.commit journal catalog.rollback",
    ),
    "a rolled-back catalog answers have": (
        ROLLBACK,
        Rules(refusal_stops_answers=False),
        "a snapshot is committed without chunks [0]",
        "s0.open s0.put(0) catalog.copy gc.mark gc.condemn s0.rejected s0.put(0) s0.commit "
        "gc.sweep gc.fence(0) journal catalog.rollback s0.open s0.have(0) delete(0) s0.commit",
    ),
    "a replayed deletion takes the only copy that the older catalog knows": (
        ROLLBACK,
        Rules(replay_keeps_snapshots_whole=False),
        "snapshot 0 stands without chunk 0",
        "s0.open s0.put(0) catalog.copy gc.mark gc.condemn s0.rejected s0.put(0) s0.commit "
        "gc.sweep gc.fence(0) journal catalog.rollback",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_rule_left_out_is_found_by_its_shortest_trace(name: str) -> None:
    scene, rules, wrong, trace = MISTAKES[name]
    found = explore(scene, rules)
    assert (found.wrong, " ".join(map(str, found.trace))) == (wrong, trace)


def test_every_rule_is_left_out_once() -> None:
    left_out = {
        name
        for _, rules, _, _ in MISTAKES.values()
        for name, is_kept in vars(rules).items()
        if not is_kept
    }
    assert left_out == set(vars(Rules()))


def test_have_alone_may_err_because_commit_checks() -> None:
    # R1 spares an agent a refused commit; what keeps data safe is R2.
    assert explore(BETWEEN, Rules(have_is_live_only=False)).wrong == ""


FULL = {
    "collect": Scene(TWO_CHUNKS, packs=2, collections=2, loses_answers=True, one_pack_a_put=True),
    "collect in parts": Scene(TWO_CHUNKS, packs=2, snapshots=2, collections=2),
    "between check and transaction": Scene(
        TWO_CHUNKS, packs=2, collections=2, splits_commit=True, one_pack_a_put=True
    ),
    "parents and trash": Scene(
        TWO_CHUNKS, packs=2, collections=1, has_parents=True, has_trash=True, one_pack_a_put=True
    ),
    "damage": Scene(
        TWO_CHUNKS,
        packs=3,
        harms=2,
        has_parents=True,
        has_incomplete=True,
        splits_commit=True,
        one_pack_a_put=True,
    ),
    "names first": Scene(
        TWO_CHUNKS, packs=3, has_orphan_sweep=True, has_restarts=True, splits_put=True
    ),
    "packs with spares": Scene(
        TWO_CHUNKS, packs=3, snapshots=1, collections=1, harms=1, one_pack_a_put=True
    ),
    "compaction": Scene(
        TWO_CHUNKS, packs=3, snapshots=1, collections=1, has_compaction=True, one_pack_a_put=True
    ),
    "a liar": Scene(TWO_CHUNKS, packs=4, harms=2, liars=(1,), has_compaction=True),
    "catalog rolled back": replace(ROLLBACK, packs=3, snapshots=1, collections=2),
    "catalog rolled back between restarts": replace(ROLLBACK, has_restarts=True),
    "catalog rolled back with damage": Scene(
        ((0,),),
        harms=2,
        rollbacks=1,
        splits_journal=True,
        has_incomplete=True,
        has_restarts=True,
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", FULL)
def test_the_rules_hold_within_the_full_bounds(name: str) -> None:
    found = explore(FULL[name])
    assert not found.wrong, str(found)
