"""Packs written in place: the bytes that a server admits, whatever order places are filled in."""

from __future__ import annotations

import pytest

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.crypto.sealing import SealedChunk, Sealer
from holdfast_agent.engine.packing import Pack, Place, pack_room_bytes
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.pack import PackWriter, verify_pack
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, KIB, MIB, SEALED_BYTES_MAX
from tests.support.samples import DOMAIN, KEYS, noise

SEALED = [Sealer(KEYS).seal(ChunkType.CONTENT, noise(f"{n}", 10_000 * n)) for n in range(1, 6)]


def take(pack: Pack, chunk: SealedChunk) -> Place:
    place = pack.take(chunk.chunk_id, len(chunk.sealed))
    assert place is not None
    return place


def settle(place: Place, chunk: SealedChunk) -> None:
    place.view[:] = chunk.sealed
    place.pack.settle(place, chunk.storage_hash, epoch=chunk.epoch, kind=chunk.type)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]])
def test_a_pack_is_the_same_in_whatever_order_its_places_are_filled(order: list[int]) -> None:
    pack, writer = Pack(DOMAIN, bytearray(b"\xff" * MIB)), PackWriter(DOMAIN)
    places = [take(pack, chunk) for chunk in SEALED]
    for at in order:
        assert not pack.is_settled
        settle(places[at], SEALED[at])
    assert pack.is_settled
    whole = bytes(pack.finish())
    for chunk in SEALED:
        writer.add(chunk.chunk_id, chunk.sealed, chunk.storage_hash)
    assert whole == b"".join(writer.finish())
    assert [entry.chunk_id for entry in verify_pack(whole, DOMAIN)] == [
        chunk.chunk_id for chunk in SEALED
    ]


@pytest.mark.parametrize("left_out", [[0], [4], [1, 2], [0, 2, 4], [0, 1, 2, 3], [0, 1, 2, 3, 4]])
def test_what_is_left_out_leaves_a_pack_of_the_others(left_out: list[int]) -> None:
    pack, writer = Pack(DOMAIN, bytearray(b"\xff" * MIB)), PackWriter(DOMAIN)
    places = [take(pack, chunk) for chunk in SEALED]
    for at in (2, 4, 0, 3, 1):
        settle(places[at], SEALED[at])
    pack.leave_out({SEALED[at].chunk_id for at in left_out})
    kept = [chunk for at, chunk in enumerate(SEALED) if at not in left_out]
    assert set(pack.ids) == {chunk.chunk_id for chunk in kept}
    if not kept:
        return
    for chunk in kept:
        writer.add(chunk.chunk_id, chunk.sealed, chunk.storage_hash)
    whole = bytes(pack.finish())
    assert whole == b"".join(writer.finish())
    assert [entry.chunk_id for entry in verify_pack(whole, DOMAIN)] == [
        chunk.chunk_id for chunk in kept
    ]


def test_a_place_is_given_only_where_footer_and_chunk_fit() -> None:
    chunk = SEALED[0]
    alone = Pack(DOMAIN, bytearray(MIB))
    settle(take(alone, chunk), chunk)
    length = len(alone.finish())
    exact = Pack(DOMAIN, bytearray(length))
    settle(take(exact, chunk), chunk)
    assert exact.take(SEALED[1].chunk_id, len(SEALED[1].sealed)) is None
    assert bytes(exact.finish()) == bytes(alone.finish())
    assert Pack(DOMAIN, bytearray(length - 1)).take(chunk.chunk_id, len(chunk.sealed)) is None


@pytest.mark.parametrize("pack_bytes", [MIB, 3 * MIB, 16 * MIB])
def test_every_chunk_fits_into_an_empty_pack(pack_bytes: int) -> None:
    pack = Pack(DOMAIN, bytearray(pack_room_bytes(pack_bytes)))
    plain = noise("large", 64 * KIB) * (CHUNK_PLAIN_BYTES_MAX // (64 * KIB))
    of_chunk = chunk_id(KEYS, ChunkType.CONTENT, plain)
    assert pack.take(of_chunk, SEALED_BYTES_MAX) is not None
    assert pack_room_bytes(pack_bytes) <= max(pack_bytes + MIB, SEALED_BYTES_MAX + KIB)


def test_chunks_are_sealed_into_the_place_that_is_given() -> None:
    plain = noise("x", 100_000)
    place = memoryview(bytearray(200_000))
    asked: list[int] = []

    def room(size: int) -> memoryview:
        asked.append(size)
        return place[:size]

    sealed = Sealer(KEYS).seal(ChunkType.CONTENT, plain, room=room)
    assert asked == [len(sealed.sealed)]
    assert bytes(place[: asked[0]]) == bytes(sealed.sealed)
    assert bytes(place[asked[0] :]) == bytes(200_000 - asked[0])
