"""Chunks come into memory that is used again, and are whole as long as they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_agent.restore.pipeline import ROOMS, Opened, Pipeline
from holdfast_agent.restore.steps import Part, Piece, Step, need_of
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.tree.entry import Extent
from holdfast_contract.errors import Damaged, NoSpace
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Room
from holdfast_contract.limits import KIB, MIB
from tests.support.samples import KEYS, noise

PLAIN = [noise(f"{n}", 1000) * (100 + 37 * n % 900) for n in range(30)]
SEALED = [Sealer(KEYS).seal(ChunkType.CONTENT, one) for one in PLAIN]
BY_ID = {bytes(one.chunk_id): bytes(one.sealed) for one in SEALED}


class Source:
    """Hands every chunk out in the memory that waits for it; notes what was asked together."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.under_way = 0

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        self.asked.append(list(ids))
        self.under_way += 1
        try:
            for one in ids:
                view = memoryview(room(len(BY_ID[one])))
                view[:] = BY_ID[one]
                yield FetchedChunk(one, ChunkStatus.HERE, "packs/x", 0, view)
        finally:
            self.under_way -= 1


def piece(*numbers: int) -> Piece:
    parts = [Part(Extent(SEALED[n].chunk_id, 0, len(PLAIN[n])), is_there=False) for n in numbers]
    work: Any = None
    return Piece(work, parts, is_last=True)


@pytest.mark.parametrize("bytes_max", [600 * KIB, 3 * MIB])
@pytest.mark.parametrize("back", [0, 1, 4])
def test_every_batch_is_whole_while_the_next_ones_have_come(bytes_max: int, back: int) -> None:
    source = Source()
    reader = ChunkReader(KEYS, source)  # type: ignore[arg-type]
    seen: list[int] = []

    def execute(step: Step, opened: Opened) -> None:
        for following in pipeline._waiting:
            if following.fetch is not None:
                for found in following.fetch.result(20).values():
                    found.result(20)
        assert isinstance(step, Piece)
        for part in step.parts:
            number = SEALED.index(next(s for s in SEALED if s.chunk_id == part.extent.chunk))
            data = opened[part.extent.chunk]
            assert not isinstance(data, Exception)
            assert bytes(data) == PLAIN[number]
            seen.append(number)

    cancel = JobCancel()
    with Pipeline(reader, need_of, execute, cancel=cancel, bytes_max=bytes_max) as pipeline:
        for number in range(len(PLAIN)):
            pipeline.put(piece(*{number, max(number - back, 0)}))
        pipeline.drain()
    reader.close()
    assert set(seen) == set(range(len(PLAIN)))
    assert source.under_way == 0, "every answer was read to its end"


def test_more_and_more_batches_are_asked_for_together() -> None:
    source, cancel = Source(), JobCancel()
    reader = ChunkReader(KEYS, source)  # type: ignore[arg-type]
    with Pipeline(
        reader, need_of, lambda step, opened: None, cancel=cancel, bytes_max=1
    ) as pipeline:
        for number in range(len(PLAIN)):
            pipeline.put(piece(number))
        pipeline.drain()
    reader.close()
    assert [len(ids) for ids in source.asked] == [1, 2, 4, 8, 8, 7]
    assert [one for ids in source.asked for one in ids] == [s.chunk_id for s in SEALED]


def test_what_breaks_in_the_middle_leaves_no_answer_open() -> None:
    source, cancel = Source(), JobCancel()
    reader = ChunkReader(KEYS, source)  # type: ignore[arg-type]
    done: list[Step] = []

    def execute(step: Step, opened: Opened) -> None:
        done.append(step)
        if len(done) == 10:
            raise NoSpace("full")

    with (
        pytest.raises(NoSpace),
        Pipeline(reader, need_of, execute, cancel=cancel, bytes_max=1) as pipeline,
    ):
        for number in range(len(PLAIN)):
            pipeline.put(piece(number))
        pipeline.drain()
    reader.close()
    assert len(done) == 10
    assert source.under_way == 0


class Failing(Source):
    """Ends every answer with an error after a chunk of it, as a server does that finds damage."""

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        yield from super().fetch(ids[:1], room)
        raise Damaged("the pack is shorter than it was", object="packs/x")


def test_a_request_that_ends_with_damage_damages_what_it_was_for_and_nothing_else() -> None:
    cancel = JobCancel()
    reader = ChunkReader(KEYS, Failing())  # type: ignore[arg-type]
    seen: dict[bytes, object] = {}

    def execute(step: Step, opened: Opened) -> None:
        assert isinstance(step, Piece)
        for part in step.parts:
            found = opened[part.extent.chunk]
            seen[part.extent.chunk] = found if isinstance(found, Damaged) else bytes(found)

    with Pipeline(reader, need_of, execute, cancel=cancel, bytes_max=1) as pipeline:
        for number in range(len(PLAIN)):
            pipeline.put(piece(number))
        pipeline.drain()
    reader.close()
    assert list(seen) == [one.chunk_id for one in SEALED], "every step was executed"
    for found, plain in zip(seen.values(), PLAIN, strict=True):
        assert found == plain or getattr(found, "details", {}).get("object") == "packs/x"
    assert sum(isinstance(found, Damaged) for found in seen.values()) >= len(PLAIN) - 5


