"""The aiohttp application, made from the table of routes."""

from __future__ import annotations

import msgspec
from aiohttp import web

from holdfast_server.api.document import DOCUMENT
from holdfast_server.api.middleware import WAITING, endpoint, note_begun, observe, tell_errors
from holdfast_server.api.openapi import openapi_document
from holdfast_server.api.requests import expect_later
from holdfast_server.api.services import SERVICES, Services
from holdfast_server.api.table import ROUTES


def make_app(services: Services) -> web.Application:
    """Return the application that serves all routes with `services`."""
    app = web.Application(middlewares=[observe, tell_errors])
    app[SERVICES] = services
    app[WAITING] = {}
    app.on_response_prepare.append(note_begun)
    app[DOCUMENT] = msgspec.json.encode(openapi_document(ROUTES, services.version))
    for route in ROUTES:
        app.router.add_route(route.method, route.path, endpoint(route), expect_handler=expect_later)
    return app
