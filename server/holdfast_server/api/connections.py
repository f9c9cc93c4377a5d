"""One connection to the open port: what is no HTTP is told in our words, and never logged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from holdfast_contract.errors import HoldfastError, InternalError, UsageError
from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import KIB
from holdfast_contract.logs import get_logger
from holdfast_server.api.problems import problem_response
from holdfast_server.control.channel import share_tls_buffer

REQUEST_ID_HEADER = "Request-Id"
TLS_READ_BYTES = 256 * KIB
"""What a TLS connection receives at once. A GB received costs 0.1 s of CPU more with 64 KiB, and
0.1 s less with 1 MiB; so much ciphertext OpenSSL keeps room for in each connection that had it."""
Lost = Callable[[web.RequestHandler], None]
"""Told when a connection is over."""
_log = get_logger(__name__)


class Connection(web.RequestHandler):
    """Reads requests of one connection and hands them to the application."""

    __slots__ = ("_lost",)

    def __init__(self, server: web.Server, lost: Lost, **options: Any) -> None:
        super().__init__(server, **options)
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read; what arrives passes through one buffer for all connections."""
        share_tls_buffer(transport, TLS_READ_BYTES)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell that the connection is over."""
        self._lost(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the application never saw; the connection ends with that.

        The framework's own answer repeats what arrived, and its log too: a path may hold names,
        and whoever sends nonsense decides how much of it there is.
        """
        del message
        request_id = new_ulid()
        if isinstance(exc, HttpProcessingError) or status < 500:
            _log.debug("a request that is no HTTP", request_id=request_id, status=status)
            error: HoldfastError = UsageError("the request is no HTTP that is understood")
        else:
            _log.exception("a connection failed", request_id=request_id)
            error = InternalError("the server failed", hint="its log has more")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = problem_response(error, request_id, status)
        response.headers[REQUEST_ID_HEADER] = request_id
        response.headers["Server"] = "Holdfast"
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log where the framework would, without what arrived."""
        del args, kw
        _log.exception("a connection failed")
