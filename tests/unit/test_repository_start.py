"""The start: catalog and journal agree, are made to agree, or nothing is stored any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from holdfast_contract.errors import HoldfastError, StoreFailed
from holdfast_contract.ids import ClientName, ObjectName
from holdfast_server.catalog import clients, domains, events, outbox, state
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.journal import JournalDiverged
from holdfast_server.repository.journal_object import (
    JournalObject,
    decode_journal,
    encode_journal,
)
from holdfast_server.repository.journal_records import Pin, encode_record
from holdfast_server.repository.names import journal_name
from tests.support.fetching import fetched
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, domain_record, full_refs

WANTED = ids(4)
CLIENT = ClientName("shop/db-0")


@pytest.fixture
def served(empty: Served) -> Served:
    return empty


def saved(served: Served) -> Path:
    """Keep a copy of the catalog as it is now."""
    served.stop()
    copy = served.folder / "copy"
    shutil.copy(served.folder / "catalog.sqlite", copy)
    served.start()
    return copy


def roll_back(served: Served, copy: Path) -> None:
    """Put an older catalog in place and start."""
    served.stop()
    for path in served.folder.glob("catalog.sqlite*"):
        path.unlink()
    shutil.copy(copy, served.folder / "catalog.sqlite")
    served.memory.crash()
    served.start()


def lose_catalog(served: Served) -> None:
    served.stop()
    for path in served.folder.glob("catalog.sqlite*"):
        path.unlink()
    served.memory.crash()
    served.start()


def last_object(served: Served) -> ObjectName:
    return max(name for name in served.memory.objects if name.startswith("journal/"))


def check_refuses(served: Served, why: str) -> None:
    """Nothing is stored, `have` is not answered, and the reason is told."""
    assert why in served.repository.refusal
    for call in (
        lambda: served.repository.create_domain("more", domain_record("more")),
        lambda: served.repository.open_session(CLIENT, "J"),
        lambda: served.repository.have(CLIENT, "S", b"", 1),
    ):
        with pytest.raises(JournalDiverged, match="nothing can be stored"):
            call()
    assert [event.kind for event in events.listed(served.catalog)][-1] == "journal-diverged"
    assert {finding.check: finding.state for finding in served.repository.check()}[
        "journal"
    ] == "fail"


def test_each_start_has_an_epoch_of_its_own(served: Served) -> None:
    with served.catalog.read() as tx:
        first = state.load(tx).leader_epoch
    served.restart()
    with served.catalog.read() as tx:
        assert state.load(tx).leader_epoch == first + 1


def test_a_restart_changes_nothing(served: Served) -> None:
    served.domain()
    snapshot = served.pod().backup(WANTED)
    before = dict(served.memory.objects)
    served.restart()
    assert served.memory.objects == before
    assert served.repository.refusal == ""
    assert served.repository.head(CLIENT).snapshot == snapshot


def test_records_that_wait_are_written_first(served: Served) -> None:
    body = encode_record(Pin(time_ns=1, domain=noise("d", 16), snapshot=noise("s")))
    served.catalog.write(lambda tx: outbox.append(tx, body))
    served.restart()
    assert decode_journal(served.memory.objects[journal_name(2)]).records == [body]


def test_open_sessions_stay_open(served: Served) -> None:
    served.domain()
    pod = served.pod()
    session = pod.open("J")
    pod.send(WANTED, session)
    served.restart()
    assert pod.open("J").id == session.id
    assert pod.finish(session, WANTED).snapshot == served.repository.head(CLIENT).snapshot


# --- the store is another one


def test_a_store_without_the_last_object_is_refused(served: Served) -> None:
    served.domain()
    del served.memory.objects[last_object(served)]
    served.restart()
    check_refuses(served, "does not have journal/")


def test_a_last_object_of_other_bytes_is_refused(served: Served) -> None:
    served.domain()
    name = last_object(served)
    found = decode_journal(served.memory.objects[name])
    other = encode_record(Pin(time_ns=1, domain=noise("d", 16), snapshot=noise("s")))
    served.memory.objects[name] = encode_journal(found._replace(records=[other]))
    served.restart()
    check_refuses(served, "is not what this catalog wrote")


def test_an_empty_store_behind_a_used_catalog_is_refused(served: Served) -> None:
    served.domain()
    served.memory.objects.clear()
    served.restart()
    check_refuses(served, "another store")


def test_after_a_refusal_the_right_store_is_taken_again(served: Served) -> None:
    served.domain()
    kept = dict(served.memory.objects)
    served.memory.objects.clear()
    served.restart()
    assert served.repository.refusal
    served.memory.objects = kept
    served.restart()
    assert served.repository.refusal == ""
    served.pod().backup(WANTED)


# --- the catalog is older than the store


def test_a_lost_catalog_is_replayed_up_to_the_first_commit(served: Served) -> None:
    served.domain()
    served.repository.put_domain_record("shop", domain_record("shop", revision=2))
    pod = served.pod()
    identity = pod.enrol(previous=pod.identity, reason="key lost")
    lose_catalog(served)
    assert served.repository.refusal == ""
    assert served.repository.domain_record("shop") == domain_record("shop", revision=2)
    assert domains.get(served.catalog, "shop").revision == 2
    current = served.repository.current_identity(CLIENT)
    assert current is not None and current.identity == identity
    again = served.pod_of(CLIENT, identity)
    snapshot = again.backup(WANTED)
    served.restart()
    assert served.repository.head(CLIENT).snapshot == snapshot


def test_a_lost_catalog_with_commits_cannot_be_replayed(served: Served) -> None:
    served.domain()
    served.pod().backup(WANTED)
    lose_catalog(served)
    check_refuses(served, "lacks chunks")
    assert clients.get(served.catalog, CLIENT).head_seq == 0


def test_commits_behind_an_older_catalog_are_taken_over_if_it_knows_the_chunks(
    served: Served,
) -> None:
    served.domain()
    pod = served.pod()
    session = pod.open("J")
    pod.send(WANTED, session)
    copy = saved(served)
    first = pod.finish(session, WANTED)
    second = pod.finish(pod.open(), WANTED[1:], parent=first.snapshot)
    shown = served.repository.history.get(second.snapshot)
    roll_back(served, copy)
    assert served.repository.refusal == ""
    assert served.repository.head(CLIENT) == (2, second.snapshot)
    again = served.repository.history.get(second.snapshot)
    keys = {"key": again.key, "manifest_key": again.manifest_key, "refs_key": again.refs_key}
    assert again._asdict() == shown._asdict() | keys
    third = pod.backup(WANTED)
    served.restart()
    assert served.repository.head(CLIENT) == (3, third)


def test_commits_behind_an_older_catalog_that_lacks_their_chunks_stop_everything(
    served: Served,
) -> None:
    served.domain()
    pod = served.pod()
    first = pod.backup(WANTED[:2])
    copy = saved(served)
    pod.backup(WANTED)
    roll_back(served, copy)
    check_refuses(served, "lacks chunks")
    # What the older catalog knows can still be read.
    answers = fetched(served.repository.open_grant("shop", [first]), WANTED[:2])
    assert [answer.status for answer in answers] == [0, 0]


def test_damage_behind_an_older_catalog_is_taken_over(served: Served) -> None:
    served.domain()
    pod = served.pod()
    session = pod.open()
    ulid = pod.send(WANTED, session)
    snapshot = pod.finish(session, WANTED).snapshot
    copy = saved(served)
    name = pod.place(ObjectKind.PACK, ulid)
    whole = served.memory.objects.pop(name)
    fetched(served.repository.open_grant("shop", [snapshot]), WANTED[:2])
    served.memory.objects[name] = whole
    roll_back(served, copy)
    assert served.repository.refusal == ""
    assert served.repository.damaged_of([snapshot]) == WANTED


def pin(number: int) -> bytes:
    return encode_record(Pin(time_ns=number, domain=noise("d", 16), snapshot=noise("s")))


def put_ahead(served: Served, *records: bytes) -> None:
    """Put an object with these records behind the last one that the catalog knows."""
    with served.catalog.read() as tx:
        now = state.load(tx)
    assert now.store_id is not None
    number, first = now.journal_number + 1, now.record_durable + 1
    ahead = JournalObject(now.store_id, number, first, now.journal_hash, list(records))
    served.memory.objects[journal_name(number)] = encode_journal(ahead)


def test_records_half_waiting_and_half_unknown_are_all_taken(served: Served) -> None:
    """An older catalog whose outbox has the first records of an object that has more."""
    copy = saved(served)
    served.domain("attic")
    (made,) = decode_journal(served.memory.objects.pop(last_object(served))).records
    roll_back(served, copy)
    served.catalog.write(lambda tx: outbox.append(tx, pin(1)))
    put_ahead(served, pin(1), made)
    served.restart()
    assert served.repository.refusal == ""
    assert domains.get(served.catalog, "attic").record == 3
    with served.catalog.read() as tx:
        assert outbox.pending(tx, 10) == []


@pytest.mark.parametrize("ahead", [[pin(2)], [pin(2), pin(1)], [pin(1), pin(2)]], ids=len)
def test_what_the_two_disagree_about_stops_everything(served: Served, ahead: list[bytes]) -> None:
    served.catalog.write(lambda tx: outbox.append(tx, pin(1)))
    put_ahead(served, *ahead)
    served.restart()
    # The last case agrees, and then has a record that this version never writes.
    why = "record 3" if ahead[0] == pin(1) else "record 2 of the store's journal is not"
    check_refuses(served, why)


NAMED = [kind for kind in ObjectKind if kind is not ObjectKind.PACK]
"""What journal records name: where packs are, only the catalog's rows say."""


