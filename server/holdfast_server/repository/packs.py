"""Packs on their way in: checked as a whole, durable, indexed, and only then acknowledged."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Final

from holdfast_contract.errors import InvalidInput, NoSpace, TooLarge, TooMany
from holdfast_contract.format.pack import (
    HEADER_BYTES,
    PACK_BYTES_MIN,
    TRAILER_BYTES,
    PackEntry,
    verify_pack,
)
from holdfast_contract.format.refs import HASH_BYTES
from holdfast_contract.ids import ClientName
from holdfast_contract.limits import KIB, MIB, PACK_BYTES_MAX
from holdfast_server.catalog import chunks, state
from holdfast_server.catalog.chunks import Uploaded
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.sessions import Sessions, Uploader, require_name
from holdfast_server.stores.filesystem import block_buffer

BUFFERS_BYTES_MAX: Final = 512 * MIB
"""All packs that are arriving at once: 32 of the size that agents aim at."""
CLIENT_BYTES_MAX: Final = 2 * PACK_BYTES_MAX
"""Packs of one client that are arriving at once: an agent sends two."""
SPARE_BUFFERS: Final = 2
"""Buffers of packs that are kept for the next ones: no more than an agent sends at once, and none
when a job has ended and nothing is arriving."""
SPARE_BYTES_MAX: Final = 20 * MIB
"""Longest of them: packs that agents make fit."""
SLOW_SECONDS: Final = 30.0
SLOW_BYTES_PER_SECOND: Final = 64 * KIB
"""A pack that took longer than that and came more slowly loses its place once others need it: who
sends a byte now and then must not keep the server from the rest. Its sender may send it again."""


class PackUpload:
    """One pack while it arrives: `write` (or fill) all of it, then `commit` or `abort`."""

    def __init__(self, packs: Packs, uploader: Uploader, ulid: str, length: int) -> None:
        self._packs = packs
        self._uploader = uploader
        self._ulid = ulid
        self._memory = packs.buffer(length)
        self._view = self._memory[:length]
        self.length = length
        self._filled = 0
        self._is_over = False
        self._is_evicted = False
        self._lock = Lock()
        self._begun = packs.now()

    @property
    def client_key(self) -> int:
        """Whose pack it is."""
        return self._uploader.client.key

    def is_slow(self, now: float) -> bool:
        """Tell whether its place may be taken for another."""
        seconds = now - self._begun
        return seconds > SLOW_SECONDS and self._filled < seconds * SLOW_BYTES_PER_SECOND

    def evict(self) -> None:
        """Take its place away; the next `write` says so."""
        with self._lock:
            self._is_evicted = not self._is_over
        self.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            InvalidInput: the first of them are not the header of a pack of this domain.
            TooLarge: more than announced.
            TooMany: it came slowly, and its place was needed.
        """
        with self._lock:
            self._require_place()
            end = self._filled + len(data)
            if end > self.length:
                raise TooLarge("the pack is longer than announced")
            self._view[self._filled : end] = data
            self._advance(len(data))

    def room(self) -> memoryview:
        """Return the part that has not arrived: filled from its start on, it is told `advance`."""
        with self._lock:
            return self._view[self._filled :]

    def advance(self, count: int) -> None:
        """Take `count` bytes that stand at the start of `room` now.

        Raises: as `write`.
        """
        with self._lock:
            self._require_place()
            self._advance(count)

    def _require_place(self) -> None:
        if self._is_evicted:
            raise TooMany("the pack came too slowly, and others needed its place")
        assert not self._is_over

    def _advance(self, count: int) -> None:
        had, self._filled = self._filled, self._filled + count
        assert self._filled <= self.length
        if had < HEADER_BYTES <= self._filled:
            domain = bytes(self._view[HEADER_BYTES - 16 : HEADER_BYTES])
            if bytes(self._view[:4]) != b"HFPK" or domain != self._uploader.domain.domain:
                raise InvalidInput("not a pack of the client's domain")

    def commit(self) -> None:
        """Make the pack count: every check, durable in the store, its chunks live.

        The same bytes under the same name again change nothing.

        Raises:
            InvalidInput, UnsupportedVersion, TooLarge: the pack is not to be kept.
            Conflict: other bytes lie under the name.
            NoSpace, StoreFailed: nothing counts; the same pack can be sent again.
        """
        with self._lock:
            self._require_place()
            # From here on it is no longer slow: nobody takes the place of what is being stored.
            self._begun = self._packs.now()
            view, memory = self._view, self._memory
        try:
            if self._filled != self.length:
                raise InvalidInput("the pack is shorter than announced")
            self._packs.accept(self._uploader, self._ulid, view)
        finally:
            # Only here is it certain that nobody reads or fills it any more.
            self._packs.keep_buffer(memory)
            self.abort()

    def abort(self) -> None:
        """Drop what has arrived; does nothing after `commit`."""
        with self._lock:
            was_over, self._is_over = self._is_over, True
            self._view = self._memory = memoryview(b"")
        if not was_over:
            self._packs.release(self)


