"""What every request goes through: its id, its caller, its limits, and how errors are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

from aiohttp import web

from holdfast_contract.errors import HoldfastError, InternalError, NotAuthenticated, Refused
from holdfast_contract.ids import new_ulid
from holdfast_contract.logs import bind, get_logger
from holdfast_server.api.authentication import bearer_hash, caller_of
from holdfast_server.api.calls import Call, Caller, ConnectedAgent, Nobody, Person
from holdfast_server.api.chunks import cut
from holdfast_server.api.problems import error_of_http, problem_response
from holdfast_server.api.replies import response_of
from holdfast_server.api.requests import check_head, read_request
from holdfast_server.api.rights import check_right
from holdfast_server.api.routes import Audience, Route
from holdfast_server.api.services import SERVICES
from holdfast_server.control.events import FAILED, REFUSED

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = web.RequestKey("request_id", str)
ROUTE = web.RequestKey("route", str)
RELAYED = frozenset({"/v1/queries"})
WAITING: web.AppKey[dict[web.RequestHandler, asyncio.TimerHandle]] = web.AppKey("waiting", dict)
"""Connections whose first request has not arrived yet, oldest first, and when they are given up."""
REQUEST_ID_HEADER = "Request-Id"
ANSWERING = web.RequestKey("answering", web.StreamResponse)
"""The answer, once its head has been sent."""
NANOSECONDS = 1_000_000_000

_log = get_logger(__name__)


def forget(
    waiting: dict[web.RequestHandler, asyncio.TimerHandle], connection: web.RequestHandler
) -> bool:
    """Wait for the first request of a connection no longer; False: it was not waited for."""
    later = waiting.pop(connection, None)
    if later is None:
        return False
    later.cancel()
    return True


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, for logs and the answer, and measure it; outermost."""
    services = request.app[SERVICES]
    forget(request.app[WAITING], request.protocol)
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


async def note_begun(request: web.Request, response: web.StreamResponse) -> None:
    """Remember that an answer's head is sent: from then on no other answer can be given."""
    request[ANSWERING] = response


def _problem(request: web.Request, error: HoldfastError) -> web.StreamResponse:
    begun: web.StreamResponse | None = request.get(ANSWERING)
    if begun is not None:
        cut(request)
        return begun
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
        if route.audience in (Audience.OPEN, Audience.PROOF):
            return await _answer(Call(request, services, Nobody(), request[REQUEST_ID]), route)
        try:
            token_hash = bearer_hash(request)
            with services.open_calls.under(token_hash) as under:
                caller = await caller_of(route.audience, token_hash, services)
                if isinstance(caller, Person) and caller.expires_ns is not None:
                    left_ns = caller.expires_ns - services.clock.now_ns()
                    under.end_after(left_ns / NANOSECONDS)
                call = Call(request, services, caller, request[REQUEST_ID])
                return await _answer(call, route)
        except NotAuthenticated as error:
            await services.events.refused(
                "a request without a token that counts",
                route=f"{route.method} {route.path}",
                code=error.code,
                request=request[REQUEST_ID],
            )
            raise

    return handle


async def _answer(call: Call, route: Route) -> web.StreamResponse:
    with bind(**_known(call.caller)), _share(call.caller):
        try:
            _check_right(call, route)
            check_head(call.request)
            call.body = await read_request(call, route.request)
            response = response_of(route, await route.handler(call))
        except NotAuthenticated:
            raise
        except HoldfastError as error:
            # An enrolment that failed too: somebody may have tried to take a name.
            is_told = route.is_act or route.audience is Audience.NEWCOMER
            if is_told or isinstance(error, Refused):
                await _record_failure(call, route, error)
            raise
        assert call.is_recorded or not route.is_act, "every act stands in the trail"
        return response


def _check_right(call: Call, route: Route) -> None:
    """Refuse what the token's role does not allow, before anything is looked up.

    Raises:
        Refused: in words that do not depend on what is asked for.
    """
    if route.right is None:
        return
    check_right(call.person.role, route.right)
    if route.is_of_server and not call.scope.is_whole:
        raise Refused(
            "this token is good for some domains only, and this concerns the whole server",
            hint="it takes a token that was made without --domain",
        )


def _share(caller: Caller) -> AbstractContextManager[None]:
    """Bound what one agent has under way: the others are served meanwhile."""
    if isinstance(caller, ConnectedAgent):
        return caller.connection.share.request()
    return nullcontext()


def _known(caller: Caller) -> dict[str, str]:
    if isinstance(caller, ConnectedAgent):
        return {"client": caller.connection.client}
    if isinstance(caller, Person):
        return {"by": caller.token}
    return {}


async def _record_failure(call: Call, route: Route, error: HoldfastError) -> None:
    """Tell of an act that was refused, or that came to nothing, in the trail."""
    client = call.agent.client if isinstance(call.caller, ConnectedAgent) else ""
    is_refused = isinstance(error, Refused)
    await call.services.events.refused(
        "an act was refused" if is_refused else "an act failed",
        caller=call.by or client,
        client=client,
        route=f"{route.method} {route.path}",
        code=error.code,
        outcome=REFUSED if is_refused else FAILED,
        **call.who,
        **call.target,
    )
