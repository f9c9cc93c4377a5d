"""Clocks that jump by years in either direction: order stays, nothing stalls, and it is told."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast_contract.clock import rfc3339
from holdfast_contract.protocol.control import JobState
from holdfast_server.auth.certificates import (
    names_to_certify,
    own_certificates,
    server_context,
)
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import enrolment, tokens
from holdfast_server.catalog.clock_jumps import KIND
from holdfast_server.control.clock_watch import AWAY_SECONDS, JUMP_SECONDS
from holdfast_server.control.workers import Workers
from holdfast_server.runtime import renew_certificate
from tests.support.apiworld import ApiWorld, made, progress, serving
from tests.support.samples import ids
from tests.support.uploads import Served, TickingClock

YEARS = [-12, 3]
OVER = "0" * 26
"""A job that has just ended."""
HOUR_NS = 3600 * 10**9


async def jumps(world: ApiWorld) -> list[dict[str, Any]]:
    rows = (await world.call("GET", "/v1/events?limit=1000"))["items"]
    return [row for row in rows if row["kind"] == KIND]


async def doctor_on_clock(world: ApiWorld) -> dict[str, Any]:
    rows = (await world.call("GET", "/v1/doctor"))["items"]
    (found,) = [row for row in rows if row["check"] == "clock"]
    return dict(found)


# --- order and @TIME


@pytest.mark.parametrize("years", YEARS)
async def test_receive_times_never_go_back_and_references_by_time_follow_them(
    repository: tuple[Served, str], years: int
) -> None:
    served, _ = repository
    async with serving(*repository) as world:
        pod = await world.pod()

        async def backup(number: int) -> dict[str, Any]:
            snapshot = await world.run(pod.backup, ids(2, str(number)))
            return dict(await world.call("GET", f"/v1/snapshots/{snapshot.hex()}"))

        made = [await backup(0), await backup(1)]
        served.clock.jump(years)
        made += [await backup(2), await backup(3)]
        served.clock.jump(-years)
        made += [await backup(4)]
        listed = (await world.call("GET", "/v1/snapshots"))["items"]
        assert [row["id"] for row in listed] == [row["id"] for row in made]
        times = [row["time"] for row in made]
        assert times == sorted(times)
        # The newest that was received at or before a moment: of equal times the last one.
        for row in made:
            found = await world.call(
                "GET", f"/v1/snapshots/{pod.name}@{row['time']}".replace("/db", "%2Fdb")
            )
            last = max(at for at, time in enumerate(times) if time <= row["time"])
            assert found["id"] == made[last]["id"]
        found = await world.call("GET", f"/v1/snapshots/{pod.name}@latest".replace("/db", "%2Fdb"))
        assert found["id"] == made[-1]["id"]
        since = (await world.call("GET", f"/v1/snapshots?since={times[2]}"))["items"]
        assert [row["id"] for row in since] == [
            row["id"] for row in made if row["time"] >= times[2]
        ]


@pytest.mark.parametrize("years", YEARS)
def test_a_restart_after_a_jump_keeps_the_order(tmp_path: Path, years: int) -> None:
    served, _ = made(tmp_path)
    served.domain()
    pod = served.pod()
    first = pod.backup(ids(1, "first"))
    served.clock.jump(years)
    served.restart()
    second = pod.backup(ids(1, "second"))
    get = served.repository.history.get
    assert get(first).time_ns <= get(second).time_ns
    assert served.repository.resolve(f"{pod.name}@latest").id == second
    served.stop()


@pytest.mark.parametrize("agent_ns", [0, 1, (1 << 63) - 1])
async def test_an_agents_clock_decides_nothing(world: ApiWorld, agent_ns: int) -> None:
    pod = await world.pod()
    before = world.served.clock.now_ns()
    told = {"started_ns": agent_ns, "agent_time_ns": agent_ns}
    first = await world.run(pod.backup, ids(1, "a"), **told)
    second = await world.run(pod.backup, ids(1, "b"))
    rows = (await world.call("GET", "/v1/snapshots"))["items"]
    assert [row["id"] for row in rows] == [first.hex(), second.hex()]
    assert rfc3339(before) <= rows[0]["time"] <= rows[1]["time"]


# --- what waits


@pytest.mark.parametrize("years", YEARS)
async def test_a_jump_stalls_no_job_and_forgets_no_name(
    repository: tuple[Served, str], years: int
) -> None:
    served, _ = repository
    async with serving(*repository, stall_seconds=600) as world:
        agent = await world.agent()
        job = (await agent.ordered()).job
        await agent.send(progress(job, files=1, current=b"", moved=1))
        await world.in_state(job, "Running")
        world.services.results.put(OVER, b"{}", None)
        world.services.results.ended(OVER)
        served.clock.jump(years)
        await world.services.clock_watch.look()
        await world.services.dispatcher.round()
        assert (await world.job(job))["state"] == JobState.RUNNING.value
        assert world.services.results.get(OVER) == b"{}"
        assert world.services.hub.ready(agent.client) is not None
        # Real standstill is still seen, by what has really passed.
        served.clock.now += 601 * 10**9
        await world.services.dispatcher.round()
        assert (await world.job(job))["state"] == JobState.FAILED.value
        assert world.services.results.get(OVER) is None


# --- tokens and enrolment


def _with_life(served: Served, seconds: int) -> tuple[str, str]:
    """Return secrets of a person's and an enrolment token that live so long from now."""
    person, newcomer = new_token(TokenKind.API), new_token(TokenKind.ENROL)
    until = served.clock.now_ns() + seconds * 10**9
    tokens.create(
        served.catalog, token_hash=hash_token(person), role="admin", domains=[], expires_ns=until
    )
    enrolment.create(
        served.catalog,
        token_hash=hash_token(newcomer),
        domain="shop",
        client=None,
        expires_ns=until,
    )
    return person, newcomer


