"""The data routes: what a backup sends, and what readers are given of it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from holdfast_contract.errors import NoSpace
from holdfast_contract.ids import ObjectName
from holdfast_contract.protocol.control import (
    Backup,
    Failure,
    Finished,
    FinishedSeen,
    JobState,
    Verify,
)
from holdfast_server.catalog.schema import ObjectKind
from tests.support.apiworld import ApiWorld
from tests.support.backups import IDS, backed_up, begun, ended
from tests.support.samples import noise
from tests.support.uploads import full_refs, pack_of, sealed

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
HEAD = struct.Struct("<32sBHII")


def chunks_of(stream: bytes) -> list[tuple[bytes, int, str, int, bytes]]:
    """Return (id, status, object, offset, sealed) of every chunk of a stream."""
    found, at = [], 0
    while at < len(stream):
        chunk, status, name_length, offset, length = HEAD.unpack_from(stream, at)
        at += HEAD.size
        name = stream[at : at + name_length].decode()
        at += name_length
        found.append((chunk, status, name, offset, stream[at : at + length]))
        at += length
    return found


async def test_a_backup_over_the_routes_becomes_a_snapshot(world: ApiWorld) -> None:
    agent = await world.agent()
    job, snapshot = await backed_up(agent)
    await ended(agent, job, snapshot)
    [row] = (await world.call("GET", "/v1/snapshots"))["items"]
    assert (row["id"], row["client"], row["seq"], row["state"]) == (
        snapshot,
        "shop/db-0",
        1,
        "complete",
    )
    assert (row["parent"], row["prev"], row["chunks"]) == (None, None, len(IDS))
    for reference in (snapshot[:8], "shop%2Fdb-0@latest", "latest", "shop%2Fdb-0@2099-01-01"):
        shown = await world.call("GET", f"/v1/snapshots/{reference}")
        assert shown["id"] == snapshot
    client = await world.call("GET", "/v1/clients/shop/db-0")
    assert client["last_snapshot"] == snapshot
    status = await world.call("GET", "/v1/status")
    assert (status["snapshots"], status["packs"], status["chunks"]) == (1, 1, len(IDS))


async def test_opening_the_session_of_a_job_again_finds_it(world: ApiWorld) -> None:
    agent = await world.agent()
    job, session = await begun(agent)
    again = await agent.call("POST", f"/jobs/{job}/session")
    assert again["session"] == session["session"]
    names = await agent.call("POST", f"/sessions/{session['session']}/names?kind=packs&count=64")
    assert len(set(names["names"])) == 64
    for wrong in ("count=65", "count=0", "kind=journal&count=1"):
        path = f"/sessions/{session['session']}/names?{wrong}"
        assert (await agent.refused("POST", path))["code"] in ("usage", "invalid")


async def test_have_answers_a_byte_an_id_and_refuses_what_are_no_ids(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    base = f"/sessions/{session['session']}"
    path = f"{base}/have?epoch_min=1"
    assert await agent.call("POST", path, data=b"".join(IDS)) == bytes(4)
    data = pack_of(agent.pod.domain, IDS[:2])
    await agent.call("PUT", f"{base}/packs/{session['packs'][0]}", data=data)
    assert await agent.call("POST", path, data=b"".join(IDS)) == b"\1\1\0\0"
    assert await agent.call("POST", f"{base}/have?epoch_min=2", data=IDS[0]) == b"\0"
    assert (await agent.refused("POST", path, data=b"x" * 33))["code"] == "invalid"
    assert (await agent.refused("POST", path, data=bytes(32 * 4097)))["code"] == "too-large"


async def test_the_same_pack_again_is_fine_and_another_under_its_name_is_not(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    first = pack_of(agent.pod.domain, IDS[:2])
    for _ in range(2):
        await agent.call("PUT", path, data=first)
    other = pack_of(agent.pod.domain, IDS[2:])
    assert (await agent.refused("PUT", path, data=other))["code"] == "conflict"


async def test_a_pack_that_breaks_off_leaves_nothing_and_can_be_sent_again(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    data = pack_of(agent.pod.domain, IDS, size=60_000)
    path = f"/agent/v1/sessions/{session['session']}/packs/{session['packs'][0]}"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {agent.token}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data[: len(data) // 2])
    await writer.drain()
    packs = world.served.repository._packs
    await world.until(lambda: packs.arriving_bytes == len(data))
    writer.close()
    await world.until(lambda: packs.arriving_bytes == 0)
    assert not [name for name in world.served.memory.objects if name.startswith("packs/")]
    await agent.call("PUT", path.removeprefix("/agent/v1"), data=data)
    await writer.wait_closed()
    assert await reader.read() == b""


@pytest.mark.parametrize("spoil", ["flip", "short", "foreign", "empty"])
async def test_a_pack_that_is_not_right_is_refused(world: ApiWorld, spoil: str) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    data = bytearray(pack_of(agent.pod.domain, IDS))
    if spoil == "flip":
        data[200] ^= 1
    elif spoil == "short":
        del data[-1:]
    elif spoil == "foreign":
        data[8:24] = noise("another domain", 16)
    else:
        data.clear()
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    problem = await agent.refused("PUT", path, data=bytes(data))
    assert problem["code"] in ("invalid", "damaged")
    status = await world.call("GET", "/v1/status")
    assert (status["packs"], status["chunks"]) == (0, 0)


async def test_a_pack_needs_a_length_and_a_bearable_one(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"

    async def drip() -> AsyncIterator[bytes]:
        yield b"HFPK"

    assert (await agent.refused("PUT", path, data=drip()))["code"] == "usage"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(
        f"PUT /agent/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {agent.token}\r\n"
        f"Content-Length: {(64 << 20) + 1}\r\n\r\n".encode()
    )
    assert b"413" in await reader.readline()
    writer.close()


async def test_a_full_store_answers_507_before_the_pack_comes(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    memory = world.served.memory
    memory.capacity = sum(map(len, memory.objects.values())) + (17 << 20)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    data = pack_of(agent.pod.domain, IDS, size=600_000)
    problem = await agent.refused("PUT", path, data=data)
    assert (problem["code"], problem["status"], problem["exit"]) == ("no-space", 507, 14)
    assert NoSpace.http_status == 507


async def test_a_commit_that_lacks_chunks_says_which(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    base = f"/sessions/{session['session']}"
    data = pack_of(agent.pod.domain, IDS[:2])
    await agent.call("PUT", f"{base}/packs/{session['packs'][0]}", data=data)
    await agent.call("PUT", f"{base}/refs/{session['refs']}", data=full_refs(agent.pod.domain, IDS))
    manifest = await world.run(agent.pod.manifest, IDS)
    await agent.call("PUT", f"{base}/manifest/{session['manifest']}", data=manifest)
    body = {"manifest": session["manifest"], "refs": session["refs"], "seq": 1}
    problem = await agent.refused("POST", f"{base}/commit", json=body)
    assert (problem["code"], problem["status"]) == ("missing-chunks", 409)
    lacking = [chunk.hex() for chunk in IDS[2:]]
    assert problem["details"] == {"missing": lacking, "damaged": [], "next": ""}
    page = await agent.call("GET", f"{base}/missing")
    assert page == {"missing": lacking, "damaged": [], "next": ""}
    page = await agent.call("GET", f"{base}/missing?after={lacking[0]}")
    assert page["missing"] == lacking[1:]
    body["manifest"] = "../../etc"
    assert (await agent.refused("POST", f"{base}/commit", json=body))["code"] == "not-found"


async def test_sessions_and_objects_of_others_do_not_exist(world: ApiWorld) -> None:
    await world.domain("other")
    agent, sibling = await world.agent(), await world.agent("shop/db-1")
    foreign = await world.agent("other/x")
    job, session = await begun(agent)
    base = f"/sessions/{session['session']}"
    for stranger in (sibling, foreign):
        for method, path, data in (
            ("POST", f"/jobs/{job}/session", None),
            ("POST", f"{base}/names?kind=packs&count=1", None),
            ("POST", f"{base}/have", IDS[0]),
            ("PUT", f"{base}/packs/{session['packs'][0]}", pack_of(stranger.pod.domain, IDS)),
            ("PUT", f"{base}/refs/{session['refs']}", full_refs(stranger.pod.domain, IDS)),
            ("PUT", f"{base}/manifest/{session['manifest']}", b"HFMF"),
            ("GET", f"{base}/missing", None),
            ("POST", f"/grants/{job}/chunks", IDS[0]),
            ("GET", f"/jobs/{job}/damaged", None),
        ):
            problem = await stranger.refused(method, path, data=data)
            assert (path, problem["code"]) == (path, "not-found")
    body = {"manifest": session["manifest"], "refs": session["refs"], "seq": 1}
    problem = await sibling.refused("POST", f"{base}/commit", json=body)
    assert problem["code"] == "not-found"


async def test_a_session_ends_with_its_job(world: ApiWorld) -> None:
    agent = await world.agent()
    job, session = await begun(agent)
    failure = Failure(code="internal", message="m")
    await agent.send(Finished(job=job, state=JobState.FAILED, error=failure))
    await agent.until(FinishedSeen)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    problem = await agent.refused("PUT", path, data=pack_of(agent.pod.domain, IDS))
    assert problem["code"] == "not-found"


async def test_people_read_the_chunks_of_a_snapshot_and_no_others(world: ApiWorld) -> None:
    agent = await world.agent()
    job, snapshot = await backed_up(agent, IDS[:3])
    await ended(agent, job, snapshot)
    path = f"/v1/snapshots/{snapshot}/chunks"
    asked = [IDS[2], IDS[0], IDS[3], IDS[1]]
    found = chunks_of(await world.call("POST", path, data=b"".join(asked)))
    assert [(chunk, status) for chunk, status, *_ in found] == [
        (IDS[2], 0),
        (IDS[0], 0),
        (IDS[3], 1),
        (IDS[1], 0),
    ]
    for chunk, status, name, offset, data in found:
        if status == 0:
            assert data == sealed(chunk)
            stored = world.served.memory.objects[ObjectName(name)]
            assert stored[offset : offset + len(data)] == data
    for wrong in (b"", b"x" * 31, bytes(32 * 257)):
        assert (await world.refused("POST", path, data=wrong))["code"] in ("invalid", "too-large")
    nowhere = f"/v1/snapshots/{'ab' * 32}/chunks"
    assert (await world.refused("POST", nowhere, data=IDS[0]))["code"] == "not-found"
    manifest = await world.call("GET", f"/v1/snapshots/{snapshot}/manifest")
    assert manifest.startswith(b"HFMF")
    identity = await world.call("GET", f"/v1/identities/{agent.pod.identity.hex()}")
    assert identity.startswith(b"HFID")
    assert (await world.refused("GET", f"/v1/identities/{'00' * 32}"))["code"] == "not-found"


async def test_an_agent_reads_its_own_upload_while_its_job_runs(world: ApiWorld) -> None:
    agent = await world.agent()
    job, session = await begun(agent)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    await agent.call("PUT", path, data=pack_of(agent.pod.domain, IDS[:1]))
    asked = b"".join(IDS[:2])
    found = chunks_of(await agent.call("POST", f"/grants/{job}/chunks", data=asked))
    assert [status for _, status, *_ in found] == [0, 1]


async def test_damage_is_found_told_and_counted_for_the_next_backup(world: ApiWorld) -> None:
    agent = await world.agent()
    job, snapshot = await backed_up(agent)
    await ended(agent, job, snapshot)
    path = f"/v1/snapshots/{snapshot}"
    [(_, _, name, offset, _)] = chunks_of(await world.call("POST", f"{path}/chunks", data=IDS[1]))
    stored = bytearray(world.served.memory.objects[ObjectName(name)])
    stored[offset + 70] ^= 1
    world.served.memory.objects[ObjectName(name)] = bytes(stored)
    report = {"chunk": IDS[1].hex(), "object": name, "offset": offset, "reason": "tag"}
    assert await world.call("POST", f"{path}/damage", json=report) == {"state": "damaged"}
    [(_, status, where, _, data)] = chunks_of(
        await world.call("POST", f"{path}/chunks", data=IDS[1])
    )
    assert (status, where, data) == (2, name, b"")
    assert (await world.call("GET", "/v1/status"))["damaged_chunks"] == 1
    assert "chunk-damaged" in await world.event_kinds()
    again, _ = await begun(agent)
    order = next(order for order in agent.of(Backup) if order.job == again)
    assert order.damaged == 1
    assert await agent.call("GET", f"/jobs/{again}/damaged") == IDS[1]
    assert await agent.call("GET", f"/jobs/{again}/damaged?after={IDS[1].hex()}") == b""
    nonsense = report | {"object": f"packs/{'00' * 16}/{ULID}"}
    assert (await world.refused("POST", f"{path}/damage", json=nonsense))["code"] == "not-found"
    # A backup may read its parent's tree and no content: what it cannot read it cannot judge.
    beyond = await agent.refused("POST", f"/grants/{again}/damage", json=report)
    assert beyond["code"] == "not-found"
    await agent.send(Finished(job=again, state=JobState.CANCELLED))
    body = {"kind": "verify", "snapshot": snapshot}
    [verify] = (await world.call("POST", "/v1/jobs", json=body))["jobs"]
    assert (await agent.until(Verify)).job == verify["id"]
    mine = await agent.call("POST", f"/grants/{verify['id']}/damage", json=report)
    assert mine["state"] == "damaged"


async def test_an_agent_reads_manifests_of_its_own_history_only(world: ApiWorld) -> None:
    agent, sibling = await world.agent(), await world.agent("shop/db-1")
    job, snapshot = await backed_up(agent)
    await ended(agent, job, snapshot)
    assert (await agent.call("GET", f"/snapshots/{snapshot}/manifest")).startswith(b"HFMF")
    problem = await sibling.refused("GET", f"/snapshots/{snapshot}/manifest")
    absent = await sibling.refused("GET", f"/snapshots/{'ab' * 32}/manifest")
    assert problem["code"] == absent["code"] == "not-found"


async def test_snapshots_are_listed_by_client_time_and_number(world: ApiWorld) -> None:
    agent, other = await world.agent(), await world.agent("shop/db-1")
    found = [
        (await world.run(pod.backup, IDS, tags=(tag,))).hex()
        for pod, tag in ((agent.pod, "a"), (other.pod, "b"), (agent.pod, "b"))
    ]

    async def ids(query: str = "") -> list[str]:
        return [row["id"] for row in (await world.call("GET", f"/v1/snapshots{query}"))["items"]]

    assert await ids() == found
    assert await ids("?client=shop/db-0") == [found[0], found[2]]
    assert await ids("?latest=1") == found[1:]
    assert await ids("?tag=b") == found[1:]
    assert await ids("?since=2099-01-01") == []
    assert await ids("?until=2099-01-01") == found
    page = await world.call("GET", "/v1/snapshots?limit=2")
    assert await ids(f"?limit=2&after={page['next']}") == found[2:]
    assert (await world.refused("GET", "/v1/snapshots/latest"))["code"] == "ambiguous"


async def test_a_stored_object_keeps_the_name_that_the_server_chose(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    data = pack_of(agent.pod.domain, IDS)
    path = f"/sessions/{session['session']}/packs/{ULID}"
    assert (await agent.refused("PUT", path, data=data))["code"] == "not-found"
    for name in ("..%2F..%2Fx", "%2Fetc%2Fpasswd", "x"):
        path = f"/sessions/{session['session']}/packs/{name}"
        assert (await agent.refused("PUT", path, data=data))["code"] == "not-found"
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    await agent.call("PUT", path, data=data)
    assert agent.pod.place(ObjectKind.PACK, session["packs"][0]) in world.served.memory.objects
