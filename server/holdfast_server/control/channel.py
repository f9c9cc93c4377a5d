"""One control channel: messages in and out, whatever carries them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Protocol

from aiohttp import WSCloseCode, WSMsgType, web

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput
from holdfast_contract.protocol.control import Message, ToServer, decode_to_server, encode

HEARTBEAT_SECONDS = 25.0
"""A silent agent is found dead after at most one and a half of it."""
CLOSE_SECONDS = 2.0
"""How long the other side may take to say goodbye."""
TLS_BUFFER_BYTES = 16 * limits.KIB
"""One TLS record: messages are short, and a thousand agents are idle at most times."""
_of_thread = threading.local()


def share_tls_buffer(
    transport: asyncio.BaseTransport | None, length: int = TLS_BUFFER_BYTES
) -> bool:
    """Let a connection receive into one buffer of the event loop; False where it has none.

    asyncio keeps a buffer for each TLS connection and has no public way to say otherwise. It is
    empty between two callbacks: what arrived is copied out of it before another connection's turn
    comes. A smaller `max_size` only makes reads smaller.
    """
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if not hasattr(protocol, "_ssl_buffer_view"):
        return False
    views: dict[int, memoryview] = _of_thread.__dict__.setdefault("views", {})
    view = views.setdefault(length, memoryview(b""))
    if not view:
        view = views[length] = memoryview(bytearray(length))
    protocol.max_size = length
    protocol._ssl_buffer = view.obj
    protocol._ssl_buffer_view = view
    return True


class Channel(Protocol):
    """What a connection needs of its carrier."""

    async def send(self, message: Message) -> None:
        """Send `message`; returns quietly when the other side is gone."""

    async def receive(self) -> ToServer | None:
        """Return the next message, None when the channel is closed.

        Raises:
            InvalidInput: something outside the vocabulary arrived.
        """

    async def close(self, reason: str = "") -> None:
        """Close the channel; a `receive` under way returns None."""


class WebSocketChannel:
    """A control channel over an upgraded HTTP request."""

    def __init__(self) -> None:
        self._socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_SECONDS,
            compress=False,
            max_msg_size=limits.AGENT_MESSAGE_BYTES_MAX,
            timeout=CLOSE_SECONDS,
        )

    async def open(self, request: web.BaseRequest) -> web.WebSocketResponse:
        """Upgrade `request`; return the response that its handler returns."""
        await self._socket.prepare(request)
        share_tls_buffer(request.transport)
        return self._socket

    async def send(self, message: Message) -> None:
        """Send `message`; returns quietly when the other side is gone."""
        try:
            await self._socket.send_bytes(encode(message), compress=0)
        except (ConnectionError, RuntimeError):
            # RuntimeError is aiohttp's word for a socket that was closed in the meantime.
            return

    async def receive(self) -> ToServer | None:
        """Return the next message, None when the channel is closed.

        Raises:
            InvalidInput: something outside the vocabulary arrived.
        """
        frame = await self._socket.receive()
        if frame.type is WSMsgType.BINARY:
            return decode_to_server(frame.data)
        if frame.type is WSMsgType.TEXT:
            raise InvalidInput("a text frame on the control channel")
        return None

    async def close(self, reason: str = "") -> None:
        """Close the channel; a `receive` under way returns None."""
        try:
            await self._socket.close(code=WSCloseCode.GOING_AWAY, message=reason.encode()[:100])
        except (ConnectionError, RuntimeError, TimeoutError):
            return
