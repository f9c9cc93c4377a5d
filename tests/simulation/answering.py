"""The server's end of requests: its own routes and middleware, over bodies that come in pieces."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from holdfast_server.api.middleware import WAITING, endpoint, observe, tell_errors
from holdfast_server.api.routes import Route
from holdfast_server.api.services import SERVICES, Services
from holdfast_server.api.table import ROUTES

_ROUTES = [
    (route, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path) + r"\Z"))
    for route in ROUTES
]


@dataclass(frozen=True)
class Request:
    """A request as it is sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    seconds: float = 0.0
    """How long the second half of the body takes."""


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_torn: bool = False


Observe = Callable[[Route, "SimRequest", Answer], None]


class SimContent:
    """A request's body as it arrives."""

    def __init__(self, data: bytes, seconds: float, *, is_torn: bool) -> None:
        half = len(data) // 2
        self._pieces = [data[half:], data[:half]] if data else []
        self._seconds = seconds
        self._is_torn = is_torn
        if is_torn:
            del self._pieces[:1]

    async def readany(self) -> bytes:
        await asyncio.sleep(self._seconds if len(self._pieces) == 1 else 0)
        if self._pieces:
            return self._pieces.pop() or await self.readany()
        if self._is_torn:
            raise ConnectionResetError("the connection broke")
        return b""


class SimTransport:
    """The connection below a request."""

    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class SimRequest(dict[Any, Any]):
    """What handlers see of a request."""

    def __init__(
        self, services: Services, request: Request, match: Mapping[str, str], *, is_torn: bool
    ) -> None:
        super().__init__()
        path, _, query = request.path.partition("?")
        self.app = {SERVICES: services, WAITING: {}}
        self.method = request.method
        self.path = path
        self.headers = request.headers
        self.match_info = match
        self.query = dict(parse_qsl(query, keep_blank_values=True))
        self.content = SimContent(request.body, request.seconds, is_torn=is_torn)
        self.body = request.body
        self.content_length = len(request.body)
        self.content_type = request.headers.get("Content-Type", "")
        self.protocol = None
        self.transport = SimTransport()


class SimStreamed(web.StreamResponse):
    """An answer that is written piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    @property
    def prepared(self) -> bool:
        return True

    async def prepare(self, request: Any) -> None:
        return None

    async def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))
        await asyncio.sleep(0)

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def serve(
    services: Services, request: Request, seen: Observe, *, is_torn: bool = False
) -> Answer:
    """Have the server's own routes and middleware answer."""
    path = request.path.partition("?")[0]
    for route, pattern in _ROUTES:
        match = pattern.match(path)
        if match and route.method == request.method:
            break
    else:
        raise AssertionError(f"no route for {request.method} {path}")
    found = SimRequest(services, request, match.groupdict(), is_torn=is_torn)
    handler: Any = partial(_told, handler=endpoint(route))
    response = await observe(found, handler)  # type: ignore[arg-type]
    body = b"".join(response.pieces) if isinstance(response, SimStreamed) else _body(response)
    answer = Answer(
        response.status, dict(response.headers), body, is_torn=found.transport.is_aborted
    )
    seen(route, found, answer)
    return answer


async def _told(request: web.Request, *, handler: Any) -> web.StreamResponse:
    return await tell_errors(request, handler)


def _body(response: web.StreamResponse) -> bytes:
    assert isinstance(response, web.Response)
    body = response.body
    return bytes(body) if isinstance(body, (bytes, bytearray)) else b""
