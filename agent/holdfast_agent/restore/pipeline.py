"""Fetching ahead of writing: while one batch is written, the next two come in and are opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

from holdfast_agent.ports import Cancel
from holdfast_agent.restore.steps import Bundle, Piece, Step, Whole
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.limits import MIB

Opened = dict[bytes, Buffer | Damaged]
Execute = Callable[[Step, Opened], None]
_Fetched = dict[bytes, Future[Buffer | Damaged]]
_Result = TypeVar("_Result")

STEPS_MAX: Final = 2048
"""Of one batch, each file of a bundle counted as one."""
_AHEAD: Final = 2
"""Batches that are fetched before their turn, each by a request of its own: while the server looks
one up, the other comes in and is opened."""
_CHUNKS_MAX: Final = 32
_CHUNK_BYTES_AT_LEAST: Final = 64 << 10
"""What a chunk counts at least: its own length shows only in the parts of it that are used."""
_POLL_SECONDS: Final = 0.2
_RESTING_BYTES: Final = 72 * MIB
"""Interpreter, libraries, cache of tree chunks, lists."""


def batch_bytes(memory_max: int) -> int:
    """Return how many bytes of chunks one batch may have.

    At the peak one batch is written and two more lie in memory twice, sealed and opened.
    """
    return max(MIB, min(12 * MIB, (memory_max - _RESTING_BYTES) // 12))


@dataclass
class _Batch:
    steps: list[Step] = field(default_factory=list)
    chunks: dict[bytes, int] = field(default_factory=dict)
    """Chunk id -> length, as far as it shows."""
    shared: set[bytes] = field(default_factory=set)
    """Chunks that the batch before fetches."""
    carried: Opened = field(default_factory=dict)
    fetch: Future[_Fetched] | None = None
    count: int = 0
    """Of steps, and of files of bundles."""
    cost: int = 0
    """Bytes of its chunks, each counted as `_CHUNK_BYTES_AT_LEAST` at least."""

    def add(self, step: Step) -> None:
        """Append a step and the chunks that it needs."""
        self.steps.append(step)
        if isinstance(step, Bundle):
            self.count += len(step.stats)
            self._want(step.chunk, step.used)
            return
        self.count += 1
        if isinstance(step, Whole):
            self._want(step.extent.chunk, step.extent.offset + step.extent.length)
        elif isinstance(step, Piece):
            for extent in step.wanted():
                self._want(extent.chunk, extent.offset + extent.length)

    def _want(self, chunk: bytes, length: int) -> None:
        known = self.chunks.get(chunk, 0)
        if length > known:
            self.chunks[chunk] = length
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
        self._waiting: deque[_Batch] = deque()
        """Batches under way, at most `_AHEAD` once `put` returns."""
        # By turns: when the first of them is cleared its batch has been executed.
        self._rooms = [Arena(2 * bytes_max) for _ in range(_AHEAD + 1)]
        self._sealed = [Arena(2 * bytes_max) for _ in range(_AHEAD + 1)]
        self._turns = 0
        self._thread = ThreadPoolExecutor(_AHEAD, thread_name_prefix="fetch")

    def put(self, step: Step) -> None:
        """Take the next step; now and then this executes a batch of earlier ones."""
        batch = self._filling
        batch.add(step)
        if (
            batch.count >= STEPS_MAX
            or len(batch.chunks) >= _CHUNKS_MAX
            or batch.cost >= self._bytes_max
        ):
            self._turn()

    def drain(self) -> None:
        """Execute everything that was put."""
        self._turn()
        while self._waiting:
            self._run(self._waiting.popleft())

    def _turn(self) -> None:
        """Start fetching the filled batch, and execute the first of those before it."""
        batch, self._filling = self._filling, _Batch()
        if self._waiting:
            batch.shared = batch.chunks.keys() & self._waiting[-1].chunks.keys()
        ids = [chunk for chunk in batch.chunks if chunk not in batch.shared]
        if ids:
            batch.fetch = self._thread.submit(self._fetch, ids, self._turns % (_AHEAD + 1))
            self._turns += 1
        self._waiting.append(batch)
        if len(self._waiting) > _AHEAD:
            self._run(self._waiting.popleft())

    def _fetch(self, ids: Sequence[bytes], turn: int) -> _Fetched:
        room, sealed = self._rooms[turn], self._sealed[turn]
        room.clear()
        sealed.clear()
        return self._reader.fetch(ChunkType.CONTENT, ids, room.take, sealed.take)

    def _run(self, batch: _Batch) -> None:
        opened = batch.carried
        if batch.fetch is not None:
            for chunk, found in self._wait(batch.fetch).items():
                opened[chunk] = self._wait(found)
        for step in batch.steps:
            self._cancel.check()
            self._execute(step, opened)
        if self._waiting:
            following = self._waiting[0]
            following.carried = {chunk: _lasting(opened[chunk]) for chunk in following.shared}

    def _wait(self, future: Future[_Result]) -> _Result:
        while True:
            try:
                return future.result(_POLL_SECONDS)
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
