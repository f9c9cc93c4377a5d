"""Packs on their way in: checked as a whole, durable, indexed, and only then acknowledged."""

from __future__ import annotations

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
from holdfast_contract.limits import MIB, PACK_BYTES_MAX
from holdfast_server.catalog import chunks, state
from holdfast_server.catalog.chunks import Uploaded
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.sessions import Sessions, Uploader, require_name

BUFFERS_BYTES_MAX: Final = 512 * MIB
"""All packs that are arriving at once: 32 of the size that agents aim at."""


class PackUpload:
    """One pack while it arrives: `write` until all is there, then `commit` or `abort`."""

    def __init__(self, packs: Packs, uploader: Uploader, ulid: str, length: int) -> None:
        self._packs = packs
        self._uploader = uploader
        self._ulid = ulid
        self._buffer = bytearray(length)
        self._length = length
        self._filled = 0
        self._is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes.

        Raises:
            InvalidInput: the first of them are not the header of a pack of this domain.
            TooLarge: more than announced.
        """
        assert not self._is_over
        had, self._filled = self._filled, self._filled + len(data)
        if self._filled > self._length:
            raise TooLarge("the pack is longer than announced")
        self._buffer[had : self._filled] = data
        if had < HEADER_BYTES <= self._filled:
            domain = bytes(self._buffer[HEADER_BYTES - 16 : HEADER_BYTES])
            if self._buffer[:4] != b"HFPK" or domain != self._uploader.domain.domain:
                raise InvalidInput("not a pack of the client's domain")

    def commit(self) -> None:
        """Make the pack count: every check, durable in the store, its chunks live.

        The same bytes under the same name again change nothing.

        Raises:
            InvalidInput, UnsupportedVersion, TooLarge: the pack is not to be kept.
            Conflict: other bytes lie under the name.
            NoSpace, StoreFailed: nothing counts; the same pack can be sent again.
        """
        try:
            if self._filled != self._length:
                raise InvalidInput("the pack is shorter than announced")
            self._packs.accept(self._uploader, self._ulid, self._buffer)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop what has arrived; does nothing after `commit`."""
        if not self._is_over:
            self._is_over = True
            self._buffer = bytearray()
            self._packs.release(self._length)


class Packs:
    """Accepts packs."""

    def __init__(self, parts: Parts, sessions: Sessions, deposits: Deposits) -> None:
        self._parts = parts
        self._sessions = sessions
        self._deposits = deposits
        self._lock = Lock()
        self._arriving = 0

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
        with self._lock:
            if self._arriving + length > BUFFERS_BYTES_MAX:
                raise TooMany("many packs are arriving at this moment")
            self._arriving += length
        return PackUpload(self, uploader, ulid, length)

    def release(self, length: int) -> None:
        """Give back the room of an upload that is over."""
        with self._lock:
            self._arriving -= length
            assert self._arriving >= 0

    def accept(self, uploader: Uploader, ulid: str, data: bytearray) -> None:
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


def _check_epochs(entries: list[PackEntry], known: frozenset[int]) -> None:
    unknown = {entry.epoch for entry in entries} - known
    if unknown:
        raise InvalidInput(
            f"the pack has chunks of epoch {min(unknown)}, which the domain does not have",
            hint="store the domain record of the new key first",
        )
