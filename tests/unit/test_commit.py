"""The commit: what stands afterwards, and on what it has to follow."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_contract.errors import (
    Conflict,
    HistoryRegressed,
    HoldfastError,
    InvalidInput,
    Refused,
)
from holdfast_contract.format.manifest import snapshot_id
from holdfast_server.catalog import snapshots
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository import commit as commit_module
from holdfast_server.repository.journal_records import Commit
from tests.support.commits import records, refused, sent
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, full_refs

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
