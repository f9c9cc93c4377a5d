"""Queries: which agent is asked, and that its answer passes through as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast_contract.protocol.control import (
    Browse,
    CancelQuery,
    Finished,
    FinishedSeen,
    JobState,
    Query,
)
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.samples import noise

IDS = sorted(noise(f"chunk {number}") for number in range(3))
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def snapshot_of(agent: ActedAgent) -> str:
    found: bytes = await agent.world.run(agent.pod.backup, IDS)
    return found.hex()


def asking(world: ApiWorld, kind: str, **body: Any) -> asyncio.Task[Any]:
    """Ask in the background."""
    return asyncio.create_task(world.call("POST", "/v1/queries", json={"kind": kind} | body))


async def answer(agent: ActedAgent, query: Query, data: Any) -> Any:
    return await agent.call("POST", f"/answers/{query.query}", data=data)


ROWS = b'{"path": "/data/a"}\n{"type": "end"}\n'


async def test_browsing_asks_that_pod_and_its_rows_pass_through(world: ApiWorld) -> None:
    agent = await world.agent()
    asked = asking(world, "browse", client="shop/db-0", path="/data")
    query = await agent.until(Query)
    assert (query.kind, query.path, query.items) == ("browse", b"/data", [])
    await answer(agent, query, ROWS)
    assert await asked == ROWS


async def test_an_answer_passes_while_it_comes_and_is_not_gathered(world: ApiWorld) -> None:
    agent = await world.agent()
    proceed = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        yield b'{"path": "/first"}\n'
        await proceed.wait()
        yield b'{"type": "end"}\n'

    body = {"kind": "browse", "client": "shop/db-0"}
    pending = asyncio.create_task(world.request("POST", "/v1/queries", json=body))
    query = await agent.until(Query)
    answering = asyncio.create_task(answer(agent, query, rows()))
    async with await pending as response:
        assert response.content_type == "application/x-ndjson"
        assert await response.content.readany() == b'{"path": "/first"}\n'
        assert not answering.done()
        proceed.set()
        assert await response.content.read() == b'{"type": "end"}\n'
    await answering


async def test_an_answer_of_many_megabytes_is_held_back_until_it_is_read(
    world: ApiWorld,
) -> None:
    agent = await world.agent(browse=Browse.CONTENT)
    snapshot = await snapshot_of(agent)
    sent = 0
    total = 200

    async def content() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(total):
            sent += 1
            yield bytes(1 << 20)

    item = {"snapshot": snapshot, "path": "/data/big"}
    body = {"kind": "dump", "items": [item]}
    pending = asyncio.create_task(world.request("POST", "/v1/queries", json=body))
    answering = asyncio.create_task(answer(agent, await agent.until(Query), content()))
    async with await pending as response:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < total / 2
        received = 0
        while piece := await response.content.readany():
            received += len(piece)
    assert received == total << 20
    await answering


async def test_the_snapshots_own_agent_is_asked_first_and_may_read_it(world: ApiWorld) -> None:
    await world.agent("shop/aaa")
    agent = await world.agent("shop/zzz")
    snapshot = await snapshot_of(agent)
    items = [{"snapshot": snapshot, "path": "/data"}]
    asked = asking(world, "ls", items=items, recursive=True)
    query = await agent.until(Query)
    assert (query.items[0].snapshot.hex(), query.items[0].client) == (snapshot, "shop/zzz")
    assert (query.items[0].path, query.recursive) == (b"/data", True)
    data = await agent.call("POST", f"/grants/{query.query}/chunks", data=IDS[0])
    assert data[:33] == IDS[0] + b"\0"
    await answer(agent, query, ROWS)
    await asked
    problem = await agent.refused("POST", f"/grants/{query.query}/chunks", data=IDS[0])
    assert problem["code"] == "not-found"


async def test_another_agent_of_the_domain_answers_where_the_own_one_is_away(
    world: ApiWorld,
) -> None:
    agent = await world.agent("shop/db-0")
    snapshot = await snapshot_of(agent)
    await agent.leave()
    helper = await world.agent("shop/db-1")
    problem = await helper.refused("GET", f"/snapshots/{snapshot}/manifest")
    assert problem["code"] == "not-found"
    items = [{"snapshot": snapshot}, {"snapshot": snapshot}]
    asked = asking(world, "diff", items=items)
    query = await helper.until(Query)
    manifest = await helper.call("GET", f"/snapshots/{snapshot}/manifest")
    assert manifest.startswith(b"HFMF")
    await answer(helper, query, ROWS)
    assert await asked == ROWS


async def test_without_an_agent_that_may_show_it_both_other_ways_are_named(
    world: ApiWorld,
) -> None:
    agent = await world.agent(browse=Browse.NAMES)
    snapshot = await snapshot_of(agent)
    never = await world.agent("shop/db-1", browse=Browse.NEVER)
    items = [{"snapshot": snapshot}]
    problem = await world.refused("POST", "/v1/queries", json={"kind": "dump", "items": items})
    assert (problem["code"], problem["exit"]) == ("not-at-hand", 12)
    await agent.leave()
    problem = await world.refused("POST", "/v1/queries", json={"kind": "ls", "items": items})
    assert (problem["code"], problem["exit"]) == ("not-at-hand", 12)
    assert "HOLDFAST_KEY_FILE" in problem["hint"]
    assert "agent" in problem["hint"]
    body = {"kind": "browse", "client": "shop/db-1"}
    assert (await world.refused("POST", "/v1/queries", json=body))["code"] == "refused"
    body = {"kind": "browse", "client": "shop/db-0"}
    assert (await world.refused("POST", "/v1/queries", json=body))["code"] == "not-at-hand"
    body = {"kind": "browse", "client": "shop/nobody"}
    assert (await world.refused("POST", "/v1/queries", json=body))["code"] == "not-found"
    assert never.of(Query) == []


async def test_an_agents_error_before_the_first_byte_is_the_askers_problem(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    pending = asyncio.create_task(
        world.refused("POST", "/v1/queries", json={"kind": "browse", "client": "shop/db-0"})
    )
    query = await agent.until(Query)
    failure = {"code": "outside-roots", "message": "/etc is outside", "hint": "see the roots"}
    await agent.call(
        "POST", f"/answers/{query.query}", headers={"Holdfast-Error": json.dumps(failure)}
    )
    problem = await pending
    assert (problem["code"], problem["exit"], problem["status"]) == ("outside-roots", 12, 403)
    assert (problem["detail"], problem["hint"]) == ("/etc is outside", "see the roots")


async def test_an_answer_that_breaks_in_the_middle_ends_with_an_error_row(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    asked = asking(world, "browse", client="shop/db-0")
    query = await agent.until(Query)
    await _broken_answer(world, agent, query)
    rows = [json.loads(line) for line in (await asked).splitlines() if line]
    assert rows[0] == {"path": "/first"}
    assert (rows[-1]["type"], rows[-1]["code"]) == ("error", "unreachable")


async def test_a_dump_that_breaks_in_the_middle_never_looks_whole(world: ApiWorld) -> None:
    from aiohttp import ClientError

    agent = await world.agent(browse=Browse.CONTENT)
    snapshot = await snapshot_of(agent)
    asked = asking(world, "dump", items=[{"snapshot": snapshot, "path": "/data/a"}])
    query = await agent.until(Query)
    await _broken_answer(world, agent, query)
    with pytest.raises(ClientError):
        await asked


async def _broken_answer(world: ApiWorld, agent: ActedAgent, query: Query) -> None:
    """Begin an answer over a connection of its own, and break that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    row = b'{"path": "/first"}\n'
    head = (
        f"POST /agent/v1/answers/{query.query} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {agent.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(head.encode() + b"%x\r\n" % len(row) + row + b"\r\n")
    await writer.drain()
    asked = world.services.queries.find(query.query, agent_of(world))
    await world.until(asked.answer.done)
    writer.transport.abort()
    del reader


def agent_of(world: ApiWorld) -> Any:
    return world.services.hub.connected("shop/db-0")


async def test_an_agent_that_goes_away_fails_what_it_was_asked(world: ApiWorld) -> None:
    agent = await world.agent()
    pending = asyncio.create_task(
        world.refused("POST", "/v1/queries", json={"kind": "browse", "client": "shop/db-0"})
    )
    await agent.until(Query)
    await agent.leave()
    assert (await pending)["code"] == "unreachable"


async def test_an_asker_that_goes_away_cancels_the_query(world: ApiWorld) -> None:
    agent = await world.agent()
    body = b'{"kind": "browse", "client": "shop/db-0"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    head = (
        f"POST /v1/queries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    query = await agent.until(Query)
    writer.close()
    assert (await agent.until(CancelQuery)).query == query.query
    problem = await agent.refused("POST", f"/answers/{query.query}", data=b"late")
    assert problem["code"] == "not-found"
    del reader


async def test_only_the_asked_agent_can_answer(world: ApiWorld) -> None:
    agent, other = await world.agent(), await world.agent("shop/db-1")
    asked = asking(world, "browse", client="shop/db-0")
    query = await agent.until(Query)
    problem = await other.refused("POST", f"/answers/{query.query}", data=b"lies")
    assert problem["code"] == "not-found"
    assert (await agent.refused("POST", f"/answers/{ULID}", data=b""))["code"] == "not-found"
    await answer(agent, query, ROWS)
    assert await asked == ROWS


async def test_an_empty_answer_is_an_answer(world: ApiWorld) -> None:
    agent = await world.agent()
    asked = asking(world, "browse", client="shop/db-0")
    await answer(agent, await agent.until(Query), b"")
    assert await asked == b""


async def test_a_sealed_report_is_opened_by_an_agent(world: ApiWorld) -> None:
    agent = await world.agent()
    snapshot = await snapshot_of(agent)
    job = (await agent.ordered()).job
    result = {"not_exact_sealed": "c2VhbGVk"}
    await agent.call("PUT", f"/jobs/{job}/result", json=result)
    await agent.send(Finished(job=job, state=JobState.COMPLETED, snapshot=bytes.fromhex(snapshot)))
    await agent.until(FinishedSeen)
    asked = asking(world, "report", job=job)
    query = await agent.until(Query)
    assert (query.kind, query.blob, query.items[0].snapshot.hex()) == (
        "report",
        b"sealed",
        snapshot,
    )
    await answer(agent, query, ROWS)
    assert await asked == ROWS


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "browse"}, "usage"),
        ({"kind": "run"}, "invalid"),
        ({"kind": "browse", "client": "shop/db-0", "path": "data"}, "usage"),
        ({"kind": "ls"}, "usage"),
        ({"kind": "ls", "items": [{"snapshot": "ab" * 32}]}, "not-found"),
        ({"kind": "diff", "items": [{"snapshot": "ab" * 32}]}, "usage"),
        ({"kind": "report", "job": ULID}, "not-found"),
        ({"kind": "report"}, "usage"),
    ],
)
async def test_a_question_that_cannot_be_asked_is_refused(
    world: ApiWorld, body: dict[str, Any], code: str
) -> None:
    agent = await world.agent()
    assert (await world.refused("POST", "/v1/queries", json=body))["code"] == code
    assert agent.of(Query) == []


async def test_snapshots_of_two_domains_are_not_asked_for_at_once(world: ApiWorld) -> None:
    await world.domain("other")
    agent, foreign = await world.agent(), await world.agent("other/x")
    items = [{"snapshot": await snapshot_of(agent)}, {"snapshot": await snapshot_of(foreign)}]
    problem = await world.refused("POST", "/v1/queries", json={"kind": "find", "items": items})
    assert problem["code"] == "usage"
