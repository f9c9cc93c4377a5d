"""Reports of damage: what the server believes, what heals, and that a liar condemns nothing."""

from __future__ import annotations

import pytest

from holdfast_contract.errors import MissingChunks, NotFound, StoreFailed
from holdfast_contract.ids import ObjectName
from holdfast_server.catalog import chunks, domains, events, liveness
from holdfast_server.catalog.chunks import Copy
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import Damaged, decode_record
from holdfast_server.repository.reading import FetchStatus
from tests.support.fetching import fetched
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, sealed

WANTED = ids(3)


def copies(pod: Pod, chunk_id: bytes = WANTED[0]) -> list[Copy]:
    catalog = pod.served.catalog
    with catalog.read() as tx:
        key = domains.get(catalog, pod.name.domain).key
        return chunks.copies(tx, key, [chunk_id]).get(chunk_id, [])


def place(pod: Pod, copy: Copy) -> ObjectName:
    return pod.place(ObjectKind.PACK, copy.ulid)


def spoil(pod: Pod, copy: Copy) -> None:
    """Flip a bit of a copy in the store."""
    objects = pod.served.memory.objects
    data = bytearray(objects[place(pod, copy)])
    data[copy.offset + 70] ^= 1
    objects[place(pod, copy)] = bytes(data)


def report(
    pod: Pod, copy: Copy, reporter: str = "shop/db-0", *, is_administrator: bool = False
) -> str:
    return pod.served.repository.report_damage(
        pod.name.domain,
        reporter,
        chunk=copy.chunk_id,
        object_name=place(pod, copy),
        offset=copy.offset,
        reason="does not open",
        is_administrator=is_administrator,
    )


def damage_records(served: Served) -> list[Damaged]:
    names = sorted(name for name in served.memory.objects if name.startswith("journal/"))
    found = [
        decode_record(body)
        for name in names
        for body in decode_journal(served.memory.objects[name]).records
    ]
    return [record for record in found if isinstance(record, Damaged)]


def kinds(served: Served) -> list[str]:
    return [event.kind for event in events.listed(served.catalog)]


def have(pod: Pod) -> bool:
    session = pod.open()
    return pod.served.repository.have(pod.name, session.id, WANTED[0], 1) == b"\1"


def test_other_bytes_than_were_stored_are_damaged_at_once(served: Served, pod: Pod) -> None:
    snapshot = pod.backup(WANTED)
    (copy,) = copies(pod)
    spoil(pod, copy)
    assert report(pod, copy) == "damaged"
    assert [each.state for each in copies(pod)] == [CopyState.DAMAGED]
    assert not have(pod)
    (said,) = damage_records(served)
    assert (said.domain, said.chunk, said.object, said.offset) == (
        pod.domain,
        copy.chunk_id,
        copy.ulid,
        copy.offset,
    )
    assert kinds(served) == ["chunk-damaged"]
    assert served.repository.damaged_of([snapshot]) == [WANTED[0]]
    assert served.repository.damaged_count([snapshot]) == 1
    assert served.repository.statistics().damaged_chunks == 1


def left(pod: Pod) -> list[bytes]:
    catalog = pod.served.catalog
    with catalog.read() as tx:
        return liveness.left_since(tx, domains.get(catalog, pod.name.domain).key, 0)


def test_what_is_live_no_longer_is_logged_for_commits_under_way(pod: Pod) -> None:
    session = pod.open()
    pod.send(WANTED, session)
    pod.send(WANTED[1:2], session, salt="spare")
    for chunk_id in WANTED[:2]:
        copy = copies(pod, chunk_id)[0]
        spoil(pod, copy)
        report(pod, copy)
    # The second has a spare that took its place.
    assert left(pod) == WANTED[:1]


