"""What every request goes through: its id, its caller, its limits, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from holdfast_contract.errors import HoldfastError, InternalError, NotAuthenticated, Refused
from holdfast_contract.ids import new_ulid
from holdfast_contract.logs import bind, get_logger
from holdfast_server.api.authentication import caller_of
from holdfast_server.api.calls import Call, Caller, ConnectedAgent, Person
from holdfast_server.api.problems import error_of_http, problem_response
from holdfast_server.api.replies import response_of
from holdfast_server.api.requests import read_request
from holdfast_server.api.routes import Route
from holdfast_server.api.services import SERVICES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = web.RequestKey("request_id", str)
ROUTE = web.RequestKey("route", str)
RELAYED = frozenset({"/v1/queries"})
WAITING: web.AppKey[set[asyncio.BaseProtocol]] = web.AppKey("waiting", set)
"""Connections whose first request has not arrived yet."""
REQUEST_ID_HEADER = "Request-Id"

_log = get_logger(__name__)


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, for logs and the answer, and measure it; outermost."""
    services = request.app[SERVICES]
    request.app[WAITING].discard(request.protocol)
    request_id = request[REQUEST_ID] = new_ulid(services.clock)
    begun = services.clock.monotonic()
    status = 499
    with bind(request_id=request_id):
        try:
            response = await handler(request)
            status = response.status
            if not response.prepared:
                response.headers[REQUEST_ID_HEADER] = request_id
                response.headers["Server"] = "Holdfast"
        finally:
            seconds = services.clock.monotonic() - begun
            route = request.get(ROUTE, "none")
            services.metrics.request(request.method, route, status, seconds)
            # The route's pattern, never the path: a path may hold names.
            _log.debug(
                "request", method=request.method, route=route, status=status, seconds=seconds
            )
    return response


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a problem document."""
    request_id = request[REQUEST_ID]
    try:
        return await handler(request)
    except HoldfastError as error:
        return _problem(request, error)
    except web.HTTPException as error:
        response = problem_response(error_of_http(error), request_id, error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except asyncio.CancelledError:
        raise
    except Exception:
        _log.exception("a request failed", method=request.method, route=request.get(ROUTE))
        hint = "its log has more under the request id"
        return _problem(request, InternalError("the server failed", hint=hint))


def _problem(request: web.Request, error: HoldfastError) -> web.StreamResponse:
    if error.http_status >= 500:
        # Of an agent's answer to a query only the code: its words may hold names of files.
        what = error.code if request.get(ROUTE) in RELAYED else error
        _log.warning("a request was not served", route=request.get(ROUTE), error=what)
    return problem_response(error, request[REQUEST_ID])


def endpoint(route: Route) -> Handler:
    """Return the aiohttp handler of a row: authenticate, then read the body, then answer."""

    async def handle(request: web.Request) -> web.StreamResponse:
        services = request.app[SERVICES]
        request[ROUTE] = route.path
        try:
            caller = await caller_of(request, route.audience, services)
        except NotAuthenticated:
            await services.events.refused(
                "a request without a token that counts", method=route.method, route=route.path
            )
            raise
        with bind(**_known(caller)):
            call = Call(request, services, caller, request[REQUEST_ID])
            try:
                call.body = await read_request(call, route.request)
                return response_of(route, await route.handler(call))
            except Refused as error:
                await _record_refusal(call, route, error)
                raise

    return handle


def _known(caller: Caller) -> dict[str, str]:
    if isinstance(caller, ConnectedAgent):
        return {"client": caller.connection.client}
    if isinstance(caller, Person):
        return {"by": caller.token}
    return {}


async def _record_refusal(call: Call, route: Route, error: Refused) -> None:
    client = call.agent.client if isinstance(call.caller, ConnectedAgent) else ""
    await call.services.events.refused(
        "an act was refused",
        client=client,
        by=call.by,
        method=route.method,
        route=route.path,
        code=error.code,
    )
