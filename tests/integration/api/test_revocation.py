"""A token that is revoked, or expires, ends also what is under way with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientError

from holdfast_contract.protocol.control import CancelQuery, Query
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import tokens
from tests.support.apiworld import SECONDS, ApiWorld, Refusal
from tests.support.samples import noise
from tests.support.uploads import pack_of

IDS = sorted(noise(f"chunk {number}") for number in range(3))


async def viewer(world: ApiWorld) -> tuple[str, str]:
    """Return a viewer's token: id and secret."""
    row = await world.call("POST", "/v1/tokens", json={"role": "viewer", "domains": ["shop"]})
    return row["id"], row["token"]


async def under_way(world: ApiWorld, secret: str, count: int = 1) -> None:
    """Wait until so many requests are served with this token."""
    calls = world.services.open_calls
    await world.until(lambda: len(calls._by_token.get(hash_token(secret), ())) == count)


async def ended_with(request: asyncio.Task[Any]) -> str:
    try:
        async with asyncio.timeout(SECONDS):
            answer = await request
    except Refusal as refusal:
        return str(refusal.problem["code"])
    raise AssertionError(f"answered: {answer!r}")


async def test_a_long_poll_for_events_ends_when_its_token_is_revoked(world: ApiWorld) -> None:
    token, secret = await viewer(world)
    path = "/v1/events?wait=60&after=1000"
    polls = [asyncio.create_task(world.call("GET", path, token=secret)) for _ in range(3)]
    await under_way(world, secret, 3)
    await world.call("DELETE", f"/v1/tokens/{token}")
    assert [await ended_with(poll) for poll in polls] == ["not-authenticated"] * 3
    await under_way(world, secret, 0)


async def test_a_long_poll_for_a_job_ends_when_its_token_is_revoked(world: ApiWorld) -> None:
    await world.pod()
    token, secret = await viewer(world)
    [job] = await world.backup("shop/db-0")
    other = asyncio.create_task(world.call("GET", f"/v1/jobs/{job}?wait=60"))
    poll = asyncio.create_task(world.call("GET", f"/v1/jobs/{job}?wait=60", token=secret))
    await under_way(world, secret)
    await world.call("DELETE", f"/v1/tokens/{token}")
    assert await ended_with(poll) == "not-authenticated"
    assert not other.done(), "another token's request goes on"
    await world.call("POST", f"/v1/jobs/{job}/cancel")
    assert (await other)["state"] == "Cancelled"


async def test_a_query_that_waits_ends_and_its_agent_is_told(world: ApiWorld) -> None:
    agent = await world.agent()
    token, secret = await viewer(world)
    body = {"kind": "browse", "client": "shop/db-0"}
    asked = asyncio.create_task(world.call("POST", "/v1/queries", token=secret, json=body))
    query = await agent.until(Query)
    await world.call("DELETE", f"/v1/tokens/{token}")
    assert await ended_with(asked) == "not-authenticated"
    assert (await agent.until(CancelQuery)).query == query.query


async def test_an_answer_that_flows_is_cut_when_its_token_is_revoked(world: ApiWorld) -> None:
    agent = await world.agent()
    token, secret = await viewer(world)
    forever = asyncio.Event()

    async def rows() -> AsyncIterator[bytes]:
        yield b'{"path": "/first"}\n'
        await forever.wait()

    body = {"kind": "browse", "client": "shop/db-0"}
    asked = asyncio.create_task(world.request("POST", "/v1/queries", token=secret, json=body))
    query = await agent.until(Query)
    answering = asyncio.create_task(agent.call("POST", f"/answers/{query.query}", data=rows()))
    async with await asked as response:
        assert await response.content.readany() == b'{"path": "/first"}\n'
        await world.call("DELETE", f"/v1/tokens/{token}")
        with pytest.raises(ClientError):
            async with asyncio.timeout(SECONDS):
                await response.content.read()
    await agent.until(CancelQuery)
    forever.set()
    await answering


async def test_a_token_that_expires_ends_what_is_under_way(world: ApiWorld) -> None:
    served, secret = world.served, new_token(TokenKind.API)
    await world.run(
        tokens.create,
        served.catalog,
        token_hash=hash_token(secret),
        role="viewer",
        domains=[],
        expires_ns=served.clock.now_ns() + 500_000_000,
    )
    poll = asyncio.create_task(world.call("GET", "/v1/events?wait=60&after=1000", token=secret))
    assert await ended_with(poll) == "not-authenticated"
    served.clock.now += 500_000_000
    problem = await world.refused("GET", "/v1/events", token=secret)
    assert problem["code"] == "not-authenticated"


async def test_who_revokes_its_own_token_is_still_answered(world: ApiWorld) -> None:
    row = await world.call("POST", "/v1/tokens", json={"role": "admin"})
    await world.call("DELETE", f"/v1/tokens/{row['id']}", token=row["token"])
    problem = await world.refused("GET", "/v1/status", token=row["token"])
    assert problem["code"] == "not-authenticated"


@pytest.mark.parametrize("act", ["revoke", "forget"])
async def test_an_upload_ends_when_its_client_is_revoked_or_forgotten(
    world: ApiWorld, act: str
) -> None:
    agent = await world.agent()
    [job] = await world.backup("shop/db-0")
    await world.in_state(job, "Dispatched")
    session = await agent.call("POST", f"/jobs/{job}/session")
    data = pack_of(agent.pod.domain, IDS)
    forever = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield data[:100]
        await forever.wait()

    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    length = {"Content-Length": str(len(data))}
    sending = asyncio.create_task(agent.call("PUT", path, data=slowly(), headers=length))
    await under_way(world, agent.token)
    if act == "revoke":
        await world.call("POST", "/v1/clients/shop/db-0/revoke")
    else:
        await world.call("DELETE", "/v1/clients/shop/db-0")
    await under_way(world, agent.token, 0)
    forever.set()
    with pytest.raises((Refusal, ClientError)):
        await sending
    problem = await agent.refused("GET", "/domain")
    assert problem["code"] == "not-authenticated"


async def test_a_pod_that_is_heard_no_more_finishes_no_job(world: ApiWorld) -> None:
    agent = await world.agent()
    [job] = await world.backup("shop/db-0")
    await world.in_state(job, "Dispatched")
    await world.call("POST", "/v1/clients/shop/db-0/revoke")
    await agent.until_closed()
    shown = await world.job(job)
    assert (shown["state"], shown["error"]["code"]) == ("Failed", "refused")
