"""What the server keeps in memory: progress, names of results, who waits for what."""

from __future__ import annotations

import asyncio

from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import Counts, Progress
from holdfast_server.control.live import LiveJobs
from holdfast_server.control.notices import Notices, wait_at_most
from holdfast_server.control.results import KEPT_SECONDS, Results
from tests.support.channel import HandClock

JOB = "0" * 26
OTHER = "1" * 26
CLIENT = ClientName("demo/a-0")


def progress(*, files: int = 0, moved: int = 0, current: bytes = b"") -> Progress:
    counts = Counts(files=files)
    return Progress(job=JOB, phase="running", counts=counts, current=current, moved=moved)


def test_names_are_forgotten_ten_minutes_after_the_end_and_not_before() -> None:
    clock = HandClock()
    results = Results(clock)
    results.put(JOB, b"{}", b"sealed")
    clock.pass_by(3600)
    assert results.get(JOB) == b"{}"
    results.ended(JOB)
    clock.pass_by(KEPT_SECONDS - 1)
    assert (results.get(JOB), results.sealed(JOB)) == (b"{}", b"sealed")
    clock.pass_by(2)
    assert (results.get(JOB), results.sealed(JOB)) == (None, None)


def test_beyond_the_room_for_names_the_oldest_go_first() -> None:
    results = Results(HandClock(), total_bytes_max=10)
    for job, size in (("a", 4), ("b", 4), ("c", 4)):
        results.put(job, bytes(size), None)
    assert results.get("a") is None
    assert results.get("b") == bytes(4)
    assert results.get("c") == bytes(4)


def test_a_second_result_of_a_job_replaces_the_first() -> None:
    results = Results(HandClock())
    results.put(JOB, b"first", None)
    results.put(JOB, b"second", None)
    assert results.get(JOB) == b"second"


def test_a_job_stalls_when_moved_stands_still_although_progress_comes() -> None:
    clock = HandClock()
    jobs = LiveJobs(clock)
    live = jobs.add(JOB, CLIENT)
    for second in range(10):
        clock.pass_by(1)
        jobs.update(progress(files=second, moved=7))
    assert jobs.is_stalled(live, 9)
    assert not jobs.is_stalled(live, 10)
    jobs.update(progress(moved=8))
    assert not jobs.is_stalled(live, 1)


def test_time_without_a_connection_does_not_count_as_standing_still() -> None:
    clock = HandClock()
    jobs = LiveJobs(clock)
    live = jobs.add(JOB, CLIENT)
    clock.pass_by(10_000)
    jobs.add(OTHER, ClientName("demo/other"))
    assert jobs.is_stalled(live, 60)
    assert jobs.add(JOB, CLIENT) is live
    assert not jobs.is_stalled(live, 60)


def test_counts_are_saved_once_for_each_change() -> None:
    jobs = LiveJobs(HandClock())
    jobs.add(JOB, CLIENT)
    assert jobs.update(progress(files=3)) is True
    assert jobs.update(progress(files=3)) is False
    assert jobs.take_unsaved() == [(JOB, Counts(files=3))]
    assert jobs.take_unsaved() == []


def test_progress_of_an_unknown_job_is_ignored() -> None:
    jobs = LiveJobs(HandClock())
    assert jobs.update(progress(files=3)) is False
    assert jobs.all() == []


async def test_who_listens_before_reading_misses_nothing() -> None:
    notices = Notices()
    with notices.listen(JOB) as mine, notices.listen(OTHER) as others:
        notices.tell(JOB)
        assert await wait_at_most(mine, 5)
        assert not others.is_set()


async def test_waiting_ends_by_itself_without_news() -> None:
    notices = Notices()
    with notices.listen(JOB) as mine:
        assert not await wait_at_most(mine, 0.001)


async def test_a_server_that_stops_wakes_everybody_who_waits() -> None:
    notices = Notices()
    with notices.listen(JOB) as mine:
        waiting = asyncio.create_task(wait_at_most(mine, 60))
        await asyncio.sleep(0)
        notices.close()
        assert await asyncio.wait_for(waiting, 5)
    with notices.listen(JOB) as late:
        assert late.is_set()
