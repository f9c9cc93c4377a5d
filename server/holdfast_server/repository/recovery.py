"""What happens at start, before anything else: catalog and journal of the store are made to agree.

An object that the catalog does not know yet is read. Its records either wait in the outbox (a crash
came before they were struck off) or are unknown (the catalog is older than the store) and are taken
over where possible. Then what still waits is written. Where the two contradict each other, nothing
may be written any more: the catalog might call chunks live that are gone.
"""

from __future__ import annotations

from holdfast_contract.errors import NoSpace, NotFound
from holdfast_contract.limits import JOURNAL_RECORDS_MAX
from holdfast_contract.logs import get_logger
from holdfast_server.catalog import events, outbox, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.state import ServerState
from holdfast_server.repository.journal import (
    JournalDiverged,
    decode_next,
    read_next,
    require_ours,
)
from holdfast_server.repository.journal_object import journal_hash
from holdfast_server.repository.journal_records import StoreMade, encode_record
from holdfast_server.repository.names import journal_name
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.replay import Replay

STORE_ID_BYTES = 16
_log = get_logger(__name__)


def recover(parts: Parts, replay: Replay) -> None:
    """Make catalog and journal agree, and allow writing; or say in `parts.refusal` why not.

    Raises:
        NoSpace, StoreFailed: the catalog is full; store or catalog do not work at all.
    """
    try:
        now = parts.catalog.write(state.begin)
        _check_end(parts, now)
        while _follow(parts, replay):
            pass
        _begin_store(parts)
        _write_waiting(parts)
    except JournalDiverged as exc:
        parts.refusal = exc.message
        message = f"writing is refused: {exc.message}"
        parts.catalog.write(
            lambda tx: events.record(tx, parts.clock.now_ns(), "journal-diverged", message)
        )
        _log.error("writing is refused", reason=exc.message)
    else:
        parts.refusal = ""


def _write_waiting(parts: Parts) -> None:
    """Write the records that wait; a store without any room keeps them waiting.

    What they say is not shown before. Whatever stores something writes them first, and what stands
    can be restored meanwhile: a full store is no reason not to start.
    """
    try:
        parts.journal.flush_all()
    except NoSpace as exc:
        _log.warning("records of the journal wait for room in the store", reason=exc.message)


def _check_end(parts: Parts, now: ServerState) -> None:
    """Refuse a store that does not have the last object that the catalog knows."""
    if now.journal_number == 0:
        return
    name = journal_name(now.journal_number)
    try:
        data = parts.store.get(name)
    except NotFound as exc:
        raise JournalDiverged(
            f"the store does not have {name}: it is another store, or older than the catalog"
        ) from exc
    if journal_hash(data) != now.journal_hash:
        raise JournalDiverged(f"{name} in the store is not what this catalog wrote")


def _follow(parts: Parts, replay: Replay) -> bool:
    """Take in the next journal object of the store; False: there is none."""
    with parts.catalog.read() as tx:
        now = state.load(tx)
        waiting = outbox.pending(tx, JOURNAL_RECORDS_MAX)
    data = read_next(parts.store, now)
    if data is None:
        return False
    found = decode_next(data, now)
    require_ours(found, waiting)
    unknown = found.records[now.record_last - now.record_durable :]
    for number, body in enumerate(unknown, now.record_last + 1):
        replay.take_over(number, body)
    if unknown:
        _log.warning("records taken over from the store", object=found.number, count=len(unknown))
    parts.store.settle(journal_name(found.number))
    parts.journal.struck(found, data)
    return True


def _begin_store(parts: Parts) -> None:
    """Give a new store its id and its first record."""

    def work(tx: Tx) -> None:
        if state.load(tx).store_id is not None:
            return
        store_id = parts.random(STORE_ID_BYTES)
        state.set_store_id(tx, store_id)
        now = state.receive_time(tx, parts.clock)
        outbox.append(tx, encode_record(StoreMade(time_ns=now, store_id=store_id)))

    parts.catalog.write(work)
