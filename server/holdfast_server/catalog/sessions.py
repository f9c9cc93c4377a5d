"""Upload sessions: one a job."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from sqlalchemy import RowMapping, bindparam, delete, insert, select, update

from holdfast_contract.errors import NotFound
from holdfast_server.catalog.batches import marks, padded, sorted_batches
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import session_ids, sessions


class SessionRow(NamedTuple):
    """A session; `refused_*` are ULIDs of the last commit that was answered with missing chunks."""

    key: int
    session: str
    job: str
    client_key: int
    domain_key: int
    opened_ns: int
    closed_ns: int | None
    refused_refs: str | None
    refused_manifest: str | None


def _session(row: RowMapping) -> SessionRow:
    return SessionRow(**row)


_BY_ID = select(sessions).where(sessions.c.session == bindparam("session"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""
_OF_JOB = select(sessions).where(sessions.c.job == bindparam("job"))


def open_session(
    tx: Tx, *, session: str, job: str, client_key: int, domain_key: int, now_ns: int
) -> SessionRow:
    """Insert a session."""
    tx.execute(
        insert(sessions).values(
            session=session,
            job=job,
            client_key=client_key,
            domain_key=domain_key,
            opened_ns=now_ns,
        )
    )
    found = of_job(tx, job)
    assert found is not None
    return found


def of_job(tx: Tx, job: str) -> SessionRow | None:
    """Return the session of a job, or None."""
    row = tx.execute(_OF_JOB, {"job": job}).mappings().one_or_none()
    return None if row is None else _session(row)


def find(tx: Tx, session: str) -> SessionRow | None:
    """Return a session, or None."""
    row = tx.execute(_BY_ID, {"session": session}).mappings().one_or_none()
    return None if row is None else _session(row)


def require(tx: Tx, session: str, client_key: int) -> SessionRow:
    """Return a session of this client.

    Raises:
        NotFound: there is none, or it is another client's.
    """
    row = tx.execute(_BY_ID, {"session": session}).mappings().one_or_none()
    if row is None or row["client_key"] != client_key:
        raise NotFound(f"no such session: {session[:40]}")
    return _session(row)


def close(tx: Tx, job: str, now_ns: int) -> None:
    """End the session of a job, if there is one: its ids are roots no longer."""
    found = of_job(tx, job)
    if found is None or found.closed_ns is not None:
        return
    tx.execute(update(sessions).where(sessions.c.key == found.key).values(closed_ns=now_ns))
    tx.execute(delete(session_ids).where(session_ids.c.session_key == found.key))


def set_refused(tx: Tx, key: int, *, refs: str, manifest: str) -> None:
    """Remember which commit was answered with missing chunks."""
    values = {"refused_refs": refs, "refused_manifest": manifest}
    tx.execute(update(sessions).where(sessions.c.key == key).values(values))


def confirm(tx: Tx, key: int, ids: Collection[bytes]) -> None:
    """Remember that `have` said yes to `ids` in this session."""
    rows = [(key, chunk_id) for batch in sorted_batches(ids) for chunk_id in batch]
    tx.exec_driver_sql(
        "INSERT OR IGNORE INTO session_ids (session_key, chunk_id) VALUES (?, ?)", rows
    )


def confirmed(tx: Tx, key: int, ids: Collection[bytes]) -> set[bytes]:
    """Return those of `ids` to which `have` said yes in this session."""
    found: set[bytes] = set()
    for batch in sorted_batches(ids):
        wanted = padded(batch)
        rows = tx.exec_driver_sql(_confirmed_query(len(wanted)), (key, *wanted))
        found.update(rows.scalars())
    return found


@cache
def _confirmed_query(count: int) -> str:
    return (
        "SELECT chunk_id FROM session_ids"  # noqa: S608  # no values
        f" WHERE session_key = ? AND chunk_id IN ({marks(count)})"
    )
