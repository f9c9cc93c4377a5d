"""A large file that changed is stored nearly as if it were cut anew, and little of it is cut."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast_agent.crypto.keys import chunk_id
from holdfast_agent.engine.cutting import FastCdc, LargeFile
from holdfast_agent.engine.drafts import ChunkDraft
from holdfast_agent.engine.memory import Slab, SlabPool
from holdfast_agent.engine.rehash import OldChunk, OldContent, Rehashing, old_chunks
from holdfast_agent.engine.runs import DataRuns
from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.tree.entry import HOLE_CHUNK, Extent
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import ChunkerSettings
from tests.support.samples import KEYS

SMALL = ChunkerSettings(version=1, bytes_min=64, bytes_average=256, bytes_max=1024)
BLOCK = 96
"""Holes of the files here begin and end at multiples of it."""
HOLE = bytes(BLOCK)


@dataclass
class Stored:
    """How one version of a file was stored."""

    extents: list[Extent] = field(default_factory=list)
    new: dict[bytes, bytes] = field(default_factory=dict)
    """Chunks that were cut, by id."""
    bytes_cut: int = 0
    is_used_up: bool = False


class Files:
    """Stores versions of one file; `chunks` is what a server would have of it."""

    def __init__(self) -> None:
        self.rehashing = Rehashing(KEYS, 2)
        self.chunks: dict[bytes, bytes] = {}
        self.reads = 0
        self.lock = threading.Lock()

    def close(self) -> None:
        self.rehashing.close()

    def store(
        self,
        data: bytes,
        old: list[Extent] | None = None,
        *,
        avoid: frozenset[bytes] = frozenset(),
        short_by: int = 0,
    ) -> Stored:
        """Store `data`; `old` is how the version before was; `short_by` bytes vanish meanwhile."""
        stored = Stored()
        pool = SlabPool(2, 2048)
        cancel = JobCancel()
        there = data[: len(data) - short_by]

        def read_into(buffer: memoryview, offset: int) -> int:
            part = there[offset : offset + len(buffer)]
            buffer[: len(part)] = part
            with self.lock:
                self.reads += len(part)
            return len(part)

        def ship(draft: ChunkDraft, plain: memoryview, slab: Slab) -> None:
            draft.id = chunk_id(KEYS, ChunkType.CONTENT, plain)
            stored.new[draft.id] = bytes(plain)
            stored.bytes_cut += len(plain)
            slab.let_go()

        runs = DataRuns(runs_of(data))
        content = None
        if old is not None:
            content = OldContent(
                old_chunks(old), self.rehashing, read_into=read_into, runs=runs, avoid=avoid
            )
        file = LargeFile(
            read_into,
            runs,
            cutter=FastCdc(SMALL, seed=5),
            get_slab=lambda: pool.get(cancel, lambda: None),
            ship=ship,
            old=content,
        )
        file.read(len(data))
        if content is not None:
            content.end()
            stored.is_used_up = content.is_used_up
        stored.extents = list(file.parts.extents())
        self.chunks |= stored.new
        assert self.content(stored.extents) == there[: file.size].ljust(file.size, b"\0")
        assert file.size == len(data) or short_by
        return stored

    def content(self, extents: list[Extent]) -> bytes:
        """Return what a restore would write."""
        found = b""
        for chunk, offset, length in ((e.chunk, e.offset, e.length) for e in extents):
            if chunk == HOLE_CHUNK:
                found += bytes(length)
            else:
                found += self.chunks[chunk][offset : offset + length]
                assert offset + length <= len(self.chunks[chunk])
        return found


def runs_of(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where a file that is `data` has data, if every block of zeros is a hole."""
    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    position = 0
    for is_hole, group in itertools.groupby(blocks, lambda block: block == HOLE):
        length = sum(map(len, group))
        if not is_hole:
            yield position, length
        position += length


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


# --- any change
EDITS = st.tuples(
    st.sampled_from(["overwrite", "insert", "delete", "append", "truncate", "hole", "move"]),
    st.floats(0, 1),
    st.integers(1, 4000),
    st.integers(0, 1 << 30),
)


