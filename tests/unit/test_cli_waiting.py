"""Waiting for jobs: progress, results, exit codes, a server that goes away and comes back."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from holdfast_cli import waiting
from holdfast_cli.ending import exit_code, finish, print_end, summary_of
from holdfast_cli.forgotten import with_names
from holdfast_cli.waiting import follow, meter_of, poll, wait_all
from holdfast_contract.errors import NotAtHand, Unreachable
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import ErrorRow, JobRow, ProgressRow
from tests.support.cli_api import (
    Answer,
    FakeApi,
    Turns,
    client,
    ended,
    job,
    rows_answer,
    session_of,
)

ONE, TWO = "01JQ0000000000000000000001", "01JQ0000000000000000000002"
RESULT: dict[str, Any] = {
    "files": 3,
    "bytes": 2048,
    "files_new": 1,
    "files_changed": 1,
    "files_unmodified": 1,
    "bytes_sent": 1024,
    "skipped": [],
    "skipped_count": 0,
    "seconds": 1.25,
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "REPEAT_SECONDS", 0)


def path(name: str) -> str:
    return f"GET /v1/jobs/{name}"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- scripts
def test_one_job_gives_progress_lines_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    halfway = job(progress=ProgressRow(files=1, bytes=10))
    done = ended(snapshot="ab" * 32, result={"type": "summary", **RESULT})
    session = session_of({path(ONE): Turns(halfway, halfway, done)}, as_json=True)
    assert wait_all(session, [job(state=JobState.QUEUED)]) == 0
    found = lines(capsys.readouterr().out)
    assert [line["type"] for line in found] == ["progress", "summary"]
    assert found[0]["progress"]["files"] == 1
    assert (found[0]["job"], found[0]["state"]) == (ONE, "Running")
    assert found[1] == {
        "type": "summary",
        "kind": "backup",
        "job": ONE,
        "client": "shop/web-0",
        "state": "Completed",
        "snapshot": "ab" * 32,
        **RESULT,
    }


def test_several_jobs_give_a_result_each_and_a_summary_of_the_worst(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {
        path(ONE): Turns(job(), job(), ended(JobState.COMPLETED_WITH_SKIPS)),
        path(TWO): ended(id=TWO, client="shop/web-1"),
    }
    session = session_of(answers, as_json=True, quiet=True)
    assert wait_all(session, [job(), job(id=TWO, client="shop/web-1")]) == 3
    found = lines(capsys.readouterr().out)
    assert [line["type"] for line in found] == ["result", "result", "summary"]
    assert [line["job"] for line in found[:2]] == [ONE, TWO]
    assert found[2]["state"] == "CompletedWithSkips"
    assert [one["job"] for one in found[2]["jobs"]] == [ONE, TWO]


def test_only_one_of_several_jobs_is_waited_for_at_a_time() -> None:
    answers = {path(ONE): Turns(job(), ended()), path(TWO): Turns(job(id=TWO), ended(id=TWO))}
    session = session_of(answers)
    follow(session, [job(), job(id=TWO)])
    api = session.api
    assert isinstance(api, FakeApi)
    assert [asked.query for asked in api.asked(path(ONE))] == [{"wait": "2"}, {"wait": "2"}]
    assert [asked.query for asked in api.asked(path(TWO))] == [{}, {}]


def test_a_failed_job_is_an_error_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    session = session_of({path(ONE): ended(JobState.FAILED)}, as_json=True)
    assert wait_all(session, [job()]) == 13
    out, err = capsys.readouterr()
    assert json.loads(out)["state"] == "Failed"
    assert json.loads(err) == {
        "type": "error",
        "code": "damaged",
        "message": "a pack is damaged",
        "hint": "",
        "exit": 13,
        "job": ONE,
    }


@pytest.mark.parametrize(
    ("state", "error", "code"),
    [
        (JobState.COMPLETED, None, 0),
        (JobState.COMPLETED_WITH_SKIPS, None, 3),
        (JobState.CANCELLED, None, 130),
        (JobState.FAILED, None, 1),
        (JobState.FAILED, ErrorRow(code="no-space", message="", exit=1), 14),
        (JobState.FAILED, ErrorRow(code="of-a-newer-server", message="", exit=42), 42),
        (JobState.RUNNING, None, 1),
    ],
)
def test_a_job_ends_with_its_exit_code(state: JobState, error: ErrorRow | None, code: int) -> None:
    assert exit_code(job(state=state, error=error)) == code


def test_the_worst_of_several_decides() -> None:
    states = [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED]
    session = session_of({}, as_json=True)
    assert finish(session, [ended(state) for state in states]) == 13
    assert finish(session, [ended(state) for state in states[::2]]) == 130


# --- a server that is away
def test_a_server_that_comes_back_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    gone = Unreachable("the server does not answer")
    session = session_of({path(ONE): Turns(gone, gone, job(), gone, ended())})
    assert wait_all(session, [job()]) == 0
    assert capsys.readouterr().err.count("the server does not answer; waiting for it") == 2


def test_a_server_that_stays_away_is_given_up_and_the_job_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "UNREACHABLE_SECONDS", -1)
    session = session_of({path(ONE): Unreachable("gone")})
    with pytest.raises(Unreachable) as caught:
        poll(session, ONE)
    assert caught.value.hint == f"the job goes on: holdfast job wait {ONE}"


# --- Ctrl-C
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_on_a_terminal_cancels_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = f"POST /v1/jobs/{ONE}/cancel"
    session = session_of({path(ONE): KeyboardInterrupt(), cancel: job()}, no_progress=True)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert wait_all(session, [job()]) == 130
    assert isinstance(session.api, FakeApi)
    assert len(session.api.asked(cancel)) == 1


def test_an_interrupt_without_a_terminal_leaves_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of({path(ONE): KeyboardInterrupt()})
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert wait_all(session, [job()]) == 130
    assert isinstance(session.api, FakeApi)
    assert [asked.method for asked in session.api.fake.asked] == ["GET"]


# --- people
def test_progress_is_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    row = job(current="/data/\x1bfile" + "x" * 60, progress=ProgressRow(files=7, bytes=1 << 20))
    silent = [
        session_of({}, as_json=True),
        session_of({}, quiet=True),
        session_of({}, no_progress=True),
    ]
    for session in silent:
        with meter_of(session, [row]) as meter:
            meter.update(row)
    assert terminal.getvalue() == ""
    monkeypatch.setenv("COLUMNS", "200")
    with meter_of(session_of({}), [row]) as meter:
        meter.update(row)
    drawn = terminal.getvalue()
    assert "backup shop/web-0" in drawn
    assert "7 files" in drawn
    assert "\x1bfile" not in drawn


def test_a_person_is_told_that_an_agent_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, Answer] = {
        path(ONE): Turns(job(state=JobState.QUEUED), job(state=JobState.QUEUED), ended()),
        "GET /v1/clients/shop/web-0": client(state="offline"),
    }
    wait_all(session_of(answers), [job(state=JobState.QUEUED)])
    told = "holdfast: shop/web-0 is offline: the job waits for its agent\n"
    assert capsys.readouterr().err == told
    wait_all(session_of(answers, as_json=True), [job(state=JobState.QUEUED)])
    assert capsys.readouterr().err == ""


def shown(capsys: pytest.CaptureFixture[str], row: JobRow, *, quiet: bool = False) -> str:
    print_end(session_of({}, quiet=quiet), row)
    return capsys.readouterr().out


def test_a_backup_is_told_in_three_lines(capsys: pytest.CaptureFixture[str]) -> None:
    row = ended(result=RESULT, snapshot="ab" * 32)
    assert shown(capsys, row).splitlines() == [
        "backup of shop/web-0: Completed, 3 files, 2.0 KiB in 1.2 s",
        "  new 1, changed 1, unmodified 1; sent 1.0 KiB",
        f"  snapshot {'ab' * 32}",
    ]
    assert len(shown(capsys, row, quiet=True).splitlines()) == 2


def test_a_dry_run_is_told_with_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plan = [{"action": "create", "path": "/a\x1b"}, {"action": "delete", "path": "/b"}]
    result = {"files": 1, "bytes": 0, "created": 1, "deleted": 1, "seconds": 0.1, "plan": plan}
    told = shown(capsys, ended(kind="restore", result=result)).splitlines()
    assert told[0].startswith("restore of shop/web-0 (dry run): Completed, 1 files")
    assert told[1] == "  created 1, overwritten 0, unchanged 0, deleted 1"
    assert told[2:] == ["  create    /a\\x1b", "  delete    /b"]


def test_a_job_that_did_nothing_shows_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    row = ended(JobState.FAILED, result=RESULT | {"files": 0})
    assert shown(capsys, row) == "backup of shop/web-0: Failed\n"


def test_many_names_are_cut_for_people_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": f"/{n}", "reason": "denied", "message": "no"} for n in range(25)]
    row = ended(JobState.COMPLETED_WITH_SKIPS, result=RESULT | {"skipped": rows})
    told = shown(capsys, row)
    assert told.count("  skipped: /") == 20
    assert told.endswith("  ... and 5 more skipped (--json shows all)\n")
    few = ended(result=RESULT | {"skipped": rows[:2], "skipped_count": 7})
    assert shown(capsys, few).endswith("  ... and 5 more skipped\n")
    null = ended(result=RESULT | {"skipped": None, "skipped_count": 7})
    assert shown(capsys, null).endswith(
        "  skipped: 7 (their names open with --key-file or a connected agent)\n"
    )


def test_the_summary_is_whole_even_where_the_job_never_began() -> None:
    row = ended(JobState.CANCELLED)
    assert summary_of(row) == {
        "type": "summary",
        "kind": "backup",
        "job": ONE,
        "client": "shop/web-0",
        "state": "Cancelled",
        "snapshot": None,
    }


# --- names that the server forgot
ROWS = [{"path": "/a", "reason": "denied", "message": "no"}]
CUT = [*ROWS, {"path": "", "reason": "more", "message": "3 more are not named"}]


def test_forgotten_skips_are_asked_of_an_agent() -> None:
    session = session_of({"POST /v1/queries": rows_answer(*CUT)})
    row = ended(result=RESULT | {"skipped": None, "skipped_count": 4}, snapshot="ab" * 32)
    found = with_names(session, row).result
    assert found is not None
    assert found["skipped"] == ROWS
    assert isinstance(session.api, FakeApi)
    body = session.api.fake.asked[0].body
    assert (body["kind"], body["items"][0]["snapshot"], body["job"]) == ("report", "ab" * 32, "")


def test_a_forgotten_list_of_a_restore_is_asked_of_an_agent_by_its_job() -> None:
    session = session_of({"POST /v1/queries": rows_answer(*ROWS)})
    result: dict[str, Any] = {"files": 1, "not_exact": None, "not_exact_count": 1, "skipped": []}
    row = ended(kind="restore", result=result, not_exact_sealed=b"sealed", snapshot="ab" * 32)
    found = with_names(session, row).result
    assert found is not None
    assert found["not_exact"] == ROWS
    assert isinstance(session.api, FakeApi)
    body = session.api.fake.asked[0].body
    assert (body["kind"], body["items"], body["job"]) == ("report", [], ONE)


def test_names_that_nobody_can_open_stay_null_and_a_verbose_run_says_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {"POST /v1/queries": NotAtHand("nobody may show it")}
    row = ended(result=RESULT | {"skipped": None, "skipped_count": 4}, snapshot="ab" * 32)
    found = with_names(session_of(answers, verbose=True), row).result
    assert found is not None
    assert (found["skipped"], found["skipped_count"]) == (None, 4)
    assert capsys.readouterr().err == "holdfast: names are not shown: nobody may show it\n"


def test_known_names_are_asked_of_nobody() -> None:
    session = session_of({})
    row = ended(result=RESULT | {"skipped": ROWS})
    assert with_names(session, row) == row
    assert with_names(session, job()) == job()
    assert isinstance(session.api, FakeApi)
    assert session.api.fake.asked == []
