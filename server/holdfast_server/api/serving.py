"""The open port: TLS, bounds on connections, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

from aiohttp import web

from holdfast_contract.errors import Conflict, UsageError
from holdfast_server.api.app import make_app
from holdfast_server.api.connections import Connection, Lost
from holdfast_server.api.middleware import WAITING, forget
from holdfast_server.api.services import Services

BACKLOG = 1024
"""Connections that wait to be accepted: a thousand agents may come back at once."""
HEAD_SECONDS = 30.0
"""How long a new connection may take until its first request has arrived."""
WAITING_MAX = 1280
"""Connections whose first request has not arrived: a thousand agents that come back at once, and
room beside them. One more ends the oldest: who means to ask has asked long before."""
HEAD_FIELDS_MAX = 64
"""Headers of one request; with their length they bound what a head can take."""
KEEPALIVE_SECONDS = 120.0
HANDSHAKE_SECONDS = 20.0
HEAD_LINE_BYTES_MAX = 16 * 1024
"""Longest request line: a reference to a snapshot and its path fit."""
HEAD_FIELD_BYTES_MAX = 32 * 1024
"""Longest header: `Holdfast-Error` tells a failure in one."""
READ_BYTES = 256 * 1024
TLS_HANDSHAKE_BYTES = 16 * 1024
"""asyncio keeps a buffer of so much for each TLS connection, 256 KiB unless told: from the end of
the handshake on, connections share one."""


class Serving:
    """Serves all routes on one address until `close`."""

    def __init__(self, services: Services, *, shutdown_seconds: float) -> None:
        self._app = make_app(services)
        self._runner = web.AppRunner(
            self._app, handle_signals=False, shutdown_timeout=shutdown_seconds
        )
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Begin to serve; return the port, which is chosen where `port` is 0.

        Raises:
            Conflict: the address is in use.
            UsageError: it cannot be listened on.
        """
        await self._runner.setup()
        # There is no other way to say it than for the whole process.
        SSLProtocol.max_size = TLS_HANDSHAKE_BYTES
        loop = asyncio.get_running_loop()
        handshake = None if tls is None else HANDSHAKE_SECONDS
        try:
            self._server = await loop.create_server(
                self._guarded(loop),
                host,
                port,
                ssl=tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=handshake,
            )
        except (OSError, socket.gaierror) as exc:
            await self._runner.cleanup()
            raise _refusal(exc, host, port) from exc
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def _guarded(self, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
        server = self._runner.server
        assert server is not None
        waiting = self._app[WAITING]

        def give_up(protocol: web.RequestHandler) -> None:
            if forget(waiting, protocol):
                protocol.force_close()

        def lost(protocol: web.RequestHandler) -> None:
            forget(waiting, protocol)

        def accept() -> asyncio.Protocol:
            while len(waiting) >= WAITING_MAX:
                give_up(next(iter(waiting)))
            protocol = _connection(server, loop, lost)
            waiting[protocol] = loop.call_later(HEAD_SECONDS, give_up, protocol)
            return protocol

        return accept

    async def close(self) -> None:
        """Accept nothing more, let requests under way finish for a while, and end."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


def _connection(server: web.Server, loop: asyncio.AbstractEventLoop, lost: Lost) -> Connection:
    """Return what reads one connection; bodies stay as they came, nothing is inflated."""
    return Connection(
        server,
        lost,
        loop=loop,
        # A path may hold names.
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        max_line_size=HEAD_LINE_BYTES_MAX,
        max_field_size=HEAD_FIELD_BYTES_MAX,
        max_headers=HEAD_FIELDS_MAX,
        read_bufsize=READ_BYTES,
        auto_decompress=False,
    )


def _refusal(exc: OSError, host: str, port: int) -> Conflict | UsageError:
    where = f"{host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return Conflict(
            f"{where} is in use", hint="another program listens there; choose another --listen"
        )
    return UsageError(f"cannot listen on {where}: {exc.strerror}", hint="see --listen")
