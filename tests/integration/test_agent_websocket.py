"""The agent's WebSocket against aiohttp's server, and against one that answers byte by byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestServer

from holdfast_agent.transport import websocket
from holdfast_agent.transport.websocket import WebSocket
from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge, Unreachable

BYTES_MAX = 200_000
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def dial(url: str, heartbeat_seconds: float = 600) -> WebSocket:
    return await WebSocket.dial(
        url,
        context=ssl.create_default_context(),
        headers={"User-Agent": "test"},
        message_bytes_max=BYTES_MAX,
        heartbeat_seconds=heartbeat_seconds,
    )


@asynccontextmanager
async def raw_server(talk: Talk, answer: bytes | None = None) -> AsyncIterator[str]:
    """A server that upgrades rightly (or says `answer`), then does what `talk` does."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET /control HTTP/1.1\r\n")
            key = next(
                line.split(b": ")[1].decode()
                for line in head.split(b"\r\n")
                if line.startswith(b"Sec-WebSocket-Key")
            )
            accept = base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest())
            writer.write(answer if answer is not None else upgraded(accept))
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/control"
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        server.close()
        await server.wait_closed()


def upgraded(accept: bytes, more: bytes = b"") -> bytes:
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive, "
        b"Upgrade\r\n" + more + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def frame(kind: int, payload: bytes, *, fin: bool = True, size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    first = bytes([(0x80 if fin else 0) | kind])
    if length < 126:
        return first + bytes([length]) + payload
    if length < 65_536:
        return first + b"\x7e" + struct.pack(">H", length) + payload
    return first + b"\x7f" + struct.pack(">Q", length) + payload


def saying(*data: bytes, then: Talk | None = None) -> Talk:
    """Write each piece by itself, then read to the end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in data:
            writer.write(piece)
            await writer.drain()
        if then is not None:
            await then(reader, writer)
        while await reader.read(4096):
            pass

    return talk


async def heard(talk: Talk) -> list[bytes | type[HoldfastError] | None]:
    """Return what is received from a server that does `talk`, up to an end or an error."""
    found: list[bytes | type[HoldfastError] | None] = []
    async with raw_server(talk) as url:
        socket = await dial(url)
        try:
            while not found or isinstance(found[-1], bytes):
                found.append(await asyncio.wait_for(socket.receive(), 10))
        except HoldfastError as error:
            found.append(type(error))
        finally:
            await socket.drop()
    return found


# --- with a server that is right ---
async def test_messages_of_every_length_go_both_ways_and_either_side_may_close() -> None:
    told: list[object] = []

    async def echo(request: web.Request) -> web.WebSocketResponse:
        served = web.WebSocketResponse(compress=True, max_msg_size=1 << 20)
        await served.prepare(request)
        assert request.headers["User-Agent"] == "test"
        async for message in served:
            assert message.type is WSMsgType.BINARY
            if message.data == b"leave":
                await served.close(code=WSCloseCode.GOING_AWAY)
                break
            await served.send_bytes(message.data)
        told.append(served.close_code)
        return served

    app = web.Application()
    app.router.add_get("/control", echo)
    async with TestServer(app) as server:
        url = str(server.make_url("/control"))
        first, second = await dial(url), await dial(url)
        for size in (0, 1, 125, 126, 127, 65_535, 65_536, 65_537, BYTES_MAX):
            message = bytes(range(256)) * (size // 256) + bytes(size % 256)
            await first.send(message)
            assert await asyncio.wait_for(first.receive(), 10) == message
        await first.close(b"done")
        assert not first.is_open
        assert await asyncio.wait_for(first.receive(), 10) is None
        await second.send(b"leave")
        assert await asyncio.wait_for(second.receive(), 10) is None
        for socket in (first, second):
            await socket.drop()
            with pytest.raises(ConnectionError):
                await socket.send(b"too late")
    assert told == [1000, 1001]


async def test_a_quiet_connection_is_asked_and_stays_while_it_answers() -> None:
    pings: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            pings.append((await reader.readexactly(6))[:2])
            writer.write(frame(10, b""))
        writer.write(frame(2, b"still here") + frame(8, b""))

    async with raw_server(saying(then=answer)) as url:
        socket = await dial(url, heartbeat_seconds=0.2)
        assert await asyncio.wait_for(socket.receive(), 20) == b"still here"
        assert await asyncio.wait_for(socket.receive(), 20) is None
        await socket.drop()
    assert pings == [b"\x89\x80"] * 3


async def test_a_server_that_falls_silent_is_left() -> None:
    async with raw_server(saying()) as url:
        socket = await dial(url, heartbeat_seconds=0.02)
        with pytest.raises(Unreachable):
            await asyncio.wait_for(socket.receive(), 10)
        await socket.drop()


async def test_a_close_that_is_not_answered_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.05)
    async with raw_server(saying()) as url:
        socket = await dial(url)
        await socket.close()
        with pytest.raises(Unreachable):
            await asyncio.wait_for(socket.receive(), 10)
        await socket.drop()


# --- frames ---
async def test_a_message_in_fragments_with_pings_between_is_one() -> None:
    pongs: list[bytes] = []

    async def collect(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(head[1] & 0x7F)
        pongs.append(head[:1] + bytes(a ^ b for a, b in zip(payload, mask, strict=True)))

    found = await heard(
        saying(
            frame(2, b"one ", fin=False),
            frame(9, b"ping"),
            frame(0, b"two ", fin=False),
            frame(10, b""),
            frame(0, b"three"),
            frame(2, b""),
            *[bytes([byte]) for byte in frame(2, b"slowly")],
            frame(8, b""),
            then=collect,
        )
    )
    assert found == [b"one two three", b"", b"slowly", None]
    assert pongs == [b"\x8aping"]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (frame(1, b"text"), InvalidInput),
        (frame(0, b"nothing begun"), InvalidInput),
        (frame(2, b"a", fin=False) + frame(2, b"b"), InvalidInput),
        (frame(3, b""), InvalidInput),
        (frame(0x42, b"compressed"), InvalidInput),
        (frame(9, b"", fin=False), InvalidInput),
        (frame(9, b"p" * 126), InvalidInput),
        (b"\x82\x81mask!", InvalidInput),
        (frame(2, bytes(BYTES_MAX + 1)), TooLarge),
        (frame(2, bytes(BYTES_MAX + 1), size=(1 << 63) - 1), TooLarge),
        (frame(2, bytes(BYTES_MAX), fin=False) + frame(0, b"1"), TooLarge),
    ],
)
async def test_what_no_such_channel_carries_is_refused(
    bad: bytes, error: type[HoldfastError]
) -> None:
    assert await heard(saying(frame(2, b"good"), bad)) == [b"good", error]


@pytest.mark.parametrize("rest", [b"", b"\x82", b"\x82\x7e\x01", b"\x82\x05four"])
async def test_an_end_in_the_middle_is_a_broken_connection(rest: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(rest)
        writer.close()

    assert await heard(talk) == [Unreachable]


# --- the upgrade ---
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 101\r\n\r\n",
        upgraded(base64.b64encode(bytes(20))),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching",
    ],
)
async def test_another_answer_than_the_upgrade_is_no_server(answer: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.drain()

    async with raw_server(talk, answer) as url:
        with pytest.raises(InvalidInput if b" 302 " in answer else Unreachable):
            await dial(url)


@pytest.mark.parametrize("more", [b"Extensions: permessage-deflate", b"Protocol: other"])
async def test_what_was_not_asked_for_is_not_taken(
    more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.urandom", bytes)
    key = base64.b64encode(bytes(16)).decode()
    accept = base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest())
    answer = upgraded(accept, b"Sec-WebSocket-" + more + b"\r\n")
    async with raw_server(saying(), upgraded(accept)) as url:
        await (await dial(url)).drop()
    async with raw_server(saying(), answer) as url:
        with pytest.raises(Unreachable):
            await dial(url)
