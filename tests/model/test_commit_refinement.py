"""The product's commit code does what the model says, step by step.

Walks of the model - two agents that upload, share, start from parents, commit in pieces, crash and
come back, beside damage, restarts, forgotten snapshots and a collector - are done to a real
repository, and after every step what catalog and store say is compared with the model's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from holdfast_server.catalog import chunks, objects, snapshots
from holdfast_server.catalog.schema import CopyState, ObjectState
from holdfast_server.catalog.schema import chunks as chunks_table
from holdfast_server.catalog.schema import objects as objects_table
from holdfast_server.repository import commit as commit_module
from holdfast_server.repository import damage, recovery
from holdfast_server.repository.commit import Commits, Committed
from holdfast_server.repository.commit_check import Checker
from holdfast_server.repository.parts import Parts
from tests.model.product import Product, expected
from tests.model.rules import Scene
from tests.model.search import walk
from tests.model.state import Step
from tests.model.world import begin

SCENE = Scene(
    plans=((0, 1), (1, 2)),
    packs=12,
    snapshots=8,
    collections=4,
    harms=4,
    has_trash=True,
    has_parents=True,
    has_orphan_sweep=True,
    has_restarts=True,
    has_incomplete=True,
    splits_put=True,
    splits_commit=True,
    splits_journal=True,
)
ROLLBACK = Scene(
    plans=((0, 1), (1, 2)),
    packs=12,
    snapshots=8,
    harms=4,
    rollbacks=2,
    has_parents=True,
    has_incomplete=True,
    has_restarts=True,
    splits_put=True,
    splits_commit=True,
    splits_journal=True,
)
"""A catalog that an older copy replaces: nothing is trashed or collected beside it, since the
product's journal has no records of that yet."""
STEPS = 60
SEEDS = [947, 1570, 2102, 111, 1673, 169, 1047, 2638, 1371]
"""Of the first 3,000 those that together meet the most situations: verb, parent, rows, beliefs."""
REFUSING, FOLLOWING = [34, 67], [78, 110]
PARTS = 3


class Differs(AssertionError):
    """The product is not where the model is; says by which way it got there."""


def drive(folder: Path, seed: int, scene: Scene = SCENE) -> None:
    """Do one walk to a product of its own; raises Differs at the first difference."""
    folder.mkdir()
    product, state = Product(folder, scene), begin(scene)
    taken: list[Step] = []
    try:
        for step, following in walk(scene, seed, STEPS):
            taken.append(step)
            product.do(step, state, following)
            state = following
            if state.refusal:
                break  # What such a catalog says means nothing; that it refuses, `do` has seen.
            seen, wanted = product.seen(), expected(state)
            assert seen == wanted, f"product {seen}\nmodel   {wanted}"
    except Exception as error:
        way = " ".join(map(str, taken))
        raise Differs(f"seed {seed}, at the end of: {way}\n{error}") from error
    finally:
        product.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_catalog_and_store_are_what_the_model_says_after_every_step(
    tmp_path: Path, part: int
) -> None:
    for seed in SEEDS[part::PARTS]:
        drive(tmp_path / str(seed), seed)


@pytest.mark.parametrize("refuses", [True, False])
def test_an_older_catalog_follows_the_journal_or_refuses_as_the_model_says(
    tmp_path: Path, refuses: bool
) -> None:
    for seed in REFUSING if refuses else FOLLOWING:
        drive(tmp_path / str(seed), seed, ROLLBACK)


def test_the_walks_of_older_catalogs_meet_both_ends() -> None:
    ends = {seed: _ends_of_rollbacks(seed) for seed in REFUSING + FOLLOWING}
    assert all("refused" in ends[seed] for seed in REFUSING)
    assert not any("refused" in ends[seed] for seed in FOLLOWING)
    assert sum("followed" in ends[seed] for seed in FOLLOWING) >= 2, ends


def _ends_of_rollbacks(seed: int) -> set[str]:
    """Return what a walk's rollbacks came to; followed: with snapshots that the copy lacked."""
    ends, before = set(), begin(ROLLBACK)
    for step, state in walk(ROLLBACK, seed, STEPS):
        if step.verb == "catalog.rollback":
            assert before.backup is not None
            grew = len(state.catalog.snapshots) > len(before.backup.snapshots)
            ends.add("refused" if state.refusal else "followed" if grew else "same")
        before = state
    return ends


@pytest.mark.soak
@pytest.mark.parametrize("hundred", range(10))
def test_catalog_and_store_are_what_the_model_says_on_every_way(
    tmp_path: Path, hundred: int
) -> None:
    for seed in range(hundred * 100, hundred * 100 + 100):
        drive(tmp_path / f"commit-{seed}", seed)
        drive(tmp_path / f"rollback-{seed}", seed, ROLLBACK)


