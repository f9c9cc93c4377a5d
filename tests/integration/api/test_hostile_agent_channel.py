"""A compromised agent against the real server: identity, messages, results, damage reports."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from holdfast_contract.limits import AGENT_MESSAGE_BYTES_MAX, COUNT_MAX, MIB
from holdfast_contract.protocol.control import (
    Backup,
    Counts,
    Failure,
    Finished,
    FinishedSeen,
    JobState,
    Progress,
    Query,
    Refuse,
    encode,
)
from holdfast_server.auth.tokens import TokenKind, new_token
from holdfast_server.control import reception, shares
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.backups import backed_up, begun, ended
from tests.support.raw_http import Wire, head
from tests.support.uploads import Pod

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def proved(world: ApiWorld, pod: Pod) -> ActedAgent:
    """Open a channel and say hello, whatever comes of it."""
    agent = ActedAgent(world, pod)
    world.agents.append(agent)
    await agent.open()
    return agent


# --- one identity, two agents
async def test_the_newer_proof_wins_the_older_agent_is_told_and_it_is_recorded(
    world: ApiWorld,
) -> None:
    pod = await world.pod()
    older = await world.connect(pod)
    _, session = await begun(older)
    newer = await world.connect(pod)
    refusal = await older.until(Refuse)
    assert refusal.code == "fenced"
    await older.until_closed()
    base = f"/sessions/{session['session']}"
    for method, path in (
        ("GET", "/domain"),
        ("POST", f"{base}/have"),
        ("PUT", f"{base}/packs/{session['packs'][0]}"),
        ("POST", f"{base}/commit"),
    ):
        assert (await older.refused(method, path, data=b""))["code"] == "not-authenticated"
    assert (await newer.call("GET", "/domain")).startswith(b"HFDM")
    assert (await newer.until(Backup)).job  # goes on where the older one was
    assert (await world.event_kinds(client="shop/db-0")).count("fenced") == 1


async def test_two_that_fence_each_other_for_ever_are_slowed_down_and_nobody_else_is(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "PROOFS_BURST", 6)
    monkeypatch.setattr(reception, "PROOFS_PER_SECOND", 0.001)
    pod, other = await world.pod(), await world.agent("shop/web-1")
    for _ in range(6):
        last = await world.connect(pod)
    for _ in range(5):
        refused = await proved(world, pod)
        assert (await refused.until(Refuse)).code == "too-many"
        await refused.until_closed()
    # The last one that was let in still works: nobody is fenced by who was refused.
    assert (await last.call("GET", "/domain")).startswith(b"HFDM")
    kinds = await world.event_kinds(client="shop/db-0")
    assert (kinds.count("fenced"), kinds.count("connected")) == (5, 6)
    assert kinds.count("refused") == 1  # the others are counted with it
    again = await world.connect(other.pod)
    assert (await again.call("GET", "/domain")).startswith(b"HFDM")


def test_a_lone_agent_that_comes_back_is_never_too_fast() -> None:
    """Its back-off reaches eight seconds on average; a minute of short connections is let in."""
    time = 0.0
    pace = shares.Pace(
        lambda: time, per_second=reception.PROOFS_PER_SECOND, burst=reception.PROOFS_BURST
    )
    for _ in range(1000):
        assert pace.step() == 0
        time += 2.5


def test_a_pace_lets_a_burst_through_then_so_many_a_second() -> None:
    time = 0.0
    pace = shares.Pace(lambda: time, per_second=10, burst=3)
    assert [pace.step() for _ in range(3)] == [0, 0, 0]
    assert pace.step() == pytest.approx(0.1)
    for _ in range(100):
        assert pace.step() == pytest.approx(0.1)
    time += 1000
    assert [pace.step() for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]


async def test_a_wrong_proof_is_recorded(world: ApiWorld) -> None:
    pod = await world.pod()
    agent = ActedAgent(world, pod)
    world.agents.append(agent)
    await agent.open(signature=bytes(64))
    assert (await agent.until(Refuse)).code == "not-authenticated"
    await world.until_event("refused", "")


async def test_a_flood_of_nobodies_hides_nothing_that_a_client_does(world: ApiWorld) -> None:
    agent = await world.agent()
    for _ in range(60):
        await world.refused("GET", "/v1/status", token=new_token(TokenKind.API))
    await agent.send_frame(b"x")
    await agent.until_closed()
    await world.until_event("refused", "shop/db-0")
    kinds = await world.event_kinds()
    assert kinds.count("refused") < 10


# --- messages
async def test_a_flood_of_messages_waits_in_the_socket_and_others_are_served(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "MESSAGES_BURST", 5)
    monkeypatch.setattr(reception, "MESSAGES_PER_SECOND", 0.001)
    flooder, other = await world.agent(), await world.agent("shop/web-1")
    for _ in range(200):
        await flooder.send(Finished(job=ULID, state=JobState.COMPLETED))
    await flooder.until(FinishedSeen, 5)
    job, snapshot = await backed_up(other)
    await ended(other, job, snapshot)
    assert len(flooder.of(FinishedSeen)) == 5


async def test_a_flood_of_progress_keeps_the_last_of_it_only(world: ApiWorld) -> None:
    agent = await world.agent()
    job, _ = await begun(agent)
    for number in range(400):
        counts = Counts(files=number)
        message = Progress(
            job=job, phase="running", counts=counts, current=b"/" * 60_000, moved=number
        )
        await agent.send(message)

    async def is_last() -> bool:
        return bool((await world.job(job))["progress"]["files"] == 399)

    await world.until(is_last)
    assert len(world.services.live.all()) == 1
    kinds = await world.event_kinds(client="shop/db-0")
    assert len(kinds) < 10


def raw(kind: str, **fields: object) -> bytes:
    """Return a message that need not keep to the vocabulary."""
    return msgspec.msgpack.encode({"t": kind} | fields)


COUNTS = {"files": 0, "bytes": 0, "bytes_sent": 0, "files_total": 0, "bytes_total": 0}
BEYOND = COUNT_MAX + 1
MESSAGES = {
    "too long": b"\x81\xa1t" + bytes(AGENT_MESSAGE_BYTES_MAX),
    "progress beyond counting": raw(
        "progress", job=ULID, phase="running", counts=COUNTS | {"files": BEYOND}
    ),
    "moved beyond counting": raw(
        "progress", job=ULID, phase="running", counts=COUNTS, moved=BEYOND
    ),
    "progress below nothing": raw(
        "progress", job=ULID, phase="running", counts=COUNTS | {"files": -1}
    ),
    "another phase": raw("progress", job=ULID, phase="rm -rf /", counts=COUNTS),
    "skips beyond counting": raw("finished", job=ULID, state="Completed", skipped_count=BEYOND),
    "a summary of 65 fields": raw(
        "finished", job=ULID, state="Failed", summary={f"n{number}": 1 for number in range(65)}
    ),
    "a summary with a long name": raw("finished", job=ULID, state="Failed", summary={"n" * 65: 1}),
    "a summary with a tree in it": raw("finished", job=ULID, state="Failed", summary={"n": [[1]]}),
    "another state": raw("finished", job=ULID, state="Exploded"),
    "no job": raw("finished", job="../" + ULID[3:] + "x", state="Failed"),
    "a word of the server": raw("welcome", client="x", token="y"),
    "an unknown field": raw("accepted", job=ULID, run="/bin/sh"),
    "deep": b"\x91" * 200_000,
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_message_outside_the_protocol_ends_that_connection_and_is_recorded(
    world: ApiWorld, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent, other = await world.agent(), await world.agent("shop/web-1")
    job, _ = await begun(agent)
    frame = MESSAGES[name].replace(ULID.encode(), job.encode())
    await agent.send_frame(frame)
    await agent.until_closed()
    if name != "too long":  # that one is the carrier's to refuse
        await world.until_event("refused", "shop/db-0")
    await world.until(lambda: world.services.hub.connected(agent.client) is None)
    assert not [record for record in caplog.records if record.exc_info]
    assert (await world.job(job))["state"] in ("Dispatched", "Running")
    back = await world.connect(agent.pod)
    assert (await back.until(Backup)).job == job
    assert (await other.call("GET", "/domain")).startswith(b"HFDM")


async def test_numbers_at_their_ends_are_kept_and_shown(world: ApiWorld) -> None:
    agent = await world.agent()
    job, _ = await begun(agent)
    summary = {"files": COUNT_MAX, "least": -COUNT_MAX, "none": None, "nan": float("nan")}
    finished = Finished(
        job=job,
        state=JobState.FAILED,
        counts=Counts(files=COUNT_MAX),
        summary=summary,  # type: ignore[arg-type]
        skipped_count=COUNT_MAX,
        not_exact_count=COUNT_MAX,
        error=Failure(code="\0", message="\x1b[31m", details={"x": [[{}]]}),
    )
    await agent.send(finished)
    await agent.until(FinishedSeen)
    row = await world.job(job)
    assert row["state"] == "Failed"
    assert row["result"]["files"] == COUNT_MAX
    assert row["result"]["skipped_count"] == COUNT_MAX


async def test_the_word_of_an_agent_about_others_jobs_is_nothing(world: ApiWorld) -> None:
    liar, victim = await world.agent(), await world.agent("shop/web-1")
    job, _ = await begun(victim)
    await liar.send(Progress(job=job, phase="finalizing", counts=Counts(files=7)))
    await liar.send(Finished(job=job, state=JobState.COMPLETED))
    await liar.until(FinishedSeen)
    row = await world.job(job)
    assert (row["state"], row["progress"]["files"]) == ("Dispatched", 0)
    assert (await liar.refused("PUT", f"/jobs/{job}/result", json={}))["code"] == "not-found"
    mine, _ = await begun(liar)
    await liar.send(Finished(job=mine, state=JobState.COMPLETED, snapshot=bytes(32)))
    await liar.until(FinishedSeen, 2)
    assert (await world.job(mine))["state"] == "Failed"


# --- answers to queries
async def test_answers_come_from_who_was_asked_and_once(world: ApiWorld) -> None:
    asked, other = await world.agent(), await world.agent("shop/web-1")
    body = {"kind": "browse", "client": "shop/db-0", "path": "/data"}
    asking = asyncio.create_task(world.call("POST", "/v1/queries", json=body))
    query = (await asked.until(Query)).query
    assert (await other.refused("POST", f"/answers/{query}", data=b"lie"))["code"] == "not-found"
    wrong = {"Holdfast-Error": "not a failure"}
    problem = await asked.refused("POST", f"/answers/{query}", headers=wrong)
    assert problem["code"] == "invalid"
    long = {"Holdfast-Error": json.dumps({"code": "x", "message": "y" * 20_000})}
    problem = await asked.refused("POST", f"/answers/{query}", headers=long)
    assert problem["code"] == "invalid"
    await asked.call("POST", f"/answers/{query}", data=b'{"path":"/data"}\n')
    assert await asking == b'{"path":"/data"}\n'
    for _ in range(3):
        problem = await asked.refused("POST", f"/answers/{query}", data=b"more")
        assert problem["code"] == "not-found"


async def test_an_answer_without_an_end_goes_only_as_fast_as_it_is_read(world: ApiWorld) -> None:
    agent = await world.agent()
    body = {"kind": "browse", "client": "shop/db-0", "path": "/data"}
    asking = await Wire.open(world.port)
    data = json.dumps(body).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(data)}")
    await asking.send(head("POST", "/v1/queries", *lines, token=world.token) + data)
    query = (await agent.until(Query)).query
    answering = await Wire.open(world.port)
    start = head(
        "POST", f"/agent/v1/answers/{query}", "Transfer-Encoding: chunked", token=agent.token
    )
    await answering.send(start)
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    sent = 0
    while sent < 256:
        answering.writer.write(chunk)
        sent += 1
        try:
            async with asyncio.timeout(1):
                await answering.writer.drain()
        except TimeoutError:
            break
    # The asker reads nothing: what it does not take stays with the agent.
    assert sent < 64
    assert (await agent.call("GET", "/domain")).startswith(b"HFDM")
    await asking.close()
    await answering.close()


def test_messages_are_short_enough_to_hold_one_for_every_stranger() -> None:
    assert AGENT_MESSAGE_BYTES_MAX * reception.UNPROVEN_MAX <= 320 * MIB
    paths = [bytes(4095)] * 16
    agent_hello = Progress(job=ULID, phase="running", counts=Counts(), current=b"/" * 65_536)
    assert len(encode(agent_hello)) + sum(map(len, paths)) < AGENT_MESSAGE_BYTES_MAX
