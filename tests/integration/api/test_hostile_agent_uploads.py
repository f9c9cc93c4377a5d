"""A compromised agent against the real server: what it stores, claims, names and overwrites."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.records import sign_manifest
from holdfast_contract.errors import error_classes
from holdfast_contract.format.manifest import decode_manifest_body, split_manifest
from holdfast_contract.ids import DomainId
from holdfast_contract.limits import PACK_BYTES_MAX
from holdfast_server.catalog.schema import ObjectKind, ObjectState, objects
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.backups import IDS, backed_up, begun, ended, put_lists, put_pack
from tests.support.raw_http import Wire, head
from tests.support.samples import noise
from tests.support.uploads import domain_keys, full_refs, pack_of, sealed

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
ENTRY = struct.Struct("<32s32sIIIB3s")
"""One row of a pack's footer."""


# --- packs that lie
def row_at(data: bytearray, number: int) -> int:
    """Return where a row of the footer stands."""
    length = int.from_bytes(data[-8:-4], "little")
    return len(data) - 40 - length + 8 + number * ENTRY.size


def resealed(data: bytearray) -> bytes:
    """Return a pack whose trailer fits what its footer says now."""
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-40 - length : -40]
    data[-40:-8] = blake3(bytes(data[:24])).update(bytes(footer)).digest()
    return bytes(data)


FIELDS: dict[str, tuple[int, Any]] = {
    "chunk id": (0, noise("another id")),
    "twice": (0, IDS[0]),
    "storage hash": (1, noise("another hash")),
    "offset": (2, 1000),
    "length": (3, 100),
    "huge length": (3, (1 << 32) - 1),
    "epoch": (4, 2),
    "no epoch": (4, 0),
    "type": (5, 2),
    "unknown type": (5, 200),
    "reserved": (6, b"\1\1\1"),
}
"""Which field of a row is a lie, and what it says."""
BYTES: dict[str, tuple[int, bytes]] = {
    "domain": (8, noise("another domain", 16)),
    "version": (4, b"\x09"),
    "frame": (24, b"XXXX"),
    "content": (160, b"XXXX"),
    "footer length": (-8, (1 << 31).to_bytes(4, "little")),
}
LIES = (*FIELDS, *BYTES, "count")


def lying(lie: str, domain: bytes) -> bytes:
    """Return a pack of four chunks in which one thing is a lie, and the footer's hash is right."""
    data = bytearray(pack_of(DomainId(domain), IDS))
    if lie in FIELDS:
        at = row_at(data, 1)
        fields = list(ENTRY.unpack_from(data, at))
        index, said = FIELDS[lie]
        fields[index] = said
        ENTRY.pack_into(data, at, *fields)
    if lie == "count":
        data[row_at(data, 0) - 4 : row_at(data, 0)] = (1 << 31).to_bytes(4, "little")
    if lie == "footer length":
        data[-8:-4] = BYTES[lie][1]
        return bytes(data)
    if lie in BYTES:
        at, said = BYTES[lie]
        data[at : at + len(said)] = said
    return resealed(data)


