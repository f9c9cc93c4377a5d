"""What an agent reads for its jobs and queries, and the names that it tells at their end."""

from __future__ import annotations

import msgspec
from aiohttp import web

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput, NotFound, error_from
from holdfast_contract.protocol.control import Failure
from holdfast_server.api.bodies import read_body
from holdfast_server.api.calls import Call
from holdfast_server.api.chunks import DamageState, report_damage, stream_chunks
from holdfast_server.catalog.jobs import absent
from holdfast_server.catalog.scopes import own_domain
from holdfast_server.control.reported import checked_result

ERROR_HEADER = "Holdfast-Error"
RESULT_SECONDS = 600.0
"""Longest time for a result: a throttled agent sends its names at the pace that it was given."""


async def get_manifest(call: Call) -> bytes:
    """Return a manifest of the agent's own history, or one that a job or query names."""
    services, agent = call.services, call.agent
    snapshot, history = call.hash("id"), services.repository.history
    # Whether it is granted is asked first: a sibling's snapshot and none take the same way.
    if await services.grants.covers(snapshot, agent):
        record = await call.run(history.get, snapshot, own_domain(agent.client))
    else:
        record = await call.run(history.of_client, snapshot, agent.client)
    return await call.run(history.manifest, record)


async def list_damaged(call: Call) -> bytes:
    """Return ids of damaged chunks of the snapshots that a job reads, ascending."""
    services = call.services
    granted = await services.grants.snapshots(call.ulid("job"), call.agent)
    ids = await call.run(
        services.repository.damaged_of,
        granted,
        after=call.hash_after(),
        limit=limits.HAVE_IDS_MAX,
    )
    return b"".join(ids)


async def fetch_chunks(call: Call) -> web.StreamResponse:
    """Return sealed chunks of the snapshots that a job or query reads."""
    grant = await call.services.grants.open(call.ulid("grant"), call.agent)
    return await stream_chunks(call, grant)


async def report_chunk(call: Call) -> DamageState:
    """Take the word of an agent that a copy of a chunk does not open."""
    agent = call.agent
    grant = await call.services.grants.open(call.ulid("grant"), agent)
    if not await call.run(grant.allows, bytes.fromhex(call.body.chunk)):
        raise NotFound("no such copy of a chunk")
    return await report_damage(call, agent.client.domain, agent.client, call.body)


async def put_result(call: Call) -> None:
    """Keep the names that an agent tells before the end of a job: in memory only."""
    job, services = call.ulid("job"), call.services
    live = services.live.get(job)
    if live is None or live.client != call.agent.client:
        raise absent(job)
    with call.agent.share.alone("result"), services.results.arrival() as arrival:
        body = await read_body(
            call.request, limits.RESULT_BYTES_MAX, RESULT_SECONDS, arrived=arrival
        )
        services.metrics.received(len(body))
        kept, sealed = await call.run(checked_result, body)
        if services.live.get(job) is not live:
            raise absent(job)  # over meanwhile: nobody would forget it
        services.results.put(job, kept, sealed)


async def answer_query(call: Call) -> None:
    """Pipe an agent's answer to who asked; it is never kept."""
    queries = call.services.queries
    asked = queries.find(call.ulid("query"), call.agent)
    told = call.request.headers.get(ERROR_HEADER)
    if told is None:
        await queries.answer(asked, call.request.content)
        return
    failure = _failure(told)
    queries.refuse(
        asked,
        error_from(failure.code, failure.message, hint=failure.hint, details=failure.details),
    )


def _failure(text: str) -> Failure:
    try:
        return msgspec.json.decode(text, type=Failure)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise InvalidInput(f"the header {ERROR_HEADER} is no failure") from exc
