"""Journal records that are true already and wait to be put into the store."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, insert, select

from holdfast_server.catalog import state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import outbox


class OutboxRecord(NamedTuple):
    """A record as it will stand in the journal."""

    number: int
    body: bytes


def append(tx: Tx, body: bytes) -> int:
    """Keep a record in the transaction that makes it true; return its number."""
    number = state.next_record(tx)
    tx.execute(insert(outbox).values(number=number, body=body))
    return number


def pending(tx: Tx, limit: int) -> list[OutboxRecord]:
    """Return the oldest records that wait, at most `limit`."""
    rows = tx.execute(select(outbox).order_by(outbox.c.number).limit(limit))
    return [OutboxRecord(*row) for row in rows]


def strike(tx: Tx, first: int, last: int) -> int:
    """Remove the records `first` to `last`, which lie in the store; return how many there were."""
    where = (outbox.c.number >= first, outbox.c.number <= last)
    return tx.execute(delete(outbox).where(*where)).rowcount
