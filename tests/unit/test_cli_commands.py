"""Commands against an API that answers from a table: output, JSON, exit codes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from holdfast_cli import look
from holdfast_contract import errors
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import (
    DoctorRow,
    DomainRow,
    EventRow,
    JobsCreated,
    ProgressRow,
    TokenRow,
)
from tests.support.cli_api import (
    TIME,
    Answer,
    Asked,
    Turns,
    client,
    ended,
    job,
    listing,
    rows_answer,
    run,
    snapshot,
)

JOB = job().id
SNAPSHOT = snapshot().id


# --- lists
def test_clients_are_shown_as_a_table_and_as_json() -> None:
    rows = [client(), client(name="shop/\x1bweb", state="offline", last_seen=None)]
    answers = {"GET /v1/clients": listing(*rows)}
    lines = run("clients", answers=answers).out.splitlines()
    assert lines[0].split()[:2] == ["CLIENT", "STATE"]
    assert lines[1].startswith("shop/web-0    connected  2026-01-31 ")
    assert lines[2].startswith("shop/\\x1bweb  offline    - ")
    assert [row["name"] for row in run("clients", "--json", answers=answers).json()] == [
        "shop/web-0",
        "shop/\x1bweb",
    ]


def test_lists_are_read_page_by_page() -> None:
    pages = {
        None: {"items": [client(name="shop/a")], "next": "shop/a"},
        "shop/a": {"items": [client(name="shop/b")], "next": ""},
    }
    answers = {"GET /v1/clients": lambda asked: pages[asked.query.get("after")]}
    found = run("clients", "--json", answers=answers).json()
    assert [row["name"] for row in found] == ["shop/a", "shop/b"]


@pytest.mark.parametrize("words", [["snapshots"], ["jobs", "--client"], ["events", "--client"]])
def test_an_empty_list_of_an_unknown_client_ends_with_10(words: list[str]) -> None:
    nothing = {f"GET /v1/{words[0]}": listing()}
    assert run(*words, "shop/web-0", answers=nothing).code == 10
    known = nothing | {"GET /v1/clients/shop/web-0": client()}
    done = run(*words, "shop/web-0", answers=known)
    assert (done.code, done.out) == (0, f"no {words[0]}\n")
    assert run(*words, "shop/web-0", "--json", answers=known).json() == []


def test_snapshots_are_asked_for_with_what_was_given() -> None:
    answers = {"GET /v1/snapshots": listing(snapshot(tags=["a", "b"]))}
    words = "snapshots shop/web-0 --since 2026-01-01 --until 2026-02-01 --tag a --latest 3"
    done = run(*words.split(), answers=answers)
    assert done.api.fake.asked[0].query == {
        "client": "shop/web-0",
        "since": "2026-01-01",
        "until": "2026-02-01",
        "tag": "a",
        "latest": "3",
    }
    assert "a b" in done.out
    assert SNAPSHOT[:12] in done.out


def test_jobs_take_a_state_in_any_case_and_stop_at_the_number_asked_for() -> None:
    page = {"items": [job(id=f"0{n}") for n in range(5)], "next": "04"}
    answers = {"GET /v1/jobs": page}
    done = run("jobs", "--state", "running", "--latest", "7", "--json", answers=answers)
    assert [asked.query.get("state") for asked in done.api.fake.asked] == ["Running", "Running"]
    assert len(done.json()) == 7


def test_an_event_line_has_time_kind_client_and_message() -> None:
    row = EventRow(id=1, time=TIME, kind="enrolled", client="shop/web-0", message="client enrolled")
    done = run("events", answers={"GET /v1/events": listing(row)})
    assert done.out.split("  ", 1)[1] == "enrolled  shop/web-0: client enrolled\n"


def test_follow_prints_what_comes_until_ctrl_c() -> None:
    def page(asked: Asked) -> object:
        after = int(asked.query.get("after", 0))
        if after == 3:
            raise KeyboardInterrupt
        row = EventRow(id=after + 1, time=TIME, kind=f"k{after + 1}", client="", message="m")
        return {"items": [row], "next": ""}

    done = run("events", "--follow", "--json", answers={"GET /v1/events": page})
    assert [json.loads(line)["kind"] for line in done.out.splitlines()] == ["k1", "k2", "k3"]
    assert done.code == 130


def test_doctor_fails_when_a_check_does() -> None:
    rows = [
        DoctorRow(check="store", state="ok", message="fine", hint="nothing"),
        DoctorRow(check="damage", state="fail", message="2 chunks", hint="verify"),
    ]
    done = run("doctor", answers={"GET /v1/doctor": listing(*rows)})
    assert done.code == 1
    assert done.out == "ok    store: fine\nfail  damage: 2 chunks\n      verify\n"
    assert run("doctor", answers={"GET /v1/doctor": listing(rows[0])}).code == 0


# --- tokens, domains, clients
TOKEN = TokenRow(id="01T", kind="enrol", created=TIME, expires=TIME, token="hfe_secret")


def test_a_token_goes_into_a_file_or_onto_the_screen(tmp_path: Path) -> None:
    answers = {"POST /v1/enrol-tokens": TOKEN}
    out = tmp_path / "token"
    done = run("enrol-token", "create", "shop", "--client", "web-0", "--out", out, answers=answers)
    assert "hfe_secret" not in done.out
    assert out.read_text() == "hfe_secret\n"
    assert out.stat().st_mode & 0o777 == 0o600
    assert done.api.fake.asked[0].body == {
        "domain": "shop",
        "client": "shop/web-0",
        "ttl_seconds": 3600,
    }
    assert run("enrol-token", "create", "shop", answers=answers).out == "hfe_secret\n"
    shown = run("enrol-token", "create", "shop", "--json", answers=answers)
    assert shown.json()["token"] == "hfe_secret"


def test_a_token_whose_file_exists_is_not_made(tmp_path: Path) -> None:
    out = tmp_path / "token"
    out.write_text("old")
    done = run("token", "create", "--role", "admin", "--out", out, answers={})
    assert done.code == 11
    assert out.read_text() == "old"
    assert done.api.fake.asked == []


def test_a_refused_token_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "token"
    answers = {"POST /v1/tokens": errors.Refused("not you")}
    assert run("token", "create", "--role", "admin", "--out", out, answers=answers).code == 12
    assert not out.exists()


def test_ends_of_tokens_and_clients_are_told() -> None:
    answers: dict[str, Answer] = {
        "DELETE /v1/tokens/01T": b"",
        "DELETE /v1/clients/shop/web-0": b"",
        "POST /v1/clients/shop/web-0/revoke": client(state="revoked"),
        "POST /v1/clients/shop/web-0/accept": client(),
    }
    assert run("token", "revoke", "01T", answers=answers).out == "01T is revoked\n"
    forgotten = run("client", "forget", "shop/web-0", "--json", answers=answers)
    assert forgotten.json() == {"name": "shop/web-0", "forgotten": True}
    assert "revoked" in run("client", "revoke", "shop/web-0", answers=answers).out
    assert run("client", "accept", "shop/web-0", answers=answers).code == 0


def test_limits_of_a_client_are_set_one_by_one() -> None:
    answers = {"PATCH /v1/clients/shop/web-0": client(limit_upload=5 << 20)}
    done = run("client", "set", "shop/web-0", "--limit-upload", "5M", answers=answers)
    assert done.api.fake.asked[0].body == {"limit_upload": 5 << 20, "limit_download": None}
    assert "limit upload    5.0 MiB/s" in done.out
    assert "limit download  none" in done.out


DOMAIN = DomainRow(
    name="shop", domain="ab" * 16, created=TIME, revision=1, recipients=[], clients=0, snapshots=0
)


def test_a_new_domain_has_its_files_before_the_server_hears_of_it(tmp_path: Path) -> None:
    key, recovery = tmp_path / "key", tmp_path / "recovery"

    def made(asked: Asked) -> object:
        assert key.read_text().startswith("holdfast-key-1 ")
        assert recovery.read_text().startswith("holdfast-recovery-1\n")
        return DOMAIN

    words = ["domain", "create", "shop", "--key-out", key, "--recovery-out", recovery]
    done = run(*words, answers={"POST /v1/domains": made})
    assert done.code == 0
    assert {path.stat().st_mode & 0o777 for path in (key, recovery)} == {0o600}
    assert key.read_text().split()[2] not in done.out + done.err
    assert str(key) in done.out
    assert run(*words, answers={"POST /v1/domains": made}).code == 11


def test_a_domain_whose_name_is_taken_or_refused_leaves_no_files(tmp_path: Path) -> None:
    words = ["domain", "create", "shop", "--key-out", tmp_path / "key", "--no-recovery"]
    taken: dict[str, Answer] = {"GET /v1/domains/shop": DOMAIN, "POST /v1/domains": DOMAIN}
    done = run(*words, answers=taken)
    assert done.code == 11
    assert done.api.asked("POST /v1/domains") == []
    refused = run(*words, answers={"POST /v1/domains": errors.Refused("not you")})
    assert refused.code == 12
    both = [*words[:4], tmp_path / "key", "--recovery-out", tmp_path / "key"]
    assert run(*both, answers={"POST /v1/domains": DOMAIN}).code == 11
    assert list(tmp_path.iterdir()) == []


def test_the_only_keys_stay_when_the_server_vanishes_in_the_middle(tmp_path: Path) -> None:
    key = tmp_path / "key"
    answers = {"POST /v1/domains": errors.Unreachable("gone")}
    done = run(
        "domain", "create", "shop", "--key-out", key, "--no-recovery", "--json", answers=answers
    )
    assert done.code == 1
    assert key.read_text().startswith("holdfast-key-1 ")
    assert str(key) in done.error()["hint"]


# --- jobs
def test_detach_prints_the_ids_alone() -> None:
    two = JobsCreated(jobs=[job(), job(id="02", client="shop/web-1")])
    answers = {"POST /v1/jobs": two}
    done = run("backup", "shop/web-0", "shop/web-1", "--detach", answers=answers)
    assert done.out == f"{JOB}\n02\n"
    lines = run("backup", "shop/web-0", "--detach", "--json", answers=answers).out.splitlines()
    assert json.loads(lines[1]) == {"type": "detached", "job": "02", "client": "shop/web-1"}


def test_a_backup_is_asked_for_with_what_was_given() -> None:
    answers = {"POST /v1/jobs": JobsCreated(jobs=[job()])}
    words = "backup shop/web-0 --path /a --exclude *.tmp --tag t --limit-upload 1K --dry-run"
    odd = os.fsdecode(b"/b\xff")
    done = run(*words.split(), "--path", odd, "--detach", answers=answers)
    assert done.api.fake.asked[0].body == {
        "kind": "backup",
        "clients": ["shop/web-0"],
        "paths": ["/a"],
        "paths_b64": ["L2L/"],
        "excludes": ["*.tmp"],
        "tags": ["t"],
        "limit_upload": 1024,
        "dry_run": True,
    }


def test_a_restore_is_asked_for_with_what_was_given() -> None:
    answers = {
        "GET /v1/snapshots/latest": snapshot(),
        "POST /v1/jobs": JobsCreated(jobs=[job(kind="restore")]),
    }
    words = (
        "restore latest:/a/b --target /t --to shop/x --to shop/y --include i --exclude e --strip"
        " --overwrite never --delete --special --verify --limit-download 2K --yes --detach"
    )
    done = run(*words.split(), answers=answers)
    body = done.api.asked("POST /v1/jobs")[0].body
    assert body.pop("target_b64") is None
    assert body == {
        "kind": "restore",
        "items": [{"snapshot": SNAPSHOT, "path": "/a/b", "path_b64": None}],
        "to": ["shop/x", "shop/y"],
        "target": "/t",
        "include": ["i"],
        "exclude": ["e"],
        "strip": True,
        "overwrite": "never",
        "delete": True,
        "special": True,
        "dry_run": False,
        "verify": True,
        "limit_download": 2048,
    }


def test_delete_is_not_asked_about_without_a_terminal() -> None:
    answers = {
        "GET /v1/snapshots/latest": snapshot(),
        "POST /v1/jobs": JobsCreated(jobs=[ended(kind="restore")]),
    }
    done = run("restore", "latest", "--in-place", "--delete", answers=answers)
    assert done.code == 0
    assert [asked.body["dry_run"] for asked in done.api.asked("POST /v1/jobs")] == [False]


@pytest.mark.parametrize(("answer", "bodies"), [("n\n", [True]), ("y\n", [True, False])])
def test_delete_shows_its_count_and_asks_on_a_terminal(answer: str, bodies: list[bool]) -> None:
    def created(asked: Asked) -> object:
        row = ended(kind="restore", result={"deleted": 12, "files": 0})
        return JobsCreated(jobs=[row])

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    answers = {"GET /v1/snapshots/latest": snapshot(), "POST /v1/jobs": created}
    with patch.object(io, "StringIO", lambda: Terminal(answer)):
        done = run("restore", "latest", "--in-place", "--delete", answers=answers)
    assert [asked.body["dry_run"] for asked in done.api.asked("POST /v1/jobs")] == bodies
    assert "12 entries would be removed" in done.err
    assert done.code == (0 if len(bodies) == 2 else 130)


def test_cancel_tells_what_became_of_the_job() -> None:
    path = f"POST /v1/jobs/{JOB}/cancel"
    assert "is cancelled" in run("job", "cancel", JOB, answers={path: job()}).out
    done = run("job", "cancel", JOB, answers={path: ended()})
    assert (done.code, done.out) == (0, f"{JOB} Completed\n")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (JobState.COMPLETED, 0),
        (JobState.COMPLETED_WITH_SKIPS, 3),
        (JobState.CANCELLED, 130),
        (JobState.FAILED, 13),
    ],
)
def test_job_wait_prints_one_row_and_exits_by_the_job(state: JobState, code: int) -> None:
    done_row = ended(state, result={"files": 1}, not_exact_sealed=b"sealed")
    answers = {f"GET /v1/jobs/{JOB}": Turns(job(), job(), done_row)}
    done = run("job", "wait", JOB, "--json", answers=answers)
    assert done.code == code
    assert len(done.out.splitlines()) == 1
    assert done.json()["state"] == state.value
    assert done.json()["result"] == {"files": 1}
    assert "not_exact_sealed" not in done.json()
    assert run("job", "wait", JOB, answers={f"GET /v1/jobs/{JOB}": done_row}).code == code


def test_job_show_ends_with_0_whatever_became_of_the_job() -> None:
    row = ended(JobState.FAILED, progress=ProgressRow(files=7))
    done = run("job", "show", JOB, answers={f"GET /v1/jobs/{JOB}": row})
    assert done.code == 0
    assert "files     7" in done.out
    assert "a pack is damaged" in done.err


# --- looking
ROW = {
    "path": "/a\n",
    "type": "symlink",
    "mode": 0o777,
    "uid": 1,
    "gid": 2,
    "size": 2048,
    "mtime": "1969-12-31T23:59:59.500000Z",
    "target": "t\x1b",
}


def test_entries_are_shown_short_long_and_as_json() -> None:
    answers = {"GET /v1/snapshots/latest": snapshot(), "POST /v1/queries": rows_answer(ROW)}
    done = run("ls", "latest:/", answers=answers)
    assert done.out == "/a\\x0a\n"
    assert done.api.asked("POST /v1/queries")[0].body["kind"] == "ls"
    long = run("ls", "latest", "-l", answers=answers).out
    assert long.startswith("lrwxrwxrwx      1      2    2.0 KiB 19")
    assert long.endswith("/a\\x0a -> t\\x1b\n")
    assert run("ls", "latest", "--json", answers=answers).json() == [ROW]


def test_a_name_that_is_not_utf8_is_shown_by_its_bytes() -> None:
    row = ROW | {"path": "/\\xff", "path_b64": "L/8=", "target": ""}
    answers = {"GET /v1/snapshots/latest": snapshot(), "POST /v1/queries": rows_answer(row)}
    assert run("ls", "latest", answers=answers).out == "/\\xff\n"


def test_browse_asks_the_live_pod() -> None:
    answers = {"POST /v1/queries": rows_answer(ROW)}
    done = run("browse", "shop/web-0", "/data", answers=answers)
    body = done.api.fake.asked[0].body
    assert (body["kind"], body["client"], body["path"]) == ("browse", "shop/web-0", "/data")


def test_a_difference_has_a_mark_for_each_kind() -> None:
    rows = [
        {"change": change, "path": f"/{change}"}
        for change in ("added", "removed", "modified", "metadata", "type")
    ]
    answers = {
        "GET /v1/snapshots/one": snapshot(),
        "GET /v1/snapshots/two": snapshot(id="cd" * 32),
        "POST /v1/queries": rows_answer(*rows),
    }
    done = run("diff", "one", "two", answers=answers)
    assert [line[0] for line in done.out.splitlines()] == ["+", "-", "M", "m", "T"]
    assert [item["snapshot"] for item in done.api.asked("POST /v1/queries")[0].body["items"]] == [
        SNAPSHOT,
        "cd" * 32,
    ]


def test_find_asks_client_by_client_and_leaves_out_what_nobody_may_open() -> None:
    rows = [snapshot(), snapshot(id="cd" * 32, client="dark/x", domain="dark")]

    def answer(asked: Asked) -> object:
        if asked.body["items"][0]["snapshot"] != SNAPSHOT:
            raise errors.NotAtHand("nobody")
        return rows_answer(ROW | {"snapshot": SNAPSHOT, "client": "shop/web-0"})(asked)

    answers = {"GET /v1/snapshots": listing(*rows), "POST /v1/queries": answer}
    done = run("find", "a*", answers=answers)
    assert (done.code, done.out) == (0, f"{SNAPSHOT[:12]}  shop/web-0  /a\\x0a\n")
    dark = answers | {"GET /v1/snapshots": listing(rows[1])}
    assert run("find", "a*", answers=dark).code == 12
    assert run("find", "a*", answers={"GET /v1/snapshots": listing()}).code == 0


def test_find_asks_in_portions_that_one_answer_can_be_about() -> None:
    rows = [snapshot(id=f"{number:064x}") for number in range(1030)]
    answers = {"GET /v1/snapshots": listing(*rows), "POST /v1/queries": rows_answer()}
    done = run("find", "a", answers=answers)
    counts = [len(asked.body["items"]) for asked in done.api.asked("POST /v1/queries")]
    assert sum(counts) == 1030
    assert max(counts) <= 1024


def test_dump_writes_bytes_to_the_output_or_a_new_file(tmp_path: Path) -> None:
    answers = {"GET /v1/snapshots/latest": snapshot(), "POST /v1/queries": b"\xff\0content"}
    assert os.fsencode(run("dump", "latest:/f", answers=answers).out) == b"\xff\0content"
    out = tmp_path / "f"
    assert run("dump", "latest:/f", "--out", out, answers=answers).code == 0
    assert out.read_bytes() == b"\xff\0content"
    again = run("dump", "latest:/f", "--out", out, answers=answers)
    assert again.code == 11
    assert again.api.fake.asked == []
    assert run("dump", "latest:/f", "--out", tmp_path / "no" / "f", answers=answers).code == 2


def test_a_refused_dump_makes_no_file(tmp_path: Path) -> None:
    answers = {
        "GET /v1/snapshots/latest": snapshot(),
        "POST /v1/queries": errors.NotAtHand("the pod does not show content"),
    }
    assert run("dump", "latest:/f", "--out", tmp_path / "f", answers=answers).code == 12
    assert list(tmp_path.iterdir()) == []


def test_a_dump_that_breaks_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    def broken(*_: object) -> Iterator[bytes]:
        yield b"first"
        yield b"second"
        raise errors.Damaged("chunk 1 is damaged")

    answers = {"GET /v1/snapshots/latest": snapshot()}
    with patch.object(look, "_dumped", broken):
        assert run("dump", "latest:/f", "--out", tmp_path / "f", answers=answers).code == 13
    assert list(tmp_path.iterdir()) == []