async def _counts(world: ApiWorld, person: str, newcomer: str) -> tuple[bool, bool]:
    """Tell which of two tokens the server takes."""
    async with await world.request("GET", "/v1/status", token=person) as response:
        is_person = response.status == 200
    async with await world.request(
        "POST", "/agent/v1/enrol/begin", token=newcomer, json={}
    ) as response:
        is_newcomer = response.status != 401
    return is_person, is_newcomer


async def test_a_token_that_is_over_does_not_live_again_when_the_clock_goes_back(
    world: ApiWorld,
) -> None:
    served = world.served
    secrets = await world.run(_with_life, served, 3600)
    assert await _counts(world, *secrets) == (True, True)
    served.clock.now += 2 * HOUR_NS
    assert await _counts(world, *secrets) == (False, False)
    served.clock.jump(-3)
    assert await _counts(world, *secrets) == (False, False)
    # One without an end is no question of time.
    assert (await world.call("GET", "/v1/status"))["version"]


@pytest.mark.parametrize("years", YEARS)
async def test_tokens_count_again_when_the_clock_is_right_again(
    world: ApiWorld, years: int
) -> None:
    served = world.served
    secrets = await world.run(_with_life, served, 86_400)
    served.clock.jump(years)
    assert await _counts(world, *secrets) == (False, False)
    await world.services.clock_watch.look()
    assert len(await jumps(world)) == 1, "it is told why tokens do not count"
    served.clock.jump(-years)
    assert await _counts(world, *secrets) == (True, True)


async def test_a_small_correction_costs_no_token(world: ApiWorld) -> None:
    served = world.served
    secrets = await world.run(_with_life, served, 3600)
    served.clock.jumped_ns -= (JUMP_SECONDS - 1) * 10**9
    assert await _counts(world, *secrets) == (True, True)


# --- it is told


@pytest.mark.parametrize("years", YEARS)
async def test_a_jump_is_an_event_and_a_warning(world: ApiWorld, years: int) -> None:
    clock, watch = world.served.clock, world.services.clock_watch
    assert (await doctor_on_clock(world))["state"] == "ok"
    assert await watch.look() is None
    clock.jump(years)
    found = await watch.look()
    assert found is not None and abs(found.seconds - years * 365 * 86_400) <= 1
    (event,) = await jumps(world)
    assert event["details"]["seconds"] == found.seconds
    assert (event["details"]["from"] < event["details"]["to"]) == (years > 0)
    told = await doctor_on_clock(world)
    assert told["state"] == "warn"
    assert ("forward" if years > 0 else "back") in told["message"]
    # Once, however often it is looked.
    assert await watch.look() is None
    clock.now += 8 * 24 * HOUR_NS
    assert await watch.look() is None
    assert len(await jumps(world)) == 1
    assert (await doctor_on_clock(world))["state"] == "ok"


async def test_corrections_and_passing_time_are_no_jumps(world: ApiWorld) -> None:
    clock, watch = world.served.clock, world.services.clock_watch
    for seconds in (JUMP_SECONDS - 2, -JUMP_SECONDS + 2, 30):
        clock.jumped_ns += seconds * 10**9
        clock.now += HOUR_NS
        assert await watch.look() is None
    assert await jumps(world) == []


async def test_a_jump_while_the_server_was_away_is_told_at_its_start(
    repository: tuple[Served, str],
) -> None:
    served, _ = repository
    away_years = AWAY_SECONDS / (365 * 86_400)
    async with serving(*repository) as world:
        await world.services.events.add("server-stopped", "server stopped")
    told = []
    for years in (away_years / 2, -0.9 * away_years, 5, -5):
        served.clock.jump(years)
        async with serving(*repository) as world:
            await world.services.events.add("server-stopped", "server stopped")
            told.append(len(await jumps(world)))
    # Half a week away is nothing; back, forward by years, and back again each are.
    assert told == [0, 1, 2, 3]


async def test_whoever_depends_on_the_clock_is_asked_after_a_jump(world: ApiWorld) -> None:
    asked: list[int] = []

    async def look() -> None:
        asked.append(world.served.clock.jumped_ns)

    world.services.clock_watch.after_jump = look
    await world.services.clock_watch.look()
    assert asked == []
    world.served.clock.jump(2)
    await world.services.clock_watch.look()
    assert asked == [world.served.clock.jumped_ns]


async def test_a_certificate_made_by_a_wrong_clock_is_renewed_when_it_is_right(
    tmp_path: Path,
) -> None:
    clock, workers = TickingClock(), Workers(1)
    listen = SimpleNamespace(host="127.0.0.1", port=0)
    config = SimpleNamespace(tls_cert=None, tls_key=None, listen=listen, tls_names=())
    start: Any = SimpleNamespace(config=config, directory=SimpleNamespace(tls=tmp_path / "tls"))
    services: Any = SimpleNamespace(workers=workers, clock=clock)
    names = names_to_certify("127.0.0.1", ())
    authority = await workers.run(own_certificates, tmp_path / "tls", names, clock)
    clock.jump(2)
    files = await workers.run(own_certificates, tmp_path / "tls", names, clock)
    context = await workers.run(server_context, files)
    wrong = files.certificate.read_bytes()
    clock.jump(-2)
    await renew_certificate(start, services, context)
    assert files.certificate.read_bytes() != wrong
    assert files == authority
    # What cannot be renewed now is tried again later; the server goes on with what it has.
    await workers.run(shutil.rmtree, tmp_path / "tls")
    await workers.run((tmp_path / "tls").write_bytes, b"")
    await renew_certificate(start, services, context)
    await asyncio.to_thread(workers.close)
