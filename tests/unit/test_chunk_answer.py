"""Sealed chunks on their way out: all that was asked, as long as said, in memory nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_contract.errors import NotFound
from holdfast_server.api import chunks
from holdfast_server.api.chunks import HEAD, Answer
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.reading import FetchStatus, Grant
from tests.support.samples import ids, noise
from tests.support.uploads import Pod, Served, sealed

PIECE_BYTES = 3000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PIECE_BYTES", PIECE_BYTES)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    made.domain()
    yield made
    made.stop()


@pytest.fixture
def pod(served: Served) -> Pod:
    return served.pod()


def grant(pod: Pod, snapshot: bytes) -> Grant:
    return pod.served.repository.open_grant(pod.name.domain, [snapshot])


def decoded(data: bytes) -> list[tuple[bytes, int, str, bytes]]:
    """Return id, status, object and sealed chunk of every answer on the wire."""
    found, at = [], 0
    while at < len(data):
        chunk_id, status, name_length, _, length = HEAD.unpack_from(data, at)
        at += HEAD.size
        name = data[at : at + name_length].decode()
        at += name_length
        found.append((chunk_id, status, name, data[at : at + length]))
        at += length
    return found


def test_every_answer_comes_in_order_and_the_length_is_told_before(pod: Pod) -> None:
    wanted = ids(40)
    snapshot = pod.backup(wanted)
    asked = [*wanted[30:], noise("none"), *wanted[:30]]
    answer = Answer(grant(pod, snapshot), asked)
    told, pieces = answer.bytes_left, []
    while piece := answer.next():
        assert len(piece) <= PIECE_BYTES
        pieces.append(bytes(piece))
        piece.release()
    data = b"".join(pieces)
    assert len(pieces) > 3
    assert len(data) == told and answer.bytes_left == 0
    found = decoded(data)
    assert [one[0] for one in found] == asked
    assert found[10] == (noise("none"), FetchStatus.ABSENT, "", b"")
    del found[10]
    assert [one[3] for one in found] == [sealed(one) for one in asked if one in wanted]


def test_a_chunk_longer_than_a_piece_is_a_piece(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ids(3)
    answer = Answer(grant(pod, pod.backup(wanted)), wanted)
    monkeypatch.setattr(chunks, "PIECE_BYTES", 1)
    pieces = [bytes(answer.next()) for _ in wanted]
    assert [decoded(piece)[0][3] for piece in pieces] == [sealed(one) for one in wanted]
    assert not answer.next()


def test_memory_is_used_again_only_where_nobody_holds_it(pod: Pod) -> None:
    wanted = ids(60)
    answer = Answer(grant(pod, pod.backup(wanted)), wanted)
    first = answer.next()
    held = first[10:20]
    first.release()
    kept = bytes(held)
    second = answer.next()
    assert bytes(held) == kept, "what a transport has not sent yet stands"
    memory = second.obj
    second.release()
    third = answer.next()
    assert third.obj is memory


def test_a_pack_that_goes_while_it_is_sent_breaks_the_answer_and_the_next_is_whole(
    served: Served, pod: Pod
) -> None:
    wanted = ids(20)
    session = pod.open()
    first = pod.send(wanted, session)
    second = pod.send(wanted, session, salt="second")
    granted = grant(pod, pod.finish(session, wanted).snapshot)
    answer = Answer(granted, wanted)
    answer.next().release()
    del served.memory.objects[pod.place(ObjectKind.PACK, first)]
    with pytest.raises(NotFound):
        while answer.next():
            continue
    # Who was cut off asks again: nothing that is gone is told of as if it were there.
    again = Answer(granted, wanted[10:])
    data = b""
    while piece := again.next():
        data += piece
        piece.release()
    assert {one[2] for one in decoded(data)} == {pod.place(ObjectKind.PACK, second)}
    assert [one[3] for one in decoded(data)] == [sealed(one, salt="second") for one in wanted[10:]]
