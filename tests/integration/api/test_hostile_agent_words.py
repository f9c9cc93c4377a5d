"""A compromised agent's words: results and damage reports, bounded and believed no further."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from holdfast_contract.limits import COUNT_MAX, MIB
from holdfast_contract.protocol.control import Finished, FinishedSeen, JobState
from holdfast_server.control import reported, results
from holdfast_server.repository import damage
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.backups import IDS, backed_up, begun, ended
from tests.support.raw_http import Wire, head
from tests.support.uploads import sealed

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


# --- results
async def test_a_result_of_a_million_rows_is_refused_in_bounded_memory(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reported, "ROWS_MAX", 1000)
    agent = await world.agent()
    job, _ = await begun(agent)
    row = b'{"path":""},'
    bodies = {
        "rows": b'{"skipped":[' + row * 500_000 + row[:-1] + b"]}",
        "empty": b'{"plan":[' + b"{}," * 2_000_000 + b"{}]}",
        "trees": b'{"skipped":[{"path":"","x":' + b"[" * 900 + b"]" * 900 + b"}" * 2,
        "lists": b'{"x":[' + b"[]," * 2_000_000 + b"[]]}",
    }
    for name, body in bodies.items():
        tracemalloc.start()
        try:
            problem = await _refused_or_none(agent, job, body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The body itself, as the client, the socket and the server hold it.
        assert peak < 4 * len(body) + 16 * MIB, name
        assert problem in ("invalid", None), name
        if name in ("rows", "empty"):
            assert problem == "invalid"


async def _refused_or_none(agent: ActedAgent, job: str, body: bytes) -> str | None:
    path = f"/agent/v1/jobs/{job}/result"
    async with await agent.world.request("PUT", path, token=agent.token, data=body) as response:
        if response.status == 204:
            return None
        return str((await response.json(content_type=None))["code"])


async def test_of_a_result_only_what_is_known_is_kept(world: ApiWorld) -> None:
    agent = await world.agent()
    job, _ = await begun(agent)
    row = {"path": "/a", "reason": "r", "message": "m", "deep": [[[1]]], "run": "x"}
    await agent.call("PUT", f"/jobs/{job}/result", json={"skipped": [row], "more": {"a": 1}})
    await agent.send(Finished(job=job, state=JobState.FAILED, skipped_count=1))
    await agent.until(FinishedSeen)
    shown = (await world.job(job))["result"]
    assert shown["skipped"] == [{"path": "/a", "reason": "r", "message": "m"}]


async def test_results_that_arrive_are_bounded_for_each_and_for_all(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "ARRIVING_BYTES_MAX", 300_000)
    agent, other = await world.agent(), await world.agent("shop/web-1")
    job, _ = await begun(agent)
    theirs, _ = await begun(other)
    path = f"/agent/v1/jobs/{job}/result"
    wire = await Wire.open(world.port)
    length = f"Content-Length: {64 * MIB}"
    await wire.send(head("PUT", path, length, token=agent.token) + b" " * 200_000)
    await world.until(lambda: world.services.results._arriving == 200_000)
    assert (await agent.refused("PUT", f"/jobs/{job}/result", json={}))["code"] == "too-many"
    # Small ones find room beside it, a large one does not.
    await other.call("PUT", f"/jobs/{theirs}/result", json={"skipped": [{"path": "/x"}]})
    large = b" " * 150_000 + b"{}"
    problem = await other.refused("PUT", f"/jobs/{theirs}/result", data=large)
    assert (problem["code"], problem["status"]) == ("too-many", 429)
    await wire.close()
    await world.until(lambda: world.services.results._arriving == 0)
    await other.call("PUT", f"/jobs/{theirs}/result", data=large)


async def test_a_result_for_no_job_of_the_agents_is_refused_before_it_comes(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    wire = await Wire.open(world.port)
    length = f"Content-Length: {64 * MIB}"
    await wire.send(head("PUT", f"/agent/v1/jobs/{ULID}/result", length, token=agent.token))
    assert (await wire.answer()).status == 404
    await wire.close()


# --- damage reports
async def place_of(world: ApiWorld, snapshot: str, chunk: bytes) -> tuple[str, int]:
    """Return object and offset of a chunk, as a reader is told."""
    stream = await world.call("POST", f"/v1/snapshots/{snapshot}/chunks", data=chunk)
    length, offset = stream[33] | stream[34] << 8, int.from_bytes(stream[35:39], "little")
    return stream[43 : 43 + length].decode(), offset


def report_of(chunk: bytes, place: tuple[str, int]) -> dict[str, Any]:
    name, offset = place
    return {"chunk": chunk.hex(), "object": name, "offset": offset, "reason": "does not open"}


async def test_reports_of_one_agent_condemn_no_history(world: ApiWorld) -> None:
    victim, liar = await world.agent("shop/web-1"), await world.agent()
    job, snapshot = await backed_up(victim)
    await ended(victim, job, snapshot)
    places = {chunk: await place_of(world, snapshot, chunk) for chunk in IDS}
    mine, session = await begun(liar)
    # What no grant of the liar covers does not exist for it.
    for chunk, place in places.items():
        path = f"/grants/{mine}/damage"
        problem = await liar.refused("POST", path, json=report_of(chunk, place))
        assert problem["code"] == "not-found"
    # It asks for them: now they are in its session, and it may say that they do not open.
    await liar.call("POST", f"/sessions/{session['session']}/have", data=b"".join(IDS))
    agent = liar
    for _ in range(3):
        for chunk, place in places.items():
            answer = await agent.call(
                "POST", f"/grants/{mine}/damage", json=report_of(chunk, place)
            )
            assert answer == {"state": "reported"}
        agent = await world.connect(liar.pod)
    stream = await world.call("POST", f"/v1/snapshots/{snapshot}/chunks", data=b"".join(IDS))
    assert all(sealed(chunk) in stream for chunk in IDS)
    assert (await world.call("GET", "/v1/status"))["damaged_chunks"] == 0
    kinds = await world.event_kinds()
    assert kinds.count("chunk-reported") == len(IDS)
    assert "chunk-damaged" not in kinds


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1},
        {"offset": 64 * MIB},
        {"object": "packs/../../etc/passwd"},
        {"object": ""},
        {"object": "\0"},
        {"chunk": "00" * 32},
        {"offset": COUNT_MAX + 1},
        {"offset": 1 << 70},
        {"offset": -1},
        {"chunk": "00" * 32 + "\n"},
        {"reason": "x" * 5000},
    ],
)
async def test_a_report_of_nothing_is_refused(world: ApiWorld, changes: dict[str, Any]) -> None:
    agent = await world.agent()
    job, snapshot = await backed_up(agent)
    place = await place_of(world, snapshot, IDS[0])
    report = report_of(IDS[0], place) | changes
    problem = await agent.refused("POST", f"/grants/{job}/damage", json=report)
    assert problem["code"] in ("not-found", "invalid")
    problem = await world.refused("POST", f"/v1/snapshots/{snapshot}/damage", json=report)
    assert problem["code"] in ("not-found", "invalid")


async def test_a_flood_of_reports_is_answered_and_forgotten(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "UNCONFIRMED_MAX", 2)
    agent, other = await world.agent(), await world.agent("shop/web-1")
    job, snapshot = await backed_up(agent)
    places = {chunk: await place_of(world, snapshot, chunk) for chunk in IDS}
    for chunk, place in places.items():
        answer = await agent.call("POST", f"/grants/{job}/damage", json=report_of(chunk, place))
        assert answer == {"state": "reported"}
    assert (await world.event_kinds()).count("chunk-reported") == 2
    # What is damaged indeed is marked, however much its finder has said before.
    name, offset = places[IDS[3]]
    objects: dict[Any, bytes] = world.served.memory.objects
    spoiled = bytearray(objects[name])
    spoiled[offset + 70] ^= 1
    objects[name] = bytes(spoiled)
    report = report_of(IDS[3], places[IDS[3]])
    answer = await agent.call("POST", f"/grants/{job}/damage", json=report)
    assert answer == {"state": "damaged"}
    # And others are heard.
    theirs, session = await begun(other)
    await other.call("POST", f"/sessions/{session['session']}/have", data=IDS[2])
    report = report_of(IDS[2], places[IDS[2]])
    await other.call("POST", f"/grants/{theirs}/damage", json=report)
    assert (await world.event_kinds()).count("chunk-reported") == 3
