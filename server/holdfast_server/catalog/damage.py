"""Reports that a copy of a chunk could not be opened."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from holdfast_server.catalog.batches import marks, padded, sorted_batches
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import damage_reports

SERVER: Final = "server"
"""Reporter of what the server found itself; no client is called so."""
PERSON_REPORTER: Final = "token "
"""Begins the reporter's name where a person reports; no client is called so."""


class Report(NamedTuple):
    """Who says what of which copy; `confirmed`: the server read other bytes than were stored."""

    domain_key: int
    chunk_id: bytes
    object_key: int
    offset: int
    reporter: str
    reason: str
    reported_ns: int
    confirmed: bool


def add(tx: Tx, report: Report) -> bool:
    """Keep a report. False: this reporter said so before."""
    query = insert_or_ignore(damage_reports).values(**report._asdict()).on_conflict_do_nothing()
    return tx.execute(query).rowcount == 1


def reported(tx: Tx, domain_key: int, ids: Collection[bytes]) -> set[tuple[bytes, int, int]]:
    """Return the copies of `ids` that anybody reported: (chunk id, object key, offset)."""
    found: set[tuple[bytes, int, int]] = set()
    for batch in sorted_batches(ids):
        wanted = padded(batch)
        rows = tx.exec_driver_sql(_reported_query(len(wanted)), (domain_key, *wanted))
        found.update((row[0], row[1], row[2]) for row in rows)
    return found


@cache
def _reported_query(count: int) -> str:
    return (
        "SELECT chunk_id, object_key, offset FROM damage_reports"  # noqa: S608  # no values
        f" WHERE domain_key = ? AND chunk_id IN ({marks(count)})"
    )


def is_confirmed(tx: Tx, domain_key: int, chunk_id: bytes, object_key: int, offset: int) -> bool:
    """Tell whether the server itself found this copy damaged once."""
    table = damage_reports.c
    query = select(table.key).where(
        table.domain_key == domain_key,
        table.chunk_id == chunk_id,
        table.object_key == object_key,
        table.offset == offset,
        table.confirmed,
    )
    return tx.execute(query.limit(1)).first() is not None


def unconfirmed_of(tx: Tx, domain_key: int, reporter: str) -> int:
    """Return how many copies a reporter could not open in which the server found nothing wrong."""
    table = damage_reports.c
    query = select(func.count()).where(
        table.domain_key == domain_key, table.reporter == reporter, ~table.confirmed
    )
    return tx.execute(query).scalar_one()


def reporters(tx: Tx, domain_key: int, chunk_id: bytes, object_key: int, offset: int) -> int:
    """Return how many different clients could not open this copy.

    People do not count: an administrator's word settles it, and who may only read condemns nothing.
    """
    table = damage_reports.c
    query = select(func.count(table.reporter.distinct())).where(
        table.domain_key == domain_key,
        table.chunk_id == chunk_id,
        table.object_key == object_key,
        table.offset == offset,
        table.reporter != SERVER,
        table.reporter.not_like(f"{PERSON_REPORTER}%"),
    )
    return tx.execute(query).scalar_one()
