"""What scripts rely on: fields of `--json`, references, exit codes, jobs, tokens, contexts."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World

ID = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
CLIENT, OTHER = "play/a-0", "play/b-0"
RAW = b"raw-\xff.bin"
BACKUP_FIELDS = (
    *("type", "job", "client", "state", "snapshot", "parent", "files", "dirs", "bytes"),
    *("files_new", "files_changed", "files_unmodified", "bytes_new", "bytes_sent"),
    *("skipped", "seconds"),
)
RESTORE_FIELDS = (
    *("type", "job", "client", "state", "snapshot", "files", "dirs", "bytes", "created"),
    *("overwritten", "deleted", "unchanged", "not_exact", "seconds"),
)
WORKING = ("Running", "Finalizing")
JOB_FIELDS = (
    *("id", "kind", "client", "state", "created", "started", "finished", "progress", "error"),
)
SNAPSHOT_FIELDS = (
    *("id", "client", "domain", "seq", "time", "started", "state", "consistency"),
    *("files", "bytes", "bytes_new", "tags", "paths", "pinned"),
)


@pytest.fixture(scope="module")
def played(world: World) -> dict[str, Any]:
    """Two clients; the first has three snapshots, the second none."""
    source, out = world.top / "source", world.top / "out"
    (source / "sub").mkdir(parents=True)
    (source / "one").write_bytes(b"1" * 1000)
    (source / "sub" / "two").write_bytes(b"2" * 2000)
    Path(os.fsdecode(os.fsencode(source) + b"/" + RAW)).write_bytes(b"raw")
    os.symlink("one", source / "link")
    world.start_agent(CLIENT, [source], HOLDFAST_RESTORE_ROOTS=f"{source}:{out}")
    world.start_agent(OTHER, [world.top / "other"])
    first = world.backup(CLIENT, options=["--tag", "early", "--tag", "both"])
    (source / "one").write_bytes(b"changed")
    (source / "three").write_bytes(b"3")
    between = datetime.now(UTC)
    second = world.backup(CLIENT, options=["--tag", "both"])
    third = world.backup(CLIENT, source / "sub", source / "one")
    return {
        "source": source,
        "out": out,
        "first": first,
        "second": second,
        "third": third,
        "between": between.isoformat().replace("+00:00", "Z"),
    }


def _has(row: dict[str, Any], fields: Sequence[str]) -> None:
    missing = [name for name in fields if name not in row]
    assert missing == [], row


def test_a_backup_tells_every_field_and_counts_once(played: dict[str, Any]) -> None:
    first, second, third = played["first"], played["second"], played["third"]
    for summary in (first, second, third):
        _has(summary, BACKUP_FIELDS)
        assert ID.fullmatch(summary["snapshot"])
        assert summary["type"] == "summary"
    assert first["parent"] is None
    assert (first["files"], first["dirs"], first["bytes"]) == (4, 2, 3003)
    assert (first["files_new"], first["files_changed"], first["files_unmodified"]) == (4, 0, 0)
    assert first["bytes_new"] == 3003
    assert first["bytes_sent"] > 0
    assert second["parent"] == first["snapshot"]
    assert (second["files_new"], second["files_changed"], second["files_unmodified"]) == (1, 1, 3)
    assert second["files"] == 5
    assert third["files"] == 2, "several --path are one snapshot of just these"


def test_snapshots_tell_every_field_and_filter(world: World, played: dict[str, Any]) -> None:
    rows = world.json("snapshots", CLIENT)
    assert [row["id"] for row in rows] == [
        played[name]["snapshot"] for name in ("first", "second", "third")
    ]
    for row in rows:
        _has(row, SNAPSHOT_FIELDS)
        assert ID.fullmatch(row["id"])
        assert TIME.fullmatch(row["time"])
        assert TIME.fullmatch(row["started"])
        assert (row["client"], row["domain"], row["state"]) == (CLIENT, "play", "complete")
        assert row["pinned"] is False
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert sorted(rows[0]["tags"]) == ["both", "early"]
    assert sorted(rows[2]["paths"]) == [f"{played['source']}/one", f"{played['source']}/sub"]

    def ids(*options: object) -> list[int]:
        return [row["seq"] for row in world.json("snapshots", CLIENT, *options)]

    assert ids("--tag", "early") == [1]
    assert ids("--tag", "both") == [1, 2]
    assert ids("--tag", "none") == []
    assert ids("--latest", 2) == [2, 3]
    assert ids("--since", played["between"]) == [2, 3]
    assert ids("--until", played["between"]) == [1]
    assert ids("--since", "2001-01-01", "--until", rows[1]["time"]) == [1, 2]
    assert ids("--since", rows[1]["time"]) == [2, 3]
    assert world.json("snapshots", OTHER) == []
    assert [row["seq"] for row in world.json("snapshots")] == [1, 2, 3]
    assert world.run("snapshots", "--since", "yesterday-ish").returncode == 2
    shown = world.json("snapshot", "show", played["first"]["snapshot"][:6])
    _has(shown, SNAPSHOT_FIELDS)


def test_references_name_snapshots_by_id_client_and_time(
    world: World, played: dict[str, Any]
) -> None:
    def seq(reference: str) -> int:
        return int(world.json("snapshot", "show", reference)["seq"])

    first = played["first"]["snapshot"]
    assert seq(first) == seq(first[:6]) == seq(first[:40]) == 1
    assert seq(f"{CLIENT}@latest") == 3
    assert seq("latest") == 3, "one client only has any"
    assert seq(f"{CLIENT}@{played['between']}") == 1
    row = world.json("snapshots", CLIENT)[1]
    assert seq(f"{CLIENT}@{row['time']}") == 2
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    assert seq(f"{CLIENT}@{tomorrow}") == 3
    offset = datetime.now(UTC).astimezone().isoformat()
    assert seq(f"{CLIENT}@{offset}") == 3
    for wrong, status in (
        (first[:5], 2),
        ("f" * 12 if not first.startswith("f" * 12) else "e" * 12, 10),
        (f"{CLIENT}@2001-01-01", 10),
        (f"{OTHER}@latest", 10),
        ("play/nobody@latest", 10),
        (f"{CLIENT}@soon", 2),
        ("", 2),
        ("@latest", 2),
    ):
        done = world.run("snapshot", "show", wrong, "--json")
        assert done.returncode in {status, 10}, (wrong, done.returncode, done.stderr)
        assert json.loads(done.stderr)["exit"] == done.returncode


def test_latest_is_ambiguous_with_two_clients_and_names_the_candidates(
    own_world: World, tmp_path: Path
) -> None:
    world = own_world
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        world.start_agent(f"play/{name}", [tmp_path / name])
        world.backup(f"play/{name}")
    done = world.run("snapshot", "show", "latest", "--json")
    assert done.returncode == 10
    error = json.loads(done.stderr)
    assert error["code"] == "ambiguous"
    assert "play/one" in done.stderr.decode()
    assert "play/two" in done.stderr.decode()
    text = world.run("snapshot", "show", "latest")
    assert b"play/one" in text.stderr
    lines = world.lines("backup", "play/one", "play/two")
    results = [line for line in lines if line["type"] == "result"]
    assert {line["client"] for line in results} == {"play/one", "play/two"}
    for line in results:
        _has(line, BACKUP_FIELDS)
    assert lines[-1]["type"] == "summary"
    assert lines[-1]["state"] == "Completed"
    assert len(lines[-1]["jobs"]) == 2
    os.unlink(tmp_path / "two" / "file")
    os.rmdir(tmp_path / "two")
    done = world.run("backup", "play/one", "play/two", "--json")
    worst = json.loads(done.stdout.splitlines()[-1])
    assert worst["state"] == "Failed"
    assert done.returncode == 1, done.stderr
    assert world.run("backup", "play/one", "play/nobody").returncode == 10


def test_names_that_are_not_utf8_are_escaped_and_given_as_bytes(
    world: World, played: dict[str, Any]
) -> None:
    second, source = played["second"]["snapshot"], played["source"]
    for with_key in (False, True):
        flags = ["--key-file", world.keys["play"]] if with_key else []
        rows = world.json("ls", f"{second}:{source}", *flags)
        names = {row["path"]: row for row in rows}
        raw = names[f"{source}/raw-\\xff.bin"]
        assert base64.b64decode(raw["path_b64"]) == os.fsencode(source) + b"/" + RAW
        _has(raw, ["path", "type", "mode", "uid", "gid", "size", "mtime", "target"])
        assert TIME.fullmatch(raw["mtime"])
        assert names[f"{source}/link"]["target"] == "one"
        assert all(path.startswith("/") for path in names)
        found = world.json("find", "raw-*", *flags)
        assert any("path_b64" in row for row in found), found
        changed = {
            row["path"] for row in world.json("diff", played["first"]["snapshot"], second, *flags)
        }
        assert f"{source}/three" in changed
        assert f"{source}/one" in changed
        assert f"{source}/sub/two" not in changed
    live = world.json("browse", CLIENT, source)
    assert any(row.get("path_b64") for row in live)
    text = world.cli("ls", f"{second}:{source}")
    assert "\\xff" in text
    raw_path = os.fsdecode(os.fsencode(f"{second}:{source}/") + RAW)
    done = world.restore(raw_path, "--target", played["out"] / "raw")
    assert (done["files"], done["created"] > 0) == (1, True)
    back = Path(os.fsdecode(os.fsencode(f"{played['out']}/raw{source}/") + RAW))
    assert back.read_bytes() == b"raw"


def test_control_characters_never_reach_a_terminal(world: World, played: dict[str, Any]) -> None:
    name = "evil\x1b[31m\r\n"
    (played["source"] / name).write_text("x")
    try:
        for text in (
            world.cli("browse", CLIENT, played["source"]),
            world.cli("backup", CLIENT, "--exclude", "none\x1b"),
            world.cli("ls", f"{CLIENT}@latest:{played['source']}"),
            world.cli("find", "evil*"),
        ):
            assert "\x1b" not in text
            assert "\r" not in text
    finally:
        (played["source"] / name).unlink()


def test_jobs_clients_and_events_tell_every_field(world: World, played: dict[str, Any]) -> None:
    rows = world.json("jobs", "--client", CLIENT)
    for row in rows:
        _has(row, JOB_FIELDS)
        _has(row["progress"], ["files", "bytes", "bytes_sent", "files_total", "bytes_total"])
        assert TIME.fullmatch(row["created"])
        assert TIME.fullmatch(row["finished"])
    assert world.json("jobs", "--state", "Running") == []
    assert world.run("jobs", "--state", "Sleeping").returncode == 2
    shown = world.json("job", "show", played["first"]["job"])
    _has(shown, [*JOB_FIELDS, "snapshot", "result"])
    assert shown["snapshot"] == played["first"]["snapshot"]
    _has(shown["result"], BACKUP_FIELDS)
    waited = world.json("job", "wait", played["first"]["job"])
    _has(waited, [*JOB_FIELDS, "snapshot", "result"])
    assert world.run("job", "cancel", played["first"]["job"]).returncode == 0
    assert world.run("job", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV").returncode == 10
    assert world.run("job", "show", "nonsense").returncode == 10
    assert len(world.json("job", "log", played["first"]["job"])) >= 3
    clients = {row["name"]: row for row in world.json("clients")}
    for row in clients.values():
        _has(row, ["name", "domain", "state", "last_seen", "version", "roots", "last_snapshot"])
    assert clients[CLIENT]["last_snapshot"] in {row["id"] for row in world.json("snapshots")} | {
        world.json("snapshots")[-1]["time"]
    }
    assert clients[OTHER]["last_snapshot"] is None
    events = world.json("events", "--client", CLIENT)
    assert {"enrolled", "connected", "job-queued"} <= {row["kind"] for row in events}
    assert world.json("client", "show", CLIENT)["name"] == CLIENT
    assert world.run("client", "show", "play/x").returncode == 10
    assert world.run("backup", "play/x").returncode == 10


def test_every_listing_prints_json_and_text(world: World, played: dict[str, Any]) -> None:
    for words in (
        ["clients"],
        ["jobs"],
        ["snapshots"],
        ["status"],
        ["doctor"],
        ["domain", "list"],
        ["domain", "show", "play"],
        ["token", "list"],
        ["enrol-token", "list"],
        ["events"],
        ["version"],
        ["key", "check", str(world.keys["play"])],
        ["client", "show", CLIENT],
        ["job", "log", played["first"]["job"]],
        ["config", "show"],
    ):
        assert json.loads(world.cli(*words, "--json")) is not None, words
        assert world.cli(*words).strip(), words
    secret = (world.data / "admin.token").read_text().strip()
    assert secret not in world.cli("token", "list") + world.cli("config", "show")


def test_a_restore_tells_every_field_and_its_plan(world: World, played: dict[str, Any]) -> None:
    target = played["out"] / "shapes"
    plan = world.restore(f"{CLIENT}@latest", "--target", target, "--dry-run")
    _has(plan, [*RESTORE_FIELDS, "plan"])
    assert not target.exists()
    assert plan["created"] > 0
    assert len(plan["plan"]) >= plan["created"]
    done = world.restore(f"{CLIENT}@latest", "--target", target)
    _has(done, RESTORE_FIELDS)
    assert done["created"] == plan["created"]
    assert done["not_exact"] == []
    again = world.restore(f"{CLIENT}@latest", "--target", target, "--verify")
    assert (again["created"], again["overwritten"]) == (0, 0)
    assert again["unchanged"] == done["files"] or again["unchanged"] >= done["files"]
    verified = world.json("verify", f"{CLIENT}@latest")
    assert verified["state"] == "Completed"


def test_a_busy_client_queues_and_limits_change_while_a_job_runs(
    world: World, played: dict[str, Any]
) -> None:
    big = played["source"] / "big"
    big.write_bytes(os.urandom(6 << 20))
    try:
        detached = world.json("backup", CLIENT, "--limit-upload", "300K", "--detach")
        assert (detached["type"], detached["client"]) == ("detached", CLIENT)
        job = detached["job"]
        world.until(lambda: world.job(job)["state"] in WORKING, "it runs")
        queued = world.detached(CLIENT)
        assert world.job(queued)["state"] == "Queued"
        assert [r["id"] for r in world.json("jobs", "--state", "Queued")] == [queued]
        world.cli("job", "cancel", queued)
        assert world.job(queued)["state"] == "Cancelled"
        assert world.run("job", "wait", queued).returncode == 130
        assert world.run("client", "set", CLIENT, "--limit-upload", "fast").returncode == 2
        assert world.job(job)["state"] in WORKING, "6 MiB at 300 KiB a second take 20 s"
        world.cli("job", "cancel", job)
        world.until(lambda: world.job(job)["state"] == "Cancelled", "cancelled", seconds=5)
        world.cli("client", "set", CLIENT, "--limit-upload", "200K")
        slow = world.detached(CLIENT)
        world.until(lambda: world.job(slow)["state"] in WORKING, "it runs")
        world.cli("client", "set", CLIENT, "--limit-upload", "0")
        started = time.monotonic()
        assert world.wait(slow)["state"] == "Completed"
        assert time.monotonic() - started < 12, "6 MiB at 200 KiB a second would take 30 s"
    finally:
        big.unlink()


def test_tokens_are_made_used_and_revoked(world: World, tmp_path: Path) -> None:
    out = tmp_path / "ci.token"
    world.cli("token", "create", "--role", "admin", "--out", out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert world.run("token", "create", "--role", "admin", "--out", out).returncode == 11
    env = {"HOLDFAST_TOKEN_FILE": str(out)}
    rows = [
        row
        for row in world.json("token", "list", HOLDFAST_TOKEN_FILE=str(out))
        if not row["revoked"]
    ]
    newest = max(rows, key=lambda row: str(row["id"]))
    world.cli("token", "revoke", newest["id"])
    done = world.run("clients", "--json", **env)
    assert done.returncode == 12
    assert json.loads(done.stderr)["code"] == "not-authenticated"
    short = tmp_path / "short.token"
    world.cli("token", "create", "--role", "admin", "--ttl", "1s", "--out", short)
    time.sleep(1.1)
    assert world.run("clients", HOLDFAST_TOKEN_FILE=str(short)).returncode == 12
    assert world.run("token", "create", "--role", "king", "--out", tmp_path / "k").returncode == 2
    assert not (tmp_path / "k").exists()


def test_an_operator_backs_up_in_its_domain_and_a_viewer_only_looks(
    world: World, played: dict[str, Any], tmp_path: Path
) -> None:
    operator, viewer = tmp_path / "operator.token", tmp_path / "viewer.token"
    for role, out in (("operator", operator), ("viewer", viewer)):
        world.cli("token", "create", "--role", role, "--domain", "play", "--out", out)
    done = world.json("backup", CLIENT, "--dry-run", HOLDFAST_TOKEN_FILE=str(operator))
    assert done["state"] == "Completed"
    refused = world.run("backup", CLIENT, "--json", HOLDFAST_TOKEN_FILE=str(viewer))
    assert refused.returncode == 12
    assert json.loads(refused.stderr)["code"] == "refused"
    rows = world.json("snapshots", CLIENT, HOLDFAST_TOKEN_FILE=str(viewer))
    assert rows == world.json("snapshots", CLIENT)
    events = [row for row in world.json("events") if row["kind"] == "refused"]
    details = events[-1]["details"]
    assert (details["role"], details["route"]) == ("viewer", "POST /v1/jobs")


def test_login_keeps_a_context_of_paths(world: World, tmp_path: Path) -> None:
    bare = {
        "HOLDFAST_SERVER": "",
        "HOLDFAST_CA": "",
        "HOLDFAST_TOKEN_FILE": "",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    assert world.run("clients", **bare).returncode == 2
    place = ["--server", world.url, "--ca", str(world.ca)]
    token = world.data / "admin.token"
    wrong = tmp_path / "wrong.token"
    wrong.write_text(token.read_text().strip()[:-4] + "AAAA\n")
    assert world.run("login", *place, "--token-file", wrong, **bare).returncode == 12
    assert world.run("clients", **bare).returncode == 2, "a failed login saves nothing"
    assert world.run("login", *place, "--token-file", token, **bare).returncode == 0
    assert world.run("clients", **bare).returncode == 0
    saved = [path for path in (tmp_path / "config").rglob("*") if path.is_file()]
    assert saved
    assert all(token.read_text().strip() not in path.read_text() for path in saved)
    data = bare | {"HOLDFAST_DATA": str(world.data), "XDG_CONFIG_HOME": str(tmp_path / "none")}
    assert world.run("clients", **data).returncode == 0


def test_wrong_usage_of_every_kind_exits_2_with_one_error(world: World, tmp_path: Path) -> None:
    key = world.keys.get("play") or world.domain("play")
    tries: list[list[object]] = [
        ["backup"],
        ["backup", CLIENT, "--nonsense"],
        ["backup", CLIENT, "--limit-upload", "5Q"],
        ["backup", CLIENT, "--path", "relative"],
        ["restore", "latest"],
        ["restore", "latest", "--in-place", "--target", "/x"],
        ["restore", "latest", "--target", "relative"],
        ["restore", "latest", "--local", tmp_path / "x"],
        ["restore", "latest", "--in-place", "--overwrite", "maybe"],
        ["domain", "create", "x", "--key-out", tmp_path / "x.key"],
        ["domain", "create", "Bad Name!", "--key-out", tmp_path / "x.key", "--no-recovery"],
        ["enrol-token", "create", "play", "--ttl", "soon"],
        ["snapshots", "--latest", "0"],
        ["find"],
        ["dump", "latest"],
        ["nonsense"],
    ]
    for words in tries:
        done = world.run(*words)
        assert done.returncode == 2, (words, done.returncode, done.stdout, done.stderr)
        assert b"Traceback" not in done.stderr
        assert done.stderr.strip(), words
    assert not (tmp_path / "x.key").exists()
    again = world.run("domain", "create", "play", "--key-out", key, "--no-recovery")
    assert again.returncode == 11
    taken = world.run("domain", "create", "play", "--key-out", tmp_path / "y", "--no-recovery")
    assert taken.returncode == 11
    assert not (tmp_path / "y").exists(), "the key of a domain that was not made is of no use"


def test_a_client_with_snapshots_is_not_forgotten(world: World, played: dict[str, Any]) -> None:
    done = world.run("client", "forget", CLIENT)
    assert done.returncode == 11, done.stderr
    assert b"snapshot" in done.stderr
    world.cli("client", "revoke", OTHER)
    world.cli("client", "forget", OTHER)
    assert [row["name"] for row in world.json("clients")] == [CLIENT]
    assert world.run("client", "show", OTHER).returncode == 10
    world.agents.pop(OTHER).stop()


def test_a_server_that_is_away_or_untrusted_is_told(world: World, tmp_path: Path) -> None:
    away = world.run("clients", "--json", HOLDFAST_SERVER="https://127.0.0.1:9")
    assert away.returncode == 1
    assert json.loads(away.stderr)["code"] == "unreachable"
    wrong = tmp_path / "ca.pem"
    wrong.write_text("nothing")
    assert world.run("clients", HOLDFAST_CA=str(wrong)).returncode == 2
    untrusted = world.run("clients", "--json", HOLDFAST_CA="")
    assert untrusted.returncode == 12
    assert b"certificate" in untrusted.stderr
    assert world.run("clients", HOLDFAST_TOKEN_FILE=str(tmp_path / "absent")).returncode == 2