def test_what_lies_beside_a_damaged_copy_is_looked_at_too(served: Served, pod: Pod) -> None:
    wanted = ids(9)
    session = pod.open()
    pod.send(wanted[:6], session)
    pod.send(wanted[5:], session)
    snapshot = pod.finish(session, wanted).snapshot
    for chunk_id in (*wanted[:4], wanted[5], wanted[8]):
        spoil(pod, copies(pod, chunk_id)[0])
    assert report(pod, copies(pod, wanted[0])[0]) == "damaged"
    # Not what is sound, nor what lies in another pack; and a sound spare takes its place.
    assert served.repository.damaged_of([snapshot]) == wanted[:4]
    assert [copy.state for copy in copies(pod, wanted[5])] == [CopyState.LIVE]
    assert {said.chunk for said in damage_records(served)} == {*wanted[:4], wanted[5]}
    assert sorted(left(pod)) == wanted[:4]
    assert [event.details["reason"] for event in events.listed(served.catalog)] == [
        "lost",
        "with 3 others in this pack",
    ]
    served.restart()
    assert served.repository.damaged_of([snapshot]) == wanted[:4]


def test_a_lost_pack_of_many_chunks_is_marked_in_few_transactions(served: Served, pod: Pod) -> None:
    wanted = ids(700)
    snapshot = pod.backup(wanted)
    (copy,) = copies(pod, wanted[0])
    before = len([name for name in served.memory.objects if name.startswith("journal/")])
    del served.memory.objects[place(pod, copy)]
    assert report(pod, copy) == "damaged"
    assert served.repository.damaged_count([snapshot]) == 700
    after = len([name for name in served.memory.objects if name.startswith("journal/")])
    assert after - before == 4
    assert len(damage_records(served)) == 700
    assert kinds(served) == ["chunk-damaged"] * 4


def test_the_same_report_again_changes_nothing(served: Served, pod: Pod) -> None:
    pod.backup(WANTED)
    (copy,) = copies(pod)
    spoil(pod, copy)
    assert [report(pod, copy) for _ in range(3)] == ["damaged"] * 3
    assert len(damage_records(served)) == 1
    assert kinds(served) == ["chunk-damaged"]


def test_one_reporter_alone_condemns_no_sound_copy(served: Served, pod: Pod) -> None:
    pod.backup(WANTED)
    (copy,) = copies(pod)
    assert [report(pod, copy) for _ in range(3)] == ["reported"] * 3
    assert have(pod)
    assert damage_records(served) == []
    assert kinds(served) == ["chunk-reported"]


def test_a_second_reporter_or_an_administrator_settles_it(served: Served, pod: Pod) -> None:
    pod.backup(WANTED)
    first, second = copies(pod)[0], copies(pod, WANTED[1])[0]
    assert report(pod, first) == "reported"
    assert report(pod, first, "shop/db-1") == "damaged"
    assert report(pod, second, "token", is_administrator=True) == "damaged"
    assert len(damage_records(served)) == 2


def test_a_store_that_does_not_answer_is_no_damage(served: Served, pod: Pod) -> None:
    pod.backup(WANTED)
    (copy,) = copies(pod)

    def fail(verb: str, name: str) -> None:
        if name.startswith("packs/"):
            raise StoreFailed("no")

    served.memory.before = fail
    assert report(pod, copy) == "reported"
    assert have(pod)


@pytest.mark.parametrize("wrong", ["chunk", "object", "offset", "domain", "kind", "text"])
def test_a_copy_that_does_not_exist_is_not_found(served: Served, pod: Pod, wrong: str) -> None:
    served.domain("attic")
    pod.backup(WANTED)
    (copy,) = copies(pod)
    asked = {"chunk": copy.chunk_id, "object_name": place(pod, copy), "offset": copy.offset}
    domain = "shop"
    match wrong:
        case "chunk":
            asked["chunk"] = noise("none")
        case "object":
            asked["object_name"] = pod.place(ObjectKind.PACK, "01JD0000000000000000000000")
        case "offset":
            asked["offset"] = copy.offset + 1
        case "domain":
            domain = "attic"
        case "kind":
            asked["object_name"] = pod.place(ObjectKind.REFS, copy.ulid)
        case "text":
            asked["object_name"] = "../../etc/passwd"
    with pytest.raises(NotFound):
        served.repository.report_damage(domain, "x", reason="", **asked)  # type: ignore[arg-type]


