"""Packs that are written where they lie until they are sent: chunks are sealed into their places.

A sealed chunk in memory of its own costs page faults as long as its encryption takes, and a pack
of many pieces a TLS record for each.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import attrgetter
from typing import Final, NamedTuple

from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.pack import (
    FRAME_BYTES,
    HEADER_BYTES,
    PackEntry,
    encode_frame,
    encode_pack_footer,
    encode_pack_header,
    footer_bytes_of,
)
from holdfast_contract.ids import ChunkId, DomainId
from holdfast_contract.limits import MIB, PACK_CHUNKS_MAX, SEALED_BYTES_MAX

_OVERSHOOT_BYTES: Final = MIB
"""Room beyond the planned size: the last chunk that fits leaves half a chunk empty on average."""
_OFFSET: Final = attrgetter("offset")
_LARGEST_CHUNK_BYTES: Final = SEALED_BYTES_MAX + HEADER_BYTES + FRAME_BYTES + footer_bytes_of(1)


def pack_room_bytes(pack_bytes: int) -> int:
    """Return the memory of one pack that is planned to have `pack_bytes`; any chunk fits."""
    return max(pack_bytes + _OVERSHOOT_BYTES, _LARGEST_CHUNK_BYTES)


class Place(NamedTuple):
    """Where a chunk is to be sealed."""

    pack: Pack
    chunk_id: ChunkId
    offset: int
    view: memoryview


class Pack:
    """One pack in one piece of memory.

    Life cycle: `take` a place for each chunk and `settle` it, by any threads but one at a time;
    once `is_settled`, `leave_out` what need not be sent, and `finish`. The memory may serve another
    pack when this one is sent.
    """

    def __init__(self, domain_id: DomainId, room: bytearray) -> None:
        self.room = room
        self._view = memoryview(room)
        self._header = encode_pack_header(domain_id)
        self._view[:HEADER_BYTES] = self._header
        self._end = HEADER_BYTES
        self._taken = 0
        self._entries: list[PackEntry] = []
        self.is_closed = False
        """Whether no more places are taken; the owner's mark."""
        self.unasked: dict[bytes, int] = {}
        """Chunks that may be stored already, and the bytes of new content that each is if not; the
        owner's notes."""

    def take(self, of_chunk: ChunkId, sealed_bytes: int) -> Place | None:
        """Return the place for a sealed chunk of that length; None: no room is left."""
        start = self._end + FRAME_BYTES
        end = start + sealed_bytes
        if end + footer_bytes_of(self._taken + 1) > len(self.room):
            return None
        if self._taken == PACK_CHUNKS_MAX:
            return None
        self._view[self._end : start] = encode_frame(of_chunk, sealed_bytes)
        self._end = end
        self._taken += 1
        return Place(self, of_chunk, start, self._view[start:end])

    def settle(self, place: Place, digest: bytes, *, epoch: int, kind: ChunkType) -> None:
        """Note that a chunk stands sealed in its place; `digest` is its storage hash."""
        length = len(place.view)
        self._entries.append(PackEntry(place.chunk_id, digest, place.offset, length, epoch, kind))

    @property
    def is_settled(self) -> bool:
        """Whether every place that was taken is filled."""
        return len(self._entries) == self._taken

    def leave_out(self, ids: Collection[bytes]) -> None:
        """Take these chunks out of a settled pack: what stands behind them moves up."""
        assert self.is_settled
        kept: list[PackEntry] = []
        end = HEADER_BYTES
        for entry in sorted(self._entries, key=_OFFSET):
            if entry.chunk_id in ids:
                continue
            start, size = entry.offset - FRAME_BYTES, FRAME_BYTES + entry.length
            if start > end:
                self._view[end : end + size] = self._view[start : start + size]
            kept.append(entry._replace(offset=end + FRAME_BYTES))
            end += size
        self._entries, self._taken, self._end = kept, len(kept), end

    @property
    def ids(self) -> list[bytes]:
        """The chunks that are settled."""
        return [entry.chunk_id for entry in self._entries]

    def finish(self) -> memoryview:
        """Return the whole pack."""
        assert self.is_settled and self._entries
        self._entries.sort(key=_OFFSET)
        footer = encode_pack_footer(self._header, self._entries)
        end = self._end + len(footer)
        self._view[self._end : end] = footer
        return self._view[:end]
