"""Things whose chunk ids are not known yet: a bundle is still open, a worker is still hashing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

from holdfast_agent.tree.entry import HOLE_CHUNK, Extent


class ChunkDraft:
    """A chunk of which the id will be known once its plaintext is complete and hashed."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id: bytes = b""
        """Empty until it is known; set once, by whatever thread hashes the plaintext."""


Place: TypeAlias = tuple[ChunkDraft | bytes, int, int]
"""Where pages and blocks lie: tree chunk (a draft or an id), offset, length."""
Part: TypeAlias = tuple[ChunkDraft | bytes, int, int]
"""An extent to be: chunk (a draft, an id, or HOLE_CHUNK), offset, length."""


class Parts:
    """The content of one file as parts, in order; names of one inode share the object.

    What is resolved is kept as records of 44 bytes, so that a file of a tebibyte takes 44 MiB.
    """

    __slots__ = ("_open", "_packed")

    _RECORD = 44

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self._open: list[Part] = list(parts)
        self._packed: bytes | bytearray = b""

    def append(self, part: Part) -> None:
        """Add the next part."""
        self._open.append(part)
        if len(self._open) >= 4096:
            self._pack()

    def extend_last(self, chunk: ChunkDraft, offset: int, length: int) -> bool:
        """Make the last part longer if these bytes follow it in the same chunk; tell whether."""
        if not self._open:
            return False
        last, start, so_far = self._open[-1]
        if last is not chunk or start + so_far != offset:
            return False
        self._open[-1] = (last, start, so_far + length)
        return True

    @property
    def is_resolved(self) -> bool:
        """Whether every id is known."""
        for chunk, _, _ in self._open:
            if chunk.__class__ is ChunkDraft and not chunk.id:
                return False
        return True

    def __len__(self) -> int:
        return len(self._packed) // self._RECORD + len(self._open)

    def as_extents(self) -> tuple[Extent, ...]:
        """Return the extents; every id has to be known. For files of few parts."""
        if len(self._open) == 1 and not self._packed:
            chunk, offset, length = self._open[0]
            return (Extent(known_id(chunk), offset, length),)
        return tuple(self.extents())

    def extents(self) -> Iterator[Extent]:
        """Yield the extents; every id has to be known."""
        for at in range(0, len(self._packed), self._RECORD):
            record = self._packed[at : at + self._RECORD]
            offset = int.from_bytes(record[32:36], "little")
            yield Extent(bytes(record[:32]), offset, int.from_bytes(record[36:], "little"))
        for chunk, offset, length in self._open:
            yield Extent(known_id(chunk), offset, length)

    def _pack(self) -> None:
        """Pack the resolved parts at the front."""
        if not self._packed:
            # Most files never come here: they do without a buffer of their own.
            self._packed = bytearray()
        done = 0
        for chunk, offset, length in self._open:
            found = chunk.id if isinstance(chunk, ChunkDraft) else chunk
            if not found:
                break
            self._packed += found + offset.to_bytes(4, "little") + length.to_bytes(8, "little")
            done += 1
        del self._open[:done]


def known_id(chunk: ChunkDraft | bytes) -> bytes:
    """Return the id of a chunk that is known by now."""
    found = chunk.id if isinstance(chunk, ChunkDraft) else chunk
    assert found, "a chunk is used before its id is known"
    return found


def parts_of(extents: Sequence[Extent]) -> Parts:
    """Return known extents as parts."""
    return Parts((extent.chunk, extent.offset, extent.length) for extent in extents)


def holes_of(extents: Iterable[Extent]) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of the holes among a file's extents."""
    holes = []
    position = 0
    for extent in extents:
        if extent.chunk == HOLE_CHUNK:
            holes.append((position, extent.length))
        position += extent.length
    return tuple(holes)


def batches(extents: Iterable[Extent], size: int) -> Iterator[list[Extent]]:
    """Yield lists of at most `size` extents."""
    iterator = iter(extents)
    while batch := list(islice(iterator, size)):
        yield batch
