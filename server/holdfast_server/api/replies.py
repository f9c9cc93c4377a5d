"""Good answers: what a handler returns becomes a response."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from holdfast_contract.protocol.http import Listing
from holdfast_server.api.routes import RawAnswer, Route


def _plain(value: object) -> str:
    """Return a name as text: msgspec takes a plain str only."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"not a thing for an answer: {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def response_of(route: Route, answer: Any) -> web.StreamResponse:
    """Return the response for what a handler of `route` returned.

    A handler returns None (204), bytes (where the route says raw), a record, or a response that it
    wrote itself.
    """
    if isinstance(answer, web.StreamResponse):
        return answer
    if route.answer is None:
        assert answer is None
        return web.Response(status=204)
    if isinstance(route.answer, RawAnswer):
        assert isinstance(answer, (bytes, bytearray))
        return web.Response(
            body=bytes(answer), status=route.status, content_type=route.answer.media
        )
    return web.Response(
        body=_encoder.encode(answer), status=route.status, content_type="application/json"
    )


def listing(rows: list[Any], limit: int, after: str = "") -> Listing:
    """Return one page; `after` names its last row, and is told only when there may be more."""
    return Listing(items=rows, next=after if len(rows) >= limit else "")