def edited(data: bytes, edit: tuple[str, float, int, int]) -> bytes:
    kind, where, length, seed = edit
    at = int(where * len(data))
    new = random.Random(seed).randbytes(length)
    match kind:
        case "overwrite":
            return data[:at] + new[: len(data) - at] + data[at + length :]
        case "insert":
            return data[:at] + new + data[at:]
        case "delete":
            return data[:at] + data[at + length :]
        case "append":
            return data + new
        case "truncate":
            return data[:at]
        case "hole":
            at = at // BLOCK * BLOCK
            return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]
        case _:
            return data[at:] + data[:at]


@settings(max_examples=80)
@example(  # one byte in the last chunk
    seed=0,
    sizes=[(0, 649), (0, 1193), (4, 5733), (20, 1), (20, 550)],
    versions=[[("overwrite", 0.9620030553194259, 384, 959)], [("overwrite", 1.0, 1, 0)]],
)
@given(
    seed=st.integers(0, 1 << 30),
    sizes=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6000)), max_size=5),
    versions=st.lists(st.lists(EDITS, min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_a_changed_file_comes_back_and_shares_what_a_whole_cut_would(
    seed: int, sizes: list[tuple[int, int]], versions: list[list[tuple[str, float, int, int]]]
) -> None:
    rng = random.Random(seed)
    data = b"".join(HOLE * holes + rng.randbytes(length) for holes, length in sizes)
    files = Files()
    try:
        stored = files.store(data)
        for generation, edits in enumerate(versions, 1):
            before = data
            for edit in edits:
                data = edited(data, edit)
            old, stored = stored.extents, files.store(data, stored.extents)
            fresh = Files()
            # The chunker looks one byte over a cut point: an edit right behind one may leave a cut
            # point that a whole cut would not make, and nothing else differs.
            kept = {extent.chunk for extent in stored.extents}
            unlike = kept ^ {extent.chunk for extent in fresh.store(data).extents}
            assert len(unlike) <= 8 * generation
            if data == before:
                # With fewer than four bytes behind it a chunk is cut once more, to the same id.
                assert stored.extents == old
                assert stored.new.keys() <= {extent.chunk for extent in old}
                assert stored.bytes_cut <= SMALL.bytes_max
    finally:
        files.close()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    lies=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 900), st.booleans()), max_size=8),
    size=st.integers(1, 8000),
    holes=st.sets(st.integers(0, 80), max_size=6),
)
def test_hints_that_are_wrong_in_any_way_never_make_a_wrong_file(
    seed: int, lies: list[tuple[int, int, bool]], size: int, holes: set[int]
) -> None:
    """Extents that no version of the file ever had: only what hashes right is believed."""
    rng = random.Random(seed)
    data = bytearray(rng.randbytes(size))
    for hole in holes:
        data[hole * BLOCK : (hole + 1) * BLOCK] = HOLE[: max(0, len(data) - hole * BLOCK)]
    data = data[:size]
    files = Files()
    try:
        hints, position = [], 0
        for length, offset, is_right in lies:
            plain = bytes(data[position : position + length])
            found = chunk_id(KEYS, ChunkType.CONTENT, plain) if is_right else rng.randbytes(32)
            if is_right and plain:
                files.chunks[found] = plain
            hints.append(Extent(found, 0 if is_right else offset, length))
            position += length
        files.store(bytes(data), hints)
    finally:
        files.close()


# --- how much is cut
def big(seed: int = 1, size: int = 200_000) -> bytes:
    return random.Random(seed).randbytes(size)


def test_one_changed_byte_costs_one_chunk(files: Files) -> None:
    data = big()
    first = files.store(data)
    changed = bytearray(data)
    changed[100_000] ^= 1
    files.reads = 0
    second = files.store(bytes(changed), first.extents)
    assert len(second.new) <= 2
    assert len(set(second.new) - set(first.new)) == 1
    # Everything once, and again what was read behind the change until the cut points met.
    assert files.reads < len(data) + 3 * 2048


def test_appended_bytes_make_the_last_chunk_longer_and_no_tiny_one(files: Files) -> None:
    data = big()
    stored = files.store(data)
    last = stored.extents
    for number in range(12):
        data += b"hello, tail\n"
        stored = files.store(data, last)
        assert len(stored.new) <= 2
        last = stored.extents
        assert all(extent.length >= SMALL.bytes_min for extent in last[:-1]), number


