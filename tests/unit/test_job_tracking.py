"""Cancel and progress of one job, and how its thread ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from holdfast_agent.jobs.outcome import Outcome, decode_outcome, failed
from holdfast_agent.jobs.runner import JobRun
from holdfast_agent.jobs.tracking import JobCancel, JobProgress
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.journal import JobJournal
from holdfast_contract.errors import Cancelled, InvalidInput, NoSpace
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol import control
from holdfast_contract.protocol.control import Finished, JobState
from holdfast_contract.protocol.http import JobResult

JOB = new_ulid()


def order() -> control.Verify:
    return control.Verify(job=JOB, item=control.RestoreItem(bytes(32), "a/b", b"/"))


def completed() -> Outcome:
    return Outcome(
        finished=Finished(job=JOB, state=JobState.COMPLETED), result=JobResult(skipped=[{"a": 1}])
    )


class Runs:
    """Runs one job to its end."""

    def __init__(self, state: Path) -> None:
        self.state = StateDirectory(state)
        self.journal = JobJournal(self.state)
        self.journal.begin(JOB, control.encode(order()))
        self.told = threading.Event()

    def run(self, work: object, *, interrupt: bool = False) -> JobRun:
        run = JobRun(
            order(),
            journal=self.journal,
            work=work,  # type: ignore[arg-type]
            told=lambda _: self.told.set(),
        )
        run.start()
        if interrupt:
            run.interrupt()
        run.join(10)
        return run


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "state")


def test_an_end_is_in_the_journal_before_it_is_told(runs: Runs) -> None:
    run = runs.run(lambda _: completed())
    known = runs.journal.get(JOB)
    assert runs.told.is_set() and run.outcome == completed()
    assert known and known.ended and decode_outcome(known.ended) == completed()


def test_a_job_that_ended_before_a_restart_does_not_run_again(runs: Runs) -> None:
    runs.run(lambda _: completed())

    def again(_: JobRun) -> Outcome:
        raise AssertionError("ran twice")

    assert runs.run(again).outcome == completed()


def test_an_error_becomes_a_failed_job_with_its_code_and_hint(runs: Runs) -> None:
    def work(_: JobRun) -> Outcome:
        raise NoSpace("full", hint="make room", object="packs/x", secret=b"not text")

    run = runs.run(work)
    assert run.outcome is not None and run.outcome.finished.state is JobState.FAILED
    error = run.outcome.finished.error
    assert error is not None and (error.code, error.hint) == ("no-space", "make room")
    assert error.details == {"object": "packs/x"}


def test_a_defect_fails_the_job_and_not_the_agent(runs: Runs) -> None:
    def work(_: JobRun) -> Outcome:
        raise KeyError("nothing")

    run = runs.run(work)
    assert run.outcome is not None and run.outcome.finished.error is not None
    assert run.outcome.finished.error.code == "internal"


def test_a_cancelled_job_ends_as_cancelled(runs: Runs) -> None:
    def work(run: JobRun) -> Outcome:
        run.cancel.set()
        run.cancel.check()
        return completed()

    run = runs.run(work)
    assert run.outcome is not None and run.outcome.finished.state is JobState.CANCELLED


def test_an_interrupted_job_stays_in_the_journal_as_it_was(runs: Runs) -> None:
    def work(run: JobRun) -> Outcome:
        run.cancel.wait(10)
        run.cancel.check()
        return completed()

    run = runs.run(work, interrupt=True)
    known = runs.journal.get(JOB)
    assert run.outcome is None and not runs.told.is_set()
    assert known is not None and known.ended is None


def test_cancel_breaks_requests_under_way_also_those_that_come_late() -> None:
    cancel, broken = JobCancel(), []
    cancel.breaks(lambda: broken.append("early"))
    cancel.set()
    cancel.breaks(lambda: broken.append("late"))
    assert broken == ["early", "late"]
    assert cancel.is_set() and cancel.wait(0)
    with pytest.raises(Cancelled):
        cancel.check()


def test_progress_counts_and_moves_with_any_work() -> None:
    progress = JobProgress()
    progress.add(files=2, bytes=10)
    progress.add(moved=5)
    progress.totals(4, 100)
    progress.current(b"/data/a")
    progress.phase("finalizing")
    counts = progress.counts(7)
    assert (counts.files, counts.bytes, counts.bytes_sent) == (2, 10, 7)
    assert (counts.files_total, counts.bytes_total) == (4, 100)
    assert progress.moved == 17
    assert (progress.path, progress.phase_name) == (b"/data/a", "finalizing")


def test_a_torn_outcome_is_refused() -> None:
    with pytest.raises(InvalidInput):
        decode_outcome(completed().encode()[:-1])


def test_a_failed_outcome_can_be_told_on_the_channel() -> None:
    outcome = failed(JOB, Cancelled("gone"))
    frame = control.encode(outcome.finished)
    assert control.decode_to_server(frame) == outcome.finished
