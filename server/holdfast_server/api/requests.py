"""Request bodies as the route's row says."""

from __future__ import annotations

from typing import Any

from holdfast_contract.errors import UsageError
from holdfast_contract.limits import JSON_BODY_BYTES_MAX
from holdfast_contract.protocol.http import decode_json
from holdfast_server.api.bodies import read_body
from holdfast_server.api.calls import Call
from holdfast_server.api.routes import RawBody, StreamedBody

_JSON_TYPES = ("application/json", "application/octet-stream", "")
"""A client that says nothing of its body sends octet-stream, by aiohttp's reading."""


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