def test_an_unchanged_file_is_hashed_and_not_cut(files: Files) -> None:
    data = big()[: 900 * BLOCK] + HOLE * 50 + big(2)
    first = files.store(data)
    files.reads = 0
    second = files.store(data, first.extents)
    assert (second.new, second.extents) == ({}, first.extents)
    assert second.is_used_up
    assert files.reads == len(data) - len(HOLE) * 50


def test_a_truncated_file_keeps_what_is_left(files: Files) -> None:
    data = big()
    first = files.store(data)
    second = files.store(data[:120_000], first.extents)
    assert len(second.new) == 1
    assert not second.is_used_up


def test_a_file_that_shrinks_while_it_is_read_ends_where_it_ends(files: Files) -> None:
    data = big()
    first = files.store(data)
    for short_by in (1, 1000, 150_000, len(data)):
        files.store(data, first.extents, short_by=short_by)


def test_a_chunk_to_be_avoided_is_sent_again(files: Files) -> None:
    data = big()
    first = files.store(data)
    lost = first.extents[20].chunk
    second = files.store(data, first.extents, avoid=frozenset({lost}))
    assert lost in second.new
    assert second.extents == first.extents


def test_of_a_file_that_has_nothing_in_common_little_is_hashed_in_vain(files: Files) -> None:
    first = files.store(big(1))
    files.reads = 0
    second = files.store(big(2), first.extents)
    assert second.bytes_cut == 200_000
    assert files.reads < 200_000 * 1.1


# --- parts of it
def test_old_chunks_are_those_that_extents_name_from_their_beginning() -> None:
    a, b, c = (bytes([n]) * 32 for n in (1, 2, 3))
    extents = [
        Extent(a, 0, 10),
        Extent(HOLE_CHUNK, 0, 100),
        Extent(a, 10, 5),
        Extent(a, 15, 5),
        Extent(a, 0, 20),
        Extent(b, 7, 3),
        Extent(b, 10, 3),
        Extent(HOLE_CHUNK, 0, 4),
        Extent(c, 0, 9),
        Extent(c, 10, 9),
    ]
    assert list(old_chunks(extents)) == [
        OldChunk(a, ((0, 10), (110, 10)), is_last=False),
        OldChunk(a, ((120, 20),), is_last=False),
        OldChunk(c, ((150, 9),), is_last=True),
    ]
    assert list(old_chunks([])) == []


def test_runs_are_asked_once_and_only_as_far_as_needed() -> None:
    asked: list[int] = []

    def tell() -> Iterator[tuple[int, int]]:
        for number in range(5000):
            asked.append(number)
            yield 100 * number + 50, 30

    runs = DataRuns(tell())
    assert (runs.next_data(0), runs.next_data(60), runs.next_data(80)) == (50, 60, 150)
    assert asked == [0, 1]
    assert runs.are(((150, 30),))
    assert runs.are(((160, 20), (250, 30), (350, 1)))
    assert not runs.are(((150, 31),))
    assert not runs.are(((150, 30), (260, 10)))
    assert not runs.are(((150, 10), (260, 10)))
    assert runs.next_data(450_000) == 450_050
    # Little is kept of what lies behind.
    assert len(runs._starts) < 3
    since = runs.since(499_960)
    assert (next(since), next(since, None)) == ((499_960, 20), None)
    assert runs.next_data(499_980) is None


def test_no_thread_reads_a_file_that_is_done_with(files: Files) -> None:
    """The descriptor is closed next, and its number may be another file's by then."""
    reading, go_on = threading.Event(), threading.Event()
    late: list[int] = []

    def read_into(buffer: memoryview, offset: int) -> int:
        reading.set()
        go_on.wait(20)
        late.append(offset)
        return len(buffer)

    runs = DataRuns(iter([(0, 1 << 20)]))
    old = [OldChunk(bytes([n]) * 32, ((n * 100, 100),), is_last=False) for n in range(1, 50)]
    content = OldContent(
        iter(old), files.rehashing, read_into=read_into, runs=runs, avoid=frozenset()
    )
    content._fill()
    assert reading.wait(20)
    ended = threading.Thread(target=content.end)
    ended.start()
    assert not late
    go_on.set()
    ended.join(20)
    assert not ended.is_alive()
    assert late
