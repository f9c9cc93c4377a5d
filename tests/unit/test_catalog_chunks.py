"""Copies of chunks: the first live one wins, a damaged one is replaced, a domain is alone."""

from __future__ import annotations

from functools import partial

import pytest

from holdfast_server.catalog import chunks, domains, liveness
from holdfast_server.catalog.chunks import Copy
from holdfast_server.catalog.schema import CopyState
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served

A = noise("chunk a")


def key(pod: Pod) -> int:
    return domains.get(pod.served.catalog, pod.name.domain).key


def copies(pod: Pod, chunk_id: bytes = A) -> list[Copy]:
    with pod.served.catalog.read() as tx:
        return chunks.copies(tx, key(pod), [chunk_id]).get(chunk_id, [])


def states(pod: Pod) -> list[tuple[CopyState, int]]:
    return [(copy.state, copy.epoch) for copy in copies(pod)]


def live(pod: Pod, epoch_min: int = 1, epoch_max: int | None = None) -> bool:
    with pod.served.catalog.read() as tx:
        found = chunks.live_ids(tx, key(pod), [A], epoch_min=epoch_min, epoch_max=epoch_max)
    return found == {A}


def spoil(pod: Pod, number: int = 0) -> None:
    """Mark one copy damaged."""
    copy = copies(pod)[number]
    assert pod.served.catalog.write(
        lambda tx: chunks.set_state(
            tx, key(pod), copy, before=[copy.state], after=CopyState.DAMAGED
        )
    )


def test_the_first_live_copy_wins_and_a_later_one_is_a_spare(pod: Pod) -> None:
    session = pod.open()
    pod.send([A], session)
    first = copies(pod)[0]
    pod.send([A], session, salt="later")
    assert copies(pod)[0] == first
    assert states(pod) == [(CopyState.LIVE, 1), (CopyState.SPARE, 1)]
    assert [copy.generation for copy in copies(pod)] == [1, 2]


def test_each_epoch_has_a_live_copy_of_its_own(pod: Pod) -> None:
    session = pod.open()
    pod.send([A], session, epoch=1)
    assert live(pod, 1) and not live(pod, 2)
    pod.send([A], session, epoch=2, salt="later")
    assert states(pod) == [(CopyState.LIVE, 1), (CopyState.LIVE, 2)]
    assert live(pod, 2) and live(pod, 1, 1)


def test_a_damaged_copy_is_replaced_by_a_new_one_of_its_epoch(pod: Pod) -> None:
    session = pod.open()
    pod.send([A], session)
    spoil(pod)
    assert not live(pod)
    pod.send([A], session, salt="again")
    assert [(copy.state, copy.generation) for copy in copies(pod)] == [(CopyState.LIVE, 2)]


def test_a_copy_of_another_epoch_does_not_heal(pod: Pod) -> None:
    session = pod.open()
    pod.send([A], session, epoch=1)
    spoil(pod)
    pod.send([A], session, epoch=2, salt="again")
    assert states(pod) == [(CopyState.LIVE, 2), (CopyState.DAMAGED, 1)]


def test_damaged_ids_come_ascending_and_in_pages(pod: Pod) -> None:
    wanted = ids(5)
    pod.send(wanted, pod.open())
    with pod.served.catalog.read() as tx:
        known = chunks.copies(tx, key(pod), wanted)
    for chunk_id in wanted[1:4]:
        damage = partial(
            chunks.set_state,
            domain_key=key(pod),
            copy=known[chunk_id][0],
            before=[CopyState.LIVE],
            after=CopyState.DAMAGED,
        )
        assert pod.served.catalog.write(damage)
    with pod.served.catalog.read() as tx:
        assert chunks.damaged_ids(tx, key(pod)) == wanted[1:4]
        assert chunks.damaged_ids(tx, key(pod), after=wanted[1], limit=1) == [wanted[2]]
        assert chunks.damaged_among(tx, key(pod), wanted) == set(wanted[1:4])
        assert chunks.damaged_count(tx) == 3


def test_the_same_id_in_another_domain_is_another_chunk(served: Served, pod: Pod) -> None:
    served.domain("attic")
    other = served.pod("attic/db-0")
    pod.send([A], pod.open())
    assert live(pod) and not live(other)
    assert copies(other) == []
    other.send([A], other.open())
    assert states(other) == [(CopyState.LIVE, 1)]


def test_a_state_is_moved_only_from_where_it_was_seen(pod: Pod) -> None:
    pod.send([A], pod.open())
    copy = copies(pod)[0]
    spoil(pod)
    moved = pod.served.catalog.write(
        lambda tx: chunks.set_state(
            tx, key(pod), copy, before=[CopyState.LIVE], after=CopyState.CONDEMNED
        )
    )
    assert not moved
    assert states(pod) == [(CopyState.DAMAGED, 1)]


def test_a_pack_of_thousands_of_chunks_is_indexed_whole(pod: Pod) -> None:
    wanted = ids(2500)
    pod.send(wanted, pod.open())
    with pod.served.catalog.read() as tx:
        assert chunks.live_ids(tx, key(pod), wanted, epoch_min=1) == set(wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 999, 1000, 1001, 2100])
def test_of_any_number_of_ids_just_the_live_ones_are_found(pod: Pod, count: int) -> None:
    known, unknown = ids(count), [bytes([9]) + chunk_id[1:] for chunk_id in ids(7)]
    session = pod.open()
    pod.send(known, session)
    asked = b"".join([*unknown, *known])
    for _ in ("told of the first time", "told of before"):
        told = pod.served.repository.have(pod.name, session.id, asked, 1)
        assert told == b"\0" * 7 + b"\1" * count


def test_a_copy_of_a_later_epoch_is_not_live_below_it(pod: Pod) -> None:
    pod.send([A], pod.open(), epoch=2)
    assert live(pod, 1, 2) and not live(pod, 1, 1)


def test_the_log_of_what_left_is_numbered_and_read_from_a_number_on(pod: Pod) -> None:
    catalog, domain = pod.served.catalog, key(pod)
    catalog.write(lambda tx: liveness.log_left(tx, domain, ids(3)))
    with catalog.read() as tx:
        assert domains.leave_last(tx, domain) == 3
        assert liveness.left_since(tx, domain, 0) == ids(3)
        assert liveness.left_since(tx, domain, 1, limit=1) == ids(3)[1:2]
        assert liveness.left_since(tx, domain, 3) == []
    catalog.write(lambda tx: liveness.log_left(tx, domain, [A]))
    with catalog.read() as tx:
        assert liveness.left_since(tx, domain, 3) == [A]
