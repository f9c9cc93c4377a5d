"""Fetching and opening chunks: damage told to the server, the next copy tried, the object named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Lock

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.sealing import Opener
from holdfast_agent.ports import ChunkSource, ChunkStatus, FetchedChunk
from holdfast_agent.tree.entry import HOLE_CHUNK, Extent
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Buffer, Room
from holdfast_contract.ids import ChunkId

_COPIES_TRIED_MAX = 4
"""A liar may fill the server with bad copies; nobody waits for all of them."""
_TREE_CACHE_BYTES = 8 << 20


class ChunkReader:
    """Opened chunks of one grant. Thread-safe.

    A chunk that does not open is reported and asked for again: the server brings its next copy.
    When none opens the result is Damaged with `object` (the pack) and `chunk`.
    """

    def __init__(self, keys: DomainKeys, source: ChunkSource, *, workers: int = 2) -> None:
        self._opener = Opener(keys)
        self._source = source
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="open")
        self._tree = _Cache(_TREE_CACHE_BYTES)

    def close(self) -> None:
        """End the worker threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(
        self, kind: ChunkType, ids: Sequence[bytes], room: Room = bytearray, kept: Room = bytearray
    ) -> dict[bytes, Buffer | Damaged]:
        """Return every distinct chunk of `ids`, opened, or what is wrong with it.

        Holds all of them at once, sealed and opened: the caller bounds the number. They lie in
        what `room` returns, and until this returns sealed in what `kept` returns; both may have
        been used before.
        """
        distinct = list(dict.fromkeys(ids))
        waiting = self.ask(kind, distinct).take(len(distinct), room, kept)
        return {chunk_id: future.result() for chunk_id, future in waiting.items()}

    def ask(self, kind: ChunkType, ids: Sequence[bytes]) -> Asked:
        """Return what takes the chunks `ids` part by part; they are asked for with the first."""

        def opened(chunk: FetchedChunk, room: Room) -> Future[Buffer | Damaged]:
            return self._pool.submit(self._opened, kind, chunk, room)

        return Asked(self._source, ids, opened)

    def read_one(self, kind: ChunkType, chunk_id: bytes) -> bytes:
        """Return the plaintext of one chunk.

        Raises:
            Damaged: no copy of it opens, or the server does not give it for this grant.
        """
        if kind is ChunkType.TREE and (known := self._tree.get(chunk_id)) is not None:
            return known
        (fetched,) = self._source.fetch([chunk_id])
        found = self._opened(kind, fetched, bytearray)
        if isinstance(found, Damaged):
            raise found
        opened = bytes(found)
        if kind is ChunkType.TREE:
            self._tree.put(chunk_id, opened)
        return opened

    def read_part(self, extent: Extent) -> memoryview:
        """Return the bytes of a page or block of a tree; a memoryview of the opened chunk.

        Raises:
            Damaged: no copy of the chunk opens, or it has no such part.
        """
        if extent.chunk == HOLE_CHUNK:
            raise broken_tree("a page in a hole", extent)
        whole = self.read_one(ChunkType.TREE, extent.chunk)
        part = memoryview(whole)[extent.offset : extent.offset + extent.length]
        if len(part) != extent.length:
            raise broken_tree("an extent outside its chunk", extent)
        return part

    def _opened(self, kind: ChunkType, fetched: FetchedChunk, room: Room) -> Buffer | Damaged:
        last: Damaged | None = None
        for _ in range(_COPIES_TRIED_MAX):
            if fetched.status is not ChunkStatus.HERE:
                return last or _absent(fetched)
            try:
                return self._opener.open_into(kind, ChunkId(fetched.id), fetched.sealed, room)
            except Damaged as damage:
                last = _named(damage, fetched)
            self._source.report(
                fetched.id, fetched.object, fetched.offset, str(last.details["reason"])
            )
            tried = (fetched.object, fetched.offset)
            (fetched,) = self._source.fetch([fetched.id])
            if (fetched.object, fetched.offset) == tried:
                break
        assert last is not None
        return last


class Asked:
    """Chunks that were asked for together and are taken in parts, one thread at a time."""

    def __init__(
        self,
        source: ChunkSource,
        ids: Sequence[bytes],
        opened: Callable[[FetchedChunk, Room], Future[Buffer | Damaged]],
    ) -> None:
        self._opened = opened
        self._left = len(ids)
        self._kept: Room = bytearray
        self._chunks = source.fetch(ids, self._room)

    def _room(self, size: int) -> bytearray | memoryview:
        return self._kept(size)

    def take(self, count: int, room: Room, kept: Room) -> dict[bytes, Future[Buffer | Damaged]]:
        """Return the next `count` chunks once they have arrived; they are opened meanwhile.

        They lie in what `room` returns, and sealed in what `kept` does: that is in use until all
        of them are opened. Both may have been used before.
        """
        self._kept = kept
        found: dict[bytes, Future[Buffer | Damaged]] = {}
        self._left -= count
        try:
            for chunk in islice(self._chunks, count):
                found[chunk.id] = self._opened(chunk, room)
            if not self._left:
                # Up to its end: then the connection is free again.
                next(self._chunks, None)
        except BaseException:
            # What has come is still being opened, in memory that is used again.
            wait(found.values())
            raise
        return found

    def close(self) -> None:
        """Take no more of them; harmless where all were taken."""
        self._left = 0
        self._chunks = iter(())


def broken_tree(what: str, extent: Extent) -> Damaged:
    """Return the error of a tree that says what cannot be."""
    chunk = extent.chunk.hex()
    return Damaged(f"tree chunk {chunk[:16]}: {what}", object=chunk, chunk=chunk, reason="tree")


def _named(damage: Damaged, fetched: FetchedChunk) -> Damaged:
    reason = damage.details.get("reason", "unreadable")
    return Damaged(
        f"stored object {fetched.object} is damaged at {fetched.offset}",
        hint="a new backup stores the data again, if the files still have it",
        object=fetched.object,
        chunk=fetched.id.hex(),
        reason=reason,
    )


def _absent(fetched: FetchedChunk) -> Damaged:
    if fetched.status is ChunkStatus.DAMAGED:
        return _named(Damaged("", reason="known"), fetched)
    chunk = fetched.id.hex()
    return Damaged(
        f"the server does not have chunk {chunk[:16]}", object=chunk, chunk=chunk, reason="absent"
    )


class _Cache:
    """The last opened tree chunks: pages of one directory often share them."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        with self._lock:
            if key not in self._held:
                self._bytes += len(value)
            self._held[key] = value
            while self._bytes > self._bytes_max:
                _, dropped = self._held.popitem(last=False)
                self._bytes -= len(dropped)