def test_the_walks_meet_what_they_are_for() -> None:
    met = Counter(step.verb for seed in SEEDS for step, _ in walk(SCENE, seed, STEPS))
    often = ("name", "bytes", "index", "have", "damage", "write", "check-incomplete", "open-parent")
    rarely = ("crash", "restart", "rejected", "write-rejected", "forget", "gc.condemn", "gc.fence")
    assert min(met[verb] for verb in often) >= 20, met
    assert min(met[verb] for verb in rarely) >= 4, met


# --- planted mistakes


def _checks_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checker, "is_complete", lambda *_: True)
    patch.setattr(Checker, "still_complete", lambda *_: True)


def _trusts_the_check_outside(patch: pytest.MonkeyPatch) -> None:
    blind = SimpleNamespace(left_since=lambda *_, **__: [])
    patch.setattr(commit_module, "liveness", blind)


def _looks_the_parent_up_outside(patch: pytest.MonkeyPatch) -> None:
    early = SimpleNamespace(**vars(snapshots) | {"shown": snapshots.durable})
    patch.setattr(commit_module, "snapshots", early)
    patch.setattr(commit_module, "_stands", lambda *_: True)


def _overlooks_damage_under_the_parent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Checker, "_touches_damage", lambda *_: False)


def _says_yes_to_what_is_not_live(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chunks, "live_ids", _ids_with_any_copy)


def _ids_with_any_copy(tx: Any, key: int, ids: Any, **_: Any) -> set[bytes]:
    return set(chunks.copies(tx, key, ids))


def _last_copy_wins(patch: pytest.MonkeyPatch) -> None:
    index = chunks.index_pack

    def clobbering(tx: Any, origin: Any, entries: Any) -> None:
        index(tx, origin, entries)
        came = chunks_table.c.object_key == origin.object_key
        ids = [entry.chunk_id for entry in entries]
        older = (chunks_table.c.chunk_id.in_(ids), chunks_table.c.state == CopyState.LIVE)
        tx.execute(update(chunks_table).where(~came, *older).values(state=CopyState.SPARE))
        tx.execute(update(chunks_table).where(came).values(state=CopyState.LIVE))

    patch.setattr(chunks, "index_pack", clobbering)


def _counts_a_fenced_name(patch: pytest.MonkeyPatch) -> None:
    mark = objects.mark_stored

    def blind(tx: Any, key: int, **values: Any) -> bool:
        fenced = objects_table.c.state == ObjectState.FENCED
        unfence = update(objects_table).where(objects_table.c.key == key, fenced)
        tx.execute(unfence.values(state=ObjectState.REGISTERED))
        return mark(tx, key, **values)

    patch.setattr(objects, "mark_stored", blind)


def _damage_is_not_logged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(damage, "liveness", SimpleNamespace(log_left=lambda *_: None))


def _damage_forgets_the_spare(patch: pytest.MonkeyPatch) -> None:
    mark = damage._mark
    patch.setattr(
        damage,
        "_mark",
        lambda tx, domain, found, now: mark(tx, domain, found._replace(spare=None), now),
    )


def _acknowledges_before_the_journal(patch: pytest.MonkeyPatch) -> None:
    def eager(self: Commits, client: Any, session: str, **names: Any) -> Committed:
        objects_ = (names["manifest"], names["refs"])
        data, known = self._uploaded(client, session, names["manifest"])
        known = known or self._decide(self._candidate(client, session, data, objects_))
        return Committed(known.id, known.time_ns)

    patch.setattr(Commits, "commit", eager)


def _a_rollback_goes_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "_follow", lambda *_: False)


def _a_refused_catalog_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Parts, "require_writable", lambda *_: None)


MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "commit checks nothing": (_checks_nothing, 2102),
    "the transaction trusts the check outside": (_trusts_the_check_outside, 1371),
    "the parent is looked up outside": (_looks_the_parent_up_outside, 12),
    "damage under the parent is overlooked": (_overlooks_damage_under_the_parent, 111),
    "have says yes to what is not live": (_says_yes_to_what_is_not_live, 2102),
    "the last copy wins": (_last_copy_wins, 2102),
    "a fenced name counts": (_counts_a_fenced_name, 1570),
    "what is damaged is not logged": (_damage_is_not_logged, 169),
    "damage forgets the spare": (_damage_forgets_the_spare, 2102),
    "a rolled-back catalog goes unnoticed": (_a_rollback_goes_unnoticed, 34),
    "a rolled-back catalog answers have": (_a_refused_catalog_answers, 34),
    "acknowledged before the journal": (_acknowledges_before_the_journal, 947),
}
"""What is changed in the product, and the seed that finds it soonest."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_product_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant, seed = MISTAKES[name]
    plant(monkeypatch)
    with pytest.raises(Differs, match=f"seed {seed}"):
        drive(tmp_path / "product", seed, ROLLBACK if seed in REFUSING else SCENE)
