"""The control channel against a server that says the wrong thing, on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from holdfast_agent.transport.channel import Channel
from holdfast_agent.transport.retry import Credential
from holdfast_contract.clock import SystemClock
from holdfast_contract.errors import Fenced, Refused
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol import control

Script = Callable[[web.WebSocketResponse], Awaitable[None]]
JOB = new_ulid()


def hello(nonce: bytes) -> control.Hello:
    return control.Hello(
        protocol=1,
        agent_version="0",
        client="demo/a-0",
        identity=nonce,
        signature=bytes(64),
        roots=[],
        restore=control.Mode.NEVER,
        restore_roots=[],
        browse=control.Browse.NEVER,
        jobs=[],
    )


class Peer:
    """Notes what the channel hands on."""

    def __init__(self) -> None:
        self.welcomes = 0
        self.messages: list[control.ToAgent] = []
        self.up = asyncio.Event()
        self.up_thrice = asyncio.Event()
        self.got = asyncio.Event()

    def hello(self, nonce: bytes) -> control.Hello:
        return hello(nonce)

    async def welcomed(self, welcome: control.Welcome) -> None:
        self.welcomes += 1
        self.up.set()
        if self.welcomes == 3:
            self.up_thrice.set()

    async def received(self, message: control.ToAgent) -> None:
        self.messages.append(message)
        self.got.set()


class World:
    """A server whose n-th connection follows the n-th script; the last one repeats."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.connections = 0
        self.heard: list[control.ToServer] = []
        self.peer = Peer()
        self.credential = Credential()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        await script(socket)
        return socket

    def channel(self, url: str) -> Channel:
        return Channel(
            url=url,
            context=ssl.create_default_context(),
            credential=self.credential,
            peer=self.peer,
            clock=SystemClock(),
            uniform=lambda _, __: 0.01,
            user_agent="test",
        )


async def say(socket: web.WebSocketResponse, message: control.ToAgent) -> None:
    await socket.send_bytes(control.encode(message))


async def challenge(socket: web.WebSocketResponse, *, least: int = 1, most: int = 1) -> None:
    await say(
        socket,
        control.Challenge(
            nonce=bytes(32), protocol_min=least, protocol_max=most, server_version="test"
        ),
    )


async def welcome(socket: web.WebSocketResponse) -> None:
    await challenge(socket)
    await socket.receive()
    settings = control.AgentSettings()
    await say(
        socket,
        control.Welcome(client="demo/a-0", token="hfc_t", settings=settings, heartbeat_seconds=25),
    )


@pytest.fixture
async def world() -> AsyncIterator[tuple[World, Channel]]:
    made = World()
    app = web.Application()
    app.router.add_get("/agent/v1/control", made.handle)
    async with TestServer(app) as server:
        yield made, made.channel(str(server.make_url("")).rstrip("/"))


async def until(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 10)


async def test_the_token_of_the_welcome_is_the_credential_until_the_end(
    world: tuple[World, Channel],
) -> None:
    server, channel = world

    async def stay(socket: web.WebSocketResponse) -> None:
        await welcome(socket)
        await say(socket, control.Cancel(job=JOB))
        frame = await socket.receive()
        server.heard.append(control.decode_to_server(frame.data))
        await socket.receive()

    server.scripts = [stay]
    running = asyncio.create_task(channel.run())
    await until(server.peer.got)
    assert server.credential.token == "hfc_t"
    assert server.peer.messages == [control.Cancel(job=JOB)]
    assert await channel.send(control.Accepted(job=JOB))
    await channel.stop()
    await asyncio.wait_for(running, 10)
    assert server.credential.token is None
    assert server.heard == [control.Accepted(job=JOB)]


async def test_a_lost_connection_is_dialled_again(world: tuple[World, Channel]) -> None:
    server, channel = world

    async def drop(socket: web.WebSocketResponse) -> None:
        await welcome(socket)
        if server.connections == 3:
            await socket.receive()

    server.scripts = [drop]
    running = asyncio.create_task(channel.run())
    await until(server.peer.up_thrice)
    await channel.stop()
    await asyncio.wait_for(running, 10)


async def test_stop_ends_a_connection_that_is_not_proved_yet(world: tuple[World, Channel]) -> None:
    server, channel = world
    begun, over = asyncio.Event(), asyncio.Event()

    async def keep_silent(socket: web.WebSocketResponse) -> None:
        begun.set()
        await over.wait()
        await welcome(socket)
        await socket.receive()

    server.scripts = [keep_silent]
    running = asyncio.create_task(channel.run())
    await until(begun)
    await channel.stop()
    # A welcome that comes too late begins nothing.
    over.set()
    await asyncio.wait_for(running, 5)
    assert server.peer.welcomes == 0 and server.connections == 1


async def test_stop_ends_a_dial_that_nobody_answers() -> None:
    begun = asyncio.Event()

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        channel = World().channel(f"http://{host}:{port}")
        running = asyncio.create_task(channel.run())
        await until(begun)
        await channel.stop()
        await asyncio.wait_for(running, 5)


async def nonsense(socket: web.WebSocketResponse) -> None:
    await challenge(socket)
    await socket.receive()
    await socket.send_bytes(b"\x81\xa1t\xa9run-shell")


async def text(socket: web.WebSocketResponse) -> None:
    await socket.send_str("run this")


async def early_order(socket: web.WebSocketResponse) -> None:
    await say(socket, control.Cancel(job=JOB))


async def future_version(socket: web.WebSocketResponse) -> None:
    await challenge(socket, least=7, most=9)


@pytest.mark.parametrize("script", [nonsense, text, early_order, future_version])
async def test_a_server_outside_the_protocol_is_left_and_tried_again(
    world: tuple[World, Channel], script: Script
) -> None:
    server, channel = world

    async def good(socket: web.WebSocketResponse) -> None:
        await welcome(socket)
        await socket.receive()

    server.scripts = [script, good]
    running = asyncio.create_task(channel.run())
    await until(server.peer.up)
    assert server.connections == 2 and server.peer.messages == []
    await channel.stop()
    await asyncio.wait_for(running, 10)


@pytest.mark.parametrize(("code", "error"), [("fenced", Fenced), ("refused", Refused)])
async def test_a_refusal_of_this_identity_ends_the_channel(
    world: tuple[World, Channel], code: str, error: type[Exception]
) -> None:
    server, channel = world

    async def refuse(socket: web.WebSocketResponse) -> None:
        await welcome(socket)
        await say(socket, control.Refuse(code=code, message="no"))

    server.scripts = [refuse]
    with pytest.raises(error):
        await asyncio.wait_for(channel.run(), 10)
    assert server.connections == 1


async def test_nothing_is_sent_while_there_is_no_connection(world: tuple[World, Channel]) -> None:
    _, channel = world
    assert not await channel.send(control.Accepted(job=JOB))
