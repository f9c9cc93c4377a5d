"""Request bodies as the route's row says."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from holdfast_contract.errors import UsageError
from holdfast_contract.limits import JSON_BODY_BYTES_MAX
from holdfast_contract.protocol.http import decode_json
from holdfast_server.api.bodies import read_body
from holdfast_server.api.calls import Call
from holdfast_server.api.routes import RawBody, StreamedBody

_JSON_TYPES = ("application/json", "application/octet-stream", "")
"""A client that says nothing of its body sends octet-stream, by aiohttp's reading."""


def check_head(request: web.Request) -> None:
    """Refuse what the head asks for and no route does; ask for the body where the caller waits.

    `100 Continue` is sent from here, behind the authentication, not by the framework before it.

    Raises:
        UsageError: a compressed body: nothing that arrives is inflated; an unknown expectation.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise UsageError("a body is sent as it is, without a Content-Encoding")
    expectation = request.headers.get("Expect", "")
    if not expectation:
        return
    if expectation.lower() != "100-continue":
        raise UsageError("no expectation but 100-continue is known")
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def expect_later(request: web.Request) -> None:
    """Stand in for the framework's answer to `Expect`; see `check_head`."""


async def read_request(call: Call, kind: Any) -> Any:
    """Return the body of `call` as `kind`; None where the handler reads it or there is none.

    Raises:
        UsageError: another content type than JSON where JSON is wanted.
        TooLarge, InvalidInput, Unreachable: what the body can have wrong.
    """
    if kind is None or isinstance(kind, StreamedBody):
        return None
    if isinstance(kind, RawBody):
        body = await read_body(call.request, kind.bytes_max, kind.seconds)
        call.services.metrics.received(len(body))
        return body
    if call.request.content_type not in _JSON_TYPES:
        raise UsageError("the body is to be JSON", hint="Content-Type: application/json")
    body = await read_body(call.request, JSON_BODY_BYTES_MAX)
    call.services.metrics.received(len(body))
    return decode_json(kind, body)