def test_a_sound_spare_takes_the_place_of_a_damaged_copy(served: Served, pod: Pod) -> None:
    session = pod.open()
    pod.send(WANTED, session)
    pod.send(WANTED, session, salt="spare")
    snapshot = pod.finish(session, WANTED).snapshot
    live, spare = copies(pod)
    spoil(pod, live)
    assert report(pod, live) == "damaged"
    assert [(copy.ulid, copy.state) for copy in copies(pod)] == [(spare.ulid, CopyState.LIVE)]
    assert have(pod)
    assert served.repository.damaged_of([snapshot]) == []
    (answer,) = fetched(served.repository.open_grant("shop", [snapshot]), WANTED[:1])
    assert answer.data == sealed(WANTED[0], salt="spare")
    assert report(pod, live) == "damaged"
    assert len(damage_records(served)) == 1


def test_a_spare_that_is_damaged_itself_heals_nothing(served: Served, pod: Pod) -> None:
    session = pod.open()
    pod.send(WANTED, session)
    pod.send(WANTED, session, salt="spare")
    live, spare = copies(pod)
    spoil(pod, live)
    spoil(pod, spare)
    assert report(pod, live) == "damaged"
    assert not have(pod)
    assert report(pod, spare) == "damaged"
    assert [copy.state for copy in copies(pod)] == [CopyState.DAMAGED]


def test_a_reported_copy_comes_last_and_still_comes(served: Served, pod: Pod) -> None:
    session = pod.open()
    pod.send(WANTED, session)
    pod.send(WANTED, session, salt="spare")
    snapshot = pod.finish(session, WANTED).snapshot
    grant = served.repository.open_grant("shop", [snapshot])
    live, spare = copies(pod)
    report(pod, live)
    (answer,) = fetched(grant, WANTED[:1])
    assert answer.data == sealed(WANTED[0], salt="spare")
    report(pod, spare)
    (answer,) = fetched(grant, WANTED[:1])
    assert answer.data == sealed(WANTED[0])


def test_a_new_upload_heals_every_snapshot(served: Served, pod: Pod) -> None:
    first, second = pod.backup(WANTED), pod.backup(WANTED)
    (copy,) = copies(pod)
    spoil(pod, copy)
    report(pod, copy)
    session = pod.open()
    with pytest.raises(MissingChunks):
        pod.finish(session, WANTED)
    assert served.repository.damaged_of([first, second]) == [WANTED[0]]
    pod.send(WANTED[:1], session, salt="healed")
    assert pod.commit(session, 3)
    assert served.repository.damaged_of([first, second]) == []
    for snapshot in (first, second):
        (answer,) = fetched(served.repository.open_grant("shop", [snapshot]), WANTED[:1])
        assert (answer.status, answer.data) == (
            FetchStatus.HERE,
            sealed(WANTED[0], salt="healed"),
        )


def test_damaged_ids_are_those_of_the_asked_snapshots_in_pages(served: Served, pod: Pod) -> None:
    wanted = ids(8)
    first, second = pod.backup(wanted[:4]), pod.backup(wanted[3:])
    for chunk_id in wanted[1::2]:
        (copy,) = copies(pod, chunk_id)
        spoil(pod, copy)
        report(pod, copy)
    assert served.repository.damaged_of([first]) == [wanted[1], wanted[3]]
    assert served.repository.damaged_of([second]) == wanted[3::2]
    both = [first, second]
    assert served.repository.damaged_of(both, limit=2) == [wanted[1], wanted[3]]
    assert served.repository.damaged_of(both, after=wanted[3]) == [wanted[5], wanted[7]]
    assert served.repository.damaged_count(both) == 4
    assert served.repository.damaged_of([]) == []
    assert served.repository.damaged_of([noise("none")]) == []


def test_damage_survives_a_restart(served: Served, pod: Pod) -> None:
    snapshot = pod.backup(WANTED)
    (copy,) = copies(pod)
    spoil(pod, copy)
    report(pod, copy)
    served.restart()
    assert served.repository.damaged_of([snapshot]) == [WANTED[0]]