def test_memory_is_not_used_again_while_what_came_before_an_error_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, may_go_on, ended = Event(), Event(), Event()
    reader = ChunkReader(KEYS, Failing())  # type: ignore[arg-type]
    original = reader._opened

    def slow(*args: Any) -> Any:
        begun.set()
        assert may_go_on.wait(20)
        found = original(*args)
        ended.set()
        return found

    monkeypatch.setattr(reader, "_opened", slow)
    ids = [bytes(one.chunk_id) for one in SEALED[:3]]

    def take() -> bool:
        with pytest.raises(Damaged):
            reader.ask(ChunkType.CONTENT, ids).take(3, bytearray, bytearray)
        return ended.is_set()

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take)
        assert begun.wait(20)
        may_go_on.set()
        assert taken.result(20), "it came back while a chunk was being opened"
    reader.close()


def test_an_arena_gives_no_byte_twice_and_more_than_it_has() -> None:
    arena = Arena(1000)
    for _ in range(2):
        parts = [arena.take(300) for _ in range(5)]
        for number, part in enumerate(parts):
            part[:] = bytes((number,)) * 300
        assert [bytes(part) for part in parts] == [bytes((n,)) * 300 for n in range(5)]
        arena.clear()
    assert arena.take(1000)[:300] == bytes(300), "it begins where it began"
    assert len(arena.take(1)) == 1


def test_an_arena_tells_where_a_part_of_it_begins_and_shares_its_memory() -> None:
    arena, other = Arena(10_000, is_shared=True), Arena(10_000)
    arena.take(300)
    part = arena.take(5000)
    assert arena.offset_of(part) == 300 and arena.offset_of(part[40:]) == 340
    assert arena.offset_of(arena.take(5000)) is None, "it found no room"
    assert other.offset_of(part) is None and arena.offset_of(part[:0]) is None
    assert arena.offset_of(memoryview(bytearray(10))) is None
    part[:3] = b"abc"
    assert os.pread(arena.descriptor, 3, 300) == b"abc"
    arena.close()
    part[:3] = b"def"
    assert arena.descriptor == -1 and bytes(part[:3]) == b"def"
    arena.close()


def test_a_chunk_that_two_batches_share_lies_in_the_memory_of_each() -> None:
    """Where a second process writes it must find the chunk in memory that it shares."""
    reader = ChunkReader(KEYS, Source())  # type: ignore[arg-type]
    rooms = [Arena(4 * MIB, is_shared=True) for _ in range(ROOMS)]
    places: list[tuple[int, ...]] = []

    def execute(step: Step, opened: Opened) -> None:
        view = opened[SEALED[0].chunk_id]
        assert isinstance(view, memoryview) and bytes(view) == PLAIN[0]
        places.append(tuple(n for n, room in enumerate(rooms) if room.offset_of(view) is not None))

    with Pipeline(
        reader, need_of, execute, cancel=JobCancel(), bytes_max=1, rooms=rooms
    ) as pipeline:
        for number in range(1, 2 * ROOMS):
            pipeline.put(piece(0, number))
        pipeline.drain()
    reader.close()
    assert places == [(number % ROOMS,) for number in range(2 * ROOMS - 1)]
    for room in rooms:
        room.close()


@pytest.mark.parametrize("bytes_max", [1, 2 * MIB])
def test_memory_is_used_again_only_when_what_was_begun_with_it_is_settled(bytes_max: int) -> None:
    """A step may go on with its chunks until `settle` returns: here all of them do."""
    reader = ChunkReader(KEYS, Source())  # type: ignore[arg-type]
    begun: list[tuple[int, memoryview]] = []
    settled: list[int] = []

    def execute(step: Step, opened: Opened) -> None:
        number = numbers[len(settled) + len(begun)]
        view = opened[SEALED[number].chunk_id]
        assert isinstance(view, memoryview)
        begun.append((number, view))

    def settle() -> None:
        for number, view in begun:
            assert bytes(view) == PLAIN[number], "it was overwritten"
            settled.append(number)
        begun.clear()

    class Watched(Arena):
        def clear(self) -> None:
            assert all(self.offset_of(view) is None for _, view in begun), "it is in use"
            super().clear()

    numbers = [n % len(PLAIN) for n in range(3 * len(PLAIN))]
    rooms = [Watched(4 * MIB) for _ in range(ROOMS)]
    with Pipeline(
        reader,
        need_of,
        execute,
        cancel=JobCancel(),
        bytes_max=bytes_max,
        rooms=rooms,
        settle=settle,
    ) as pipeline:
        for number in numbers:
            pipeline.put(piece(number))
        pipeline.drain()
    reader.close()
    assert settled == numbers
