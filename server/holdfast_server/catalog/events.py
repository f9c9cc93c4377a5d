"""Events: what an administrator may want to know, in the order in which it happened.

They are a chain: each row carries a hash over itself and over the row before it, and one row of
`event_head` names the last. Whoever changes, removes or inserts a row breaks the chain there.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from blake3 import blake3
from sqlalchemy import RowMapping, insert, select, update

from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import event_head, events
from holdfast_server.catalog.scopes import EVERYWHERE, Scope

_CONTEXT: Final = b"holdfast/1/event\0"
_ROW: Final = 1
_PAGE_ROWS: Final = 10_000
_CHAINED: Final = ("key", "time_ns", "kind", "client", "job", "message", "details")
"""What a link covers, in this order."""


class EventRecord(NamedTuple):
    """One event; `client` and `job` are empty where it concerns none."""

    id: int
    time_ns: int
    kind: str
    client: str
    job: str
    message: str
    details: dict[str, Any]
    link: bytes


class Trail(NamedTuple):
    """What a look at the whole chain found."""

    events: int
    """How many of the oldest are as they were recorded, in their order and without a gap."""
    broken: int | None
    """Id of the event at which the chain breaks: it, or one before it, was changed or removed."""


def _event(row: RowMapping) -> EventRecord:
    values = dict(row)
    values["id"] = values.pop("key")
    values["details"] = unpack(dict[str, Any], values["details"])
    return EventRecord(**values)


def link_of(previous: bytes, row: tuple[Any, ...]) -> bytes:
    """Return the hash of a row (`_CHAINED`, `details` packed) that follows on `previous`."""
    return blake3(_CONTEXT + previous + msgspec.msgpack.encode(row)).digest()


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
    """Append an event within a transaction and return its id."""
    last, previous = _head(tx)
    # str: names of clients are a type of their own, which is no MessagePack.
    row = (last + 1, time_ns, kind, str(client), job, message, pack(details or {}))
    link = link_of(previous, row)
    tx.execute(insert(events).values(**dict(zip(_CHAINED, row, strict=True)), link=link))
    moved = update(event_head).where(event_head.c.id == _ROW, event_head.c.last == last)
    done = tx.execute(moved.values(last=last + 1, link=link))
    assert done.rowcount == 1, "the catalog has one writer"
    return last + 1


def _head(tx: Tx) -> tuple[int, bytes]:
    row = tx.execute(select(event_head.c.last, event_head.c.link)).one()
    return int(row[0]), bytes(row[1])


def add(
    catalog: Catalog,
    kind: str,
    message: str,
    *,
    client: str = "",
    job: str = "",
    details: dict[str, Any] | None = None,
) -> int:
    """Append an event, now, and return its id (ids grow by one)."""
    now = catalog.clock.now_ns()
    return catalog.write(
        lambda tx: record(tx, now, kind, message, client=client, job=job, details=details)
    )


def listed(
    catalog: Catalog,
    *,
    client: str = "",
    job: str = "",
    after: int = 0,
    limit: int = 1000,
    scope: Scope = EVERYWHERE,
) -> list[EventRecord]:
    """Return events, oldest first, at most `limit` with ids beyond `after`; of a client or job.

    Of those that concern no client, who is limited to domains gets none.
    """
    query = select(events).where(events.c.key > after, scope.of_clients(events.c.client))
    if client:
        query = query.where(events.c.client == client)
    if job:
        query = query.where(events.c.job == job)
    with catalog.read() as tx:
        rows = tx.execute(query.order_by(events.c.key).limit(limit)).mappings()
        return [_event(row) for row in rows]


def trail(catalog: Catalog) -> Trail:
    """Follow the chain from its first event to its last; about 4 s for a million."""
    with catalog.read() as tx:
        last, head = _head(tx)
        count, at, link = 0, 0, bytes(len(head))
        columns = [events.c[name] for name in (*_CHAINED, "link")]
        query = select(*columns).order_by(events.c.key).limit(_PAGE_ROWS)
        while page := tx.execute(query.where(events.c.key > at)).all():
            for row in page:
                *chained, found = row
                link = link_of(link, tuple(chained))
                if found != link:
                    return Trail(count, row[0])
                count += 1
            at = page[-1][0]
    return Trail(count, None if (at, link) == (last, head) else max(at, last))
