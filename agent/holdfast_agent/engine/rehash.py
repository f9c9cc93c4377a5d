"""A large file read again at its old cut points: what still has its old id need not be cut.

Hashing takes a quarter of what cutting, hashing and asking take, and goes on in threads: where most
of a file is as it was, the walk only collects answers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final, NamedTuple

from holdfast_agent.crypto.keys import ChunkHasher, DomainKeys
from holdfast_agent.engine.runs import DataRuns
from holdfast_agent.tree.entry import HOLE_CHUNK, Extent
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.limits import MIB

_READ_BYTES: Final = MIB
"""Read and hashed at once, in a buffer of the thread's own: what was read is still in its cache."""
_BATCH_BYTES: Final = 4 * MIB
"""One task: about a millisecond, against 30 microseconds to hand it over."""
_AHEAD_BYTES_MAX: Final = 32 * MIB
"""Hashed ahead of the walk while nothing differs; after a difference it begins with one chunk."""


_BEHIND_BYTES_MIN: Final = 4
"""The chunker goes by pairs of bytes: it does not see a cut point in the last pair of its data."""


class OldChunk(NamedTuple):
    """A chunk of content as the parent's file has it."""

    id: bytes
    pieces: tuple[tuple[int, int], ...]
    """(offset, length) in the file; more than one where holes lie inside."""
    is_last: bool
    """It ended with the file, not at a cut point."""

    @property
    def start(self) -> int:
        """Where in the file it begins."""
        return self.pieces[0][0]

    @property
    def end(self) -> int:
        """Where in the file it ends."""
        offset, length = self.pieces[-1]
        return offset + length

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return sum(length for _, length in self.pieces)


def old_chunks(extents: Iterable[Extent]) -> Iterator[OldChunk]:
    """Yield the chunks that a file's extents name from their beginning on; others are left out."""
    waiting: OldChunk | None = None
    for chunk, pieces in _grouped(extents):
        if waiting is not None:
            yield waiting
        waiting = OldChunk(chunk, tuple(pieces), is_last=False)
    if waiting is not None:
        yield waiting._replace(is_last=True)


def _grouped(extents: Iterable[Extent]) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    chunk, pieces, used, position = b"", list[tuple[int, int]](), 0, 0
    for extent in extents:
        if extent.chunk != HOLE_CHUNK:
            if not pieces or (extent.chunk, extent.offset) != (chunk, used):
                if pieces:
                    yield chunk, pieces
                chunk, pieces, used = extent.chunk, [], 0
            if extent.offset == used:
                _append(pieces, position, extent.length)
                used += extent.length
        position += extent.length
    if pieces:
        yield chunk, pieces


def _append(pieces: list[tuple[int, int]], offset: int, length: int) -> None:
    if pieces and sum(pieces[-1]) == offset:
        offset, before = pieces.pop()
        length += before
    pieces.append((offset, length))


ReadInto = Callable[[memoryview, int], int]


