"""Jobs: asking for them, looking at them, ending them."""

from __future__ import annotations

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import UsageError
from holdfast_contract.ids import is_ulid
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import (
    JobCreate,
    JobRow,
    JobsCreated,
    Listing,
)
from holdfast_server.api.calls import Call
from holdfast_server.api.events import events_listing
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import path_text, progress_row, time_or_none
from holdfast_server.api.services import Services
from holdfast_server.catalog import events, jobs
from holdfast_server.catalog.jobs import JobRecord
from holdfast_server.control.intake import Intake
from holdfast_server.control.lifecycle import shown
from holdfast_server.control.notices import wait_at_most
from holdfast_server.control.orders import decode_spec, is_dry_run
from holdfast_server.control.reported import decode_result
from holdfast_server.control.summary import summary_of

WAIT_SECONDS_MAX = 60
NANOSECONDS = 1_000_000_000


def job_row(services: Services, record: JobRecord) -> JobRow:
    """Return a job as a list shows it."""
    record = shown(record, services.live)
    return JobRow(
        id=record.id,
        kind=record.kind,
        client=record.client,
        state=record.state,
        created=rfc3339(record.created_ns),
        started=time_or_none(record.started_ns),
        finished=time_or_none(record.finished_ns),
        progress=progress_row(record.counts),
        error=record.error,
    )


async def _shown(call: Call, job: str) -> JobRow:
    # Memory belongs to the event loop, the catalog to the threads.
    return await call.run(_full, call.services, job, call.services.results.get(job))


def _full(services: Services, job: str, names: bytes | None) -> JobRow:
    """Return a job as it is shown alone: with its snapshot and, once it is over, its result."""
    record = jobs.get(services.catalog, job)
    row = job_row(services, record)
    row.snapshot = record.snapshot.hex() if record.snapshot else None
    row.not_exact_sealed = record.not_exact_sealed
    live = services.live.get(job)
    row.current = path_text(live.current) if live and live.current else None
    if record.state.is_final:
        row.result = _result(record, names)
    return row


def _result(record: JobRecord, names: bytes | None) -> dict[str, object]:
    begun_ns = record.started_ns or record.created_ns
    return summary_of(
        kind=record.kind,
        job=record.id,
        client=record.client,
        state=record.state,
        snapshot=record.snapshot.hex() if record.snapshot else None,
        told=record.summary or {},
        seconds=((record.finished_ns or begun_ns) - begun_ns) / NANOSECONDS,
        skipped_count=record.skipped_count,
        not_exact_count=record.not_exact_count,
        is_dry_run=is_dry_run(decode_spec(record.spec)),
        names=None if names is None else decode_result(names),
    )


async def list_jobs(call: Call) -> Listing:
    """Return jobs, newest first."""
    page, state = call.page(), call.text("state")
    if state and state not in list(JobState):
        raise UsageError(f"no such state; one of {', '.join(JobState)}")
    if page.after and not is_ulid(page.after):
        raise UsageError("after: the id of a job is expected")
    services = call.services
    found = await call.run(
        jobs.listed,
        services.catalog,
        client=call.text("client"),
        state=state,
        after=page.after,
        limit=page.limit,
        scope=call.scope,
    )
    rows = [job_row(services, record) for record in found]
    return listing(rows, page.limit, rows[-1].id if rows else "")


async def create_jobs(call: Call) -> JobsCreated:
    """Queue one job for each client; they are sent as soon as their agents can take them."""
    body: JobCreate = call.body
    services = call.services
    intake = Intake(services.catalog, services.repository, call.scope)
    records = await call.run(intake.jobs, body)
    await services.life.create(records, call.who)
    call.is_recorded = True
    services.dispatcher.wake()
    return JobsCreated(jobs=[job_row(services, record) for record in records])


async def show_job(call: Call) -> JobRow:
    """Return one job; with `wait`, when it is over or something of it changed."""
    services, job = call.services, call.ulid("id")
    seconds = call.number("wait", 0, most=WAIT_SECONDS_MAX)
    with services.notices.listen(job) as changed:
        record = await call.run(jobs.get, services.catalog, job, call.scope)
        if seconds and not record.state.is_final:
            await wait_at_most(changed, seconds)
    return await _shown(call, job)


async def cancel_job(call: Call) -> JobRow:
    """End a job; one that is over stays as it ended."""
    services, job = call.services, call.ulid("id")
    await call.run(jobs.get, services.catalog, job, call.scope)
    await services.life.cancel(job, call.who)
    call.is_recorded = True
    services.dispatcher.wake()
    return await _shown(call, job)


async def job_log(call: Call) -> Listing:
    """Return what happened to a job, oldest first."""
    services, job = call.services, call.ulid("id")
    page, after = call.page(), call.number_after()
    await call.run(jobs.get, services.catalog, job, call.scope)
    found = await call.run(events.listed, services.catalog, job=job, after=after, limit=page.limit)
    return events_listing(found, page.limit)
