"""A client's WebSocket over asyncio: wsproto knows the protocol, this has the bounds.

Binary messages both ways; no extensions, no subprotocol, no redirect is followed. aiohttp's client
does the same and takes 12 MB of an agent that idles, wsproto 1 MB.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, Self
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from holdfast_contract.errors import InvalidInput, TooLarge, Unreachable

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
"""Waited for the other side's close, and for the end of TLS."""
_PIECE_BYTES: Final = 16 << 10
"""Read at once: one TLS record, messages are short."""
_REASON_BYTES_MAX: Final = 123
_NORMAL: Final = 1000


class WebSocket:
    """One connection; lives in the event loop. One task receives, any may send."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        wire: WSConnection,
        *,
        message_bytes_max: int,
        heartbeat_seconds: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._wire = wire
        # The first frames may have come with the answer to the upgrade.
        self._events: Iterator[Event] = wire.events()
        self._bytes_max = message_bytes_max
        self._heartbeat_seconds = heartbeat_seconds
        self._heard = True
        """Whether anything came since the last ping."""
        self._closing = False
        self._beating = asyncio.create_task(self._beat())

    @classmethod
    async def dial(
        cls,
        url: str,
        *,
        context: ssl.SSLContext,
        headers: Mapping[str, str],
        message_bytes_max: int,
        heartbeat_seconds: float,
    ) -> Self:
        """Connect and upgrade; `url` is http or https.

        Raises:
            OSError, TimeoutError: the server is not reached; ssl.SSLError is one.
            Unreachable: it is, and answers something else.
            InvalidInput: it answers with a redirect.
        """
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        host = parts.netloc.rpartition("@")[2]
        request = Request(host=host, target=parts.path or "/", extra_headers=extra)
        # asyncio keeps 256 KiB for each TLS connection; only for all of them it takes another word.
        SSLProtocol.max_size = _PIECE_BYTES
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                parts.hostname,
                parts.port or (443 if secure else 80),
                ssl=context if secure else None,
                happy_eyeballs_delay=0.25,
                limit=_PIECE_BYTES,
            )
            try:
                wire = WSConnection(ConnectionType.CLIENT)
                writer.write(wire.send(request))
                await writer.drain()
                await _accepted(reader, wire)
            except BaseException:
                writer.transport.abort()
                raise
        return cls(
            reader,
            writer,
            wire,
            message_bytes_max=message_bytes_max,
            heartbeat_seconds=heartbeat_seconds,
        )

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return not (self._closing or self._writer.is_closing())

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            ConnectionError: the connection is gone.
        """
        await self._send(BytesMessage(data=message))

    async def receive(self) -> bytes | None:
        """Return the next message; None when the server has closed.

        Raises:
            Unreachable: the connection broke.
            InvalidInput: the server sent what no such channel carries.
            TooLarge: the message is too long; no more than the bound was held of it.
        """
        message = bytearray()
        while True:
            event = await self._next()
            if isinstance(event, BytesMessage):
                if len(message) + len(event.data) > self._bytes_max:
                    most = self._bytes_max
                    raise TooLarge(f"a message of more than {most} bytes from the server")
                message += event.data
                if event.message_finished:
                    return bytes(message)
            elif isinstance(event, CloseConnection):
                await self._end(event)
                return None
            elif isinstance(event, Ping):
                with suppress(OSError):
                    await self._send(event.response())
            elif not isinstance(event, Pong):
                raise InvalidInput("the server sent a message outside the protocol")

    async def close(self, reason: bytes = b"") -> None:
        """Say that nothing more is sent; the receiver then sees the other side's close, or an end
        of the connection within two seconds.
        """
        if self.is_open:
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._writer.transport.abort)
            shown = reason[:_REASON_BYTES_MAX].decode("ascii", "replace")
            with suppress(OSError):
                await self._send(CloseConnection(code=_NORMAL, reason=shown))
            self._closing = True

    async def drop(self) -> None:
        """Give the connection back, whatever is still under way."""
        self._beating.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    async def _next(self) -> Event:
        # One at a time: a ping before the server's close can still be answered.
        while (event := next(self._events, None)) is None:
            try:
                data = await self._reader.read(_PIECE_BYTES)
            except OSError as exc:
                raise Unreachable("the connection broke") from exc
            if not data:
                raise Unreachable("the connection broke")
            self._heard = True
            self._wire.receive_data(data)
            self._events = self._wire.events()
        return event

    async def _end(self, event: CloseConnection) -> None:
        """Answer the server's close.

        Raises:
            InvalidInput: it is none, but what wsproto says of a frame that cannot be.
        """
        if self._wire.state is ConnectionState.REMOTE_CLOSING:
            with suppress(OSError):
                await self._send(event.response())
        elif self._wire.state is not ConnectionState.CLOSED:
            raise InvalidInput(f"the server sent a frame that cannot be: {event.reason}")

    async def _send(self, event: Event) -> None:
        if not self.is_open:
            raise ConnectionResetError("the connection is closed")
        try:
            frame = self._wire.send(event)
        except LocalProtocolError as exc:
            raise ConnectionResetError("the server has closed the connection") from exc
        # One write a frame: several tasks may send.
        self._writer.write(frame)
        await self._writer.drain()

    async def _beat(self) -> None:
        """Ping; end a connection on which then nothing comes for half the time between pings."""
        with suppress(OSError):
            while True:
                await asyncio.sleep(self._heartbeat_seconds)
                self._heard = False
                await self._send(Ping())
                # In two parts: a process that was stopped meanwhile first reads what has come.
                for _ in range(2):
                    if not self._heard:
                        await asyncio.sleep(self._heartbeat_seconds / 4)
                if not self._heard:
                    self._writer.transport.abort()
                    return


async def _accepted(reader: asyncio.StreamReader, wire: WSConnection) -> None:
    """Wait for the answer to the upgrade; h11 bounds its head."""
    while data := await reader.read(_PIECE_BYTES):
        try:
            wire.receive_data(data)
            event = next(iter(wire.events()), None)
        except RemoteProtocolError as exc:
            raise Unreachable("what answers is no Holdfast server") from exc
        if isinstance(event, AcceptConnection):
            return
        if isinstance(event, RejectConnection):
            if 300 <= event.status_code < 400:
                raise InvalidInput(
                    "the server answered with a redirect; none is followed",
                    hint="is HOLDFAST_SERVER right?",
                )
            raise Unreachable(f"the server answered {event.status_code} to the control channel")
    raise Unreachable("what answers is no Holdfast server")
