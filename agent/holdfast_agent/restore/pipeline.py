"""Fetching ahead of writing: while one batch is written, the next one's chunks come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from holdfast_agent.ports import Cancel
from holdfast_agent.restore.steps import Piece, Step, Whole
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.tree.entry import Extent
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.limits import MIB

Opened = dict[bytes, Buffer | Damaged]
Execute = Callable[[Step, Opened], None]

STEPS_MAX: Final = 512
_CHUNKS_MAX: Final = 16
_CHUNK_BYTES_AT_LEAST: Final = 64 << 10
"""What a chunk counts at least: its own length shows only in the parts of it that are used."""
_POLL_SECONDS: Final = 0.2
_RESTING_BYTES: Final = 72 * MIB
"""Interpreter, libraries, cache of tree chunks, lists."""


def batch_bytes(memory_max: int) -> int:
    """Return how many bytes of chunks one batch may have.

    At the peak one batch is written while the next lies in memory twice, sealed and opened.
    """
    return max(2 * MIB, min(16 * MIB, (memory_max - _RESTING_BYTES) // 8))


@dataclass
class _Batch:
    steps: list[Step] = field(default_factory=list)
    chunks: dict[bytes, int] = field(default_factory=dict)
    """Chunk id -> length, as far as it shows."""
    shared: set[bytes] = field(default_factory=set)
    """Chunks that the batch before fetches."""
    carried: Opened = field(default_factory=dict)
    fetch: Future[Opened] | None = None
    cost: int = 0
    """Bytes of its chunks, each counted as `_CHUNK_BYTES_AT_LEAST` at least."""

    def add(self, step: Step) -> None:
        """Append a step and the chunks that it needs."""
        self.steps.append(step)
        if isinstance(step, Whole):
            self._want(step.extent)
        elif isinstance(step, Piece):
            for extent in step.wanted():
                self._want(extent)

    def _want(self, extent: Extent) -> None:
        known = self.chunks.get(extent.chunk, 0)
        length = extent.offset + extent.length
        if length > known:
            self.chunks[extent.chunk] = length
            least = _CHUNK_BYTES_AT_LEAST
            self.cost += max(length, least) - (max(known, least) if known else 0)


class Pipeline:
    """Takes steps in order and has them executed in order, with their chunks at hand.

    A context manager; `drain` before its end executes what is left.
    """

    def __init__(
        self, reader: ChunkReader, execute: Execute, *, cancel: Cancel, bytes_max: int
    ) -> None:
        self._reader = reader
        self._execute = execute
        self._cancel = cancel
        self._bytes_max = bytes_max
        self._filling = _Batch()
        self._waiting: _Batch | None = None
        # While one batch is written the next is opened, and nothing else lives as long.
        self._rooms = (Arena(2 * bytes_max), Arena(2 * bytes_max))
        self._sealed = Arena(2 * bytes_max)
        self._turns = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def put(self, step: Step) -> None:
        """Take the next step; now and then this executes a batch of earlier ones."""
        batch = self._filling
        batch.add(step)
        if (
            len(batch.steps) >= STEPS_MAX
            or len(batch.chunks) >= _CHUNKS_MAX
            or batch.cost >= self._bytes_max
        ):
            self._turn()

    def drain(self) -> None:
        """Execute everything that was put."""
        self._turn()
        self._turn()

    def _turn(self) -> None:
        """Start fetching the filled batch, and execute the one before it."""
        before, batch = self._waiting, self._filling
        if before is not None:
            batch.shared = batch.chunks.keys() & before.chunks.keys()
        ids = [chunk for chunk in batch.chunks if chunk not in batch.shared]
        if ids:
            batch.fetch = self._thread.submit(self._read, ids, self._rooms[self._turns % 2])
            self._turns += 1
        self._waiting, self._filling = batch, _Batch()
        if before is not None:
            self._run(before, batch)

    def _read(self, ids: Sequence[bytes], room: Arena) -> Opened:
        room.clear()
        self._sealed.clear()
        return self._reader.read(ChunkType.CONTENT, ids, room.take, self._sealed.take)

    def _run(self, batch: _Batch, following: _Batch) -> None:
        opened = batch.carried
        if batch.fetch is not None:
            opened |= self._fetched(batch.fetch)
        for step in batch.steps:
            self._cancel.check()
            self._execute(step, opened)
        following.carried = {chunk: _lasting(opened[chunk]) for chunk in following.shared}

    def _fetched(self, fetch: Future[Opened]) -> Opened:
        while True:
            try:
                return fetch.result(_POLL_SECONDS)
            except TimeoutError:
                self._cancel.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def _lasting(opened: Buffer | Damaged) -> Buffer | Damaged:
    """Return what a further batch may use: the memory of this one is used again."""
    return bytes(opened) if isinstance(opened, memoryview) else opened
