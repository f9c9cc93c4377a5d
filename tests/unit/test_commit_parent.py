"""What a commit takes over from its parent: what need not be looked up, lists as differences."""

from __future__ import annotations

from typing import Any

import pytest
from blake3 import blake3

from holdfast_contract.errors import (
    InvalidInput,
    MissingChunks,
)
from holdfast_contract.ids import ZERO_HASH, SnapshotId
from holdfast_server.catalog import chunks
from holdfast_server.catalog.schema import CopyState, ObjectKind, SnapshotState
from holdfast_server.catalog.schema import snapshots as snapshots_table
from holdfast_server.repository import commit as commit_module
from tests.support.commits import mark, missing
from tests.support.samples import ids
from tests.support.uploads import Pod, Served, difference

# --- the parent


def trash(pod: Pod, snapshot: bytes) -> None:
    pod.served.catalog.write(
        lambda tx: tx.execute(
            snapshots_table.update()
            .where(snapshots_table.c.snapshot == snapshot)
            .values(state=SnapshotState.TRASHED)
        )
    )


def looked_up(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Return a set that fills with the ids that are looked up in the catalog."""
    asked: set[bytes] = set()
    live_ids = chunks.live_ids

    def watched(tx: Any, key: int, wanted: Any, **more: Any) -> set[bytes]:
        asked.update(wanted)
        return live_ids(tx, key, wanted, **more)

    monkeypatch.setattr(chunks, "live_ids", watched)
    return asked


def test_what_is_shared_with_a_standing_parent_is_not_looked_up(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(6)
    parent = pod.backup(wanted[:4])
    session = pod.open()
    pod.send(wanted[4:], session)
    asked = looked_up(monkeypatch)
    pod.finish(session, wanted, parent=parent)
    assert asked == set(wanted[4:])


def test_an_unchanged_list_is_not_even_read(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(6)
    parent = pod.backup(wanted)
    base = served.repository.history.get(parent).refs
    asked = looked_up(monkeypatch)
    session = pod.open()
    pod.put_refs(session, difference(pod.domain, wanted, (base, wanted)))
    pod.put_manifest(session, pod.manifest(wanted, parent=parent))
    read: list[str] = []
    served.memory.before = lambda verb, name: read.append(name) if verb == "get" else None
    pod.commit(session, 2)
    assert asked == set()
    assert pod.place(ObjectKind.REFS, base) not in read


def test_a_parent_that_stands_no_longer_excuses_nothing(pod: Pod) -> None:
    wanted = ids(3)
    parent = pod.backup(wanted)
    trash(pod, parent)
    mark(pod, wanted[0], CopyState.CONDEMNED)
    assert missing(pod, pod.open(), wanted, parent=parent).details["missing"] == [wanted[0].hex()]


def test_a_parent_that_goes_between_check_and_transaction_excuses_nothing(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(3)
    parent = pod.backup(wanted)
    attempt = commit_module.Commits._attempt

    def collected(*arguments: Any) -> Any:
        monkeypatch.setattr(commit_module.Commits, "_attempt", attempt)
        trash(pod, parent)
        # Not logged: the parent alone must be noticed.
        mark(pod, wanted[0], CopyState.CONDEMNED, is_logged=False)
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", collected)
    assert missing(pod, pod.open(), wanted, parent=parent).details["missing"] == [wanted[0].hex()]


def test_a_siblings_snapshot_is_no_parent(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    foreign = served.pod("shop/db-1").backup(wanted)
    mark(pod, wanted[0], CopyState.CONDEMNED)
    assert missing(pod, pod.open(), wanted, parent=foreign).details["missing"]


def test_a_parent_of_other_epochs_excuses_nothing(pod: Pod) -> None:
    wanted = ids(2)
    parent = pod.backup(wanted, epoch_min=1, epoch_new=2)
    found = missing(pod, pod.open(), wanted, parent=parent, epoch_min=2, epoch_new=2)
    assert found.details["missing"] == [one.hex() for one in wanted]


# --- differences


def based(
    pod: Pod, wanted: list[bytes], base: tuple[str, list[bytes]], **changes: Any
) -> SnapshotId:
    session = pod.open()
    fresh = sorted(set(wanted) - set(base[1]))
    if fresh:
        pod.send(fresh, session)
    refs = difference(pod.domain, wanted, base)
    return pod.finish(session, wanted, refs, **changes).snapshot


def test_a_chain_of_differences_is_decoded_to_its_end_and_no_longer_than_allowed(
    served: Served, pod: Pod
) -> None:
    wanted = ids(40)
    now = wanted[:5]
    snapshot = pod.backup(now)
    for step in range(16):
        before = (served.repository.history.get(snapshot).refs, now)
        now = wanted[step % 3 : step + 6]
        snapshot = based(pod, now, before, parent=snapshot)
    found = served.repository.history.get(snapshot)
    assert list(served.repository._references.ids(pod.domain, found.refs_key)) == now
    with pytest.raises(InvalidInput, match="too many"):
        based(pod, now, (found.refs, now))
    pod.finish(pod.open(), now)


def test_only_an_own_standing_snapshot_can_be_a_base(served: Served, pod: Pod) -> None:
    wanted = ids(3)
    own = pod.backup(wanted)
    foreign = served.pod("shop/db-1").backup(wanted)
    theirs = served.repository.history.get(foreign).refs
    mine = served.repository.history.get(own).refs
    never = pod.open().refs
    for ulid in (theirs, never, "01JD0000000000000000000000"):
        with pytest.raises(InvalidInput, match="the base"):
            based(pod, wanted, (ulid, wanted))
    trash(pod, own)
    with pytest.raises(InvalidInput, match="the base"):
        based(pod, wanted, (mine, wanted))


def test_a_difference_to_another_list_than_the_bases_is_refused(served: Served, pod: Pod) -> None:
    wanted = ids(5)
    base = served.repository.history.get(pod.backup(wanted[:3])).refs
    with pytest.raises(InvalidInput):
        based(pod, wanted, (base, wanted[:2]))


def test_a_list_that_is_not_the_signed_one_is_refused(served: Served, pod: Pod) -> None:
    wanted = ids(5)
    base = served.repository.history.get(pod.backup(wanted[:3])).refs
    true = difference(pod.domain, wanted, (base, wanted[:3]))
    strange = sorted([*wanted[:3], *ids(2, "x")])
    other = difference(pod.domain, strange, (base, wanted[:3]))
    mixed = true[:144] + other[144:-32]
    mixed += blake3(mixed).digest()
    session = pod.open()
    pod.send([*wanted, *ids(2, "x")], session)
    with pytest.raises(InvalidInput):
        pod.finish(session, wanted, mixed)


def test_a_base_spoiled_in_the_store_asks_for_a_full_list_and_is_named(
    served: Served, pod: Pod
) -> None:
    wanted = ids(3)
    base = served.repository.history.get(pod.backup(wanted)).refs
    name = pod.place(ObjectKind.REFS, base)
    data = bytearray(served.memory.objects[name])
    data[150] ^= 1
    served.memory.objects[name] = bytes(data)
    for _ in range(2):
        with pytest.raises(MissingChunks) as caught:
            based(pod, ids(4), (base, wanted))
        assert name in caught.value.message
        assert caught.value.details == {"missing": [], "damaged": [], "next": ""}
        served.memory.objects.pop(name, None)


def test_no_parent_is_zero(pod: Pod) -> None:
    snapshot = pod.backup(ids(1), parent=ZERO_HASH)
    assert pod.served.repository.history.get(snapshot).parent == ZERO_HASH
