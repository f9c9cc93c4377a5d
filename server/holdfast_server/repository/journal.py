"""The one writer of the store's journal: puts what waits in the outbox into numbered objects.

Whoever needs a record durable calls `flush`. Callers that come while an object is being put wait,
and the first of them puts the records of all in one object.
"""

from __future__ import annotations

from threading import Lock

from holdfast_contract.errors import Conflict, Damaged, HoldfastError, NotFound
from holdfast_contract.limits import JOURNAL_OBJECT_BYTES_MAX, JOURNAL_RECORDS_MAX
from holdfast_server.catalog import outbox, state
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.outbox import OutboxRecord
from holdfast_server.catalog.state import ServerState
from holdfast_server.repository.journal_object import (
    OVERHEAD_BYTES,
    JournalObject,
    decode_journal,
    encode_journal,
    journal_hash,
)
from holdfast_server.repository.names import journal_name
from holdfast_server.stores.port import Store


class JournalDiverged(Damaged):
    """The store's journal is not what this catalog wrote: damage, another writer, or an older one.

    No repetition mends it, so whoever asked is told at once.
    """


class Journal:
    """Puts records in order; thread-safe."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog = catalog
        self._store = store
        self._lock = Lock()
        self._durable = 0

    def flush(self, number: int) -> None:
        """Return once record `number` lies in the store and the catalog knows it.

        Raises:
            NoSpace, StoreFailed: not now; the record waits, and the next flush puts it.
            JournalDiverged: the store holds a journal that is not this catalog's.
        """
        if number <= self._durable:
            return
        with self._lock:
            while self._durable < number:
                self._put_next()

    def flush_all(self) -> None:
        """Return once no record waits; raises as `flush`."""
        with self._catalog.read() as tx:
            last = state.load(tx).record_last
        self.flush(last)

    def _put_next(self) -> None:
        with self._catalog.read() as tx:
            now = state.load(tx)
            waiting = outbox.pending(tx, JOURNAL_RECORDS_MAX)
        self._durable = max(self._durable, now.record_durable)
        if not waiting:
            assert now.record_durable == now.record_last, "a record left the outbox unwritten"
            return
        assert now.store_id is not None
        assert waiting[0].number == now.record_durable + 1, "records leave the outbox in order"
        records = _fitting(waiting)
        number = now.journal_number + 1
        made = JournalObject(now.store_id, number, waiting[0].number, now.journal_hash, records)
        data = encode_journal(made)
        name = journal_name(number)
        try:
            self._store.put(name, data, may_use_reserve=True)
        except Conflict:
            # An earlier put of ours whose answer was lost; anything else is another's writing.
            data = self._store.get(name)
            made = decode_next(data, now)
            require_ours(made, waiting)
            self._store.settle(name)
        self.struck(made, data)

    def struck(self, made: JournalObject, data: bytes) -> None:
        """Take records off the outbox that are known to be durable in the store."""

        def work(tx: Tx) -> None:
            removed = outbox.strike(tx, made.first, made.last)
            assert removed == len(made.records)
            state.advance_journal(
                tx, number=made.number, digest=journal_hash(data), records=made.last
            )

        self._catalog.write(work)
        self._durable = made.last


def require_ours(found: JournalObject, waiting: list[OutboxRecord]) -> None:
    """Refuse an object of the store that begins otherwise than the records that wait.

    Raises:
        JournalDiverged: another server wrote it, or an earlier life of this catalog.
    """
    for record, body in zip(waiting, found.records, strict=False):
        if record.body != body:
            raise JournalDiverged(
                f"record {record.number} of the store's journal is not the catalog's"
            )


def _fitting(waiting: list[OutboxRecord]) -> list[bytes]:
    """Return as many of the first records as one object has room for, at least one."""
    room = JOURNAL_OBJECT_BYTES_MAX - OVERHEAD_BYTES
    chosen: list[bytes] = []
    for index, record in enumerate(waiting):
        assert record.number == waiting[0].number + index, "record numbers have no gap"
        room -= len(record.body)
        if chosen and room < 0:
            break
        chosen.append(record.body)
    return chosen


def decode_next(data: bytes, now: ServerState) -> JournalObject:
    """Return the journal object that follows on what the catalog knows.

    Raises:
        JournalDiverged: it is damaged, or does not follow.
    """
    try:
        found = decode_journal(data)
    except HoldfastError as exc:
        number = now.journal_number + 1
        raise JournalDiverged(f"journal object {number} cannot be read: {exc.message}") from exc
    follows = (
        found.number == now.journal_number + 1
        and found.previous == now.journal_hash
        and found.first == now.record_durable + 1
        and now.store_id in (None, found.store_id)
    )
    if not follows:
        raise JournalDiverged(
            f"journal object {found.number} of the store does not follow on what the catalog knows"
        )
    return found


def read_next(store: Store, now: ServerState) -> bytes | None:
    """Return the object behind the last one that the catalog knows, None where there is none."""
    try:
        return store.get(journal_name(now.journal_number + 1))
    except NotFound:
        return None