@pytest.mark.parametrize("kind", NAMED)
def test_a_record_whose_object_is_gone_is_not_taken_over(served: Served, kind: ObjectKind) -> None:
    served.domain()
    pod = served.pod()
    session = pod.open("J")
    pod.send(WANTED, session)
    copy = saved(served)
    if kind in (ObjectKind.REFS, ObjectKind.MANIFEST):
        pod.finish(session, WANTED)
        ulid = session.refs if kind is ObjectKind.REFS else session.manifest
        gone = pod.place(kind, ulid)
    elif kind is ObjectKind.DOMAIN:
        served.domain("attic")
        gone = next(
            n
            for n in served.memory.objects
            if n.startswith("domains/") and pod.domain.hex() not in n
        )
    else:
        before = set(served.memory.objects)
        served.pod("shop/db-1")
        gone = next(n for n in set(served.memory.objects) - before if n.startswith("identities/"))
    del served.memory.objects[gone]
    roll_back(served, copy)
    check_refuses(served, "cannot be taken over")


def test_a_start_without_a_working_store_fails(served: Served) -> None:
    def fail(verb: str, name: str) -> None:
        raise StoreFailed("no")

    served.stop()
    served.memory.before = fail
    with pytest.raises(HoldfastError):
        served.start()
    served.memory.before = lambda verb, name: None
    served.stop()
    served.start()
    assert served.repository.refusal == ""


def test_a_commit_that_waited_is_shown_after_the_start(served: Served) -> None:
    served.domain()
    pod: Pod = served.pod()
    session = pod.open()
    pod.send(WANTED, session)
    pod.put_refs(session, full_refs(pod.domain, WANTED))
    pod.put_manifest(session, pod.manifest(WANTED))

    def fail(verb: str, name: str) -> None:
        if name.startswith("journal/") and verb == "begin":
            raise StoreFailed("no")

    served.memory.before = fail
    with pytest.raises(StoreFailed):
        pod.commit(session, 1)
    assert served.repository.history.count() == 0
    served.restart()
    assert served.repository.history.count() == 1
    assert pod.commit(session, 1).snapshot == served.repository.head(CLIENT).snapshot