class Packs:
    """Accepts packs."""

    def __init__(self, parts: Parts, sessions: Sessions, deposits: Deposits) -> None:
        self._parts = parts
        self._sessions = sessions
        self._deposits = deposits
        self._lock = Lock()
        self._uploads: set[PackUpload] = set()
        self._spare: list[memoryview] = []

    def now(self) -> float:
        """Return seconds of the clock that only goes on."""
        return self._parts.clock.monotonic()

    @property
    def arriving_bytes(self) -> int:
        """Room that the packs take which are arriving."""
        with self._lock:
            return _room_of(self._uploads)

    def begin(self, client: ClientName, session: str, ulid: str, length: int) -> PackUpload:
        """Begin a pack of `length` bytes under a name that the session has reserved.

        Raises:
            NotFound, Refused: no such open session or name of this client.
            InvalidInput, TooLarge: no pack is that short or long.
            NoSpace: the store is full up to its reserve.
            TooMany: much is arriving at this moment.
        """
        self._parts.require_writable()
        if length < PACK_BYTES_MIN:
            raise InvalidInput("too short for a pack")
        if length > PACK_BYTES_MAX:
            raise TooLarge(f"a pack of {length} bytes, at most {PACK_BYTES_MAX}")
        with self._parts.catalog.read() as tx:
            uploader = self._sessions.require_open(tx, client, session)
            require_name(tx, uploader, ulid, ObjectKind.PACK)
        room = self._parts.store.space()
        if room.total_bytes and room.free_bytes - length < room.reserve_bytes:
            raise NoSpace(
                "the store is full", hint="free room in the store, or make its file system larger"
            )
        for slow in self._in_the_way(length):
            slow.evict()
        with self._lock:
            mine = {each for each in self._uploads if each.client_key == uploader.client.key}
            if _room_of(mine) + length > CLIENT_BYTES_MAX:
                raise TooMany("many packs of this client are arriving at this moment")
            if _room_of(self._uploads) + length > BUFFERS_BYTES_MAX:
                raise TooMany("many packs are arriving at this moment")
            upload = PackUpload(self, uploader, ulid, length)
            self._uploads.add(upload)
        return upload

    def _in_the_way(self, length: int) -> list[PackUpload]:
        """Return the slow uploads, if there is no room for `length` bytes beside them."""
        now = self.now()
        with self._lock:
            if _room_of(self._uploads) + length <= BUFFERS_BYTES_MAX:
                return []
            return [each for each in self._uploads if each.is_slow(now)]

    def release(self, upload: PackUpload) -> None:
        """Give back the room of an upload that is over."""
        with self._lock:
            self._uploads.remove(upload)

    def drop_spares(self) -> None:
        """Give back the memory that waits for further packs, unless some are arriving."""
        with self._lock:
            if not self._uploads:
                self._spare.clear()

    def buffer(self, length: int) -> memoryview:
        """Return at least `length` bytes to be overwritten; called with the lock held.

        Fresh memory for each pack costs as much as decrypting what it will hold.
        """
        for at, spare in enumerate(self._spare):
            if length <= len(spare) <= 2 * length:
                return self._spare.pop(at)
        return block_buffer(-(-length // MIB) * MIB if length > MIB else length)

    def keep_buffer(self, memory: memoryview) -> None:
        """Keep the memory of a pack that is over for the next ones; the longest are kept."""
        with self._lock:
            if 0 < len(memory) <= SPARE_BYTES_MAX:
                self._spare = sorted([*self._spare, memory], key=len)[-SPARE_BUFFERS:]

    def accept(self, uploader: Uploader, ulid: str, data: memoryview) -> None:
        """Check, store and index a whole pack; see `PackUpload.commit`."""
        domain = uploader.domain
        entries = verify_pack(data, domain.domain)
        _check_epochs(entries, frozenset(domain.epochs))

        def index(tx: Tx, row: ObjectRow) -> None:
            origin = Uploaded(domain.key, row.key, uploader.client.key, uploader.session.key)
            chunks.index_pack(tx, origin, entries)
            state.count_pack(tx, chunks=len(entries), stored_bytes=len(data))

        # All other bytes follow from the footer, once it is checked: its hash is that of the pack.
        digest = bytes(data[-TRAILER_BYTES : HASH_BYTES - TRAILER_BYTES])
        self._deposits.put(ObjectKind.PACK, domain.domain, ulid, data, index, digest=digest)


def _room_of(uploads: Iterable[PackUpload]) -> int:
    return sum(each.length for each in uploads)


def _check_epochs(entries: list[PackEntry], known: frozenset[int]) -> None:
    unknown = {entry.epoch for entry in entries} - known
    if unknown:
        raise InvalidInput(
            f"the pack has chunks of epoch {min(unknown)}, which the domain does not have",
            hint="store the domain record of the new key first",
        )
