"""The commit: what it demands, what it answers, and what it never lets through."""

from __future__ import annotations

from typing import Any

import pytest
from blake3 import blake3

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_contract.errors import (
    Conflict,
    Damaged,
    HistoryRegressed,
    HoldfastError,
    InvalidInput,
    MissingChunks,
    NotFound,
    Refused,
)
from holdfast_contract.format.manifest import snapshot_id
from holdfast_contract.ids import ZERO_HASH, SnapshotId
from holdfast_server.catalog import chunks, clients, domains, liveness, snapshots
from holdfast_server.catalog.schema import CopyState, ObjectKind, SnapshotState
from holdfast_server.catalog.schema import snapshots as snapshots_table
from holdfast_server.repository import commit as commit_module
from holdfast_server.repository import sessions as sessions_module
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import Commit, JournalRecord, decode_record
from holdfast_server.repository.sessions import Session
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, difference, full_refs


def records(served: Served) -> list[JournalRecord]:
    names = sorted(name for name in served.memory.objects if name.startswith("journal/"))
    return [
        decode_record(body)
        for name in names
        for body in decode_journal(served.memory.objects[name]).records
    ]


def mark(pod: Pod, chunk_id: bytes, after: CopyState, *, is_logged: bool = True) -> None:
    """Let the live copy of a chunk become something else, as a scrub or a collection would."""
    catalog = pod.served.catalog
    key = domains.get(catalog, pod.name.domain).key

    def work(tx: Any) -> None:
        copy = chunks.copies(tx, key, [chunk_id])[chunk_id][0]
        assert chunks.set_state(tx, key, copy, before=[CopyState.LIVE], after=after)
        if is_logged:
            liveness.log_left(tx, key, [chunk_id])

    catalog.write(work)


def sent(pod: Pod, wanted: list[bytes]) -> Session:
    session = pod.open()
    pod.send(wanted, session)
    return session


# --- what stands afterwards


def test_a_snapshot_is_in_catalog_store_and_journal(served: Served, pod: Pod) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    done = pod.finish(session, wanted, tags=("t",))
    said = records(served)[-1]
    assert said == Commit(
        time_ns=done.time_ns,
        domain=pod.domain,
        client=str(pod.name),
        snapshot=done.snapshot,
        seq=1,
        manifest=session.manifest,
        refs=session.refs,
    )
    manifest = served.memory.objects[pod.place(ObjectKind.MANIFEST, session.manifest)]
    assert snapshot_id(manifest) == done.snapshot
    found = served.repository.history.get(done.snapshot)
    assert (found.client, found.seq, found.time_ns, found.tags, found.chunks) == (
        pod.name,
        1,
        done.time_ns,
        ["t"],
        3,
    )
    assert served.repository.head(pod.name) == (1, done.snapshot)


def test_the_same_commit_again_gives_the_same_answer(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    session = sent(pod, wanted)
    first = pod.finish(session, wanted)
    count = len(records(served))
    assert pod.commit(session, 1) == first
    pod.backup(wanted)
    served.repository.close_session(f"{pod.name}-1")
    assert pod.commit(session, 1) == first
    served.restart()
    assert pod.commit(session, 1) == first
    assert len(records(served)) == count + 1


def test_the_same_manifest_under_another_name_is_the_same_snapshot(
    served: Served, pod: Pod
) -> None:
    wanted = ids(2)
    session = pod.open("J")
    pod.send(wanted, session)
    manifest = pod.manifest(wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, manifest)
    first = pod.commit(session, 1)
    again = pod.open("J")
    pod.put_refs(again, full_refs(pod.domain, wanted))
    pod.put_manifest(again, manifest)
    assert pod.commit(again, 1) == first
    assert served.repository.history.count() == 1


def test_an_empty_snapshot_stands(pod: Pod) -> None:
    assert pod.finish(pod.open(), []).snapshot == pod.served.repository.head(pod.name).snapshot


def test_the_receive_time_never_goes_back(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    first = pod.finish(sent(pod, wanted), wanted)
    served.clock.now -= 10**15
    second = pod.finish(pod.open(), wanted)
    assert second.time_ns >= first.time_ns


# --- history


def refused(pod: Pod, wanted: list[bytes], **changes: Any) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        pod.finish(sent(pod, wanted), wanted, **changes)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prev": noise("other")}, Conflict),
        ({"prev": noise("other"), "known_hash": noise("other")}, HistoryRegressed),
        ({"prev": noise("other"), "known_seq": 5}, HistoryRegressed),
    ],
)
def test_a_manifest_that_does_not_follow_on_the_head_is_refused(
    pod: Pod, changes: dict[str, object], error: type[HoldfastError]
) -> None:
    head = pod.backup(ids(1))
    found = refused(pod, ids(1), **changes)
    assert type(found) is error
    assert (found.details["head_seq"], found.details["head"]) == (1, head.hex())
    assert pod.served.repository.head(pod.name).snapshot == head


