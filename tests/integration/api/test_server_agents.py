"""Agents as the server sees them: enrolment, proof, fencing, settings, revocation."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import (
    Backup,
    Challenge,
    Mode,
    NewSettings,
    Refuse,
    Welcome,
    decode_to_agent,
)
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.samples import noise
from tests.support.uploads import Pod


class Newcomer(Pod):
    """A pod that is not enrolled."""

    def enrol(self, **changes: object) -> bytes:
        return bytes(32)


def newcomer(world: ApiWorld, name: str = "shop/new-0", key: str = "") -> Newcomer:
    pod = Newcomer(world.served, ClientName.parse(name))
    if key:
        pod.identity_key = IdentityKey(noise(f"sign {key}"), noise(f"box {key}"))
    return pod


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def begin(world: ApiWorld, token: str, pod: Pod, client: str | None) -> dict[str, Any]:
    body = {"client": client, "sign_key": b64(pod.identity_key.sign_public)}
    found: dict[str, Any] = await world.call(
        "POST", "/agent/v1/enrol/begin", token=token, json=body
    )
    return found


async def finish(world: ApiWorld, token: str, pod: Pod, **changes: Any) -> dict[str, Any]:
    body = {"client": str(pod.name), "record": b64(pod.identity_record(**changes))}
    found: dict[str, Any] = await world.call(
        "POST", "/agent/v1/enrol/finish", token=token, json=body
    )
    return found


async def state_of(world: ApiWorld, client: str = "shop/db-0") -> str:
    found = await world.call("GET", f"/v1/clients/{client}")
    return str(found["state"])


# --- enrolment
async def test_a_newcomer_enrols_and_connects(world: ApiWorld) -> None:
    token = await world.enrol_token()
    pod = newcomer(world)
    offer = await begin(world, token, pod, "new-0")
    assert offer["client"] == "shop/new-0"
    assert base64.b64decode(offer["domain"]) == pod.domain
    assert base64.b64decode(offer["domain_record"]).startswith(b"HFDM")
    assert (offer["identity"], offer["head"], offer["head_seq"]) == (None, None, 0)
    assert (await world.call("GET", "/v1/clients"))["items"] == []
    answer = await finish(world, token, pod)
    pod.identity = base64.b64decode(answer["identity"])
    await world.connect(pod)
    assert await state_of(world, "shop/new-0") == "connected"
    assert "enrolled" in await world.event_kinds(client="shop/new-0")


async def test_the_same_token_with_the_same_key_works_again_and_with_another_never(
    world: ApiWorld,
) -> None:
    token = await world.enrol_token()
    pod = newcomer(world)
    first = await finish(world, token, pod)
    assert await finish(world, token, pod) == first
    assert (await begin(world, token, pod, "new-0"))["client"] == "shop/new-0"
    thief = newcomer(world, "shop/new-0", key="thief")
    body = {"client": "x", "sign_key": b64(thief.identity_key.sign_public)}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=token, json=body)
    assert problem["code"] == "not-authenticated"
    record = b64(thief.identity_record(previous=base64.b64decode(first["identity"])))
    body = {"client": "shop/new-0", "record": record}
    problem = await world.refused("POST", "/agent/v1/enrol/finish", token=token, json=body)
    assert problem["code"] == "not-authenticated"


async def test_a_name_that_is_taken_is_refused_unless_the_token_is_for_it(
    world: ApiWorld,
) -> None:
    old = await world.pod("shop/db-0")
    pod = newcomer(world, "shop/db-0", key="another key")
    token = await world.enrol_token()
    body = {"client": "db-0", "sign_key": b64(pod.identity_key.sign_public)}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=token, json=body)
    assert (problem["code"], problem["exit"]) == ("conflict", 11)
    record = b64(pod.identity_record(previous=old.identity))
    body = {"client": "shop/db-0", "record": record}
    problem = await world.refused("POST", "/agent/v1/enrol/finish", token=token, json=body)
    assert problem["code"] == "conflict"
    mine = await world.enrol_token(client="db-0")
    offer = await begin(world, mine, pod, None)
    assert base64.b64decode(offer["identity"]).startswith(b"HFID")
    answer = await finish(world, mine, pod, previous=old.identity, reason="key lost")
    pod.identity = base64.b64decode(answer["identity"])
    await world.connect(pod)
    assert "enrolled-again" in await world.event_kinds(client="shop/db-0")


async def test_a_token_of_one_domain_enrols_nobody_in_another(world: ApiWorld) -> None:
    await world.domain("other")
    token = await world.enrol_token()
    pod = newcomer(world, "other/new-0")
    body = {"client": "other/new-0", "sign_key": b64(pod.identity_key.sign_public)}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=token, json=body)
    assert problem["code"] == "conflict"
    body = {"client": "other/new-0", "record": b64(pod.identity_record())}
    problem = await world.refused("POST", "/agent/v1/enrol/finish", token=token, json=body)
    assert problem["code"] == "conflict"


@pytest.mark.parametrize("client", [None, "UPPER", "a/b/c", ""])
async def test_a_newcomer_without_a_usable_name_is_refused(
    world: ApiWorld, client: str | None
) -> None:
    token = await world.enrol_token()
    body = {"client": client, "sign_key": b64(bytes(range(32)))}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=token, json=body)
    assert problem["code"] in ("invalid", "conflict")


# --- the proof
@pytest.mark.parametrize(
    "changes",
    [
        {"signature": bytes(64)},
        {"identity": bytes(32)},
        {"client": "shop/db-1"},
        {"client": "shop/nobody"},
        {"client": "not a name"},
        {"protocol": 2},
    ],
)
async def test_a_wrong_proof_is_refused_and_nothing_is_connected(
    world: ApiWorld, changes: dict[str, Any]
) -> None:
    await world.pod("shop/db-1")
    agent = ActedAgent(world, await world.pod())
    world.agents.append(agent)
    await agent.open(**changes)
    refusal = await agent.until(Refuse)
    expected = "unsupported-version" if "protocol" in changes else "not-authenticated"
    assert refusal.code == expected
    await agent.until_closed()
    assert agent.of(Welcome) == []
    assert len(world.services.hub) == 0


async def test_a_proof_for_another_challenge_is_refused(world: ApiWorld) -> None:
    agent = ActedAgent(world, await world.pod())
    world.agents.append(agent)
    old = agent.hello(b"o" * 32)
    await agent.open(signature=old.signature)
    assert (await agent.until(Refuse)).code == "not-authenticated"


async def test_each_connection_gets_a_challenge_of_its_own(world: ApiWorld) -> None:
    pod = await world.pod()
    first, second = await world.connect(pod), await world.connect(pod)
    assert first.of(Challenge)[0].nonce != second.of(Challenge)[0].nonce


async def test_a_newer_proof_fences_the_older_connection(world: ApiWorld) -> None:
    pod = await world.pod()
    older = await world.connect(pod)
    newer = await world.connect(pod)
    assert (await older.until(Refuse)).code == "fenced"
    await older.until_closed()
    assert (await older.refused("GET", "/domain"))["code"] == "not-authenticated"
    assert (await newer.call("GET", "/domain")).startswith(b"HFDM")
    assert await state_of(world) == "connected"
    assert "fenced" in await world.event_kinds(client="shop/db-0")


@pytest.mark.parametrize("frame", [b"", b"\x80", b"\xc1", b"\x81\xa1t\xa4exec", b"x" * 4096])
async def test_what_is_no_message_ends_the_connection(world: ApiWorld, frame: bytes) -> None:
    agent = await world.agent()
    await agent.send_frame(frame)
    await agent.until_closed()
    await world.until(lambda: len(world.services.hub) == 0)
    assert "refused" in await world.event_kinds(client="shop/db-0")


async def test_a_message_longer_than_allowed_ends_the_connection(world: ApiWorld) -> None:
    agent = await world.agent()
    await agent.send_frame(b"\x81\xa1t" + bytes((1 << 20) + 1))
    await agent.until_closed()
    await world.until(lambda: len(world.services.hub) == 0)


async def test_a_second_hello_ends_the_connection(world: ApiWorld) -> None:
    agent = await world.agent()
    await agent.send(agent.hello(bytes(32)))
    await agent.until_closed()


async def test_a_connection_that_never_says_hello_takes_no_part(world: ApiWorld) -> None:
    async with world.http.ws_connect("/agent/v1/control") as socket:
        challenge = decode_to_agent((await socket.receive()).data)
        assert isinstance(challenge, Challenge)
        assert len(world.services.hub) == 0


# --- what is shown and set
async def test_a_client_shows_what_its_agent_said_and_goes_offline_with_it(
    world: ApiWorld,
) -> None:
    agent = await world.agent(
        roots=[b"/data", b"/caf\xe9"], restore=Mode.ALTERNATE, restore_roots=[b"/restore"]
    )
    [row] = (await world.call("GET", "/v1/clients"))["items"]
    assert (row["name"], row["domain"], row["state"]) == ("shop/db-0", "shop", "connected")
    assert row["roots"] == ["/data", "/caf\\xe9"]
    assert (row["restore"], row["restore_roots"], row["browse"]) == (
        "alternate",
        ["/restore"],
        "names",
    )
    assert (row["version"], row["last_snapshot"]) == ("0.1.0", None)
    shown = await world.call("GET", "/v1/clients/shop/db-0")
    assert shown["sign_key"] == agent.pod.identity_key.sign_public.hex()
    assert shown["identity"] == agent.pod.identity.hex()
    await agent.leave()
    assert await state_of(world) == "offline"
    await world.until_event("disconnected", "shop/db-0")
    kinds = await world.event_kinds(client="shop/db-0")
    assert [kind for kind in kinds if "connected" in kind] == ["connected", "disconnected"]


async def test_limits_reach_a_connected_agent_at_once_and_a_later_one_at_its_welcome(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    row = await world.call("PATCH", "/v1/clients/shop/db-0", json={"limit_upload": 1000})
    assert (row["limit_upload"], row["limit_download"]) == (1000, 0)
    assert (await agent.until(NewSettings)).settings.limit_upload == 1000
    await world.call("PATCH", "/v1/clients/shop/db-0", json={"limit_download": 7})
    back = await world.connect(agent.pod)
    settings = back.of(Welcome)[0].settings
    assert (settings.limit_upload, settings.limit_download) == (1000, 7)


async def test_a_revoked_client_is_out_at_once_and_its_jobs_with_it(world: ApiWorld) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    later = (await world.backup("shop/db-0"))[0]
    row = await world.call("POST", "/v1/clients/shop/db-0/revoke")
    assert row["state"] == "revoked"
    assert (await agent.refused("GET", "/domain"))["code"] == "not-authenticated"
    await agent.until_closed()
    for ended in (job, later):
        assert (await world.job(ended))["error"]["code"] == "refused"
    again = ActedAgent(world, agent.pod)
    world.agents.append(again)
    await again.open()
    assert (await again.until(Refuse)).code == "not-authenticated"
    assert again.of(Welcome) == []
    body = {"kind": "backup", "clients": ["shop/db-0"]}
    assert (await world.refused("POST", "/v1/jobs", json=body))["code"] == "refused"
    assert await state_of(world) == "revoked"


async def test_a_revoked_client_comes_back_by_a_token_made_for_it(world: ApiWorld) -> None:
    old = await world.pod()
    await world.call("POST", "/v1/clients/shop/db-0/revoke")
    token = await world.enrol_token(client="db-0")
    pod = newcomer(world, "shop/db-0", key="fresh")
    answer = await finish(world, token, pod, previous=old.identity, reason="key lost")
    pod.identity = base64.b64decode(answer["identity"])
    await world.connect(pod)
    assert await state_of(world) == "connected"


async def test_only_a_client_without_snapshots_can_be_forgotten(world: ApiWorld) -> None:
    agent = await world.agent()
    await world.run(agent.pod.backup, [noise("c")])
    problem = await world.refused("DELETE", "/v1/clients/shop/db-0")
    assert problem["code"] == "conflict"
    idle = await world.agent("shop/db-1")
    await world.call("DELETE", "/v1/clients/shop/db-1")
    await idle.until_closed()
    problem = await world.refused("GET", "/v1/clients/shop/db-1")
    assert (problem["code"], problem["exit"]) == ("not-found", 10)


async def test_an_accepted_history_is_told_with_the_next_backup_only(world: ApiWorld) -> None:
    agent = await world.agent()
    first = await world.run(agent.pod.backup, [noise("c")])
    await world.call("POST", "/v1/clients/shop/db-0/accept")
    order = await agent.ordered()
    job = order.job
    assert (order.accepted, order.head) == (True, first)
    await world.run(agent.pod.backup, [noise("c")])
    await world.call("POST", f"/v1/jobs/{job}/cancel")
    back = await world.connect(agent.pod)
    await world.until(lambda: True)
    later = (await world.backup("shop/db-0"))[0]
    async with asyncio.timeout(20):
        while not [order for order in back.of(Backup) if order.job == later]:
            await world.call("POST", f"/v1/jobs/{job}/cancel")
            await asyncio.sleep(0.01)
    assert not next(order for order in back.of(Backup) if order.job == later).accepted


async def test_an_agent_exchanges_its_record_but_not_its_key(world: ApiWorld) -> None:
    agent = await world.agent()
    pod = agent.pod
    record = pod.identity_record(previous=pod.identity, reason="key corrected", time_ns=5)
    body = {"client": "shop/db-0", "record": b64(record)}
    answer = await agent.call("PUT", "/identity", json=body)
    new = base64.b64decode(answer["identity"])
    assert (await agent.call("GET", f"/identities/{new.hex()}")) == record
    stranger = pod.identity_record(previous=new, sign_key=noise("stranger"), time_ns=6)
    body = {"client": "shop/db-0", "record": b64(stranger)}
    assert (await agent.refused("PUT", "/identity", json=body))["code"] == "invalid"
    body = {"client": "shop/db-1", "record": b64(record)}
    assert (await agent.refused("PUT", "/identity", json=body))["code"] == "invalid"
    pod.identity = new
    await world.connect(pod)


async def test_an_agent_reads_identities_of_its_own_domain_only(world: ApiWorld) -> None:
    await world.domain("other")
    agent, foreign = await world.agent(), await world.pod("other/x")
    sibling = await world.pod("shop/db-1")
    assert await agent.call("GET", f"/identities/{sibling.identity.hex()}")
    problem = await agent.refused("GET", f"/identities/{foreign.identity.hex()}")
    absent = await agent.refused("GET", f"/identities/{'00' * 32}")
    assert problem["code"] == absent["code"] == "not-found"
    assert problem["detail"] == absent["detail"]


# --- domains, tokens, events
async def test_domains_are_made_shown_and_given_newer_records(world: ApiWorld) -> None:
    from tests.support.uploads import domain_record

    body = {"name": "blog", "record": b64(domain_record("blog"))}
    row = await world.call("POST", "/v1/domains", json=body)
    assert (row["name"], row["revision"], row["clients"]) == ("blog", 1, 0)
    assert await world.call("GET", "/v1/domains/blog/record") == domain_record("blog")
    newer = domain_record("blog", revision=2)
    row = await world.call("PUT", "/v1/domains/blog/record", json={"record": b64(newer)})
    assert row["revision"] == 2
    names = [row["name"] for row in (await world.call("GET", "/v1/domains"))["items"]]
    assert names == ["blog", "shop"]
    page = await world.call("GET", "/v1/domains?limit=1")
    assert (page["next"], len(page["items"])) == ("blog", 1)
    other = {"name": "shop", "record": b64(domain_record("shop", created_ns=1))}
    assert (await world.refused("POST", "/v1/domains", json=other))["code"] == "conflict"


async def test_tokens_show_their_secret_once_and_die_when_revoked(world: ApiWorld) -> None:
    body = {"role": "admin", "label": "laptop", "ttl_seconds": 60}
    made_row = await world.call("POST", "/v1/tokens", json=body)
    assert made_row["token"].startswith("hfa_")
    listed = (await world.call("GET", "/v1/tokens"))["items"]
    assert [row["token"] for row in listed] == [None, None]
    assert listed[-1]["label"] == "laptop"
    assert listed[-1]["expires"] is not None
    world.served.clock.now += 61 * 10**9
    problem = await world.refused("GET", "/v1/status", token=made_row["token"])
    assert problem["code"] == "not-authenticated"
    secret = await world.enrol_token(client="db-7")
    [row] = (await world.call("GET", "/v1/enrol-tokens"))["items"]
    assert (row["client"], row["token"], row["used"]) == ("shop/db-7", None, None)
    await world.call("DELETE", f"/v1/enrol-tokens/{row['id']}")
    body = {"sign_key": b64(bytes(range(32)))}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=secret, json=body)
    assert problem["code"] == "not-authenticated"
    kinds = await world.event_kinds()
    assert kinds.count("token-created") == 2
    assert "token-revoked" in kinds


async def test_who_follows_events_is_told_at_once(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast_server.api.events.LOOK_AGAIN_SECONDS", 60.0)
    listing = await world.call("GET", "/v1/events?limit=1000")
    last = listing["items"][-1]["id"] if listing["items"] else 0
    following = asyncio.create_task(world.call("GET", f"/v1/events?after={last}&wait=60"))
    await world.call("POST", "/v1/tokens", json={"role": "admin"})
    found = await asyncio.wait_for(following, 20)
    assert [row["kind"] for row in found["items"]] == ["token-created"]
    assert found["items"][0]["id"] > last