class Rehashing:
    """The threads that hash, for all files of one round; made when first needed."""

    def __init__(self, keys: DomainKeys, workers: int) -> None:
        self._keys = keys
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._buffers = threading.local()

    def submit(self, read_into: ReadInto, chunks: Sequence[OldChunk]) -> Future[list[bool]]:
        """Have these chunks compared with what the file has in their place."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="rehash")
        return self._pool.submit(self._compare, read_into, chunks)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _compare(self, read_into: ReadInto, chunks: Sequence[OldChunk]) -> list[bool]:
        return [self._is_same(read_into, chunk) for chunk in chunks]

    def _is_same(self, read_into: ReadInto, chunk: OldChunk) -> bool:
        hasher = ChunkHasher(self._keys, ChunkType.CONTENT)
        for offset, length in chunk.pieces:
            for at in range(offset, offset + length, _READ_BYTES):
                view = self._buffer()[: min(_READ_BYTES, offset + length - at)]
                if read_into(view, at) < len(view):
                    return False
                hasher.update(view)
        return hasher.digest() == chunk.id

    def _buffer(self) -> memoryview:
        found: memoryview | None = getattr(self._buffers, "view", None)
        if found is None:
            found = self._buffers.view = memoryview(bytearray(_READ_BYTES))
        return found


class _Batch(NamedTuple):
    """Chunks that are being compared together."""

    chunks: Sequence[OldChunk]
    answer: Future[list[bool]]


class OldContent:
    """One file's old chunks, passed from front to back, each compared before it is needed."""

    def __init__(
        self,
        chunks: Iterator[OldChunk],
        rehashing: Rehashing,
        *,
        read_into: ReadInto,
        runs: DataRuns,
        avoid: frozenset[bytes],
    ) -> None:
        self._chunks = chunks
        self._rehashing = rehashing
        self._read_into = read_into
        self._runs = runs
        self._avoid = avoid
        self._next = next(chunks, None)
        """The first chunk that was not handed to a thread."""
        self._batches: deque[_Batch] = deque()
        self._passed = 0
        """Chunks of the first batch that are behind."""
        self._ahead_bytes = 0
        self._ahead_bytes_max = 0
        self.has_passed_over = False
        """Whether one of them was left out: then the file's extents are not the parent's."""

    def at(self, offset: int) -> OldChunk | None:
        """Return the chunk that began at `offset` and still stands there as it was.

        Every later question is for a higher offset. Blocks until the chunk is compared.
        """
        while (first := self._first()) is not None and first.start < offset:
            self.has_passed_over = True
            self._pass()
        if first is None or first.start != offset or not self._is_kept(first):
            self._ahead_bytes_max = 0
            return None
        self._ahead_bytes_max = min(2 * self._ahead_bytes_max + first.size, _AHEAD_BYTES_MAX)
        return first

    def take(self) -> None:
        """Go on behind the chunk that `at` returned."""
        self._pass()

    @property
    def is_used_up(self) -> bool:
        """Whether every chunk was taken."""
        return self._first() is None and not self.has_passed_over

    def end(self) -> None:
        """Return when no thread reads the file any more; what was not taken is passed over."""
        self.has_passed_over |= self._first() is not None
        for batch in self._batches:
            batch.answer.cancel()
        wait([batch.answer for batch in self._batches])
        self._batches.clear()

    # --- inside ---
    def _first(self) -> OldChunk | None:
        return self._batches[0].chunks[self._passed] if self._batches else self._next

    def _pass(self) -> None:
        if not self._batches:
            self._next = next(self._chunks, None)
            return
        batch = self._batches[0]
        self._ahead_bytes -= batch.chunks[self._passed].size
        self._passed += 1
        if self._passed == len(batch.chunks):
            # A file is closed only when no thread reads it: also what was passed over is awaited.
            self._batches.popleft()
            self._passed = 0
            wait([batch.answer])

    def _is_kept(self, chunk: OldChunk) -> bool:
        if chunk.id in self._avoid or not self._runs.are(chunk.pieces):
            return False
        behind = self._runs.data_behind(chunk.end, _BEHIND_BYTES_MIN)
        if behind and (chunk.is_last or behind < _BEHIND_BYTES_MIN):
            # A last one was cut off by the end of the file: with more data its cut point lies
            # elsewhere. And with too little data behind it a cut point is not seen.
            return False
        self._fill()
        return self._batches[0].answer.result()[self._passed]

    def _fill(self) -> None:
        """Have at least one chunk compared, and more ahead while nothing differs."""
        while self._next is not None and (
            not self._batches or self._ahead_bytes < self._ahead_bytes_max
        ):
            room = max(min(self._ahead_bytes_max - self._ahead_bytes, _BATCH_BYTES), 1)
            batch: list[OldChunk] = []
            while self._next is not None and room > 0:
                batch.append(self._next)
                room -= self._next.size
                self._ahead_bytes += self._next.size
                self._next = next(self._chunks, None)
            answer = self._rehashing.submit(self._read_into, batch)
            self._batches.append(_Batch(batch, answer))