def test_seq_is_one_more_than_the_heads_and_that_of_the_request(served: Served, pod: Pod) -> None:
    head = pod.backup(ids(1))
    for seq in (2, 3):
        session = pod.open()
        pod.put_refs(session, full_refs(pod.domain, ids(1)))
        pod.put_manifest(session, pod.manifest(ids(1), seq=3, prev=head))
        with pytest.raises(InvalidInput if seq == 2 else Conflict):
            pod.commit(session, seq)


def test_of_two_commits_on_one_head_only_one_stands(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    first, second = sent(pod, wanted), pod.open()
    for session, tag in ((first, "a"), (second, "b")):
        pod.put_refs(session, full_refs(pod.domain, wanted))
        pod.put_manifest(session, pod.manifest(wanted, tags=(tag,)))
    pod.commit(first, 1)
    with pytest.raises(Conflict):
        pod.commit(second, 1)
    assert served.repository.history.count() == 1


def test_a_head_that_moves_between_check_and_transaction_is_seen(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(1)
    late = sent(pod, wanted)
    pod.put_refs(late, full_refs(pod.domain, wanted))
    pod.put_manifest(late, pod.manifest(wanted))
    attempt = commit_module.Commits._attempt

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(commit_module.Commits, "_attempt", attempt)
        pod.backup(wanted, tags=("faster",))
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", overtaken)
    with pytest.raises(Conflict):
        pod.commit(late, 1)
    assert served.repository.history.count() == 1


# --- who signs what


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"client": "shop/db-1"}, InvalidInput),
        ({"domain": noise("other", 16)}, InvalidInput),
        ({"identity": noise("other")}, Refused),
        ({"lineage": noise("other", 16)}, Refused),
        ({"refs_count": 9}, InvalidInput),
        ({"refs_set": noise("other")}, InvalidInput),
        ({"epoch_new": 3}, InvalidInput),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_a_manifest_that_contradicts_the_catalog_is_refused(
    pod: Pod, changes: dict[str, object], error: type[HoldfastError]
) -> None:
    if "domain" in changes:
        session = sent(pod, ids(1))
        pod.put_refs(session, full_refs(pod.domain, ids(1)))
        manifest = pod.manifest(ids(1))
        pod.put_manifest(session, manifest[:30] + b"?" + manifest[31:])
        with pytest.raises(Refused):
            pod.commit(session, 1)
        return
    assert type(refused(pod, ids(1), **changes)) is error
    assert pod.served.repository.history.count() == 0


def test_a_siblings_signature_is_refused(served: Served, pod: Pod) -> None:
    pod.identity_key = IdentityKey(noise("another sign"), noise("another box"))
    assert type(refused(pod, ids(1))) is Refused