async def test_a_pack_that_tells_the_truth_is_taken(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    data = lying("nothing", agent.pod.domain)
    assert data == pack_of(agent.pod.domain, IDS)
    await put_pack(agent, session, data)
    assert (await world.call("GET", "/v1/status"))["chunks"] == 4


@pytest.mark.parametrize("lie", LIES)
async def test_a_pack_that_lies_is_refused_and_leaves_nothing(world: ApiWorld, lie: str) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    problem = await agent.refused("PUT", path, data=lying(lie, agent.pod.domain))
    assert problem["code"] in ("invalid", "unsupported-version", "too-large")
    assert not [name for name in world.served.memory.objects if name.startswith("packs/")]
    answer = await agent.call("POST", f"/sessions/{session['session']}/have", data=b"".join(IDS))
    assert answer == bytes(4)
    assert world.served.repository._packs.arriving_bytes == 0


async def test_a_pack_of_an_epoch_that_the_domain_does_not_have_is_refused(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    data = pack_of(agent.pod.domain, IDS, epoch=77)
    assert (await agent.refused("PUT", path, data=data))["code"] == "invalid"


async def test_a_pack_of_another_domain_is_refused_by_its_first_bytes(world: ApiWorld) -> None:
    """The answer comes although all the rest of the pack never does."""
    agent = await world.agent()
    _, session = await begun(agent)
    foreign = pack_of(domain_keys("elsewhere").domain_id, IDS, size=200_000)
    path = f"/agent/v1/sessions/{session['session']}/packs/{session['packs'][0]}"
    wire = await Wire.open(world.port)
    length = f"Content-Length: {PACK_BYTES_MAX}"
    await wire.send(head("PUT", path, length, token=agent.token) + foreign)
    answer = await wire.answer()
    assert (answer.status, answer.problem["code"]) == (400, "invalid")
    await wire.close()


@pytest.mark.parametrize(
    ("lines", "rest", "status"),
    [
        (("Transfer-Encoding: chunked",), b"5\r\nHFPK\0\r\n0\r\n\r\n", 400),
        (("Content-Length: 0",), b"", 400),
        (("Content-Length: 30",), bytes(30), 400),
        ((f"Content-Length: {PACK_BYTES_MAX + 1}",), b"", 413),
        ((f"Content-Length: {1 << 62}",), b"", 413),
        ((), b"", 400),
    ],
)
async def test_a_pack_of_no_length_or_an_unbearable_one_is_refused_at_once(
    world: ApiWorld, lines: tuple[str, ...], rest: bytes, status: int
) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    path = f"/agent/v1/sessions/{session['session']}/packs/{session['packs'][0]}"
    wire = await Wire.open(world.port)
    await wire.send(head("PUT", path, *lines, token=agent.token) + rest)
    assert (await wire.answer()).status == status
    await wire.close()
    assert world.served.repository._packs.arriving_bytes == 0


async def test_what_follows_a_pack_is_no_part_of_it(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    data = pack_of(agent.pod.domain, IDS)
    path = f"/sessions/{session['session']}/packs/{session['packs'][0]}"
    assert (await agent.refused("PUT", path, data=data + b"x"))["code"] == "invalid"
    wire = await Wire.open(world.port)
    length = f"Content-Length: {len(data)}"
    await wire.send(head("PUT", f"/agent/v1{path}", length, token=agent.token) + data)
    assert (await wire.answer()).status == 204
    await wire.send(b"trailing\r\n\r\n")
    assert (await wire.answer()).status == 400
    await wire.close()
    kept = world.served.memory.objects[agent.pod.place(ObjectKind.PACK, path[-26:])]
    assert kept == data


async def test_a_second_copy_of_a_siblings_chunk_never_displaces_the_first(world: ApiWorld) -> None:
    """The server cannot check a chunk id: rubbish under a sibling's id stays a spare."""
    victim, thief = await world.agent("shop/web-1"), await world.agent()
    job, snapshot = await backed_up(victim)
    await ended(victim, job, snapshot)
    _, session = await begun(thief)
    await put_pack(thief, session, pack_of(thief.pod.domain, IDS, salt="rubbish"))
    stream = await world.call("POST", f"/v1/snapshots/{snapshot}/chunks", data=IDS[2])
    assert sealed(IDS[2]) in stream
    assert sealed(IDS[2], salt="rubbish") not in stream


# --- names: nothing is deleted, nothing overwritten
async def test_no_verb_of_an_agent_deletes_or_overwrites(world: ApiWorld) -> None:
    agent = await world.agent()
    job, snapshot = await backed_up(agent)
    before = dict(world.served.memory.objects)
    [pack] = [name for name in before if name.startswith("packs/")]
    session = (await agent.call("POST", f"/jobs/{job}/session"))["session"]
    for method in ("DELETE", "PATCH", "POST", "MOVE", "COPY", "LOCK"):
        for path in (
            f"/sessions/{session}/packs/{pack[-26:]}",
            f"/snapshots/{snapshot}/manifest",
            f"/sessions/{session}",
            "/domain",
        ):
            problem = await agent.refused(method, path, data=b"")
            assert problem["code"] in ("usage", "not-found")
    other = pack_of(agent.pod.domain, IDS, salt="other")
    for kind, name, data in (
        ("packs", pack[-26:], other),
        ("refs", await _name(before, "refs/"), full_refs(agent.pod.domain, IDS[:2])),
        ("manifest", await _name(before, "manifests/"), b"HFMF" + bytes(200)),
    ):
        problem = await agent.refused("PUT", f"/sessions/{session}/{kind}/{name}", data=data)
        assert (kind, problem["code"]) == (kind, "conflict")
    assert {name: world.served.memory.objects[name] for name in before} == before


async def _name(objects: dict[Any, bytes], prefix: str) -> str:
    [name] = [name for name in objects if name.startswith(prefix)]
    return str(name)[-26:]


async def test_names_of_others_of_other_kinds_and_of_nobody_do_not_exist(world: ApiWorld) -> None:
    await world.domain("other")
    agent, sibling = await world.agent(), await world.agent("shop/web-1")
    foreign = await world.agent("other/x")
    _, mine = await begun(agent)
    _, theirs = await begun(sibling)
    _, far = await begun(foreign)
    data = pack_of(agent.pod.domain, IDS)
    told = set()
    for name in (
        theirs["packs"][0],
        far["packs"][0],
        mine["refs"],
        mine["manifest"],
        ULID,
        ULID.lower(),
        "..%2F" + mine["packs"][0],
        mine["packs"][0] + "%00",
    ):
        path = f"/sessions/{mine['session']}/packs/{name}"
        problem = await agent.refused("PUT", path, data=data)
        told.add((problem["status"], problem["code"]))
    assert told == {(404, "not-found")}
    assert not [name for name in world.served.memory.objects if name.startswith("packs/")]


async def test_a_fenced_name_is_never_used_again(world: ApiWorld) -> None:
    """Whoever deletes an object fences its name first; a late upload finds it used up."""
    agent = await world.agent()
    _, session = await begun(agent)
    ulid = session["packs"][0]
    update = objects.update()

    def fence(tx: Any) -> None:
        where = objects.c.ulid == ulid
        tx.execute(update.where(where).values(state=ObjectState.FENCED))

    await world.run(world.served.catalog.write, fence)
    path = f"/sessions/{session['session']}/packs/{ulid}"
    data = pack_of(agent.pod.domain, IDS)
    assert (await agent.refused("PUT", path, data=data))["code"] == "conflict"
    assert (await world.call("GET", "/v1/status"))["chunks"] == 0


# --- commits that lie
def body_with(agent: ActedAgent, **changes: object) -> bytes:
    """Return a manifest whose body says `changes`, signed and sealed as the agent can."""
    plain = agent.pod.manifest(IDS)
    body = msgspec.structs.replace(decode_manifest_body(split_manifest(plain).body), **changes)
    is_foreign = body.domain != agent.pod.domain
    keys = domain_keys("elsewhere") if is_foreign else agent.pod.keys
    return sign_manifest(body, keys, agent.pod.identity_key)


async def test_a_commit_needs_the_chunks_not_the_claim_that_they_are_there(world: ApiWorld) -> None:
    await world.domain("other")
    foreign, agent = await world.agent("other/x"), await world.agent()
    await backed_up(foreign)  # the same ids are live, in another domain
    job, session = await begun(agent)
    manifest = await world.run(agent.pod.manifest, IDS)
    body = await put_lists(agent, session, manifest, full_refs(agent.pod.domain, IDS))
    path = f"/sessions/{session['session']}/commit"
    problem = await agent.refused("POST", path, json=body)
    assert problem["code"] == "missing-chunks"
    assert problem["details"]["missing"] == [chunk.hex() for chunk in IDS]
    stream = await agent.call("POST", f"/grants/{job}/chunks", data=b"".join(IDS))
    assert not any(sealed(chunk) in stream for chunk in IDS)


async def _refused_commit(agent: ActedAgent, manifest: bytes, refs: bytes, seq: int = 1) -> str:
    _, session = await begun(agent)
    await put_pack(agent, session, pack_of(agent.pod.domain, IDS))
    body = await put_lists(agent, session, manifest, refs)
    path = f"/sessions/{session['session']}/commit"
    problem = await agent.refused("POST", path, json=body | {"seq": seq})
    assert (await agent.world.call("GET", "/v1/snapshots"))["items"] == []
    assert problem["code"] in error_classes()
    return str(problem["code"])


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"client": "shop/web-1"}, {"invalid"}),
        ({"domain": domain_keys("elsewhere").domain_id}, {"invalid"}),
        ({"lineage": noise("other lineage", 16)}, {"refused"}),
        ({"identity": noise("other identity")}, {"refused"}),
        ({"seq": 2, "prev": noise("prev")}, {"conflict"}),
        ({"seq": 9, "prev": noise("prev")}, {"conflict"}),
        ({"refs_set": noise("other refs")}, {"invalid"}),
        ({"refs_count": 3}, {"invalid"}),
        ({"epoch_new": 77}, {"invalid"}),
    ],
)
async def test_a_manifest_that_lies_becomes_no_snapshot(
    world: ApiWorld, changes: dict[str, Any], codes: set[str]
) -> None:
    agent = await world.agent()
    manifest = await world.run(body_with, agent, **changes)
    refs = full_refs(agent.pod.domain, IDS)
    seq = changes.get("seq", 1)
    assert await _refused_commit(agent, manifest, refs, seq) in codes


