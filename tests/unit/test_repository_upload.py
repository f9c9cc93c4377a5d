"""Sessions, `have`, packs, refs and manifests: what a client may send, and what it never sees."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from holdfast_contract.errors import (
    Conflict,
    HoldfastError,
    InvalidInput,
    NoSpace,
    NotFound,
    Refused,
    StoreFailed,
    TooLarge,
    TooMany,
    UnsupportedVersion,
)
from holdfast_contract.limits import HAVE_IDS_MAX, MANIFEST_BYTES_MAX, PACK_BYTES_MAX
from holdfast_server.catalog import clients, objects
from holdfast_server.catalog.schema import ObjectKind, ObjectState
from holdfast_server.repository import packs, sessions
from holdfast_server.repository.journal import JournalDiverged
from holdfast_server.repository.reading import FetchStatus
from tests.support.fetching import fetched
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, full_refs, pack_of, sealed

NOWHERE = "01JD0000000000000000000000"


def test_what_was_sent_and_committed_is_read_back(served: Served, pod: Pod) -> None:
    wanted = ids(5)
    snapshot = pod.backup(wanted)
    got = fetched(served.repository.open_grant("shop", [snapshot]), wanted)
    assert [answer.chunk_id for answer in got] == wanted
    assert {answer.status for answer in got} == {FetchStatus.HERE}
    assert [bytes(answer.data) for answer in got] == [sealed(one) for one in wanted]


# --- sessions and names


def test_a_job_has_one_session(pod: Pod) -> None:
    first, again, other = pod.open("J"), pod.open("J"), pod.open("K")
    assert first.id == again.id != other.id


def test_names_are_registered_before_they_are_told(served: Served, pod: Pod) -> None:
    session = pod.open()
    more = served.repository.more_names(pod.name, session.id, "manifests", 2)
    with served.catalog.read() as tx:
        rows = {
            name: objects.find(tx, name)
            for name in (*session.packs, session.refs, session.manifest, *more)
        }
    kinds = [row.kind for row in rows.values() if row is not None]
    assert kinds == [
        *[ObjectKind.PACK] * len(session.packs),
        ObjectKind.REFS,
        *[ObjectKind.MANIFEST] * 3,
    ]
    assert len(rows) == len(session.packs) + 4
    assert {row.state for row in rows.values() if row} == {ObjectState.REGISTERED}


@pytest.mark.parametrize(("kind", "count"), [("packs", 0), ("packs", 65), ("domains", 1), ("x", 1)])
def test_names_of_another_number_or_kind_are_refused(
    served: Served, pod: Pod, kind: str, count: int
) -> None:
    with pytest.raises(InvalidInput):
        served.repository.more_names(pod.name, pod.open().id, kind, count)


def test_unused_names_of_a_session_are_limited(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "UNUSED_NAMES_MAX", 10)
    session = pod.open()
    served.repository.more_names(pod.name, session.id, "packs", 4)
    with pytest.raises(TooMany):
        served.repository.more_names(pod.name, session.id, "packs", 1)
    pod.put_pack(session, session.packs[0], pack_of(pod.domain, ids(1)))
    served.repository.more_names(pod.name, session.id, "packs", 1)


def every_call(
    pod: Pod, session: str, names: tuple[str, str, str]
) -> list[tuple[type[HoldfastError], str]]:
    """Return what every call of an upload raises."""
    repository = pod.served.repository
    pack, refs, manifest = names
    found = []
    calls: list[Callable[[], object]] = [
        lambda: repository.more_names(pod.name, session, "packs", 1),
        lambda: repository.have(pod.name, session, noise("x"), 1),
        lambda: repository.begin_pack(pod.name, session, pack, 500),
        lambda: repository.put_refs(pod.name, session, refs, io.BytesIO(), 0),
        lambda: repository.put_manifest(pod.name, session, manifest, b""),
        lambda: repository.commit(pod.name, session, manifest=manifest, refs=refs, seq=1),
        lambda: repository.missing_page(pod.name, session),
    ]
    for call in calls:
        with pytest.raises(HoldfastError) as caught:
            call()
        found.append((type(caught.value), caught.value.message))
    return found


def test_a_siblings_session_and_no_session_answer_alike(served: Served, pod: Pod) -> None:
    served.domain("attic")
    sibling, stranger = served.pod("shop/db-1"), served.pod("attic/db-0")
    theirs = pod.open()
    names = (theirs.packs[0], theirs.refs, theirs.manifest)
    for other in (sibling, stranger):
        foreign = every_call(other, theirs.id, names)
        absent = every_call(other, NOWHERE, (NOWHERE, NOWHERE, NOWHERE))
        assert [(kind, message.replace(theirs.id, NOWHERE)) for kind, message in foreign] == absent
        assert {kind for kind, _ in absent} == {NotFound}


def test_a_siblings_names_are_of_no_use_in_the_own_session(served: Served, pod: Pod) -> None:
    sibling = served.pod("shop/db-1")
    own, theirs = sibling.open(), pod.open()
    repository = served.repository
    with pytest.raises(NotFound):
        repository.begin_pack(sibling.name, own.id, theirs.packs[0], 500)
    with pytest.raises(NotFound):
        repository.put_refs(
            sibling.name, own.id, theirs.refs, io.BytesIO(full_refs(pod.domain, [])), 176
        )
    with pytest.raises(NotFound):
        repository.put_manifest(sibling.name, own.id, theirs.manifest, b"x")
    with pytest.raises(NotFound):
        repository.begin_pack(pod.name, theirs.id, theirs.refs, 500)


def test_a_closed_session_takes_nothing(served: Served, pod: Pod) -> None:
    session = pod.open("J")
    served.repository.close_session("J")
    served.repository.close_session("J")
    names = (session.packs[0], session.refs, session.manifest)
    *others, commit, missing = [kind for kind, _ in every_call(pod, session.id, names)]
    # A repeated commit must find its snapshot after the end of the job.
    assert (set(others), commit, missing) == ({NotFound}, Conflict, NotFound)
    with pytest.raises(NotFound):
        pod.open("J")


def test_the_job_of_another_client_has_no_session(served: Served, pod: Pod) -> None:
    pod.open("J")
    with pytest.raises(NotFound):
        served.pod("shop/db-1").open("J")


def test_a_revoked_client_sends_nothing(served: Served, pod: Pod) -> None:
    session = pod.open()
    clients.revoke(served.catalog, pod.name)
    with pytest.raises(Refused):
        pod.open()
    with pytest.raises(Refused):
        served.repository.have(pod.name, session.id, noise("x"), 1)
    with pytest.raises(Refused):
        pod.put_pack(session, session.packs[0], pack_of(pod.domain, ids(1)))


# --- have


def test_have_says_yes_to_live_ids_of_the_epoch_and_domain_only(served: Served, pod: Pod) -> None:
    served.domain("attic")
    wanted = ids(4)
    pod.send(wanted[:2], pod.open(), epoch=1)
    pod.send(wanted[2:3], pod.open(), epoch=2)
    asked = b"".join(wanted[::-1])
    session = pod.open()
    assert served.repository.have(pod.name, session.id, asked, 1) == bytes([0, 1, 1, 1])
    assert served.repository.have(pod.name, session.id, asked, 2) == bytes([0, 1, 0, 0])
    assert served.repository.have(pod.name, session.id, b"", 1) == b""
    stranger = served.pod("attic/db-0")
    alike = served.repository.have(stranger.name, stranger.open().id, asked, 1)
    assert alike == bytes(4)


def test_have_answers_the_same_id_twice(served: Served, pod: Pod) -> None:
    wanted = ids(1)
    pod.send(wanted, pod.open())
    asked = wanted[0] + noise("other") + wanted[0]
    assert served.repository.have(pod.name, pod.open().id, asked, 1) == bytes([1, 0, 1])


@pytest.mark.parametrize(
    ("asked", "epoch"),
    [(b"short", 1), (bytes(32 * (HAVE_IDS_MAX + 1)), 1), (b"", -1), (b"", 1 << 32)],
)
def test_have_refuses_what_is_no_list_of_ids(
    served: Served, pod: Pod, asked: bytes, epoch: int
) -> None:
    with pytest.raises(InvalidInput):
        served.repository.have(pod.name, pod.open().id, asked, epoch)


# --- packs


def stored(pod: Pod, ulid: str, kind: ObjectKind = ObjectKind.PACK) -> bytes | None:
    return pod.served.memory.objects.get(pod.place(kind, ulid))


def test_the_same_pack_again_changes_nothing_and_other_bytes_conflict(
    served: Served, pod: Pod
) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(3))
    pod.put_pack(session, session.packs[0], data)
    before = served.repository.statistics()
    pod.put_pack(session, session.packs[0], data)
    with pytest.raises(Conflict):
        pod.put_pack(session, session.packs[0], pack_of(pod.domain, ids(3), salt="other"))
    assert stored(pod, session.packs[0]) == data
    assert served.repository.statistics() == before
    assert (before.packs, before.chunks, before.stored_bytes) == (1, 3, len(data))


def test_bytes_of_an_earlier_attempt_count_when_they_are_the_same(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(3))
    served.store.put(pod.place(ObjectKind.PACK, session.packs[0]), data)
    seen: list[str] = []
    served.memory.before = lambda verb, name: seen.append(verb)
    pod.put_pack(session, session.packs[0], data)
    assert seen[-1] == "settle"
    assert served.repository.statistics().chunks == 3
    served.store.put(pod.place(ObjectKind.PACK, session.packs[1]), data + b"x")
    with pytest.raises(Conflict):
        pod.put_pack(session, session.packs[1], data)


def test_a_pack_of_another_domain_is_refused_at_its_first_bytes(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(served.domain("attic"), ids(1))
    upload = served.repository.begin_pack(pod.name, session.id, session.packs[0], len(data))
    with pytest.raises(InvalidInput):
        upload.write(data[:24])
    upload.abort()


def test_a_pack_with_an_unknown_epoch_is_refused(served: Served, pod: Pod) -> None:
    session = pod.open()
    with pytest.raises(InvalidInput, match="epoch 3"):
        pod.put_pack(session, session.packs[0], pack_of(pod.domain, ids(1), epoch=3))
    assert stored(pod, session.packs[0]) is None


def test_a_damaged_pack_leaves_nothing_behind(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(2))
    for at in range(24, len(data), 37):
        changed = bytearray(data)
        changed[at] ^= 4
        with pytest.raises((InvalidInput, UnsupportedVersion, TooLarge)):
            pod.put_pack(session, session.packs[0], bytes(changed))
    assert stored(pod, session.packs[0]) is None
    pod.put_pack(session, session.packs[0], data)


def test_a_pack_that_is_shorter_or_longer_than_said_is_refused(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(2))
    short = served.repository.begin_pack(pod.name, session.id, session.packs[0], len(data))
    short.write(data[:-1])
    with pytest.raises(InvalidInput):
        short.commit()
    long = served.repository.begin_pack(pod.name, session.id, session.packs[0], len(data))
    with pytest.raises(TooLarge):
        long.write(data + b"x")
    long.abort()
    for length, error in ((10, InvalidInput), (PACK_BYTES_MAX + 1, TooLarge)):
        with pytest.raises(error):
            served.repository.begin_pack(pod.name, session.id, session.packs[0], length)


def test_memory_for_arriving_packs_is_limited_and_given_back(
    served: Served, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(1))
    monkeypatch.setattr(packs, "BUFFERS_BYTES_MAX", 2 * len(data))
    begun = [
        served.repository.begin_pack(pod.name, session.id, name, len(data))
        for name in session.packs[:2]
    ]
    with pytest.raises(TooMany):
        served.repository.begin_pack(pod.name, session.id, session.packs[2], len(data))
    begun[0].abort()
    begun[0].abort()
    pod.put_pack(session, session.packs[2], data)
    begun[1].abort()


def test_a_full_store_refuses_packs_and_takes_refs_and_manifests(served: Served, pod: Pod) -> None:
    wanted = ids(2)
    session = pod.open()
    pod.send(wanted, session)
    used = sum(map(len, served.memory.objects.values()))
    served.memory.capacity = used + 1_000_000
    assert served.memory.space().free_bytes < served.memory.space().reserve_bytes
    # Before a byte of it was read.
    with pytest.raises(NoSpace):
        served.repository.begin_pack(pod.name, session.id, session.packs[0], 500)
    assert pod.finish(session, wanted).snapshot == served.repository.head(pod.name).snapshot


def test_a_store_that_fails_takes_the_same_pack_later(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(2))
    for verb in ("begin", "write", "commit"):

        def fail(step: str, name: str, verb: str = verb) -> None:
            if step == verb:
                raise StoreFailed("no")

        served.memory.before = fail
        with pytest.raises(StoreFailed):
            pod.put_pack(session, session.packs[0], data)
    served.memory.before = lambda step, name: None
    pod.put_pack(session, session.packs[0], data)
    assert served.repository.statistics().chunks == 2


# --- refs and manifests


def test_refs_and_manifests_may_be_sent_again(served: Served, pod: Pod) -> None:
    session = pod.open()
    refs, other = full_refs(pod.domain, ids(3)), full_refs(pod.domain, ids(4))
    pod.put_refs(session, refs)
    pod.put_refs(session, refs)
    with pytest.raises(Conflict):
        pod.put_refs(session, other)
    assert stored(pod, session.refs, ObjectKind.REFS) == refs
    pod.put_manifest(session, b"any bytes: the commit looks at them")
    pod.put_manifest(session, b"any bytes: the commit looks at them")
    with pytest.raises(Conflict):
        pod.put_manifest(session, b"others")


def test_refs_of_an_earlier_attempt_count_when_they_are_the_same(served: Served, pod: Pod) -> None:
    session = pod.open()
    refs = full_refs(pod.domain, ids(3))
    served.store.put(pod.place(ObjectKind.REFS, session.refs), refs)
    pod.put_refs(session, refs)
    other = pod.open()
    served.store.put(pod.place(ObjectKind.REFS, other.refs), refs + b"x")
    with pytest.raises(Conflict):
        pod.put_refs(other, refs)


def test_refs_that_were_damaged_on_the_way_are_refused(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = full_refs(pod.domain, ids(3))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((InvalidInput, UnsupportedVersion, TooLarge)):
            pod.put_refs(session, bytes(changed))
    for wrong in (data[:-1], data[:100], data + b"x"):
        with pytest.raises(InvalidInput):
            served.repository.put_refs(
                pod.name, session.id, session.refs, io.BytesIO(wrong), len(wrong)
            )
    with pytest.raises(InvalidInput):
        served.repository.put_refs(
            pod.name, session.id, session.refs, io.BytesIO(data[:-1]), len(data)
        )
    assert stored(pod, session.refs, ObjectKind.REFS) is None
    assert served.memory.admitted == 0


def test_refs_of_another_domain_are_refused(served: Served, pod: Pod) -> None:
    other = served.domain("attic")
    with pytest.raises(InvalidInput):
        pod.put_refs(pod.open(), full_refs(other, ids(1)))


def test_a_manifest_beyond_the_limit_is_refused(served: Served, pod: Pod) -> None:
    with pytest.raises(TooLarge):
        pod.put_manifest(pod.open(), bytes(MANIFEST_BYTES_MAX + 1))


def test_before_it_was_started_a_repository_stores_nothing(served: Served, pod: Pod) -> None:
    session = pod.open()
    served.repository._parts.refusal = "why"
    names = (session.packs[0], session.refs, session.manifest)
    found = every_call(pod, session.id, names)[:-1]
    assert {kind for kind, _ in found} == {JournalDiverged}


def test_the_buffer_of_a_pack_serves_the_next_one(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = [pack_of(pod.domain, ids(2, f"{n}"), size=2000) for n in range(3)]
    buffers = set()
    for name, each in zip(session.packs, data, strict=False):
        upload = served.repository.begin_pack(pod.name, session.id, name, len(each))
        buffers.add(id(upload.room().obj))
        upload.write(each)
        upload.commit()
    assert len(buffers) == 1
    for name, each in zip(session.packs, data, strict=False):
        assert stored(pod, name) == each


def test_the_longest_buffers_are_kept_until_a_job_ends_while_nothing_arrives(
    served: Served, pod: Pod
) -> None:
    session = pod.open()
    sizes = (9000, 100, 4000, 200)
    data = [pack_of(pod.domain, ids(1, f"{n}"), size=size) for n, size in enumerate(sizes)]
    for name, each in zip(session.packs, data, strict=False):
        pod.put_pack(session, name, each)
    spares = served.repository._packs._spare
    assert [len(spare) for spare in spares] == sorted(len(each) for each in data)[-2:]
    name = served.repository.more_names(pod.name, session.id, "packs", 1)[0]
    arriving = served.repository.begin_pack(pod.name, session.id, name, 300)
    served.repository.close_session("another")
    assert len(served.repository._packs._spare) == 2
    arriving.abort()
    served.repository.close_session("another")
    assert served.repository._packs._spare == []


def test_a_buffer_that_is_still_being_stored_serves_no_other_pack(served: Served, pod: Pod) -> None:
    session = pod.open()
    data = pack_of(pod.domain, ids(2), size=2000)
    repository = served.repository
    other = repository.begin_pack(pod.name, session.id, session.packs[1], len(data))
    upload = repository.begin_pack(pod.name, session.id, session.packs[0], len(data))
    buffer = upload.room().obj

    seen: list[str] = []

    def give_up(verb: str, name: str) -> None:
        if verb == "begin" and name.endswith(session.packs[0]):
            seen.append(verb)
            # As when the request is cancelled while a thread stores its pack.
            upload.abort()
            late = repository.begin_pack(pod.name, session.id, session.packs[2], len(data))
            assert late.room().obj is not buffer
            late.write(pack_of(pod.domain, ids(2, "late"), size=2000))
            late.abort()

    upload.write(data)
    served.memory.before = give_up
    upload.commit()
    other.abort()
    assert stored(pod, session.packs[0]) == data
    assert seen == ["begin"]