def test_every_flipped_bit_of_a_manifest_is_refused(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "LISTS_MAX", 1000)
    wanted = ids(1)
    manifest = pod.manifest(wanted)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    for at in range(0, len(manifest) * 8, 53):
        changed = bytearray(manifest)
        changed[at // 8] ^= 1 << at % 8
        (name,) = served.repository.more_names(pod.name, session.id, "manifests", 1)
        pod.put_manifest(session, bytes(changed), name)
        with pytest.raises(HoldfastError):
            served.repository.commit(pod.name, session.id, manifest=name, refs=session.refs, seq=1)
    pod.put_manifest(session, manifest)
    assert pod.commit(session, 1).snapshot == snapshot_id(manifest)


def test_a_manifest_spoiled_in_the_store_is_damage(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, pod.manifest(wanted))
    served.memory.objects[pod.place(ObjectKind.MANIFEST, session.manifest)] += b"x"
    with pytest.raises(Damaged):
        pod.commit(session, 1)


def test_objects_that_were_not_sent_cannot_be_committed(served: Served, pod: Pod) -> None:
    session = sent(pod, ids(1))
    with pytest.raises(Conflict):
        pod.commit(session, 1)
    pod.put_manifest(session, pod.manifest(ids(1)))
    with pytest.raises(Conflict):
        pod.commit(session, 1)
    with pytest.raises(NotFound):
        served.repository.commit(
            pod.name, session.id, manifest=session.refs, refs=session.refs, seq=1
        )


def test_a_client_revoked_meanwhile_commits_nothing(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = commit_module.Commits._attempt

    def revoked(*arguments: Any) -> Any:
        clients.revoke(served.catalog, pod.name)
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", revoked)
    assert type(refused(pod, ids(1))) is Refused


def test_a_new_identity_ends_what_the_old_one_signed(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, pod.manifest(wanted))
    pod.enrol(previous=pod.identity, reason="key lost")
    with pytest.raises(Refused):
        pod.commit(session, 1)


# --- what must be there


def from_hex(texts: object) -> list[bytes]:
    assert isinstance(texts, list)
    return [bytes.fromhex(text) for text in texts]


def missing(pod: Pod, session: Session, wanted: list[bytes], **changes: Any) -> MissingChunks:
    with pytest.raises(MissingChunks) as caught:
        pod.finish(session, wanted, **changes)
    return caught.value


def test_missing_chunks_are_named_and_the_next_round_stands(served: Served, pod: Pod) -> None:
    wanted = ids(4)
    session = pod.open()
    pod.send(wanted[1:3], session)
    found = missing(pod, session, wanted)
    assert found.details == {
        "missing": [wanted[0].hex(), wanted[3].hex()],
        "damaged": [],
        "next": "",
    }
    assert served.repository.missing_page(pod.name, session.id) == (
        [wanted[0], wanted[3]],
        [],
        b"",
    )
    assert served.repository.history.count() == 0
    pod.send([wanted[0], wanted[3]], session)
    refs, manifest = (
        served.repository.more_names(pod.name, session.id, kind, 1)[0]
        for kind in ("refs", "manifests")
    )
    pod.put_refs(session, full_refs(pod.domain, wanted), refs)
    pod.put_manifest(session, pod.manifest(wanted), manifest)
    done = served.repository.commit(pod.name, session.id, manifest=manifest, refs=refs, seq=1)
    assert served.repository.head(pod.name).snapshot == done.snapshot


def test_the_refused_commit_itself_stands_once_the_chunks_are_there(pod: Pod) -> None:
    session = pod.open()
    missing(pod, session, ids(2))
    pod.send(ids(2), session)
    assert pod.commit(session, 1).snapshot == pod.served.repository.head(pod.name).snapshot


def test_many_missing_chunks_come_in_pages(served: Served, pod: Pod) -> None:
    wanted = ids(2300)
    session = pod.open()
    pod.send(wanted[::7], session)
    for chunk_id in wanted[::14]:
        mark(pod, chunk_id, CopyState.DAMAGED)
    details = missing(pod, session, wanted).details
    gone, bad = (from_hex(details[name]) for name in ("missing", "damaged"))
    after = bytes.fromhex(str(details["next"]))
    pages = 1
    while after:
        page = served.repository.missing_page(pod.name, session.id, after)
        assert len(page.missing) + len(page.damaged) <= 1000
        gone, bad, after, pages = gone + page.missing, bad + page.damaged, page.next, pages + 1
    assert bad == wanted[::14]
    assert gone == [one for index, one in enumerate(wanted) if index % 7]
    assert pages == 3


def test_another_domains_chunks_are_missing(served: Served, pod: Pod) -> None:
    served.domain("attic")
    wanted = ids(2)
    served.pod("attic/db-0").backup(wanted)
    found = missing(pod, pod.open(), wanted)
    assert found.details["missing"] == [one.hex() for one in wanted]


def test_a_siblings_chunks_are_shared(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    served.pod("shop/db-1").backup(wanted)
    pod.finish(pod.open(), wanted)


@pytest.mark.parametrize("state", [CopyState.CONDEMNED, CopyState.DELETING])
def test_condemned_chunks_are_missing(pod: Pod, state: CopyState) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    mark(pod, wanted[1], state)
    assert missing(pod, session, wanted).details["missing"] == [wanted[1].hex()]


def test_copies_of_epochs_that_its_readers_lack_are_missing(served: Served, pod: Pod) -> None:
    one, two = ids(2)
    session = pod.open()
    pod.send([one], session, epoch=1)
    pod.send([two], session, epoch=2)
    found = missing(pod, session, [one, two], epoch_min=2, epoch_new=2)
    assert found.details["missing"] == [one.hex()]
    pod.send([one], session, epoch=2, salt="again")
    assert pod.commit(session, 1)


# --- damage


def test_a_snapshot_with_damage_stands_only_as_incomplete(served: Served, pod: Pod) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    mark(pod, wanted[2], CopyState.DAMAGED)
    found = missing(pod, session, wanted)
    assert (found.details["missing"], found.details["damaged"]) == ([], [wanted[2].hex()])
    for result in ("skips", "complete"):
        assert missing(pod, pod.open(), wanted, result=result).details["damaged"]
    done = pod.finish(pod.open(), wanted, result="incomplete")
    assert served.repository.history.get(done.snapshot).result == "incomplete"


def test_incomplete_does_not_excuse_what_is_missing(pod: Pod) -> None:
    wanted = ids(3)
    session = pod.open()
    pod.send(wanted[:2], session)
    mark(pod, wanted[0], CopyState.DAMAGED)
    found = missing(pod, session, wanted, result="incomplete")
    assert found.details["missing"] == [wanted[2].hex()]


def test_what_is_shared_with_the_parent_may_still_be_damaged(pod: Pod) -> None:
    wanted = ids(4)
    parent = pod.backup(wanted)
    mark(pod, wanted[1], CopyState.DAMAGED)
    found = missing(pod, pod.open(), wanted, parent=parent)
    assert found.details["damaged"] == [wanted[1].hex()]


def test_damage_that_was_healed_is_no_obstacle(pod: Pod) -> None:
    wanted = ids(2)
    session = sent(pod, wanted)
    mark(pod, wanted[0], CopyState.DAMAGED)
    pod.send([wanted[0]], session, salt="again")
    pod.finish(session, wanted)


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


# --- what leaves between check and transaction


@pytest.mark.parametrize("state", [CopyState.CONDEMNED, CopyState.DAMAGED])
def test_what_stops_being_live_between_check_and_transaction_is_seen(
    pod: Pod, monkeypatch: pytest.MonkeyPatch, state: CopyState
) -> None:
    wanted = ids(3)
    session = sent(pod, wanted)
    attempt = commit_module.Commits._attempt

    def left(*arguments: Any) -> Any:
        monkeypatch.setattr(commit_module.Commits, "_attempt", attempt)
        mark(pod, wanted[1], state)
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", left)
    details = missing(pod, session, wanted).details
    key = "missing" if state is CopyState.CONDEMNED else "damaged"
    assert details[key] == [wanted[1].hex()]


def test_what_leaves_elsewhere_is_no_obstacle(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ids(3)
    other = ids(3, "other")
    served.pod("shop/db-1").backup(other)
    session = sent(pod, wanted)
    attempt = commit_module.Commits._attempt
    left = iter(other)

    def moving(*arguments: Any) -> Any:
        for chunk_id in left:
            mark(pod, chunk_id, CopyState.DAMAGED)
            break
        return attempt(*arguments)

    monkeypatch.setattr(commit_module.Commits, "_attempt", moving)
    pod.finish(session, wanted)


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


def test_snapshots_that_wait_for_the_journal_are_not_shown(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    first = pod.backup(wanted)
    session = pod.open()

    def full(verb: str, name: str) -> None:
        if name.startswith("journal/"):
            raise Refused("no")

    pod.put_refs(session, full_refs(pod.domain, wanted))
    pod.put_manifest(session, pod.manifest(wanted))
    served.memory.before = full
    with pytest.raises(Refused):
        pod.commit(session, 2)
    with served.catalog.read() as tx:
        pending = snapshots.newest(tx, pod.name)
    assert pending is not None and pending.id == first
    assert served.repository.history.count() == 1
    served.memory.before = lambda verb, name: None
    assert served.repository.head(pod.name).seq == 2
    assert served.repository.history.count() == 2
    assert pod.commit(session, 2).snapshot == served.repository.head(pod.name).snapshot


def test_a_commit_finishes_the_head_that_waits_before_it_follows_on_it(
    served: Served, pod: Pod
) -> None:
    wanted = ids(1)
    session = sent(pod, wanted)
    pod.put_refs(session, full_refs(pod.domain, wanted))
    manifest = pod.manifest(wanted)
    pod.put_manifest(session, manifest)
    prev = snapshot_id(manifest)
    second = pod.manifest(wanted, seq=2, prev=prev, known_seq=1, known_hash=prev)

    def full(verb: str, name: str) -> None:
        if name.startswith("journal/"):
            raise Refused("no")

    served.memory.before = full
    with pytest.raises(Refused):
        pod.commit(session, 1)
    follow = pod.open()
    pod.put_refs(follow, full_refs(pod.domain, wanted))
    pod.put_manifest(follow, second)
    with pytest.raises(Refused):
        pod.commit(follow, 2)
    with served.catalog.read() as tx:
        assert snapshots.committed(tx, snapshot_id(second)) is None
    served.memory.before = lambda verb, name: None
    assert pod.commit(follow, 2).snapshot == snapshot_id(second)
    assert [record.seq for record in records(served) if isinstance(record, Commit)] == [1, 2]


def test_no_parent_is_zero(pod: Pod) -> None:
    snapshot = pod.backup(ids(1), parent=ZERO_HASH)
    assert pod.served.repository.history.get(snapshot).parent == ZERO_HASH
