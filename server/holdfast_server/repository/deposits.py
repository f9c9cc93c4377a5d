"""Small objects on their way into the store: the name first, then the bytes, then what they mean.

Every step may be repeated. Bytes that an earlier attempt left under a name count when they are the
same; other bytes never replace them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from blake3 import blake3

from holdfast_contract.errors import Conflict, NotFound
from holdfast_contract.ids import DomainId
from holdfast_contract.limits import MIB
from holdfast_server.catalog import objects
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind, ObjectState
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts
from holdfast_server.stores.port import Incoming

T = TypeVar("T")
_PIECE_BYTES = MIB


class Deposits:
    """Puts objects under names that were registered before."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def register(self, kind: ObjectKind, domain_key: int | None) -> str:
        """Return a new name for an object outside of any session, registered."""
        ulid = self._parts.new_ulid()
        now = self._parts.clock.now_ns()
        self._parts.catalog.write(
            lambda tx: objects.register(tx, [ulid], kind, now_ns=now, domain_key=domain_key)
        )
        return ulid

    def put(
        self,
        kind: ObjectKind,
        domain: DomainId,
        ulid: str,
        data: bytes | bytearray | memoryview,
        then: Callable[[Tx, ObjectRow], T],
        *,
        digest: bytes | None = None,
    ) -> T | None:
        """Store `data` and, in the transaction that makes it count, do `then`.

        None: the same bytes counted before, and nothing was done. `digest`: 32 bytes that only
        these bytes have, where they are known already; otherwise their BLAKE3.

        Raises:
            NotFound: the name is not registered.
            Conflict: the name is used up, or other bytes lie under it.
            NoSpace, StoreFailed: nothing counts; the same call can be repeated.
        """
        digest = digest or blake3(data).digest()
        row = self._usable(kind, ulid, digest)
        if row.state is ObjectState.STORED:
            return None
        name = object_name(kind, domain, ulid)
        try:
            self._parts.store.put(name, data, may_use_reserve=kind is not ObjectKind.PACK)
        except Conflict:
            if self._parts.store.get(name) != data:
                raise
            self._parts.store.settle(name)
        return self.count(row, len(data), digest, then)

    def _usable(self, kind: ObjectKind, ulid: str, digest: bytes) -> ObjectRow:
        with self._parts.catalog.read() as tx:
            row = objects.find(tx, ulid)
        if row is None or row.kind is not kind:
            raise NotFound(f"no such name: {ulid[:40]}")
        if row.state is ObjectState.REGISTERED:
            return row
        if row.state is not ObjectState.STORED or row.digest != digest:
            raise Conflict(f"the name {ulid} is used up", hint="take another name")
        return row

    def count(
        self, row: ObjectRow, length: int, digest: bytes, then: Callable[[Tx, ObjectRow], T]
    ) -> T | None:
        """Make an object count that lies durable in the store; None: it counted before."""

        def work(tx: Tx) -> T | None:
            if not objects.mark_stored(tx, row.key, length=length, digest=digest):
                return None
            return then(tx, row)

        return self._parts.catalog.write(work)

    def finish(
        self,
        kind: ObjectKind,
        domain: DomainId,
        ulid: str,
        incoming: Incoming,
        written: tuple[int, bytes],
    ) -> None:
        """Make an object count that was written in pieces; `written` is its (length, BLAKE3).

        Raises: as `put`.
        """
        length, digest = written
        row = self._usable(kind, ulid, digest)
        if row.state is ObjectState.STORED:
            incoming.abort()
            return
        try:
            incoming.commit()
        except Conflict:
            if self._digest_of(kind, domain, ulid) != written:
                raise
            self._parts.store.settle(object_name(kind, domain, ulid))
        self.count(row, length, digest, lambda tx, row: None)

    def _digest_of(self, kind: ObjectKind, domain: DomainId, ulid: str) -> tuple[int, bytes]:
        name = object_name(kind, domain, ulid)
        size = self._parts.store.size(name)
        hasher = blake3()
        for at in range(0, size, _PIECE_BYTES):
            hasher.update(self._parts.store.get(name, at, min(_PIECE_BYTES, size - at)))
        return size, hasher.digest()
