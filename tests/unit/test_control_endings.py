"""How a job ended: Completed only if it is true, and what the summary shows of it."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_contract.errors import Cancelled, Stalled
from holdfast_contract.protocol.control import Counts, Failure, Finished, JobState
from holdfast_contract.protocol.http import JobResult
from holdfast_server.control.endings import Ending, ending_by, ending_of
from holdfast_server.control.summary import summary_of

JOB = "0" * 26
SNAPSHOT = b"s" * 32


def ending(
    finished: Finished,
    *,
    kind: str = "backup",
    is_dry_run: bool = False,
    snapshot_state: str | None = "complete",
) -> Ending:
    return ending_of(finished, kind=kind, is_dry_run=is_dry_run, snapshot_state=snapshot_state)


def finished(state: JobState = JobState.COMPLETED, /, **more: Any) -> Finished:
    return Finished(job=JOB, state=state, **({"snapshot": SNAPSHOT} | more))


def test_a_backup_with_its_snapshot_is_completed() -> None:
    found = ending(finished(counts=Counts(files=2), summary={"files_new": 2}))
    assert (found.state, found.snapshot, found.error) == (JobState.COMPLETED, SNAPSHOT, None)
    assert (found.counts.files, found.summary) == (2, {"files_new": 2})


@pytest.mark.parametrize(
    ("more", "snapshot_state"),
    [
        ({"skipped_count": 1}, "complete"),
        ({"not_exact_count": 1}, "complete"),
        ({}, "skips"),
        ({}, "incomplete"),
    ],
)
def test_a_job_that_lists_anything_is_not_called_completed(
    more: dict[str, int], snapshot_state: str
) -> None:
    found = ending(finished(**more), snapshot_state=snapshot_state)
    assert found.state is JobState.COMPLETED_WITH_SKIPS


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS])
def test_a_backup_without_a_snapshot_in_the_catalog_has_failed(state: JobState) -> None:
    for found in (
        ending(finished(state, snapshot=None)),
        ending(finished(state), snapshot_state=None),
    ):
        assert found.state is JobState.FAILED
        assert found.snapshot is None
        assert found.error is not None
        assert found.error.code == "internal"


def test_a_dry_run_and_a_restore_need_no_snapshot_of_their_own() -> None:
    none = finished(snapshot=None)
    assert ending(none, is_dry_run=True).state is JobState.COMPLETED
    assert ending(none, kind="restore").state is JobState.COMPLETED


def test_a_failure_keeps_code_exit_and_details_of_its_class() -> None:
    failure = Failure(code="damaged", message="m", hint="h", details={"object": "packs/x"})
    found = ending(finished(JobState.FAILED, error=failure))
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert (found.error.code, found.error.exit, found.error.hint) == ("damaged", 13, "h")
    assert found.error.details == {"object": "packs/x"}


def test_a_failure_without_a_reason_and_an_end_that_is_none_are_failures() -> None:
    for state in (JobState.FAILED, JobState.RUNNING):
        found = ending(finished(state))
        assert found.state is JobState.FAILED
        assert found.error is not None


def test_a_cancelled_job_exits_with_130() -> None:
    found = ending(finished(JobState.CANCELLED))
    assert found.error is not None
    assert (found.state, found.error.code, found.error.exit) == (
        JobState.CANCELLED,
        "cancelled",
        130,
    )


def test_the_servers_own_word_ends_a_job_too() -> None:
    stalled = ending_by(Stalled("no progress"), Counts(files=3))
    assert (stalled.state, stalled.counts.files) == (JobState.FAILED, 3)
    assert ending_by(Cancelled("c"), Counts()).state is JobState.CANCELLED


def summary(kind: str = "backup", **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "job": JOB,
        "client": "demo/a-0",
        "state": JobState.COMPLETED,
        "snapshot": "ab",
        "told": {"files": 7, "parent": "cd"},
        "seconds": 1.23456,
        "skipped_count": 0,
        "not_exact_count": 0,
        "is_dry_run": False,
        "names": None,
    }
    return summary_of(kind=kind, **(values | more))


def test_a_backup_summary_has_every_field_that_scripts_rely_on() -> None:
    fields = [
        "type",
        "job",
        "client",
        "state",
        "snapshot",
        "parent",
        "files",
        "dirs",
        "bytes",
        "files_new",
        "files_changed",
        "files_unmodified",
        "bytes_new",
        "bytes_sent",
        "skipped",
        "seconds",
    ]
    found = summary()
    assert set(fields) <= found.keys()
    assert (found["type"], found["parent"], found["files"]) == ("summary", "cd", 7)
    assert (found["dirs"], found["skipped"], found["seconds"]) == (0, [], 1.235)


def test_a_restore_summary_has_every_field_that_scripts_rely_on() -> None:
    fields = [
        "type",
        "job",
        "client",
        "state",
        "snapshot",
        "files",
        "dirs",
        "bytes",
        "created",
        "overwritten",
        "deleted",
        "unchanged",
        "not_exact",
        "seconds",
    ]
    assert set(fields) <= summary("restore").keys()
    assert "plan" not in summary("restore")
    plan = [{"action": "create"}]
    assert summary("restore", is_dry_run=True, names=JobResult(plan=plan))["plan"] == plan


def test_lists_are_null_once_their_names_are_forgotten_and_counts_remain() -> None:
    found = summary(skipped_count=2, state=JobState.COMPLETED_WITH_SKIPS)
    assert (found["skipped"], found["skipped_count"]) == (None, 2)
    names = JobResult(skipped=[{"path": "/a"}, {"path": "/b"}])
    assert summary(skipped_count=2, names=names)["skipped"] == names.skipped


def test_what_an_agent_tells_cannot_replace_what_the_server_knows() -> None:
    found = summary(told={"state": "Completed!", "job": "x", "client": "y", "seconds": 9})
    assert (found["state"], found["job"], found["client"]) == ("Completed", JOB, "demo/a-0")
    assert found["seconds"] == 1.235
