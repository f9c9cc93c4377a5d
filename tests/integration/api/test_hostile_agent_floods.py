"""A compromised agent that asks for much, or slowly: bounded, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from holdfast_contract.limits import KIB, MIB, PACK_BYTES_MAX
from holdfast_server.api import filling
from holdfast_server.repository import packs, sessions
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.backups import IDS, backed_up, begun, ended, put_pack
from tests.support.raw_http import Wire, head
from tests.support.samples import noise
from tests.support.uploads import full_refs, pack_of


# --- floods
async def test_names_without_objects_are_bounded_for_a_session(world: ApiWorld) -> None:
    agent = await world.agent()
    job, session = await begun(agent)
    path = f"/sessions/{session['session']}/names?kind=packs&count=64"
    for _ in range(15):
        await agent.call("POST", path)
    assert (await agent.refused("POST", path))["code"] == "too-many"
    for _ in range(200):
        async with await world.request(
            "POST", f"/agent/v1/jobs/{job}/session", token=agent.token
        ) as response:
            if response.status != 200:
                break
    problem = await agent.refused("POST", f"/jobs/{job}/session")
    assert (problem["code"], problem["status"]) == ("too-many", 429)


async def test_tiny_packs_are_bounded_for_a_session(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SMALL_PACKS_MAX", 12)
    monkeypatch.setattr(sessions, "BYTES_A_PACK", 2000)
    agent = await world.agent()
    _, session = await begun(agent)
    names = f"/sessions/{session['session']}/names?kind=packs&count=8"
    free = session["packs"] + (await agent.call("POST", names))["names"]
    for number, name in enumerate(free):
        tiny = pack_of(agent.pod.domain, [noise(f"tiny {number}")], size=32)
        await put_pack(agent, session, tiny, name)
    assert (await agent.refused("POST", names))["code"] == "too-many"


async def test_who_stores_much_gets_names_for_it(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SMALL_PACKS_MAX", 8)
    monkeypatch.setattr(sessions, "BYTES_A_PACK", 2000)
    agent = await world.agent()
    _, session = await begun(agent)
    one = f"/sessions/{session['session']}/names?kind=packs&count=1"
    free = list(session["packs"])
    for number in range(20):
        data = pack_of(agent.pod.domain, [noise(f"large {number}")], size=4000)
        await put_pack(agent, session, data, free.pop())
        free += (await agent.call("POST", one))["names"]


async def test_refs_and_manifests_are_bounded_for_a_session(world: ApiWorld) -> None:
    """They may use the reserve of a full store: nobody may fill it with them."""
    agent = await world.agent()
    _, session = await begun(agent)
    base = f"/sessions/{session['session']}"
    for kind, route, made_of in (("refs", "refs", full_refs), ("manifests", "manifest", None)):
        path = f"{base}/names?kind={kind}&count=32"
        names = (await agent.call("POST", path))["names"]
        for number, name in enumerate(names):
            ids = [noise(f"{number}")]
            data = made_of(agent.pod.domain, ids) if made_of else b"HFMF" + ids[0]
            answer = await world.request(
                "PUT", f"/agent/v1{base}/{route}/{name}", token=agent.token, data=data
            )
            assert answer.status == (204 if number < sessions.LISTS_MAX else 429)
    first = [name for name in world.served.memory.objects if name.startswith("refs/")]
    assert len(first) == sessions.LISTS_MAX


async def test_one_refs_object_of_an_agent_at_a_time(world: ApiWorld) -> None:
    """Each may be 2 GiB, kept aside until it is whole."""
    agent, other = await world.agent(), await world.agent("shop/web-1")
    _, session = await begun(agent)
    base = f"/sessions/{session['session']}"
    wire = await Wire.open(world.port)
    path = f"/agent/v1{base}/refs/{session['refs']}"
    await wire.send(head("PUT", path, "Content-Length: 1000", token=agent.token) + b"HFRF")
    await world.until(lambda: agent_share(world, agent)._lone)
    refs = full_refs(agent.pod.domain, IDS)
    problem = await agent.refused("PUT", f"{base}/refs/{session['refs']}", data=refs)
    assert problem["code"] == "too-many"
    _, theirs = await begun(other)
    await other.call("PUT", f"/sessions/{theirs['session']}/refs/{theirs['refs']}", data=refs)
    await wire.close()
    await world.until(lambda: not agent_share(world, agent)._lone)
    await agent.call("PUT", f"{base}/refs/{session['refs']}", data=refs)


def agent_share(world: ApiWorld, agent: ActedAgent) -> Any:
    connection = world.services.hub.connected(agent.client)
    assert connection is not None
    return connection.share


# --- slow bodies
async def _half_a_pack(world: ApiWorld, agent: ActedAgent, length: int) -> Wire:
    _, session = await begun(agent)
    wire = await Wire.open(world.port)
    path = f"/agent/v1/sessions/{session['session']}/packs/{session['packs'][0]}"
    data = pack_of(agent.pod.domain, IDS)[:200]
    await wire.send(head("PUT", path, f"Content-Length: {length}", token=agent.token) + data)
    return wire


async def test_a_body_that_stands_still_is_given_up_and_gives_its_room_back(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling.fill, "__kwdefaults__", {"idle_seconds": 0.3})
    agent = await world.agent()
    wire = await _half_a_pack(world, agent, 100_000)
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (503, "unreachable")
    await world.until(lambda: world.served.repository._packs.arriving_bytes == 0)
    await wire.close()


async def test_a_pack_that_drips_loses_its_place_to_one_that_comes(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "BUFFERS_BYTES_MAX", 250_000)
    slow, quick = await world.agent(), await world.agent("shop/web-1")
    wire = await _half_a_pack(world, slow, 200_000)
    arriving = world.served.repository._packs
    await world.until(lambda: arriving.arriving_bytes == 200_000)
    _, session = await begun(quick)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    data = pack_of(quick.pod.domain, IDS, size=20_000)
    # Not slow yet: then who comes second waits.
    assert (await quick.refused("PUT", path, data=data))["code"] == "too-many"
    world.served.clock.now += int((packs.SLOW_SECONDS + 1) * 10**9)
    await quick.call("PUT", path, data=data)
    assert arriving.arriving_bytes == 0
    await wire.send(bytes(190_000))
    await wire.send(bytes(9_800))
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (429, "too-many")
    await wire.close()


async def test_one_client_does_not_take_all_room_for_packs(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "CLIENT_BYTES_MAX", 200_000)
    greedy, other = await world.agent(), await world.agent("shop/web-1")
    _, session = await begun(greedy)
    wires = []
    for name in session["packs"][:2]:
        wire = await Wire.open(world.port)
        path = f"/agent/v1/sessions/{session['session']}/packs/{name}"
        await wire.send(head("PUT", path, "Content-Length: 100000", token=greedy.token))
        wires.append(wire)
    arriving = world.served.repository._packs
    await world.until(lambda: arriving.arriving_bytes == 200_000)
    path = f"/sessions/{session['session']}/packs/{session['packs'][2]}"
    data = pack_of(greedy.pod.domain, IDS)
    assert (await greedy.refused("PUT", path, data=data))["code"] == "too-many"
    _, theirs = await begun(other)
    await put_pack(other, theirs, data)
    for wire in wires:
        await wire.close()
    await world.until(lambda: arriving.arriving_bytes == 0)
    await greedy.call("PUT", path, data=data)


def test_room_for_packs_is_for_more_than_one_client() -> None:
    assert 2 * PACK_BYTES_MAX <= packs.CLIENT_BYTES_MAX <= packs.BUFFERS_BYTES_MAX // 4
    assert packs.SLOW_BYTES_PER_SECOND == 64 * KIB
    assert packs.BUFFERS_BYTES_MAX == 512 * MIB


async def test_requests_of_one_agent_are_bounded_and_others_are_served(world: ApiWorld) -> None:
    greedy, other = await world.agent(), await world.agent("shop/web-1")
    _, session = await begun(greedy)
    wires = []
    path = f"/agent/v1/sessions/{session['session']}/have"
    for _ in range(64):
        wire = await Wire.open(world.port)
        await wire.send(head("POST", path, "Content-Length: 32", token=greedy.token) + b"x")
        wires.append(wire)
    await world.until(lambda: agent_share(world, greedy)._requests == 64)
    problem = await greedy.refused("GET", "/domain")
    assert (problem["code"], problem["status"]) == ("too-many", 429)
    assert (await other.call("GET", "/domain")).startswith(b"HFDM")
    job, snapshot = await backed_up(other)
    await ended(other, job, snapshot)
    for wire in wires:
        await wire.close()
    await world.until(lambda: agent_share(world, greedy)._requests == 0)
    assert (await greedy.call("GET", "/domain")).startswith(b"HFDM")


async def test_long_work_for_one_agent_leaves_threads_for_the_others(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy, other = await world.agent(), await world.agent("shop/web-1")
    _, session = await begun(greedy)
    gate, have = threading.Event(), world.served.repository.have
    inside = []

    def long(client: Any, *args: Any) -> bytes:
        if client == greedy.client:
            inside.append(client)
            gate.wait(60)
        return have(client, *args)

    monkeypatch.setattr(world.served.repository, "have", long)
    path = f"/sessions/{session['session']}/have"
    asked = [asyncio.create_task(greedy.call("POST", path, data=IDS[0])) for _ in range(40)]
    await world.until(lambda: len(inside) == 4)
    _, theirs = await begun(other)
    assert await other.call("POST", f"/sessions/{theirs['session']}/have", data=IDS[0]) == b"\0"
    assert await world.call("GET", "/v1/status")
    assert len(inside) == 4
    gate.set()
    assert set(await asyncio.gather(*asked)) == {b"\0"}
