"""Jobs and their state machine. Every step is a compare-and-set in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import RowMapping, Select, bindparam, func, insert, select, update

from holdfast_contract.errors import NotFound
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import Counts, JobState
from holdfast_contract.protocol.http import ErrorRow
from holdfast_server.catalog.connection import Catalog, Tx
from holdfast_server.catalog.packing import pack, unpack
from holdfast_server.catalog.schema import jobs
from holdfast_server.catalog.scopes import EVERYWHERE, Scope

ACTIVE_STATES = (JobState.DISPATCHED, JobState.RUNNING, JobState.FINALIZING)
"""States in which a job occupies its client."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job. `spec` is opaque here; `summary` has numbers only, never names."""

    id: str
    kind: str
    client: ClientName
    state: JobState
    created_ns: int
    started_ns: int | None = None
    finished_ns: int | None = None
    spec: bytes = b""
    counts: Counts = field(default_factory=Counts)
    error: ErrorRow | None = None
    snapshot: bytes | None = None
    summary: dict[str, Any] | None = None
    skipped_count: int = 0
    not_exact_count: int = 0
    not_exact_sealed: bytes | None = None


_PACKED = ("counts", "error", "summary")
_IS_JOB = jobs.c.job == bindparam("job")
_OF_CLIENT = select(jobs).where(_IS_JOB, jobs.c.client == bindparam("client"))
"""Made once: to make a query anew costs three times what SQLite needs for it."""


def _packed(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: pack(value) if name in _PACKED and value is not None else value
        for name, value in values.items()
    }


def _columns(record: JobRecord) -> dict[str, Any]:
    values = _packed({name: getattr(record, name) for name in JobRecord.__dataclass_fields__})
    values["job"] = values.pop("id")
    values["state"] = record.state.value
    return values


def _job(row: RowMapping) -> JobRecord:
    values = {name: value for name, value in row.items() if name != "key"}
    values["id"] = values.pop("job")
    values["client"] = ClientName(values["client"])
    values["state"] = JobState(values["state"])
    values["counts"] = unpack(Counts, values["counts"])
    if values["error"] is not None:
        values["error"] = unpack(ErrorRow, values["error"])
    if values["summary"] is not None:
        values["summary"] = unpack(dict[str, Any], values["summary"])
    return JobRecord(**values)


def create(catalog: Catalog, records: Iterable[JobRecord]) -> None:
    """Insert new jobs in one transaction."""
    rows = [_columns(record) for record in records]

    def work(tx: Tx) -> None:
        tx.execute(insert(jobs), rows)

    if rows:
        catalog.write(work)


def get(catalog: Catalog, job: str, scope: Scope = EVERYWHERE) -> JobRecord:
    """Return a job of a client within `scope`.

    Raises:
        NotFound: there is none of that id.
    """
    return _one(catalog, job, select(jobs).where(_IS_JOB, scope.of_clients(jobs.c.client)))


def of_client(catalog: Catalog, job: str, client: ClientName) -> JobRecord:
    """Return a job of this client.

    Raises:
        NotFound: there is none of that id, or it is another client's.
    """
    return _one(catalog, job, _OF_CLIENT, client=client)


def _one(catalog: Catalog, job: str, query: Select[Any], **values: str) -> JobRecord:
    with catalog.read() as tx:
        row = tx.execute(query, {"job": job, **values}).mappings().one_or_none()
    if row is None:
        raise absent(job)
    return _job(row)


def absent(job: str) -> NotFound:
    """Return what is said of a job that is not there, foreign, or over where it must run."""
    return NotFound(f"no such job: {job[:40]}")


def listed(
    catalog: Catalog,
    *,
    client: str = "",
    state: str = "",
    after: str = "",
    limit: int = 1000,
    scope: Scope = EVERYWHERE,
) -> list[JobRecord]:
    """Return jobs within `scope`, newest first, at most `limit` older than the job `after`."""
    query = select(jobs).where(scope.of_clients(jobs.c.client))
    if client:
        query = query.where(jobs.c.client == client)
    if state:
        query = query.where(jobs.c.state == state)
    if after:
        # Within the scope as well: otherwise the answer tells when a foreign job was made.
        older = select(jobs.c.key).where(jobs.c.job == after, scope.of_clients(jobs.c.client))
        query = query.where(jobs.c.key < older.scalar_subquery())
    with catalog.read() as tx:
        rows = tx.execute(query.order_by(jobs.c.key.desc()).limit(limit)).mappings()
        return [_job(row) for row in rows]


def queued_heads(catalog: Catalog) -> list[JobRecord]:
    """Return the oldest queued job of each client that has no active one, oldest first."""
    busy = select(jobs.c.client).where(jobs.c.state.in_(ACTIVE_STATES))
    heads = (
        select(func.min(jobs.c.key))
        .where(jobs.c.state == JobState.QUEUED, jobs.c.client.not_in(busy))
        .group_by(jobs.c.client)
    )
    with catalog.read() as tx:
        rows = tx.execute(select(jobs).where(jobs.c.key.in_(heads)).order_by(jobs.c.key))
        return [_job(row) for row in rows.mappings()]


def active(catalog: Catalog) -> list[JobRecord]:
    """Return the jobs that were sent and are not over, oldest first."""
    query = select(jobs).where(jobs.c.state.in_(ACTIVE_STATES)).order_by(jobs.c.key)
    with catalog.read() as tx:
        return [_job(row) for row in tx.execute(query).mappings()]


def count_by_state(catalog: Catalog, scope: Scope = EVERYWHERE) -> dict[JobState, int]:
    """Return how many jobs within `scope` are in each state; states without jobs are left out."""
    query = select(jobs.c.state, func.count()).where(scope.of_clients(jobs.c.client))
    query = query.group_by(jobs.c.state)
    with catalog.read() as tx:
        return {JobState(state): number for state, number in tx.execute(query)}


def move(
    catalog: Catalog,
    job: str,
    from_states: Collection[JobState],
    to_state: JobState,
    **fields: Any,
) -> bool:
    """Move a job from one of `from_states` to `to_state` and set `fields` of JobRecord.

    False: it is in another state (somebody else was faster) or unknown, and nothing was changed.
    A job's client never gets a second active job: then False too.
    """
    unknown = fields.keys() - JobRecord.__dataclass_fields__.keys()
    assert not unknown, f"not fields of a job: {unknown}"

    def work(tx: Tx) -> bool:
        if to_state in ACTIVE_STATES and _is_client_busy(tx, job):
            return False
        query = update(jobs).where(
            jobs.c.job == job, jobs.c.state.in_([state.value for state in from_states])
        )
        done = tx.execute(query.values(state=to_state.value, **_packed(fields)))
        return done.rowcount == 1

    return catalog.write(work)


def _is_client_busy(tx: Tx, job: str) -> bool:
    client = select(jobs.c.client).where(jobs.c.job == job).scalar_subquery()
    query = select(jobs.c.key).where(
        jobs.c.client == client, jobs.c.state.in_(ACTIVE_STATES), jobs.c.job != job
    )
    return tx.execute(query.limit(1)).first() is not None


def set_counts(catalog: Catalog, counts: Iterable[tuple[str, Counts]]) -> None:
    """Save the progress of active jobs; what is over keeps its last counts."""
    pairs = list(counts)

    def work(tx: Tx) -> None:
        for job, found in pairs:
            query = update(jobs).where(jobs.c.job == job, jobs.c.state.in_(ACTIVE_STATES))
            tx.execute(query.values(counts=pack(found)))

    if pairs:
        catalog.write(work)
