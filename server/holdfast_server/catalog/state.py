"""The one row of what the server knows of itself: clock, record numbers, end of the journal."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import insert, select, update

from holdfast_contract.clock import Clock
from holdfast_contract.ids import ZERO_HASH
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import server_state

_ROW = 1


class ServerState(NamedTuple):
    """What `server_state` says; see there."""

    store_id: bytes | None
    leader_epoch: int
    clock_high_ns: int
    record_last: int
    record_durable: int
    journal_number: int
    journal_hash: bytes
    packs: int
    chunks: int
    stored_bytes: int


_STATE = select(*[server_state.c[name] for name in ServerState._fields]).where(
    server_state.c.id == _ROW
)
"""Made once: to make a query anew costs three times what SQLite needs for it."""
_CLOCK_HIGH = select(server_state.c.clock_high_ns)
_RECORD_LAST = select(server_state.c.record_last)


def load(tx: Tx) -> ServerState:
    """Return the state; a catalog that was just made has none yet, and gets it by `begin`."""
    row = tx.execute(_STATE).one_or_none()
    if row is None:
        return ServerState(None, 0, 0, 0, 0, 0, ZERO_HASH, 0, 0, 0)
    return ServerState(*row)


def begin(tx: Tx) -> ServerState:
    """Return the state for a process that begins to write: the next leader epoch."""
    found = load(tx)
    if found.leader_epoch == 0:
        tx.execute(insert(server_state).values(id=_ROW, **found._asdict()))
    _set(tx, leader_epoch=found.leader_epoch + 1)
    return load(tx)


def _set(tx: Tx, **values: object) -> None:
    done = tx.execute(update(server_state).where(server_state.c.id == _ROW).values(**values))
    assert done.rowcount == 1, "the server's state has not begun"


def set_store_id(tx: Tx, store_id: bytes) -> None:
    """Remember to which store this catalog belongs; once for all."""
    assert load(tx).store_id in (None, store_id)
    _set(tx, store_id=store_id)


def receive_time(tx: Tx, clock: Clock) -> int:
    """Return the time of an act in this transaction: never earlier than that of any act before.

    A clock that was set back makes time stand still here until it has caught up.
    """
    high = tx.execute(_CLOCK_HIGH).scalar_one()
    now = max(clock.now_ns(), int(high))
    if now != high:
        _set(tx, clock_high_ns=now)
    return now


def next_record(tx: Tx) -> int:
    """Give out the next record number of the journal."""
    number = int(tx.execute(_RECORD_LAST).scalar_one()) + 1
    _set(tx, record_last=number)
    return number


def raise_clock(tx: Tx, time_ns: int) -> None:
    """Remember that something happened at `time_ns`: nothing is received earlier any more."""
    if time_ns > load(tx).clock_high_ns:
        _set(tx, clock_high_ns=time_ns)


def advance_journal(tx: Tx, *, number: int, digest: bytes, records: int) -> None:
    """Say that journal object `number` lies in the store and ends with record `records`."""
    found = load(tx)
    assert number == found.journal_number + 1
    assert found.record_durable < records <= found.record_last
    _set(tx, journal_number=number, journal_hash=digest, record_durable=records)


def count_pack(tx: Tx, *, chunks: int, stored_bytes: int) -> None:
    """Count one more pack."""
    _set(
        tx,
        packs=server_state.c.packs + 1,
        chunks=server_state.c.chunks + chunks,
        stored_bytes=server_state.c.stored_bytes + stored_bytes,
    )
