"""How the server is: for people, for probes and for Prometheus."""

from __future__ import annotations

from aiohttp import web

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import HoldfastError
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import DoctorRow, Listing, Row, StatusRow
from holdfast_server.api.calls import Call
from holdfast_server.api.metrics import Gauges
from holdfast_server.api.services import Services
from holdfast_server.catalog import clients, domains, events, jobs, snapshots
from holdfast_server.catalog.jobs import ACTIVE_STATES
from holdfast_server.catalog.scopes import Scope


class Health(Row, kw_only=True):
    """`ok`, or `failed` and the error's code."""

    status: str
    code: str = ""


async def healthz(call: Call) -> web.Response:
    """Return 200 when catalog and store can serve."""
    try:
        await call.run(_serve_once, call.services)
    except HoldfastError as error:
        return web.json_response({"status": "failed", "code": error.code}, status=503)
    return web.json_response({"status": "ok"})


def _serve_once(services: Services) -> None:
    jobs.count_by_state(services.catalog)
    services.repository.statistics()


async def status(call: Call) -> StatusRow:
    """Return the server in numbers."""
    connected = call.services.hub.count(call.scope)
    return await call.run(_status, call.services, call.scope, connected)


def _status(services: Services, scope: Scope, connected: int) -> StatusRow:
    states = jobs.count_by_state(services.catalog, scope)
    with services.catalog.read() as tx:
        shown = snapshots.count(tx, scope)
    row = StatusRow(
        version=services.version,
        started=rfc3339(services.started_ns),
        clients_connected=connected,
        clients=clients.count(services.catalog, scope),
        domains=domains.count(services.catalog, scope),
        snapshots=shown,
        jobs_running=sum(states.get(state, 0) for state in ACTIVE_STATES),
        jobs_queued=states.get(JobState.QUEUED, 0),
    )
    if scope.is_whole:
        # How much is stored in all tells what other domains do.
        found = services.repository.statistics()
        row.chunks, row.packs = found.chunks, found.packs
        row.stored_bytes, row.damaged_chunks = found.stored_bytes, found.damaged_chunks
        row.store_free_bytes = found.store_free_bytes
        row.store_reserve_bytes = found.store_reserve_bytes
    return row


async def doctor(call: Call) -> Listing:
    """Look for what is wrong: quick checks of catalog, store, journal and room."""
    rows = await call.run(_doctor, call.services)
    return Listing(items=rows)


def _doctor(services: Services) -> list[DoctorRow]:
    rows = [DoctorRow(**finding._asdict()) for finding in services.repository.check()]
    rows.append(_agents(services))
    rows.append(_events(services))
    return rows


def _events(services: Services) -> DoctorRow:
    try:
        found = events.trail(services.catalog)
    except HoldfastError as error:
        return DoctorRow(check="events", state="fail", message=error.message, hint=error.hint)
    if found.broken is None:
        message = f"{found.events} in an unbroken chain"
        return DoctorRow(check="events", state="ok", message=message)
    return DoctorRow(
        check="events",
        state="fail",
        message=f"the chain breaks at event {found.broken}: it, or what stood before it, was"
        " changed or removed",
        hint="somebody wrote into the catalog by hand: compare it with a copy",
    )


def _agents(services: Services) -> DoctorRow:
    known, connected = clients.count(services.catalog), len(services.hub)
    state = "ok" if connected >= known else "warn"
    hint = "" if state == "ok" else "holdfast clients shows which; look at their agents' logs"
    return DoctorRow(
        check="agents", state=state, message=f"{connected} of {known} connected", hint=hint
    )


async def metrics(call: Call) -> bytes:
    """Return numbers for Prometheus."""
    return await call.run(_metrics, call.services)


def _metrics(services: Services) -> bytes:
    found = services.repository.statistics()
    states = jobs.count_by_state(services.catalog)
    gauges = Gauges(
        jobs={state.value: states.get(state, 0) for state in JobState},
        agents_connected=len(services.hub),
        chunks=found.chunks,
        packs=found.packs,
        stored_bytes=found.stored_bytes,
        damaged_chunks=found.damaged_chunks,
        store_free_bytes=found.store_free_bytes,
        store_reserve_bytes=found.store_reserve_bytes,
    )
    return services.metrics.text(gauges)
