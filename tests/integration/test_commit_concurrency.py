"""Many pods at once: every commit stands once, and none waits for a journal object of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import pytest

from holdfast_contract.errors import Conflict
from holdfast_server.catalog import chunks, domains
from holdfast_server.catalog.schema import CopyState
from holdfast_server.catalog.snapshots import Filter
from holdfast_server.repository.commit import Committed
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import Commit, decode_record
from holdfast_server.repository.sessions import Session
from tests.support.samples import ids
from tests.support.uploads import Pod, Served, full_refs, pack_of

PODS = 12
WANTED = ids(30)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    made.domain()
    yield made
    made.stop()


def journal(served: Served) -> list[list[object]]:
    names = sorted(name for name in served.memory.objects if name.startswith("journal/"))
    return [
        [decode_record(body) for body in decode_journal(served.memory.objects[name]).records]
        for name in names
    ]


def test_pods_that_send_the_same_chunks_at_once_all_stand(served: Served) -> None:
    pods = [served.pod(f"shop/db-{number}") for number in range(PODS)]
    start = Barrier(PODS)

    def backup(pod: Pod) -> list[bytes]:
        start.wait(20)
        return [pod.backup(WANTED) for _ in range(3)]

    with ThreadPoolExecutor(PODS) as pool:
        made = [snapshot for found in pool.map(backup, pods) for snapshot in found]
    shown = served.repository.snapshots(Filter())
    assert sorted(made) == sorted(snapshot.id for snapshot in shown)
    assert [snapshot.time_ns for snapshot in shown] == sorted(s.time_ns for s in shown)
    said = [record for records in journal(served) for record in records]
    assert sum(isinstance(record, Commit) for record in said) == 3 * PODS
    key = domains.get(served.catalog, "shop").key
    with served.catalog.read() as tx:
        for copies in chunks.copies(tx, key, WANTED).values():
            assert [copy.state for copy in copies].count(CopyState.LIVE) == 1
    served.restart()
    assert served.repository.refusal == ""


def test_commits_at_once_share_journal_objects(served: Served) -> None:
    pods = [served.pod(f"shop/db-{number}") for number in range(PODS)]
    sessions = [pod.open() for pod in pods]
    pods[0].send(WANTED, sessions[0])
    for pod, session in zip(pods, sessions, strict=True):
        pod.put_refs(session, full_refs(pod.domain, WANTED))
        pod.put_manifest(session, pod.manifest(WANTED))
    before = len(journal(served))
    start = Barrier(PODS)
    # The first put waits until all have written their rows: the rest must fit in one object.
    held: list[str] = []
    never = Event()

    def hold(verb: str, name: str) -> None:
        if verb == "commit" and name.startswith("journal/") and not held:
            held.append(name)
            for _ in range(200):
                never.wait(0.01)
                with served.catalog.read() as tx:
                    waiting = tx.exec_driver_sql("SELECT count(*) FROM outbox").scalar_one()
                if waiting == PODS:
                    return

    served.memory.before = hold

    def commit(number: int) -> Committed:
        start.wait(20)
        return pods[number].commit(sessions[number], 1)

    with ThreadPoolExecutor(PODS) as pool:
        assert len({found.snapshot for found in pool.map(commit, range(PODS))}) == PODS
    assert len(journal(served)) - before == 2


def test_one_commit_asked_many_times_at_once_stands_once(served: Served) -> None:
    pod = served.pod()
    session = pod.open()
    pod.send(WANTED, session)
    pod.put_refs(session, full_refs(pod.domain, WANTED))
    pod.put_manifest(session, pod.manifest(WANTED))
    start = Barrier(8)

    def commit(_: int) -> Committed:
        start.wait(20)
        return pod.commit(session, 1)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(commit, range(8)))) == 1
    assert served.repository.history.count() == 1


def _put(pod: Pod, session: Session, start: Barrier, data: bytes) -> bool:
    start.wait(20)
    try:
        pod.put_pack(session, session.packs[0], data)
    except Conflict:
        return False
    return True


def test_one_name_sent_twice_at_once_keeps_one_of_the_two(served: Served) -> None:
    pod = served.pod()
    for round_number in range(10):
        session = pod.open()
        wanted = ids(3, f"round {round_number}")
        bodies = [pack_of(pod.domain, wanted, salt=salt) for salt in ("a", "b")]
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(partial(_put, pod, session, Barrier(2)), bodies))
        assert sorted(done) == [False, True]
        kept = served.memory.objects[
            next(name for name in served.memory.objects if name.endswith(session.packs[0]))
        ]
        assert kept == bodies[done.index(True)]
        pod.finish(session, wanted)
