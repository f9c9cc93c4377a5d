"""What an agent reads for its jobs and queries, and the names that it tells at their end."""

from __future__ import annotations

import msgspec
from aiohttp import web

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput, TooLarge, error_from
from holdfast_contract.protocol.control import Failure
from holdfast_contract.protocol.http import JobResult, decode_json
from holdfast_server.api.calls import Call
from holdfast_server.api.chunks import DamageState, report_damage, stream_chunks
from holdfast_server.catalog.jobs import absent
from holdfast_server.catalog.scopes import own_domain

ERROR_HEADER = "Holdfast-Error"


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
    await call.services.grants.snapshots(call.ulid("grant"), agent)
    return await report_damage(call, agent.client.domain, agent.client, call.body)


async def put_result(call: Call) -> None:
    """Keep the names that an agent tells before the end of a job: in memory only."""
    job, services = call.ulid("job"), call.services
    live = services.live.get(job)
    if live is None or live.client != call.agent.client:
        raise absent(job)
    sealed = await call.run(_checked, call.body)
    services.results.put(job, call.body, sealed)


def _checked(body: bytes) -> bytes | None:
    """Return the sealed list of a result that can be shown later."""
    result = decode_json(JobResult, body)
    for rows in (result.skipped, result.not_exact, result.plan, result.damaged):
        if len(rows) > limits.REPORTED_NAMES_MAX:
            raise TooLarge(f"at most {limits.REPORTED_NAMES_MAX} names of a kind")
    sealed = result.not_exact_sealed
    if sealed is not None and len(sealed) > limits.NOT_EXACT_BYTES_MAX:
        raise TooLarge(f"a sealed list of at most {limits.NOT_EXACT_BYTES_MAX} bytes")
    return sealed


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
