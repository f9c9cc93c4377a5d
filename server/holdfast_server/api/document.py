"""The route that shows all routes."""

from __future__ import annotations

from aiohttp import web

from holdfast_server.api.calls import Call

DOCUMENT: web.AppKey[bytes] = web.AppKey("openapi", bytes)


async def openapi(call: Call) -> bytes:
    """Return this API as an OpenAPI document."""
    return call.request.app[DOCUMENT]
