"""Jobs as they are asked for and listed: whom an order goes to, and what is refused before."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_contract.protocol.control import Restore, Verify
from tests.support.apiworld import ApiWorld
from tests.support.samples import noise

IDS = sorted(noise(f"chunk {number}") for number in range(3))


async def test_restores_go_to_the_snapshots_own_client_or_to_those_named(
    world: ApiWorld,
) -> None:
    agent, other = await world.agent(), await world.agent("shop/db-1")
    snapshot = await agent.snapshot(IDS)
    item = {"snapshot": snapshot.hex(), "path": "/data/a"}
    body = {"kind": "restore", "items": [item], "target": "/restore", "overwrite": "if-newer"}
    created = await world.call("POST", "/v1/jobs", json=body | {"include": ["*.db"]})
    assert [row["client"] for row in created["jobs"]] == ["shop/db-0"]
    order = await agent.until(Restore)
    assert (order.items[0].snapshot, order.items[0].client) == (snapshot, "shop/db-0")
    assert (order.items[0].path, order.target, order.include) == (
        b"/data/a",
        b"/restore",
        ["*.db"],
    )
    assert order.overwrite == "if-newer"
    both = {"to": ["shop/db-0", "shop/db-1", "shop/db-1"]}
    created = await world.call("POST", "/v1/jobs", json=body | both)
    assert [row["client"] for row in created["jobs"]] == ["shop/db-0", "shop/db-1"]
    far = await other.until(Restore)
    answer = await other.call("POST", f"/grants/{far.job}/chunks", data=IDS[0])
    assert answer[:33] == IDS[0] + b"\0"
    manifest = await other.call("GET", f"/snapshots/{snapshot.hex()}/manifest")
    assert manifest.startswith(b"HFMF")
    await other.end(far.job, not_exact_count=2)
    shown = await world.job(far.job)
    assert (shown["state"], shown["snapshot"]) == ("CompletedWithSkips", snapshot.hex())
    assert (shown["result"]["not_exact"], shown["result"]["not_exact_count"]) == (None, 2)
    problem = await other.refused("GET", f"/snapshots/{snapshot.hex()}/manifest")
    assert problem["code"] == "not-found"


async def test_a_verify_goes_to_the_snapshots_own_client(world: ApiWorld) -> None:
    agent = await world.agent()
    snapshot = await agent.snapshot(IDS)
    body = {"kind": "verify", "snapshot": snapshot.hex()}
    [row] = (await world.call("POST", "/v1/jobs", json=body))["jobs"]
    order = await agent.until(Verify)
    assert (order.job, order.item.snapshot, order.item.path) == (row["id"], snapshot, b"/")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"kind": "backup", "clients": ["shop/nobody"]}, "not-found"),
        ({"kind": "backup", "clients": ["nobody"]}, "invalid"),
        ({"kind": "backup", "clients": []}, "invalid"),
        ({"kind": "backup", "clients": ["shop/db-0"], "paths": ["data"]}, "usage"),
        ({"kind": "backup", "clients": ["shop/db-0"], "paths": ["/a/../b"]}, "usage"),
        ({"kind": "backup", "clients": ["shop/db-0"], "tags": [""]}, "usage"),
        (
            {"kind": "backup", "clients": ["shop/db-0"], "paths": ["/" + "x" * 4000] * 250},
            "too-large",
        ),
        ({"kind": "verify", "snapshot": "ab" * 32}, "not-found"),
        ({"kind": "restore", "items": [{"snapshot": "ab" * 32}]}, "not-found"),
        ({"kind": "restore", "items": []}, "invalid"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_there_is_a_job(
    world: ApiWorld, body: dict[str, Any], code: str
) -> None:
    await world.pod()
    assert (await world.refused("POST", "/v1/jobs", json=body))["code"] == code
    assert (await world.call("GET", "/v1/jobs"))["items"] == []


async def test_one_unknown_client_of_several_starts_nothing(world: ApiWorld) -> None:
    await world.pod()
    body = {"kind": "backup", "clients": ["shop/db-0", "shop/nobody"]}
    assert (await world.refused("POST", "/v1/jobs", json=body))["code"] == "not-found"
    assert (await world.call("GET", "/v1/jobs"))["items"] == []


async def test_a_snapshot_is_not_restored_to_another_domain(world: ApiWorld) -> None:
    agent = await world.agent()
    snapshot = await agent.snapshot(IDS)
    await world.domain("other")
    await world.agent("other/x")
    for body in (
        {"kind": "restore", "items": [{"snapshot": snapshot.hex()}], "to": ["other/x"]},
        {"kind": "verify", "snapshot": snapshot.hex(), "to": "other/x"},
    ):
        assert (await world.refused("POST", "/v1/jobs", json=body))["code"] == "refused"
    assert "refused" in await world.event_kinds()


async def test_jobs_are_listed_newest_first_by_client_and_state(world: ApiWorld) -> None:
    await world.pod()
    await world.pod("shop/db-1")
    made_jobs = [
        (await world.backup(client))[0] for client in ("shop/db-0", "shop/db-1", "shop/db-0")
    ]
    await world.call("POST", f"/v1/jobs/{made_jobs[0]}/cancel")

    async def ids(query: str = "") -> list[str]:
        listing = await world.call("GET", f"/v1/jobs{query}")
        return [row["id"] for row in listing["items"]]

    assert await ids() == made_jobs[::-1]
    assert await ids("?client=shop/db-0") == [made_jobs[2], made_jobs[0]]
    assert await ids("?state=Cancelled") == [made_jobs[0]]
    first = await world.call("GET", "/v1/jobs?limit=2")
    assert first["next"] == made_jobs[1]
    assert await ids(f"?limit=2&after={first['next']}") == [made_jobs[0]]
