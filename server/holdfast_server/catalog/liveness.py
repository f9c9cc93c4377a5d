"""The two numbered logs of a domain: what was committed, and which ids stopped being live.

Ids are checked outside a transaction, in batches; inside it only what the logs got since is looked
at again.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import insert, select

from holdfast_server.catalog import domains
from holdfast_server.catalog.batches import IDS_MAX
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import commit_log, leave_log


def log_commit(tx: Tx, domain_key: int, *, snapshot_key: int, refs_key: int) -> int:
    """Log a commit and return its number."""
    number = domains.next_commit(tx, domain_key)
    tx.execute(
        insert(commit_log).values(
            domain_key=domain_key, number=number, snapshot_key=snapshot_key, refs_key=refs_key
        )
    )
    return number


def log_left(tx: Tx, domain_key: int, ids: Collection[bytes]) -> None:
    """Log that a live copy of each of `ids` is live no longer."""
    if not ids:
        return
    first = domains.next_leaves(tx, domain_key, len(ids))
    rows = [
        {"domain_key": domain_key, "number": number, "chunk_id": chunk_id}
        for number, chunk_id in enumerate(sorted(ids), first)
    ]
    tx.execute(insert(leave_log), rows)


def left_since(tx: Tx, domain_key: int, number: int, *, limit: int = IDS_MAX) -> list[bytes]:
    """Return the ids logged behind `number`, in the order of the log, at most `limit`."""
    query = (
        select(leave_log.c.chunk_id)
        .where(leave_log.c.domain_key == domain_key, leave_log.c.number > number)
        .order_by(leave_log.c.number)
        .limit(limit)
    )
    return list(tx.execute(query).scalars())
