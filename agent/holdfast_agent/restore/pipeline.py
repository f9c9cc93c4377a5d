"""Fetching ahead: while one batch is written or looked at, the next two come in and are opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import msgspec

from holdfast_agent.ports import Cancel
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.snapshots.chunks import Asked, ChunkReader
from holdfast_agent.tree.entry import Extent
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer
from holdfast_contract.limits import FETCH_IDS_MAX, MIB

Opened = dict[bytes, Buffer | Damaged]
_Fetched = dict[bytes, Future[Buffer | Damaged]]
_Result = TypeVar("_Result")
_Step = TypeVar("_Step")


class Need(msgspec.Struct, frozen=True):
    """What a step needs to be executed."""

    chunks: Sequence[tuple[bytes, int]] = ()
    """Ids, each with the bytes up to the end of what is used of it."""
    count: int = 1
    """So many files it counts as."""


STEPS_MAX: Final = 2048
"""Of one batch, each file of a bundle counted as one."""
_AHEAD: Final = 2
"""Batches that are fetched before their turn: where these are of two requests the server looks one
up while the other comes in."""
ROOMS: Final = _AHEAD + 2
"""Memories of opened chunks where `settle` has something to do: of one batch the last files may
still be written when the next one has its turn."""
_TOGETHER_MAX: Final = 8
"""Batches whose chunks come by one request: a request costs the server as much as 8 MiB of chunks.
What comes is read as far as there is room for it."""
_STEPS_TOGETHER_MAX: Final = 2 * STEPS_MAX
_CHUNKS_MAX: Final = 32
_CHUNK_BYTES_AT_LEAST: Final = 64 << 10
"""What a chunk counts at least: its own length shows only in the parts of it that are used."""
_POLL_SECONDS: Final = 0.2
_RESTING_BYTES: Final = 72 * MIB
"""Interpreter, libraries, cache of tree chunks, lists."""


def part_of(opened: Buffer | Damaged, extent: Extent) -> memoryview:
    """Return what an extent names of its chunk.

    Raises:
        Damaged: the chunk is, or it is shorter than that.
    """
    if isinstance(opened, Damaged):
        raise opened
    data = memoryview(opened)[extent.offset : extent.offset + extent.length]
    if len(data) != extent.length:
        chunk = extent.chunk.hex()
        raise Damaged(f"chunk {chunk[:16]} is shorter than named", object=chunk, chunk=chunk)
    return data


def batch_bytes(memory_max: int) -> int:
    """Return how many bytes of chunks one batch may have.

    At the peak one batch is written and two more lie in memory twice, sealed and opened.
    """
    return max(MIB, min(12 * MIB, (memory_max - _RESTING_BYTES) // 12))


def room_bytes(bytes_max: int) -> int:
    """Return how long the memory for one batch of that many bytes is."""
    return 2 * bytes_max


@dataclass
class _Batch(Generic[_Step]):
    steps: list[_Step] = field(default_factory=list)
    chunks: dict[bytes, int] = field(default_factory=dict)
    """Chunk id -> length, as far as it shows."""
    shared: set[bytes] = field(default_factory=set)
    """Chunks that the batch before fetches."""
    carried: Opened = field(default_factory=dict)
    ids: list[bytes] = field(default_factory=list)
    """Of the chunks that are fetched for it."""
    fetch: Future[_Fetched] | None = None
    room: Arena | None = None
    """Where they are opened."""
    count: int = 0
    """Of steps, and of files of bundles."""
    cost: int = 0
    """Bytes of its chunks, each counted as `_CHUNK_BYTES_AT_LEAST` at least."""

    def add(self, step: _Step, need: Need) -> None:
        """Append a step and the chunks that it needs."""
        self.steps.append(step)
        self.count += need.count
        for chunk, length in need.chunks:
            self._want(chunk, length)

    def _want(self, chunk: bytes, length: int) -> None:
        known = self.chunks.get(chunk, 0)
        if length > known:
            self.chunks[chunk] = length
            least = _CHUNK_BYTES_AT_LEAST
            self.cost += max(length, least) - (max(known, least) if known else 0)


class Pipeline(Generic[_Step]):
    """Takes steps in order and has them executed in order, with their chunks at hand.

    A context manager; `drain` before its end executes what is left.
    """

    def __init__(
        self,
        reader: ChunkReader,
        need_of: Callable[[_Step], Need],
        execute: Callable[[_Step, Opened], None],
        *,
        cancel: Cancel,
        bytes_max: int,
        rooms: Sequence[Arena] = (),
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`rooms` are the `ROOMS` memories of opened chunks, each of `room_bytes`; none: its own.

        `settle` is called when the chunks of a batch that was executed are needed no longer than
        until it returns.
        """
        self.chunks = 0
        """So many were asked for."""
        self._reader = reader
        self._need_of = need_of
        self._execute = execute
        self._cancel = cancel
        self._bytes_max = bytes_max
        self._filling = _Batch[_Step]()
        self._closed: deque[_Batch[_Step]] = deque()
        """Batches that wait to be asked for."""
        self._together = 1
        """So many are asked for at once: more and more, so that a small restore begins at once."""
        self._asked: deque[Asked] = deque(maxlen=_AHEAD + 1)
        """The last requests: those before them have been taken as a whole."""
        self._waiting: deque[_Batch[_Step]] = deque()
        """Batches under way, at most `_AHEAD` once `put` returns."""
        self._settle = settle
        # By turns: when the first of them is cleared its batch has been executed, and settled.
        self._rooms = rooms or [Arena(room_bytes(bytes_max)) for _ in range(_AHEAD + 1)]
        self._sealed = [Arena(room_bytes(bytes_max)) for _ in range(_AHEAD + 1)]
        self._turns = 0
        self._thread = ThreadPoolExecutor(_AHEAD, thread_name_prefix="fetch")

    def put(self, step: _Step) -> None:
        """Take the next step; now and then this executes a batch of earlier ones."""
        batch = self._filling
        batch.add(step, self._need_of(step))
        if (
            batch.count >= STEPS_MAX
            or len(batch.chunks) >= _CHUNKS_MAX
            or batch.cost >= self._bytes_max
        ):
            self._close()

    def drain(self) -> None:
        """Execute everything that was put."""
        self._close()
        self._ask()
        while self._waiting:
            self._run(self._waiting.popleft())
        self._settle()

    def _close(self) -> None:
        """Let the filled batch wait until there are enough for a request."""
        batch, self._filling = self._filling, _Batch[_Step]()
        before = self._closed or self._waiting
        if before:
            batch.shared = batch.chunks.keys() & before[-1].chunks.keys()
        batch.ids = [chunk for chunk in batch.chunks if chunk not in batch.shared]
        self._closed.append(batch)
        ids = sum(len(each.ids) for each in self._closed)
        steps = sum(each.count for each in self._closed)
        if (
            len(self._closed) >= self._together
            or ids + _CHUNKS_MAX > FETCH_IDS_MAX
            or steps + STEPS_MAX > _STEPS_TOGETHER_MAX
        ):
            self._ask()

    def _ask(self) -> None:
        """Ask for the chunks of all closed batches, and execute batches as these come in."""
        batches, self._closed = self._closed, deque()
        self._together = min(2 * self._together, _TOGETHER_MAX)
        ids = [chunk for batch in batches for chunk in batch.ids]
        self.chunks += len(ids)
        asked = self._reader.ask(ChunkType.CONTENT, ids)
        self._asked.append(asked)
        before: Future[_Fetched] | None = None
        for batch in batches:
            if batch.ids:
                batch.room = self._rooms[self._turns % len(self._rooms)]
                sealed = self._sealed[self._turns % (_AHEAD + 1)]
                self._turns += 1
                batch.room.clear()
                sealed.clear()
                before = batch.fetch = self._thread.submit(
                    self._take, asked, len(batch.ids), batch.room, sealed, before
                )
            self._waiting.append(batch)
            if len(self._waiting) > _AHEAD:
                self._run(self._waiting.popleft())

    def _take(
        self,
        asked: Asked,
        count: int,
        room: Arena,
        sealed: Arena,
        before: Future[_Fetched] | None,
    ) -> _Fetched:
        if before is not None:
            # The same answer: what comes first in it is taken first.
            before.result()
        return asked.take(count, room.take, sealed.take)

    def _run(self, batch: _Batch[_Step]) -> None:
        self._settle()
        opened = batch.carried
        opened.update(self._fetched(batch))
        for step in batch.steps:
            self._cancel.check()
            self._execute(step, opened)
        if self._waiting:
            following = self._waiting[0]
            following.carried = {
                chunk: _lasting(opened[chunk], following.room) for chunk in following.shared
            }

    def _fetched(self, batch: _Batch[_Step]) -> Opened:
        """Wait for the batch's chunks; where a request ended with damage, each is that damage."""
        if batch.fetch is None:
            return {}
        try:
            fetched = self._wait(batch.fetch)
        except Damaged as damage:
            # Raised on it would be taken for that of whichever file is planned just now.
            return dict.fromkeys(batch.ids, damage)
        return {chunk: self._found(future) for chunk, future in fetched.items()}

    def _found(self, future: Future[Buffer | Damaged]) -> Buffer | Damaged:
        try:
            return self._wait(future)
        except Damaged as damage:
            return damage

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
        for asked in self._asked:
            asked.close()


def _lasting(opened: Buffer | Damaged, room: Arena | None) -> Buffer | Damaged:
    """Return what a further batch may use: the memory of this one is used again, that is its own.

    None: it has none.
    """
    if not isinstance(opened, memoryview):
        return opened
    if room is None:
        return bytes(opened)
    lasting = room.take(len(opened))
    lasting[:] = opened
    return lasting
