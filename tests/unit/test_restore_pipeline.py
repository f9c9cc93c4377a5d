"""Chunks come into memory that is used again, and are whole as long as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_agent.restore.pipeline import Opened, Pipeline
from holdfast_agent.restore.steps import Part, Piece, Step
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.tree.entry import Extent
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.limits import KIB, MIB
from tests.support.samples import KEYS, noise

PLAIN = [noise(f"{n}", 1000) * (100 + 37 * n % 900) for n in range(30)]
SEALED = [Sealer(KEYS).seal(ChunkType.CONTENT, one) for one in PLAIN]
BY_ID = {bytes(one.chunk_id): bytes(one.sealed) for one in SEALED}


class Source:
    """Hands every chunk out in the same memory."""

    def __init__(self) -> None:
        self._buffer = bytearray(2 * MIB)

    def fetch(self, ids: Sequence[bytes]) -> Iterator[FetchedChunk]:
        for one in ids:
            sealed = BY_ID[one]
            view = memoryview(self._buffer)[: len(sealed)]
            view[:] = sealed
            yield FetchedChunk(one, ChunkStatus.HERE, "packs/x", 0, view)
            view[:] = bytes(len(view))


def piece(*numbers: int) -> Piece:
    parts = [Part(Extent(SEALED[n].chunk_id, 0, len(PLAIN[n])), is_there=False) for n in numbers]
    work: Any = None
    return Piece(work, parts, is_last=True)


@pytest.mark.parametrize("bytes_max", [600 * KIB, 3 * MIB])
@pytest.mark.parametrize("back", [0, 1, 4])
def test_every_batch_is_whole_while_the_next_ones_have_come(bytes_max: int, back: int) -> None:
    reader = ChunkReader(KEYS, Source())  # type: ignore[arg-type]
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
    with Pipeline(reader, execute, cancel=cancel, bytes_max=bytes_max) as pipeline:
        for number in range(len(PLAIN)):
            pipeline.put(piece(*{number, max(number - back, 0)}))
        pipeline.drain()
    reader.close()
    assert set(seen) == set(range(len(PLAIN)))


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
