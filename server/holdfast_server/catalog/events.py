"""Events: what an administrator may want to know, in the order in which it happened."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import RowMapping, insert, select

from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import events


class EventRecord(NamedTuple):
    """One event; `client` and `job` are empty where it concerns none."""

    id: int
    time_ns: int
    kind: str
    client: str
    job: str
    message: str
    details: dict[str, Any]


def _event(row: RowMapping) -> EventRecord:
    values = dict(row)
    values["id"] = values.pop("key")
    values["details"] = unpack(dict[str, Any], values["details"])
    return EventRecord(**values)


def record(
    tx: Tx,
    time_ns: int,
    kind: str,
    message: str,
    *,
    client: str = "",
    job: str = "",
    details: dict[str, Any] | None = None,
) -> int:
    """Insert an event within a transaction and return its id."""
    values = {"time_ns": time_ns, "kind": kind, "client": client, "job": job, "message": message}
    done = tx.execute(insert(events).values(**values, details=pack(details or {})))
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def add(
    catalog: Catalog,
    kind: str,
    message: str,
    *,
    client: str = "",
    job: str = "",
    details: dict[str, Any] | None = None,
) -> int:
    """Insert an event, now, and return its id (ids grow)."""
    now = catalog.clock.now_ns()
    return catalog.write(
        lambda tx: record(tx, now, kind, message, client=client, job=job, details=details)
    )


def listed(
    catalog: Catalog, *, client: str = "", job: str = "", after: int = 0, limit: int = 1000
) -> list[EventRecord]:
    """Return events, oldest first, at most `limit` with ids beyond `after`; of a client or job."""
    query = select(events).where(events.c.key > after)
    if client:
        query = query.where(events.c.client == client)
    if job:
        query = query.where(events.c.job == job)
    with catalog.read() as tx:
        rows = tx.execute(query.order_by(events.c.key).limit(limit)).mappings()
        return [_event(row) for row in rows]
