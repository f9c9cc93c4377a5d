"""A client's WebSocket (RFC 6455), as much of it as the control channel needs.

Binary messages both ways, ping and pong, close; no extensions, no subprotocol, no redirect is
followed. aiohttp's client does the same and takes 12 MB of an agent that idles.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Self
from urllib.parse import urlsplit

from holdfast_contract.errors import InvalidInput, TooLarge, Unreachable

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
"""Waited for the other side's close, and for the end of TLS."""
_HEAD_BYTES_MAX: Final = 16 << 10
"""Of the answer to the upgrade."""
_PIECE_BYTES: Final = 16 << 10
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FIN: Final = 0x80
_MASKED: Final = 0x80
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_CONTROL_BYTES_MAX: Final = 125
_NORMAL: Final = struct.pack(">H", 1000)


class WebSocket:
    """One connection; lives in the event loop. One task receives, any may send."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        message_bytes_max: int,
        heartbeat_seconds: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
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
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                parts.hostname,
                parts.port or (443 if secure else 80),
                ssl=context if secure else None,
                happy_eyeballs_delay=0.25,
                limit=_HEAD_BYTES_MAX,
            )
            try:
                await _upgrade(reader, writer, parts.netloc, parts.path or "/", headers)
            except BaseException:
                writer.transport.abort()
                raise
        return cls(
            reader,
            writer,
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
        await self._send(_BINARY, message)

    async def receive(self) -> bytes | None:
        """Return the next message; None when the server has closed.

        Raises:
            Unreachable: the connection broke.
            InvalidInput: the server sent what no such channel carries.
            TooLarge: the message is too long; nothing of it was kept.
        """
        try:
            return await self._message()
        except (asyncio.IncompleteReadError, OSError) as exc:
            raise Unreachable("the connection broke") from exc

    async def close(self, reason: bytes = b"") -> None:
        """Say that nothing more is sent; the receiver then sees the other side's close, or an end
        of the connection within two seconds.
        """
        if self.is_open:
            self._closing = True
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._writer.transport.abort)
            with suppress(OSError):
                await self._send(_CLOSE, _NORMAL + reason[: _CONTROL_BYTES_MAX - 2])

    async def drop(self) -> None:
        """Give the connection back, whatever is still under way."""
        self._beating.cancel()
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()

    # --- frames ---
    async def _message(self) -> bytes | None:
        message = bytearray()
        begun = False
        while True:
            is_final, kind, size = await self._head()
            if kind >= _CLOSE:
                if not is_final or size > _CONTROL_BYTES_MAX:
                    raise InvalidInput("the server sent a control frame that cannot be")
                payload = await self._payload(size)
                if kind == _CLOSE:
                    if not self._closing:
                        with suppress(OSError):
                            await self._send(_CLOSE, payload[:2])
                    return None
                if kind == _PING:
                    await self._send(_PONG, payload)
                continue
            if kind != (_CONTINUATION if begun else _BINARY):
                raise InvalidInput("the server sent a frame outside the protocol")
            if len(message) + size > self._bytes_max:
                raise TooLarge(f"a message of more than {self._bytes_max} bytes from the server")
            message += await self._payload(size)
            begun = True
            if is_final:
                return bytes(message)

    async def _head(self) -> tuple[bool, int, int]:
        """Return whether a frame is the last of its message, its kind and its length."""
        first, second = await self._reader.readexactly(2)
        self._heard = True
        kind = first & 0x0F
        if first & 0x70 or kind not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            raise InvalidInput("the server sent a frame of an unknown kind")
        if second & _MASKED:
            raise InvalidInput("the server sent a masked frame")
        size = second
        if second >= 126:
            width = 2 if second == 126 else 8
            size = int.from_bytes(await self._reader.readexactly(width), "big")
        return bool(first & _FIN), kind, size

    async def _payload(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += await self._reader.readexactly(min(size - len(data), _PIECE_BYTES))
            self._heard = True
        return bytes(data)

    async def _send(self, kind: int, payload: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        # One write a frame: several tasks may send.
        self._writer.write(_frame(kind, payload))
        await self._writer.drain()

    async def _beat(self) -> None:
        """Ping; end a connection on which then nothing comes for half the time between pings."""
        with suppress(OSError):
            while True:
                await asyncio.sleep(self._heartbeat_seconds)
                self._heard = False
                await self._send(_PING, b"")
                # In two parts: a process that was stopped meanwhile first reads what has come.
                for _ in range(2):
                    if not self._heard:
                        await asyncio.sleep(self._heartbeat_seconds / 4)
                if not self._heard:
                    self._writer.transport.abort()
                    return


async def _upgrade(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    path: str,
    headers: Mapping[str, str],
) -> None:
    key = base64.b64encode(os.urandom(16))
    lines = {
        "Host": host.rpartition("@")[2],
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
        **headers,
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{text}\r\n".encode("ascii"))
    await writer.drain()
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
        raise Unreachable("what answers is no Holdfast server") from exc
    status, answer = _parsed(head)
    if 300 <= status < 400:
        raise InvalidInput(
            "the server answered with a redirect; none is followed",
            hint="is HOLDFAST_SERVER right?",
        )
    if status != 101:
        raise Unreachable(f"the server answered {status} to the control channel")
    digest = hashlib.sha1(key + _MAGIC, usedforsecurity=False).digest()
    is_ours = (
        answer.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in answer.get(b"connection", b"").lower()
        and answer.get(b"sec-websocket-accept") == base64.b64encode(digest)
        and b"sec-websocket-extensions" not in answer
        and b"sec-websocket-protocol" not in answer
    )
    if not is_ours:
        raise Unreachable("what answers does not speak WebSocket")


def _parsed(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    """Return status and headers of an answer; status 0 for what is none."""
    first, *lines = head[:-4].split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or words[0] not in (b"HTTP/1.1", b"HTTP/1.0") or not words[1].isdigit():
        return 0, {}
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return int(words[1]), headers


def _frame(kind: int, payload: bytes) -> bytes:
    """Return a client's frame: whole, and masked with a fresh key."""
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", _FIN | kind, _MASKED | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", _FIN | kind, _MASKED | 126, size)
    else:
        head = struct.pack(">BBQ", _FIN | kind, _MASKED | 127, size)
    mask = os.urandom(4)
    key = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return head + mask + masked.to_bytes(size, "little")