async def test_a_manifest_by_another_key_and_a_siblings_own_become_no_snapshot(
    world: ApiWorld,
) -> None:
    agent, sibling = await world.agent(), await world.agent("shop/web-1")
    refs = full_refs(agent.pod.domain, IDS)
    thief = IdentityKey(noise("thief sign"), noise("thief box"))
    plain = await world.run(agent.pod.manifest, IDS)
    body = decode_manifest_body(split_manifest(plain).body)
    forged = sign_manifest(body, agent.pod.keys, thief)
    assert await _refused_commit(agent, forged, refs) == "refused"
    await world.call("POST", f"/v1/jobs/{agent.heard[-1].job}/cancel")  # type: ignore[attr-defined]
    theirs = await world.run(sibling.pod.manifest, IDS)
    again = await world.connect(agent.pod)
    assert await _refused_commit(again, theirs, refs) == "refused"
    await world.until_event("refused", "shop/db-0")


async def test_refs_that_lie_become_no_snapshot(world: ApiWorld) -> None:
    agent = await world.agent()
    _, session = await begun(agent)
    await put_pack(agent, session, pack_of(agent.pod.domain, IDS))
    path = f"/sessions/{session['session']}/refs/{session['refs']}"
    right = full_refs(agent.pod.domain, IDS)
    for wrong in (
        b"",
        right[:-1],
        right + b"x",
        right[:40] + bytes([right[40] ^ 1]) + right[41:],
        full_refs(domain_keys("elsewhere").domain_id, IDS),
        b"HFRF" + bytes(len(right) - 4),
    ):
        problem = await agent.refused("PUT", path, data=wrong)
        assert problem["code"] in ("invalid", "unsupported-version", "too-large")
    assert not [name for name in world.served.memory.objects if name.startswith("refs/")]
