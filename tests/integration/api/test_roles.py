"""Roles and domains of tokens where the matrix of routes does not reach: what answers say."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.apiworld import ActedAgent, ApiWorld, made
from tests.support.authorisation import api_token
from tests.support.fetching import fetched
from tests.support.samples import noise
from tests.support.uploads import Served

IDS = sorted(noise(f"chunk {number}") for number in range(3))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Served, str]]:
    served, token = made(tmp_path)
    served.domain("shop")
    served.domain("mart")
    yield served, token
    served.stop()


async def token_of(world: ApiWorld, role: str, *domains: str) -> str:
    found: str = await world.run(api_token, world.served, role, *domains)
    return found


async def test_status_counts_what_the_token_is_good_for(world: ApiWorld) -> None:
    await world.agent("shop/db-0")
    await world.agent("mart/db-0")
    far = await world.pod("mart/db-1")
    await world.run(far.backup, IDS)
    await world.backup("mart/db-1")
    shown = await world.call("GET", "/v1/status", token=await token_of(world, "viewer", "shop"))
    counted = {name: shown[name] for name in ("clients", "clients_connected", "domains")}
    assert counted == {"clients": 1, "clients_connected": 1, "domains": 1}
    assert (shown["snapshots"], shown["jobs_queued"], shown["jobs_running"]) == (0, 0, 0)
    stored = ("chunks", "packs", "stored_bytes", "damaged_chunks", "store_free_bytes")
    assert {shown[name] for name in stored} == {None}
    whole = await world.call("GET", "/v1/status", token=await token_of(world, "viewer"))
    assert (whole["clients"], whole["snapshots"], whole["jobs_queued"]) == (3, 1, 1)
    assert whole["chunks"] == len(IDS)


async def test_a_restore_onto_a_foreign_client_is_one_onto_none(world: ApiWorld) -> None:
    pod = await world.pod("shop/db-0")
    await world.pod("shop/db-1")
    await world.pod("mart/db-0")
    snapshot = (await world.run(pod.backup, IDS)).hex()
    operator = await token_of(world, "operator", "shop")

    async def asked(client: str, token: str) -> dict[str, Any]:
        body = {"kind": "restore", "items": [{"snapshot": snapshot}], "to": [client]}
        problem = await world.refused("POST", "/v1/jobs", json=body, token=token)
        return problem | {"request_id": "", "detail": problem["detail"].replace(client, "<it>")}

    foreign, absent = await asked("mart/db-0", operator), await asked("mart/none", operator)
    assert foreign == absent == await asked("shop/none", operator)
    assert foreign["code"] == "not-found"
    assert (await asked("mart/db-0", world.token))["code"] == "refused"
    body = {"kind": "restore", "items": [{"snapshot": snapshot}], "to": ["shop/db-1"]}
    assert len((await world.call("POST", "/v1/jobs", json=body, token=operator))["jobs"]) == 1


async def test_one_foreign_client_among_several_starts_no_backup_at_all(world: ApiWorld) -> None:
    await world.pod("shop/db-0")
    await world.pod("mart/db-0")
    operator = await token_of(world, "operator", "shop")
    body = {"kind": "backup", "clients": ["shop/db-0", "mart/db-0"]}
    assert (await world.refused("POST", "/v1/jobs", json=body, token=operator))["code"] == (
        "not-found"
    )
    assert (await world.call("GET", "/v1/jobs"))["items"] == []


async def copy_of(world: ApiWorld, agent: ActedAgent, snapshot: bytes) -> dict[str, Any]:
    grant = await world.run(world.served.repository.open_grant, "shop", [snapshot])
    copy = await world.run(lambda: fetched(grant, IDS[:1])[0])
    place = {"object": copy.object, "offset": copy.offset}
    return {"chunk": IDS[0].hex(), "reason": "does not open", **place}


async def test_who_may_only_read_condemns_no_chunk_not_even_together(world: ApiWorld) -> None:
    agent = await world.agent("shop/db-0")
    snapshot = await world.run(agent.pod.backup, IDS)
    report = await copy_of(world, agent, snapshot)
    path = f"/v1/snapshots/{snapshot.hex()}/damage"
    for role in ("viewer", "viewer", "operator"):
        token = await token_of(world, role, "shop")
        told = await world.call("POST", path, json=report, token=token)
        assert told == {"state": "reported"}
    body = {"kind": "verify", "snapshot": snapshot.hex()}
    job = (await world.call("POST", "/v1/jobs", json=body))["jobs"][0]["id"]
    await world.in_state(job, "Dispatched")
    told = await agent.call("POST", f"/grants/{job}/damage", json=report)
    assert told == {"state": "reported"}, "one agent, and readers, are no two agents"
    assert await world.call("POST", path, json=report) == {"state": "damaged"}


async def test_events_of_no_client_are_for_who_is_not_limited(world: ApiWorld) -> None:
    await world.agent("shop/db-0")
    await world.agent("mart/db-0")
    limited = await token_of(world, "viewer", "shop")
    shown = (await world.call("GET", "/v1/events", token=limited))["items"]
    assert {row["client"] for row in shown} == {"shop/db-0"}
    whole = (await world.call("GET", "/v1/events"))["items"]
    assert {row["client"] for row in whole} >= {"shop/db-0", "mart/db-0"}
    assert all(len(row["link"]) == 64 for row in whole)


async def test_an_attempt_to_enrol_under_a_taken_name_is_told(world: ApiWorld) -> None:
    await world.pod("shop/db-0")
    made = await world.call("POST", "/v1/enrol-tokens", json={"domain": "shop"})
    body = {"client": "shop/db-0", "sign_key": base64.b64encode(noise("key")).decode()}
    for _ in range(2):
        problem = await world.refused(
            "POST", "/agent/v1/enrol/begin", token=made["token"], json=body
        )
        assert problem["code"] == "conflict"
    rows = (await world.call("GET", "/v1/events"))["items"]
    [told] = [row["details"] for row in rows if row["kind"] == "act-failed"]
    assert (told["by"], told["code"]) == (made["id"], "conflict")
    assert told["route"] == "POST /agent/v1/enrol/begin"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"role": "owner"}, "invalid"),
        ({"role": "viewer", "domains": ["nowhere"]}, "not-found"),
        ({"role": "viewer", "domains": ["../etc"]}, "invalid"),
        ({"role": "viewer", "domains": ["shop"] * 101}, "invalid"),
        ({"role": "viewer", "ttl_seconds": 0}, "invalid"),
    ],
)
async def test_a_token_that_cannot_be_is_not_made(
    world: ApiWorld, body: dict[str, Any], code: str
) -> None:
    before = len((await world.call("GET", "/v1/tokens"))["items"])
    assert (await world.refused("POST", "/v1/tokens", json=body))["code"] == code
    assert len((await world.call("GET", "/v1/tokens"))["items"]) == before


async def test_doctor_names_the_first_event_at_which_the_chain_breaks(world: ApiWorld) -> None:
    async def found() -> dict[str, str]:
        rows = (await world.call("GET", "/v1/doctor"))["items"]
        [row] = [row for row in rows if row["check"] == "events"]
        return dict(row)

    for _ in range(3):
        await world.enrol_token()
    assert (await found())["state"] == "ok"
    with sqlite3.connect(world.served.folder / "catalog.sqlite") as connection:
        connection.execute("UPDATE events SET message = 'nothing' WHERE key = 2")
    connection.close()
    row = await found()
    assert row["state"] == "fail"
    assert "event 2" in row["message"]
