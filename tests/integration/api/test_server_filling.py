"""Packs go straight into their memory, and the connection below is then as it was before."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast_contract.clock import SystemClock
from holdfast_contract.limits import KIB, MIB
from holdfast_server.api import filling
from holdfast_server.api.serving import Serving
from holdfast_server.auth.certificates import own_certificates, server_context
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.backups import IDS, begun
from tests.support.raw_http import Wire, head
from tests.support.samples import noise
from tests.support.uploads import pack_of

Connect = Callable[[], Awaitable[Wire]]


@pytest.fixture(params=["tcp", "tls"])
async def connect(
    request: pytest.FixtureRequest, world: ApiWorld, tmp_path: Path
) -> AsyncIterator[Connect]:
    """Return what opens a connection, in clear or over TLS."""
    if request.param == "tcp":
        yield lambda: Wire.open(world.port)
        return
    (tmp_path / "tls").mkdir()
    files = await asyncio.to_thread(
        own_certificates, tmp_path / "tls", ["127.0.0.1"], SystemClock()
    )
    context = await asyncio.to_thread(server_context, files)
    trusting = await asyncio.to_thread(ssl.create_default_context, cafile=str(files.authority))
    second = Serving(world.services, shutdown_seconds=2)
    port = await second.open("127.0.0.1", 0, context)

    async def open_wire() -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))

    yield open_wire
    await second.close()


async def session_of(world: ApiWorld) -> tuple[ActedAgent, dict[str, Any]]:
    agent = await world.agent()
    _, session = await begun(agent)
    return agent, session


def put(agent: ActedAgent, session: dict[str, Any], number: int, data: bytes) -> bytes:
    """Return the request that sends `data` under the session's name `number`."""
    path = f"/agent/v1/sessions/{session['session']}/packs/{session['packs'][number]}"
    return head("PUT", path, f"Content-Length: {len(data)}", token=agent.token) + data


def asking(agent: ActedAgent, session: dict[str, Any]) -> bytes:
    """Return a request for what is live of IDS."""
    path = f"/agent/v1/sessions/{session['session']}/have"
    body = b"".join(IDS)
    return head("POST", path, f"Content-Length: {len(body)}", token=agent.token) + body


def stored(world: ApiWorld, ulid: str) -> bytes:
    memory = world.served.memory
    (found,) = [data for name, data in memory.objects.items() if name.endswith(ulid)]
    return bytes(found)


async def test_a_request_right_behind_a_pack_is_answered(world: ApiWorld, connect: Connect) -> None:
    agent, session = await session_of(world)
    packs = [pack_of(agent.pod.domain, IDS, size=400 * KIB, salt=salt) for salt in ("a", "b")]
    wire = await connect()
    requests = [put(agent, session, number, pack) for number, pack in enumerate(packs)]
    await wire.send(requests[0] + requests[1] + asking(agent, session))
    for _ in packs:
        assert (await wire.answer()).status == 204
    answer = await wire.answer()
    assert (answer.status, answer.body) == (200, b"\1" * len(IDS))
    await wire.close()
    for number, pack in enumerate(packs):
        assert stored(world, session["packs"][number]) == pack


async def test_a_pack_may_come_in_any_pieces(world: ApiWorld, connect: Connect) -> None:
    agent, session = await session_of(world)
    data = pack_of(agent.pod.domain, IDS, size=300)
    wire = await connect()
    request = put(agent, session, 0, data)
    for at in range(0, len(request), 97):
        await wire.send(request[at : at + 97])
        await asyncio.sleep(0)
    assert (await wire.answer()).status == 204
    assert stored(world, session["packs"][0]) == data
    await wire.send(asking(agent, session))
    assert (await wire.answer()).body == b"\1" * len(IDS)
    await wire.close()


@pytest.mark.parametrize("sent", [30, 64 * KIB, 2 * MIB])
async def test_a_refused_pack_is_read_to_its_end_and_the_connection_goes_on(
    world: ApiWorld, connect: Connect, sent: int
) -> None:
    agent, session = await session_of(world)
    data = bytearray(pack_of(agent.pod.domain, IDS, size=MIB))
    data[8:24] = noise("another domain", 16)
    wire = await connect()
    request = put(agent, session, 0, bytes(data))
    await wire.send(request[: len(request) - len(data) + sent])
    arriving = world.served.repository._packs
    await world.until(lambda: arriving.arriving_bytes == 0)
    await wire.send(request[len(request) - len(data) + sent :] + asking(agent, session))
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (400, "invalid")
    assert (await wire.answer()).body == b"\0" * len(IDS)
    await wire.close()


async def test_a_pack_that_stands_still_is_given_up_in_the_middle(
    world: ApiWorld, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling.fill, "__kwdefaults__", {"idle_seconds": 0.3})
    agent, session = await session_of(world)
    data = pack_of(agent.pod.domain, IDS, size=MIB)
    wire = await connect()
    request = put(agent, session, 0, data)
    await wire.send(request[: len(request) // 2])
    await world.until(lambda: world.served.repository._packs.arriving_bytes == len(data))
    await world.until(lambda: world.served.repository._packs.arriving_bytes == 0)
    await wire.send(request[len(request) // 2 :])
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (503, "unreachable")
    await wire.close()


async def test_a_connection_that_breaks_inside_a_pack_takes_only_it(
    world: ApiWorld, connect: Connect
) -> None:
    agent, session = await session_of(world)
    data = pack_of(agent.pod.domain, IDS, size=MIB)
    request = put(agent, session, 0, data)
    arriving = world.served.repository._packs
    for cut in (len(request) // 3, len(request) - 1):
        wire = await connect()
        await wire.send(request[:cut])
        await world.until(lambda: arriving.arriving_bytes == len(data))
        wire.writer.transport.abort()
        await world.until(lambda: arriving.arriving_bytes == 0)
    wire = await connect()
    await wire.send(request)
    assert (await wire.answer()).status == 204
    await wire.close()
