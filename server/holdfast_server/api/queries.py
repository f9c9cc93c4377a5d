"""Questions that a connected agent answers; the answer is piped through as it comes."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from holdfast_contract.errors import HoldfastError, NotAtHand, Refused, Unreachable, UsageError
from holdfast_contract.ids import ClientName
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol.control import Browse, Query, RestoreItem
from holdfast_contract.protocol.http import QueryCreate
from holdfast_server.api.bodies import translated_body
from holdfast_server.api.calls import Call
from holdfast_server.api.chunks import cut
from holdfast_server.api.rights import Right, check_right
from holdfast_server.api.services import Services
from holdfast_server.catalog import clients, jobs
from holdfast_server.catalog.scopes import Scope
from holdfast_server.control.hub import AgentConnection
from holdfast_server.control.intake import Intake, absolute
from holdfast_server.control.queries import ANSWER_SECONDS, Body, OpenQuery

GONE_SECONDS = 1.0
"""How often it is looked whether the asker is still there."""
RAW_KINDS = ("dump",)
NDJSON = "application/x-ndjson"
_ITEMS = {"browse": (0, 0), "ls": (1, 1), "find": (1, 1024), "diff": (2, 2), "dump": (1, 1)}
"""How many parts of snapshots each kind takes."""
_SHOWN = frozenset({Browse.NAMES, Browse.CONTENT})

_log = get_logger(__name__)


async def ask(call: Call) -> web.StreamResponse:
    """Ask a connected agent; the answer is NDJSON, of `dump` the file's bytes."""
    body: QueryCreate = call.body
    services = call.services
    if body.kind == "dump":
        check_right(call.person.role, Right.RUN)
    items, blob = await call.run(_sources, services, call.scope, body)
    connection = await _choose(call, body, items)
    query = Query(
        query=services.queries.new_id(),
        kind=body.kind,
        path=_path(body),
        items=items,
        pattern=body.pattern,
        recursive=body.recursive,
        blob=blob,
    )
    async with services.queries.ask(query, connection) as asked:
        answer = await _first(call.request, asked)
        return await _pipe(call, answer, is_raw=body.kind in RAW_KINDS)


def _path(body: QueryCreate) -> bytes:
    path = body.path_b64 if body.path_b64 is not None else body.path.encode()
    return absolute(path) if path else b""


def _sources(
    services: Services, scope: Scope, body: QueryCreate
) -> tuple[list[RestoreItem], bytes]:
    """Return the snapshots that a query reads, and the sealed report that it opens."""
    intake = Intake(services.catalog, services.repository, scope)
    if body.kind == "report":
        return _report(intake, body)
    least, most = _ITEMS[body.kind]
    if not least <= len(body.items) <= most:
        raise UsageError(f"{body.kind} takes {least} to {most} parts of snapshots")
    items = intake.items(body.items)
    if len({ClientName(item.client).domain for item in items}) > 1:
        raise UsageError("an agent answers for its own domain only", hint="ask for each domain")
    return items, b""


def _report(intake: Intake, body: QueryCreate) -> tuple[list[RestoreItem], bytes]:
    if not body.job:
        return intake.items(body.items), b""
    record = jobs.get(intake.catalog, body.job, intake.scope)
    if record.snapshot is None:
        raise UsageError("this job has no report")
    item = RestoreItem(record.snapshot, str(record.client), b"/")
    return [item], record.not_exact_sealed or b""


async def _choose(call: Call, body: QueryCreate, items: list[RestoreItem]) -> AgentConnection:
    """Return the agent to ask: the live pod itself, the snapshot's own, or one of its domain."""
    services = call.services
    if body.kind == "browse":
        return await _live_pod(call, body)
    if not items:
        raise UsageError(f"{body.kind} needs a snapshot")
    shown = frozenset({Browse.CONTENT}) if body.kind == "dump" else _SHOWN
    own = [ClientName(item.client) for item in items]
    able = services.hub.showing(own[0].domain, shown)
    for connection in sorted(able, key=lambda agent: agent.client not in own):
        return connection
    what = "content" if body.kind == "dump" else "names"
    raise NotAtHand(
        f"no connected agent of the domain {own[0].domain} may show {what}, and no key file",
        hint="give the domain's key file (HOLDFAST_KEY_FILE), or start an agent of the domain "
        f"whose HOLDFAST_BROWSE allows {what}",
    )


async def _live_pod(call: Call, body: QueryCreate) -> AgentConnection:
    if body.client is None:
        raise UsageError("browse needs a client")
    client = ClientName.parse(body.client)
    await call.run(clients.get, call.services.catalog, client, call.scope)
    connection = call.services.hub.ready(client)
    if connection is None:
        raise NotAtHand(f"{client} is not connected", hint="start its agent, or look at a snapshot")
    if connection.hello.browse not in _SHOWN:
        raise Refused(f"the pod of {client} shows nothing", hint="its HOLDFAST_BROWSE says never")
    return connection


async def _first(request: web.Request, asked: OpenQuery) -> Body:
    """Return the answer once it begins.

    Raises:
        Unreachable: the agent says nothing, or the asker has gone.
        HoldfastError: what the agent said in place of an answer.
    """
    seconds = 0.0
    while seconds < ANSWER_SECONDS:
        done, _ = await asyncio.wait({asked.answer}, timeout=GONE_SECONDS)
        if done:
            return asked.answer.result()
        if request.transport is None or request.transport.is_closing():
            raise Unreachable("the asker has gone")
        seconds += GONE_SECONDS
    raise Unreachable("the agent does not answer")


async def _pipe(call: Call, answer: Body, *, is_raw: bool) -> web.StreamResponse:
    """Send the answer on as fast as the asker reads it."""
    response = web.StreamResponse()
    response.content_type = "application/octet-stream" if is_raw else NDJSON
    piece = await _next(answer)
    await response.prepare(call.request)
    try:
        while piece:
            async with asyncio.timeout(ANSWER_SECONDS):
                await response.write(piece)
            piece = await _next(answer)
        await response.write_eof()
    except HoldfastError as error:
        _log.warning("an answer broke", error=error)
        await _tell_broken(call.request, response, error, is_raw=is_raw)
    except (ConnectionError, TimeoutError):
        cut(call.request)
    return response


async def _next(answer: Body) -> bytes:
    async with translated_body(), asyncio.timeout(ANSWER_SECONDS):
        return await answer.readany()


async def _tell_broken(
    request: web.Request, response: web.StreamResponse, error: HoldfastError, *, is_raw: bool
) -> None:
    """End an answer that broke in the middle: rows by an error row, bytes by a cut."""
    if is_raw:
        cut(request)
        return
    row = {"type": "error", "code": error.code, "message": error.message, "hint": error.hint}
    try:
        await response.write(b"\n" + msgspec.json.encode(row) + b"\n")
        await response.write_eof()
    except ConnectionError:
        cut(request)
