"""Jobs over the control channel: queued, sent, watched, ended, cancelled, taken up again."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest

from holdfast_contract.protocol.control import (
    Accepted,
    Backup,
    Cancel,
    Counts,
    Failure,
    Finished,
    FinishedSeen,
    JobState,
    Verify,
)
from holdfast_server.catalog import jobs as catalog_jobs
from tests.support.apiworld import ApiWorld, progress, serving
from tests.support.samples import noise
from tests.support.uploads import Served

IDS = sorted(noise(f"chunk {number}") for number in range(3))


@pytest.mark.parametrize(
    ("kind", "missed", "is_told"),
    [("backup", 3, True), ("backup", 0, False), ("backup", "3", False), ("verify", 3, False)],
)
async def test_what_change_hints_had_missed_is_an_event(
    world: ApiWorld, kind: str, missed: object, is_told: bool
) -> None:
    agent = await world.agent()
    snapshot = await agent.snapshot(IDS)
    if kind == "verify":
        body = {"kind": "verify", "snapshot": snapshot.hex()}
        [job] = [row["id"] for row in (await world.call("POST", "/v1/jobs", json=body))["jobs"]]
        await agent.until(Verify)
    else:
        job = (await agent.ordered()).job
        snapshot = await agent.snapshot(IDS, job)
    await agent.end(job, snapshot=snapshot, summary={"hints_missed": missed})
    assert ("hints-missed" in await world.event_kinds(client="shop/db-0")) is is_told
    assert (await world.job(job))["result"]["hints_missed"] == missed


async def test_a_backup_from_its_request_to_its_summary(world: ApiWorld) -> None:
    agent = await world.agent()
    [job] = await world.backup(
        "shop/db-0", paths=["/data"], excludes=["*.tmp"], tags=["nightly"], limit_upload=5000
    )
    order = await agent.until(Backup)
    assert (order.job, order.paths, order.excludes) == (job, [b"/data"], ["*.tmp"])
    assert (order.tags, order.limit_upload, order.dry_run) == (["nightly"], 5000, False)
    assert (order.head_seq, order.head, order.parent) == (0, bytes(32), None)
    assert (order.references, order.damaged, order.epoch_min) == ([], 0, 1)
    await world.in_state(job, "Dispatched")
    await agent.send(Accepted(job=job))
    await world.in_state(job, "Running")
    await agent.send(progress(job, files=3, bytes_sent=70, current=b"/data/\xff", moved=1))
    await world.until_moved(job, 1)
    shown = await world.job(job)
    assert shown["progress"]["files"] == 3
    assert shown["progress"]["files_total"] is None
    assert shown["current"] == "/data/\\xff"
    assert shown["result"] is None
    await agent.send(progress(job, phase="finalizing", files=4, bytes_sent=80, moved=2))
    await world.in_state(job, "Finalizing")
    snapshot = await agent.snapshot(IDS, job)
    names: dict[str, list[str]] = {"skipped": [], "plan": [], "not_exact": []}
    await agent.call("PUT", f"/jobs/{job}/result", json=names)
    told = {"files": 4, "files_new": 4, "bytes_new": 900, "parent": None}
    await agent.end(job, snapshot=snapshot, summary=told, counts=Counts(files=4, bytes_sent=90))
    shown = await world.job(job)
    assert (shown["state"], shown["snapshot"]) == ("Completed", snapshot.hex())
    assert shown["result"]["files_new"] == 4
    assert shown["result"]["skipped"] == []
    assert shown["result"]["seconds"] >= 0
    assert shown["progress"]["bytes_sent"] == 90
    assert shown["started"] and shown["finished"] and shown["error"] is None
    kinds = [row["kind"] for row in (await world.call("GET", f"/v1/jobs/{job}/log"))["items"]]
    expected = ["job-queued", "job-dispatched", "job-running", "job-finalizing", "job-ended"]
    assert [kind for kind in kinds if kind.startswith("job-")] == expected


async def test_a_second_backup_names_head_and_parent_and_may_read_it(world: ApiWorld) -> None:
    agent = await world.agent()
    first = await agent.snapshot(IDS)
    order = await agent.ordered()
    job = order.job
    assert (order.head_seq, order.head) == (1, first)
    assert order.parent is not None
    assert (order.parent.snapshot, order.parent.client) == (first, "shop/db-0")
    assert len(order.parent.refs_object) == 26
    answer = await agent.call("POST", f"/grants/{job}/chunks", data=IDS[0])
    assert answer[:33] == IDS[0] + b"\0"
    await agent.end(job, JobState.FAILED, error=Failure(code="internal", message="m"))
    problem = await agent.refused("POST", f"/grants/{job}/chunks", data=IDS[0])
    assert problem["code"] == "not-found"


async def test_jobs_of_one_client_run_one_at_a_time_in_order(world: ApiWorld) -> None:
    agent = await world.agent()
    first = (await world.backup("shop/db-0"))[0]
    second = (await world.backup("shop/db-0"))[0]
    assert (await agent.until(Backup)).job == first
    assert (await world.job(second))["state"] == "Queued"
    await agent.end(first, JobState.FAILED, error=Failure(code="nothing-read", message="none"))
    assert (await agent.until(Backup, 2)).job == second
    failed = await world.job(first)
    assert (failed["state"], failed["error"]["code"], failed["error"]["exit"]) == (
        "Failed",
        "nothing-read",
        1,
    )


async def test_a_backup_of_an_offline_client_waits_for_it(world: ApiWorld) -> None:
    pod = await world.pod()
    [job] = await world.backup("shop/db-0")
    await world.services.dispatcher.round()
    assert (await world.job(job))["state"] == "Queued"
    agent = await world.connect(pod)
    assert (await agent.until(Backup)).job == job


async def test_not_more_jobs_run_than_the_settings_allow(repository: tuple[Served, str]) -> None:
    async with serving(*repository, jobs_running_max=1) as world:
        first, second = await world.agent("shop/a"), await world.agent("shop/b")
        jobs = await world.backup("shop/a", "shop/b")
        await first.until(Backup)
        await world.services.dispatcher.round()
        assert second.of(Backup) == []
        await first.end(jobs[0], JobState.CANCELLED)
        assert (await second.until(Backup)).job == jobs[1]


async def test_jobs_of_agents_that_are_away_do_not_take_the_room_of_others(
    repository: tuple[Served, str],
) -> None:
    async with serving(*repository, jobs_running_max=1) as world:
        first, second = await world.agent("shop/a"), await world.agent("shop/b")
        jobs = await world.backup("shop/a", "shop/b")
        await first.until(Backup)
        await first.leave()
        assert (await second.until(Backup)).job == jobs[1]


async def test_a_completed_backup_without_its_snapshot_is_not_believed(world: ApiWorld) -> None:
    agent = await world.agent()
    other = await world.agent("shop/db-1")
    foreign = await other.snapshot(IDS)
    for claimed in (None, noise("no snapshot"), foreign):
        [job] = await world.backup("shop/db-0")
        await agent.end(job, snapshot=claimed)
        shown = await world.job(job)
        assert (shown["state"], shown["error"]["code"]) == ("Failed", "internal")
        assert shown["snapshot"] is None


async def test_a_queued_job_is_cancelled_at_once(world: ApiWorld) -> None:
    await world.pod()
    [job] = await world.backup("shop/db-0")
    row = await world.call("POST", f"/v1/jobs/{job}/cancel")
    assert (row["state"], row["error"]["exit"]) == ("Cancelled", 130)
    again = await world.call("POST", f"/v1/jobs/{job}/cancel")
    assert again["state"] == "Cancelled"


async def test_a_running_job_is_cancelled_by_its_agent(world: ApiWorld) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    await agent.send(Accepted(job=job))
    row = await world.call("POST", f"/v1/jobs/{job}/cancel")
    assert not JobState(row["state"]).is_final
    assert row["error"] is None
    assert (await agent.until(Cancel)).job == job
    await agent.end(job, JobState.CANCELLED)
    assert (await world.job(job))["state"] == "Cancelled"


async def test_a_job_whose_agent_is_away_is_cancelled_at_once_and_the_agent_told_later(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    await agent.leave()
    row = await world.call("POST", f"/v1/jobs/{job}/cancel")
    assert row["state"] == "Cancelled"
    back = await world.connect(agent.pod, jobs=[job])
    assert (await back.until(FinishedSeen)).job == job


async def test_an_agent_that_leaves_without_ending_a_cancelled_job_ends_it(
    world: ApiWorld,
) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    await world.call("POST", f"/v1/jobs/{job}/cancel")
    await agent.until(Cancel)
    await agent.leave()
    await world.in_state(job, "Cancelled")


async def test_a_job_goes_on_after_its_agent_came_back(world: ApiWorld) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    await agent.send(Accepted(job=job))
    await world.in_state(job, "Running")
    await agent.leave()
    assert (await world.job(job))["state"] == "Running"
    back = await world.connect(agent.pod, jobs=[job])
    await back.send(progress(job, files=9, moved=5))
    await world.until_moved(job, 5)
    assert back.of(Backup) == []
    assert back.of(FinishedSeen) == []


async def test_an_agent_that_lost_its_journal_is_given_the_job_again(world: ApiWorld) -> None:
    agent = await world.agent()
    [job] = await world.backup("shop/db-0", paths=["/data"])
    first = await agent.until(Backup)
    await agent.leave()
    back = await world.connect(agent.pod)
    assert await back.until(Backup) == first
    assert first.job == job


async def test_jobs_that_the_server_does_not_know_are_called_over(world: ApiWorld) -> None:
    unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    agent = await world.connect(await world.pod(), jobs=[unknown])
    assert (await agent.until(FinishedSeen)).job == unknown


async def test_a_restarted_server_goes_on_with_the_jobs_that_it_had_sent(
    repository: tuple[Served, str],
) -> None:
    async with serving(*repository) as world:
        agent = await world.agent()
        first = await agent.snapshot(IDS)
        job = (await agent.ordered()).job
        await agent.send(Accepted(job=job))
        await world.in_state(job, "Running")
    async with serving(*repository) as world:
        assert (await world.job(job))["state"] == "Running"
        back = await world.connect(agent.pod, jobs=[job])
        answer = await back.call("POST", f"/grants/{job}/chunks", data=IDS[1])
        assert answer[:33] == IDS[1] + b"\0"
        await back.send(progress(job, files=2, moved=1))
        await back.end(job, snapshot=first)
        assert (await world.job(job))["state"] == "Completed"


async def test_a_restarted_server_still_knows_what_was_to_be_cancelled(
    repository: tuple[Served, str],
) -> None:
    served, _ = repository
    async with serving(*repository) as world:
        agent = await world.agent()
        job = (await agent.ordered()).job
        await world.run(
            catalog_jobs.move,
            served.catalog,
            job,
            (JobState.DISPATCHED,),
            JobState.DISPATCHED,
            error=msgspec.convert({"code": "cancelled", "message": "x"}, type=_error_row()),
        )
    async with serving(*repository) as world:
        assert (await world.job(job))["error"] is None
        back = await world.connect(agent.pod, jobs=[job])
        assert (await back.until(Cancel)).job == job


def _error_row() -> Any:
    from holdfast_contract.protocol.http import ErrorRow

    return ErrorRow


async def test_a_job_without_progress_is_ended_while_its_agent_is_connected(
    repository: tuple[Served, str],
) -> None:
    served, _ = repository
    async with serving(*repository, stall_seconds=600) as world:
        agent = await world.agent()
        job = (await agent.ordered()).job
        await agent.send(progress(job, files=1, moved=1))
        await world.in_state(job, "Running")
        await world.until_moved(job, 1)
        served.clock.now += 599 * 10**9
        await world.services.dispatcher.round()
        assert (await world.job(job))["state"] == "Running"
        served.clock.now += 2 * 10**9
        await world.services.dispatcher.round()
        shown = await world.job(job)
        assert (shown["state"], shown["error"]["code"]) == ("Failed", "stalled")
        assert (await agent.until(Cancel)).job == job
        await agent.send(Finished(job=job, state=JobState.CANCELLED))
        await agent.until(FinishedSeen)
        assert (await world.job(job))["state"] == "Failed"


async def test_time_without_a_connection_never_stalls_a_job(
    repository: tuple[Served, str],
) -> None:
    served, _ = repository
    async with serving(*repository, stall_seconds=600) as world:
        agent = await world.agent()
        job = (await agent.ordered()).job
        await agent.leave()
        served.clock.now += 10**6 * 10**9
        await world.services.dispatcher.round()
        assert (await world.job(job))["state"] == "Dispatched"
        await world.connect(agent.pod, jobs=[job])
        await world.services.dispatcher.round()
        assert (await world.job(job))["state"] == "Dispatched"


async def test_an_agent_cannot_end_or_move_the_job_of_another(world: ApiWorld) -> None:
    agent, other = await world.agent(), await world.agent("shop/db-1")
    job = (await agent.ordered()).job
    await other.end(job, JobState.CANCELLED)
    await other.send(progress(job, files=77, moved=3))
    await other.send(Accepted(job=job))
    problem = await other.refused("PUT", f"/jobs/{job}/result", json={})
    assert problem["code"] == "not-found"
    assert (await other.refused("POST", f"/jobs/{job}/session"))["code"] == "not-found"
    shown = await world.job(job)
    assert (shown["state"], shown["progress"]["files"]) == ("Dispatched", 0)


async def test_names_of_a_result_are_shown_for_ten_minutes_and_never_stored(
    repository: tuple[Served, str],
) -> None:
    served, _ = repository
    async with serving(*repository) as world:
        agent = await world.agent()
        job = (await agent.ordered()).job
        row = {"path": "/data/very-secret-name", "reason": "denied", "message": "EACCES"}
        sealed = "c2VhbGVk"
        body = {"skipped": [row], "not_exact_sealed": sealed}
        await agent.call("PUT", f"/jobs/{job}/result", json=body)
        snapshot = await agent.snapshot(IDS)
        await agent.end(job, snapshot=snapshot, skipped_count=1)
        shown = await world.job(job)
        assert shown["state"] == "CompletedWithSkips"
        assert shown["result"]["skipped"] == [row]
        assert shown["not_exact_sealed"] == sealed
        served.clock.now += 601 * 10**9
        shown = await world.job(job)
        assert (shown["result"]["skipped"], shown["result"]["skipped_count"]) == (None, 1)
    kept = b"".join(path.read_bytes() for path in served.folder.rglob("*") if path.is_file())
    assert b"very-secret-name" not in kept


async def test_who_waits_for_a_job_is_answered_when_something_changes(world: ApiWorld) -> None:
    agent = await world.agent()
    job = (await agent.ordered()).job
    waiting = asyncio.create_task(world.call("GET", f"/v1/jobs/{job}?wait=60"))
    # What changed before the question came does not answer it: the agent goes on until it is there.
    async with asyncio.timeout(20):
        for files in itertools.count(1):
            await agent.send(progress(job, files=files, moved=files))
            if (await asyncio.wait([waiting], timeout=0.02))[0]:
                break
    row = await waiting
    assert row["state"] in ("Dispatched", "Running")
    waiting = asyncio.create_task(world.call("GET", f"/v1/jobs/{job}?wait=60"))
    await agent.end(job, JobState.CANCELLED)
    rows = await asyncio.wait_for(waiting, 20)
    assert JobState(rows["state"]).is_final or rows["progress"]["files"] > 0
    over = await asyncio.wait_for(world.call("GET", f"/v1/jobs/{job}?wait=60"), 20)
    assert over["state"] == "Cancelled"


async def test_a_refusal_by_the_pod_is_the_jobs_error(world: ApiWorld) -> None:
    agent = await world.agent()
    job = (await agent.ordered(paths=["/etc"])).job
    failure = Failure(code="outside-roots", message="/etc is outside", hint="see HOLDFAST_ROOTS")
    await agent.end(job, JobState.FAILED, error=failure)
    error = (await world.job(job))["error"]
    assert (error["code"], error["exit"], error["hint"]) == (
        "outside-roots",
        12,
        "see HOLDFAST_ROOTS",
    )
