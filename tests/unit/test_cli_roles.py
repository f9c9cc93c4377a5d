"""Roles on the command line: making tokens, listing them, and what a limited one is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_contract.protocol.http import EventRow, StatusRow, TokenRow
from tests.support.cli_api import TIME, listing, run


def row(**changes: object) -> TokenRow:
    values = {"id": "T1", "kind": "api", "role": "operator", "created": TIME}
    return TokenRow(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["admin", "operator", "viewer"])
def test_a_token_is_asked_for_with_its_role_its_domains_and_its_time(
    role: str, tmp_path: Path
) -> None:
    out = tmp_path / "token"
    words = ["token", "create", "--role", role, "--domain", "shop", "--domain", "mart"]
    answers = {"POST /v1/tokens": row(role=role, domain="shop, mart", token="hfa_secret")}
    done = run(*words, "--ttl", "90d", "--out", str(out), answers=answers)
    assert done.code == 0
    body = done.api.asked("POST /v1/tokens")[0].body
    assert (body["role"], body["domains"]) == (role, ["shop", "mart"])
    assert body["ttl_seconds"] == 90 * 86_400
    assert out.read_text() == "hfa_secret\n"
    assert "hfa_secret" not in done.out


def test_a_list_of_tokens_says_what_each_may_do_and_where() -> None:
    answers = {"GET /v1/tokens": listing(row(domain="shop"), row(id="T2", role="admin"))}
    lines = run("token", "list", answers=answers).out.splitlines()
    assert "operator in shop" in lines[1]
    assert "admin" in lines[2]
    assert " in " not in lines[2]


def test_status_leaves_out_what_a_limited_token_may_not_know() -> None:
    counted = {"clients_connected": 1, "clients": 2, "domains": 1, "snapshots": 3}
    shown = StatusRow(version="1", started=TIME, jobs_running=0, jobs_queued=0, **counted)
    done = run("status", answers={"GET /v1/status": shown})
    assert "clients" in done.out
    assert "stored" not in done.out
    assert run("status", "--json", answers={"GET /v1/status": shown}).json()["chunks"] is None


def test_events_tell_who_did_it_and_why_something_was_refused() -> None:
    done_by = {"by": "T1", "name": "ci", "outcome": "done"}
    refused = {"by": "T2", "route": "POST /v1/jobs", "code": "refused"}
    rows = [
        EventRow(id=1, time=TIME, kind="client-set", client="shop/a", message="x", details=done_by),
        EventRow(id=2, time=TIME, kind="refused", client="", message="y", details=refused),
    ]
    lines = run("events", answers={"GET /v1/events": listing(*rows)}).out.splitlines()
    assert lines[0].endswith("client-set  shop/a: x, by ci")
    assert lines[1].endswith("refused  y (refused: POST /v1/jobs), by T2")
