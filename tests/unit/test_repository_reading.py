"""What a grant gives out, from which copy, and what it does when one cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast_contract.errors import InvalidInput, NotFound
from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import FETCH_IDS_MAX
from holdfast_server.catalog import events
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository import references
from holdfast_server.repository.reading import FetchStatus, Grant
from tests.support.fetching import Fetched
from tests.support.fetching import fetched as read
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, sealed

HERE, ABSENT, DAMAGED = FetchStatus


def grant(pod: Pod, *snapshots: bytes, session: str | None = None) -> Grant:
    return pod.served.repository.open_grant(pod.name.domain, snapshots, session)


def fetched(grant: Grant, wanted: Sequence[bytes]) -> list[Fetched]:
    found = read(grant, wanted)
    assert [answer.chunk_id for answer in found] == list(wanted)
    return found


def statuses(grant: Grant, wanted: Sequence[bytes]) -> list[FetchStatus]:
    return [answer.status for answer in fetched(grant, wanted)]


def reads(served: Served) -> list[str]:
    """Return a list that fills with the packs that are read."""
    seen: list[str] = []
    served.memory.before = lambda verb, name: (
        seen.append(name) if verb == "get" and name.startswith("packs/") else None
    )
    return seen


# --- what is granted


def test_only_chunks_of_the_granted_snapshots_exist(served: Served, pod: Pod) -> None:
    wanted = ids(4)
    first, second = pod.backup(wanted[:2]), pod.backup(wanted[2:])
    sibling = served.pod("shop/db-1")
    sibling.backup(ids(2, "sibling"))
    asked = [*wanted, *ids(2, "sibling"), noise("nothing")]
    assert statuses(grant(pod, first), asked) == [HERE] * 2 + [ABSENT] * 5
    assert statuses(grant(pod, first, second), asked) == [HERE] * 4 + [ABSENT] * 3
    assert statuses(grant(pod), asked) == [ABSENT] * 7


def test_not_granted_and_not_there_look_alike(served: Served, pod: Pod) -> None:
    snapshot = pod.backup(ids(1))
    served.pod("shop/db-1").backup(ids(1, "sibling"))
    foreign, nothing = fetched(grant(pod, snapshot), [*ids(1, "sibling"), noise("nothing")])
    assert foreign[1:] == nothing[1:] == (ABSENT, "", 0, b"")


def test_a_snapshot_of_another_domain_or_of_none_is_not_granted(served: Served, pod: Pod) -> None:
    snapshot = pod.backup(ids(1))
    served.domain("attic")
    other = served.pod("attic/db-0")
    for asking, asked in ((other, snapshot), (pod, noise("none"))):
        with pytest.raises(NotFound):
            grant(asking, asked)


def test_an_open_session_reads_what_it_sent_and_what_have_confirmed(
    served: Served, pod: Pod
) -> None:
    sibling = served.pod("shop/db-1")
    theirs, mine = ids(2, "theirs"), ids(2, "mine")
    sibling.send(theirs, sibling.open())
    session = pod.open("J")
    pod.send(mine, session)
    served.repository.have(pod.name, session.id, theirs[0], 1)
    asked = [*mine, *theirs]
    granted = grant(pod, session=session.id)
    assert statuses(granted, asked) == [HERE, HERE, HERE, ABSENT]
    served.repository.close_session("J")
    assert statuses(granted, asked) == [ABSENT] * 4


def test_a_session_of_another_domain_grants_nothing(served: Served, pod: Pod) -> None:
    served.domain("attic")
    other = served.pod("attic/db-0")
    session = other.open()
    other.send(ids(1), session)
    pod.send(ids(1), pod.open())
    assert statuses(grant(pod, session=session.id), ids(1)) == [ABSENT]


def test_a_copy_of_an_epoch_outside_of_the_manifests_is_not_served(pod: Pod) -> None:
    one, two = ids(2)
    session = pod.open()
    pod.send([one, two], session, epoch=1)
    pod.send([one], session, epoch=2, salt="newer")
    old = pod.finish(session, [one, two], epoch_min=1, epoch_new=1).snapshot
    new = pod.finish(pod.open(), [one], epoch_min=2, epoch_new=2).snapshot
    (answer,) = fetched(grant(pod, old), [one])
    assert answer.data == sealed(one, epoch=1)
    (answer,) = fetched(grant(pod, new), [one])
    assert answer.data == sealed(one, epoch=2, salt="newer")


@pytest.mark.parametrize("asked", [[b"short"], [noise("x")] * (FETCH_IDS_MAX + 1)])
def test_too_many_ids_or_what_is_none_are_refused(pod: Pod, asked: list[bytes]) -> None:
    with pytest.raises(InvalidInput):
        grant(pod).places(asked)


def test_nothing_asked_is_nothing_answered(pod: Pod) -> None:
    assert fetched(grant(pod, pod.backup(ids(1))), []) == []


# --- how it is read


def test_chunks_that_lie_side_by_side_are_read_at_once(served: Served, pod: Pod) -> None:
    wanted = ids(200)
    snapshot = pod.backup(wanted)
    seen = reads(served)
    answers = fetched(grant(pod, snapshot), wanted)
    assert [bytes(answer.data) for answer in answers] == [sealed(one) for one in wanted]
    assert len(seen) == 1
    data = served.memory.objects
    for answer in answers:
        held = data[ObjectName(answer.object)][answer.offset :][: len(answer.data)]
        assert held == answer.data


def test_any_order_and_repetition_is_answered_in_its_order(pod: Pod) -> None:
    wanted = ids(6)
    snapshot = pod.backup(wanted)
    asked = [wanted[5], wanted[0], wanted[0], noise("none"), wanted[1], wanted[3]]
    answers = fetched(grant(pod, snapshot), asked)
    assert [bytes(answer.data) for answer in answers if answer.status is HERE] == [
        sealed(one) for one in asked if one in wanted
    ]


def test_lists_are_kept_for_the_next_question(served: Served, pod: Pod) -> None:
    granted = grant(pod, pod.backup(ids(3)))
    fetched(granted, ids(3))
    seen: list[str] = []
    served.memory.before = lambda verb, name: seen.append(name)
    fetched(granted, ids(3))
    assert not any(name.startswith("refs/") for name in seen)


def test_lists_in_memory_are_bounded(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "INDEX_BYTES_MAX", 32 * 7)
    snapshots = [pod.backup(ids(3, f"{n}")) for n in range(4)]
    assert statuses(grant(pod, *snapshots), ids(3, "0")) == [HERE] * 3
    assert len(served.repository._references._indexes) == 2


# --- what cannot be read


def kinds(served: Served) -> list[str]:
    return [event.kind for event in events.listed(served.catalog)]


@pytest.mark.parametrize("loss", ["gone", "cut"])
def test_a_lost_pack_loses_its_chunks_only_and_they_are_named(
    served: Served, pod: Pod, loss: str
) -> None:
    wanted = ids(6)
    session = pod.open()
    ulid = pod.send(wanted[:3], session)
    pod.send(wanted[3:], session)
    snapshot = pod.finish(session, wanted).snapshot
    name = pod.place(ObjectKind.PACK, ulid)
    if loss == "gone":
        del served.memory.objects[name]
    else:
        served.memory.objects[name] = served.memory.objects[name][:100]
    answers = fetched(grant(pod, snapshot), wanted)
    assert [answer.status for answer in answers] == [DAMAGED] * 3 + [HERE] * 3
    assert {answer.object for answer in answers[:3]} == {name}
    assert len({answer.offset for answer in answers[:3]}) == 3
    # One for what was read, and one for all that was found beside it.
    assert kinds(served) == ["chunk-damaged"] * 2
    assert statuses(grant(pod, snapshot), wanted) == [DAMAGED] * 3 + [HERE] * 3
    assert served.repository.damaged_of([snapshot]) == wanted[:3]


def test_a_pack_cut_in_the_middle_keeps_what_lies_before_the_cut(served: Served, pod: Pod) -> None:
    wanted = ids(6)
    snapshot = pod.backup(wanted)
    answers = fetched(grant(pod, snapshot), wanted)
    name, end = ObjectName(answers[2].object), answers[2].offset + len(answers[2].data)
    served.memory.objects[name] = served.memory.objects[name][: end + 50]
    for _ in range(2):
        assert statuses(grant(pod, snapshot), wanted) == [HERE] * 3 + [DAMAGED] * 3
    # One for what was read, and one for all that was found beside it.
    assert kinds(served) == ["chunk-damaged"] * 2


def test_another_copy_comes_when_the_first_is_lost(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    session = pod.open()
    first = pod.send(wanted, session)
    second = pod.send(wanted, session, salt="second")
    snapshot = pod.finish(session, wanted).snapshot
    del served.memory.objects[pod.place(ObjectKind.PACK, first)]
    answers = fetched(grant(pod, snapshot), wanted)
    assert [bytes(answer.data) for answer in answers] == [
        sealed(one, salt="second") for one in wanted
    ]
    assert {answer.object for answer in answers} == {pod.place(ObjectKind.PACK, second)}
    assert served.repository.damaged_of([snapshot]) == []
    assert served.repository.statistics().damaged_chunks == 0


def test_reading_works_although_nothing_can_be_stored(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    session = pod.open()
    ulid = pod.send(wanted[:1], session)
    pod.send(wanted[1:], session)
    snapshot = pod.finish(session, wanted).snapshot
    del served.memory.objects[pod.place(ObjectKind.PACK, ulid)]
    served.repository._parts.refusal = "why"
    assert statuses(grant(pod, snapshot), wanted) == [DAMAGED, HERE]
    assert kinds(served) == []


def test_a_full_store_is_not_in_the_way_of_a_reader(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    session = pod.open()
    ulid = pod.send(wanted[:1], session)
    pod.send(wanted[1:], session)
    snapshot = pod.finish(session, wanted).snapshot
    del served.memory.objects[pod.place(ObjectKind.PACK, ulid)]
    served.memory.capacity = 0
    assert statuses(grant(pod, snapshot), wanted) == [DAMAGED, HERE]
