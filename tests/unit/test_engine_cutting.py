"""Large files are cut by their content, holes left out, and nothing is lost at a border."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.engine.cutting import FastCdc, LargeFile
from holdfast_agent.engine.drafts import ChunkDraft, Parts, batches, holes_of, known_id, parts_of
from holdfast_agent.engine.memory import Slab, SlabPool
from holdfast_agent.engine.runs import DataRuns
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.tree.entry import HOLE_CHUNK, Extent
from holdfast_contract.errors import Cancelled, InternalError, InvalidInput
from holdfast_contract.format.domain import CHUNKER_DEFAULT, ChunkerSettings
from holdfast_contract.limits import KIB, MIB

SMALL = ChunkerSettings(version=1, bytes_min=64, bytes_average=256, bytes_max=1024)


class Cut:
    """Cuts `data` and remembers the chunks."""

    def __init__(
        self,
        data: bytes,
        runs: list[tuple[int, int]],
        size: int,
        *,
        settings: ChunkerSettings = SMALL,
        slab_bytes: int = 2048,
    ) -> None:
        self.data = data
        self.chunks: dict[bytes, bytes] = {}
        self.pool = SlabPool(2, slab_bytes)
        self.cancel = JobCancel()
        self.file = LargeFile(
            self.read_into,
            DataRuns(iter(runs)),
            cutter=FastCdc(settings, seed=5),
            get_slab=lambda: self.pool.get(self.cancel, lambda: None),
            ship=self.ship,
        )
        self.file.read(size)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        part = self.data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def ship(self, draft: ChunkDraft, data: memoryview, slab: Slab) -> None:
        draft.id = (
            len(self.chunks).to_bytes(32, "big", signed=False)[::-1].replace(b"\0" * 30, b"\1" * 30)
        )
        self.chunks[draft.id] = bytes(data)
        slab.let_go()

    def content(self) -> bytes:
        found = b""
        for extent in self.file.parts.extents():
            if extent.chunk == HOLE_CHUNK:
                found += bytes(extent.length)
            else:
                found += self.chunks[extent.chunk][extent.offset : extent.offset + extent.length]
        return found


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 5000)), max_size=6),
    tail=st.integers(0, 3000),
)
def test_data_and_holes_come_back_byte_by_byte(
    seed: int, sizes: list[tuple[int, int]], tail: int
) -> None:
    rng = random.Random(seed)
    data, runs = b"", []
    for hole, length in sizes:
        data += bytes(hole)
        runs.append((len(data), length))
        data += rng.randbytes(length)
    data += bytes(tail)
    cut = Cut(data, runs, len(data))
    assert (cut.content(), cut.file.size) == (data, len(data))
    # What was read was stored once, and no hole was.
    assert sum(map(len, cut.chunks.values())) == sum(length for _, length in runs)
    assert all(extent.length > 0 for extent in cut.file.parts.extents())


def test_chunks_do_not_depend_on_the_buffer() -> None:
    data = random.Random(1).randbytes(100_000)
    cuts = [
        Cut(data, [(0, len(data))], len(data), slab_bytes=size) for size in (2048, 3001, 200_000)
    ]
    lengths = [[len(chunk) for chunk in cut.chunks.values()] for cut in cuts]
    assert lengths[0] == lengths[1] == lengths[2]
    assert len(lengths[0]) > 100
    assert all(64 <= length <= 1024 for length in lengths[0][:-1])


def test_a_byte_in_front_moves_no_later_chunk() -> None:
    data = random.Random(2).randbytes(100_000)
    one = Cut(data, [(0, len(data))], len(data))
    two = Cut(b"x" + data, [(0, len(data) + 1)], len(data) + 1)
    common = set(one.chunks.values()) & set(two.chunks.values())
    assert len(common) >= len(one.chunks) - 3


def test_many_small_runs_make_chunks_of_the_usual_size() -> None:
    data = b"".join(random.Random(n).randbytes(10) + bytes(90) for n in range(2000))
    runs = [(100 * n, 10) for n in range(2000)]
    cut = Cut(data, runs, len(data))
    assert cut.content() == data
    assert len(cut.chunks) < 200


def test_file_that_ends_early_is_as_long_as_what_came() -> None:
    data = random.Random(3).randbytes(5000)
    cut = Cut(data, [(0, 3000), (4000, 9000)], 13_000)
    assert cut.file.size == 5000
    assert cut.content() == data[:3000] + bytes(1000) + data[4000:]


def test_slabs_go_back_to_the_pool() -> None:
    data = random.Random(4).randbytes(50_000)
    cut = Cut(data, [(0, len(data))], len(data))
    held = [cut.pool.get(cut.cancel, lambda: None) for _ in range(2)]
    assert len({id(slab) for slab in held}) == 2
    cut.cancel.set()
    with pytest.raises(Cancelled):
        cut.pool.get(cut.cancel, lambda: None)


def test_error_while_reading_gives_the_slab_back() -> None:
    pool = SlabPool(1, 4096)

    def fail(buffer: memoryview, offset: int) -> int:
        raise ZeroDivisionError

    file = LargeFile(
        fail,
        DataRuns(iter([(0, 100)])),
        cutter=FastCdc(SMALL, seed=5),
        get_slab=lambda: pool.get(JobCancel(), lambda: None),
        ship=lambda draft, data, slab: None,
    )
    with pytest.raises(ZeroDivisionError):
        file.read(100)
    pool.get(JobCancel(), lambda: None)


def test_pure_python_chunker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfastcdc.cy", None)
    with pytest.raises(InternalError) as refused:
        FastCdc(CHUNKER_DEFAULT, seed=1)
    assert "pyfastcdc" in refused.value.hint


def test_settings_that_the_chunker_cannot_take_are_refused() -> None:
    with pytest.raises(InvalidInput):
        FastCdc(ChunkerSettings(version=1, bytes_min=1, bytes_average=2, bytes_max=3), seed=1)


def test_default_chunks_are_within_their_bounds() -> None:
    data = memoryview(random.Random(5).randbytes(12 * MIB))
    lengths = list(FastCdc(CHUNKER_DEFAULT, seed=(1 << 63) - 1).cut(data))
    assert sum(lengths) == len(data)
    assert all(256 * KIB <= length <= 4 * MIB for length in lengths[:-1])


# --- parts
def drafts(count: int) -> Iterator[ChunkDraft]:
    for number in range(count):
        draft = ChunkDraft()
        draft.id = number.to_bytes(32, "big")[:-1] + b"\x01"
        yield draft


def test_parts_keep_their_order_when_they_are_packed() -> None:
    parts = Parts()
    wanted = []
    for number, draft in enumerate(drafts(10_000)):
        parts.append((draft, number, number + 1))
        wanted.append(Extent(draft.id, number, number + 1))
    assert len(parts) == 10_000
    assert parts.is_resolved
    assert list(parts.extents()) == wanted
    assert [len(batch) for batch in batches(parts.extents(), 4000)] == [4000, 4000, 2000]


def test_part_without_an_id_stops_the_packing_and_nothing_else() -> None:
    waiting = ChunkDraft()
    parts = Parts([(waiting, 0, 5)])
    for draft in drafts(9000):
        parts.append((draft, 0, 1))
    assert not parts.is_resolved
    waiting.id = b"w" * 32
    assert parts.is_resolved
    assert next(parts.extents()) == Extent(b"w" * 32, 0, 5)
    assert len(list(parts.extents())) == 9001
    with pytest.raises(AssertionError):
        known_id(ChunkDraft())


def test_bytes_that_follow_each_other_in_a_chunk_are_one_part() -> None:
    (one, two) = drafts(2)
    parts = Parts()
    assert not parts.extend_last(one, 0, 5)
    parts.append((one, 0, 5))
    assert parts.extend_last(one, 5, 5)
    assert not parts.extend_last(one, 11, 5)
    assert not parts.extend_last(two, 10, 5)
    assert list(parts.extents()) == [Extent(one.id, 0, 10)]


def test_holes_are_told_by_their_places() -> None:
    extents = (Extent(b"a" * 32, 7, 5), Extent(HOLE_CHUNK, 0, 10), Extent(b"a" * 32, 0, 5))
    assert holes_of(extents) == ((5, 10),)
    assert tuple(parts_of(extents).extents()) == extents
