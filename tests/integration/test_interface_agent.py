"""An agent as a pod's owner meets it: state, keys, certificates, enrolment, names, roots."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.world import BIN, Process, World, log_tail

DOMAIN = "shop"


class Agents:
    """Agents of one test, each with any settings; all are ended with it."""

    def __init__(self, world: World, top: Path) -> None:
        self.world = world
        self.top = top
        self.running: list[Process] = []

    def settings(self, name: str, **changed: str | None) -> dict[str, str]:
        """Return an agent's variables; None takes one away."""
        root = self.top / "root"
        root.mkdir(exist_ok=True)
        state = self.top / f"state-{name}"
        state.mkdir(exist_ok=True)
        settings: dict[str, str | None] = {
            "HOLDFAST_SERVER": self.world.url,
            "HOLDFAST_CA": str(self.world.ca),
            "HOLDFAST_STATE": str(state),
            "HOLDFAST_ROOTS": str(root),
            "HOLDFAST_KEY_FILE": str(self.world.domain(DOMAIN)),
        }
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        chosen = clean | {k: v for k, v in (settings | changed).items() if v is not None}
        return chosen

    def token(self, *options: object) -> str:
        """Return the path of a new enrolment token."""
        place = self.top / f"token-{len(list(self.top.glob('token-*')))}"
        self.world.domain(DOMAIN)
        self.world.cli("enrol-token", "create", DOMAIN, *options, "--out", place)
        return str(place)

    def start(self, name: str, **changed: str | None) -> Process:
        """Start an agent; nothing is waited for."""
        log = self.top / f"{name}.log"
        with open(log, "ab") as out:
            popen = subprocess.Popen(
                [str(BIN / "holdfast-agent")],
                env=self.settings(name, **changed),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        process = Process(name, popen, log)
        self.running.append(process)
        return process

    def refused(self, name: str, **changed: str | None) -> tuple[int, str]:
        """Start an agent that ends by itself; return its exit status and what it said."""
        process = self.start(name, **changed)
        status = process.popen.wait(20)
        text = log_tail(process.log)
        assert "Traceback" not in text, text
        return status, text

    def says(self, process: Process, pattern: str) -> None:
        """Wait until the agent has said `pattern`, alive."""

        def said() -> bool:
            assert process.popen.poll() is None, log_tail(process.log)
            return bool(re.search(pattern, log_tail(process.log), re.IGNORECASE))

        self.world.until(said, f"{process.name} says {pattern}", seconds=20)

    def connected(self, client: str) -> None:
        """Wait until the server shows the client as connected."""
        self.world.until(
            lambda: self.world.client_state(client) == "connected", f"{client} is connected"
        )


@pytest.fixture
def agents(world: World, tmp_path: Path) -> Iterator[Agents]:
    """Agents of this test."""
    agents = Agents(world, tmp_path)
    yield agents
    assert [p.name for p in agents.running if p.stop() not in (0, 2, 11, 12)] == []


def test_a_state_directory_serves_one_agent(agents: Agents) -> None:
    token = agents.token("--client", "single")
    agents.start("single", HOLDFAST_ENROL_TOKEN_FILE=token)
    agents.connected(f"{DOMAIN}/single")
    status, text = agents.refused("single", HOLDFAST_ENROL_TOKEN_FILE=token)
    assert status == 11
    assert str(agents.running[0].popen.pid) in text


def test_wrong_settings_end_the_agent_at_once_with_2(agents: Agents, tmp_path: Path) -> None:
    bad_key = tmp_path / "bad.key"
    bad_key.write_text("not a key\n")
    tries: list[dict[str, str | None]] = [
        {"HOLDFAST_KEY_FILE": str(tmp_path / "absent.key")},
        {"HOLDFAST_KEY_FILE": None},
        {"HOLDFAST_KEY_FILE": str(bad_key)},
        {"HOLDFAST_CA": str(tmp_path / "absent.pem")},
        {"HOLDFAST_CA": str(bad_key)},
        {"HOLDFAST_SERVER": "ftp://somewhere"},
        {"HOLDFAST_SERVER": "http://192.0.2.1:9440"},
        {"HOLDFAST_SERVER": None},
        {"HOLDFAST_ROOTS": "relative/path"},
        {"HOLDFAST_ROOTS": None},
        {"HOLDFAST_STATE": None},
        {"HOLDFAST_MEMORY_MAX": "plenty"},
        {"HOLDFAST_RESTORE": "sometimes"},
        {"HOLDFAST_ENROL_TOKEN_FILE": None},
        {"HOLDFAST_ENROL_TOKEN_FILE": str(tmp_path / "absent.token")},
    ]
    for number, changed in enumerate(tries):
        status, text = agents.refused(f"wrong{number}", **changed)
        assert status == 2, (changed, status, text)
        assert text.startswith("holdfast-agent: "), (changed, text)
        path = next(iter(changed.values()))
        if path and path.startswith("/") and "absent" in path:
            assert path in text, (changed, text)


def test_a_wrong_ca_is_told_and_the_agent_keeps_trying(agents: Agents, tmp_path: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=another", "-days", "2"),
            *("-keyout", str(tmp_path / "k.pem"), "-out", str(tmp_path / "ca.pem")),
        ],
        check=True,
        capture_output=True,
    )
    token = agents.token("--client", "wrong-ca")
    fresh = agents.start(
        "wrong-ca", HOLDFAST_ENROL_TOKEN_FILE=token, HOLDFAST_CA=str(tmp_path / "ca.pem")
    )
    agents.says(fresh, r"certificate")
    assert agents.world.client_state(f"{DOMAIN}/wrong-ca") == "unknown"
    assert fresh.stop() == 0
    right = agents.start("wrong-ca", HOLDFAST_ENROL_TOKEN_FILE=token)
    agents.connected(f"{DOMAIN}/wrong-ca")
    assert right.stop() == 0
    known = agents.start("wrong-ca", HOLDFAST_CA=str(tmp_path / "ca.pem"))
    seen = len(log_tail(known.log))
    agents.world.until(
        lambda: "certificate" in log_tail(known.log)[seen:].lower(), "an enrolled agent says it too"
    )
    assert known.popen.poll() is None


def test_a_server_that_is_away_is_waited_for(own_world: World, tmp_path: Path) -> None:
    world = own_world
    agents = Agents(world, tmp_path)
    token = agents.token("--client", "patient")
    world.stop_server()
    agent = agents.start("patient", HOLDFAST_ENROL_TOKEN_FILE=token)
    agents.says(agent, r"try again|refused|reach")
    world.start_server()
    started = time.monotonic()
    agents.connected(f"{DOMAIN}/patient")
    assert time.monotonic() - started < 20
    world.kill_server()
    seen = len(log_tail(agent.log))
    world.until(lambda: re.search("again|reach", log_tail(agent.log)[seen:]), "it says so")
    world.start_server()
    agents.connected(f"{DOMAIN}/patient")
    assert agent.stop() == 0


def test_enrolment_tokens_that_do_not_count_are_refused_with_12(
    agents: Agents, tmp_path: Path
) -> None:
    used = agents.token("--client", "taker")
    agents.start("taker", HOLDFAST_ENROL_TOKEN_FILE=used)
    agents.connected(f"{DOMAIN}/taker")
    expired = agents.token("--client", "late", "--ttl", "1s")
    revoked = agents.token("--client", "gone")
    rows = {row["client"]: row for row in agents.world.json("enrol-token", "list")}
    agents.world.cli("enrol-token", "revoke", rows[f"{DOMAIN}/gone"]["id"])
    wrong = tmp_path / "wrong.token"
    wrong.write_text(Path(used).read_text()[:-8] + "AAAAAAAA")
    for name, token in (("late", expired), ("gone", revoked), ("wrong", wrong), ("thief", used)):
        if name == "late":
            time.sleep(1.1)
        status, text = agents.refused(name, HOLDFAST_ENROL_TOKEN_FILE=str(token))
        assert status == 12, (name, status, text)
        assert "token" in text, (name, text)
        assert Path(token).read_text().strip() not in text
        if name != "thief":
            assert agents.world.client_state(f"{DOMAIN}/{name}") == "unknown"


def test_an_identity_needs_no_token_any_more(agents: Agents) -> None:
    token = agents.token("--client", "known")
    agent = agents.start("known", HOLDFAST_ENROL_TOKEN_FILE=token)
    agents.connected(f"{DOMAIN}/known")
    assert agent.stop() == 0
    os.unlink(token)
    agents.start("known", HOLDFAST_ENROL_TOKEN_FILE=token)
    agents.connected(f"{DOMAIN}/known")


def test_names_come_from_the_token_first_then_from_the_agent(agents: Agents) -> None:
    agents.start(
        "x", HOLDFAST_ENROL_TOKEN_FILE=agents.token("--client", "given"), HOLDFAST_CLIENT="other"
    )
    agents.connected(f"{DOMAIN}/given")
    agents.start("y", HOLDFAST_ENROL_TOKEN_FILE=agents.token(), HOLDFAST_CLIENT="proposed")
    agents.connected(f"{DOMAIN}/proposed")
    agents.start("z", HOLDFAST_ENROL_TOKEN_FILE=agents.token())
    agents.connected(f"{DOMAIN}/{socket.gethostname()}")
    status, text = agents.refused(
        "w", HOLDFAST_ENROL_TOKEN_FILE=agents.token(), HOLDFAST_CLIENT="proposed"
    )
    assert status == 11, text
    assert "proposed" in text
    status, text = agents.refused(
        "v", HOLDFAST_ENROL_TOKEN_FILE=agents.token(), HOLDFAST_CLIENT="elsewhere/name"
    )
    assert status == 11, (status, text)
    assert "elsewhere/name" in text


def test_an_absent_root_is_warned_of_and_may_come_later(agents: Agents, tmp_path: Path) -> None:
    late = tmp_path / "late"
    token = agents.token("--client", "rootless")
    agent = agents.start("rootless", HOLDFAST_ENROL_TOKEN_FILE=token, HOLDFAST_ROOTS=str(late))
    agents.connected(f"{DOMAIN}/rootless")
    assert str(late) in log_tail(agent.log)
    late.mkdir()
    (late / "file").write_bytes(b"content")
    done = agents.world.backup(f"{DOMAIN}/rootless")
    assert (done["state"], done["files"]) == ("Completed", 1)


def test_a_wrong_domain_key_stays_connected_fails_with_12_and_can_be_put_right(
    agents: Agents, tmp_path: Path
) -> None:
    world = agents.world
    other = world.domain("elsewhere")
    client = f"{DOMAIN}/mistaken"
    token = agents.token("--client", "mistaken")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_bytes(b"content")

    def fails_with_12() -> None:
        done = world.run("backup", client, "--json")
        assert done.returncode == 12, done.stderr
        assert b'"wrong-key"' in done.stderr
        assert world.client_state(client) == "connected"

    first = agents.start("mistaken", HOLDFAST_ENROL_TOKEN_FILE=token, HOLDFAST_KEY_FILE=str(other))
    agents.connected(client)
    fails_with_12()
    assert first.stop() == 0
    right = agents.start("mistaken")
    agents.connected(client)
    done = world.backup(client)
    assert done["state"] == "Completed"
    assert right.stop() == 0
    changed = agents.start("mistaken", HOLDFAST_KEY_FILE=str(other))
    agents.connected(client)
    fails_with_12()
    blocked = world.run("restore", done["snapshot"], "--in-place", "--json")
    assert blocked.returncode == 12, blocked.stderr
    assert changed.stop() == 0
    agents.start("mistaken")
    agents.connected(client)
    assert world.backup(client)["parent"] == done["snapshot"]


def test_of_two_agents_with_one_identity_the_newer_wins(agents: Agents, tmp_path: Path) -> None:
    client = f"{DOMAIN}/twin"
    first = agents.start("twin", HOLDFAST_ENROL_TOKEN_FILE=agents.token("--client", "twin"))
    agents.connected(client)
    copy = tmp_path / "state-copy"
    shutil.copytree(tmp_path / "state-twin", copy, symlinks=True)
    second = agents.start("second", HOLDFAST_STATE=str(copy))
    assert first.popen.wait(20) == 11
    assert "identity" in log_tail(first.log).lower()
    agents.connected(client)
    assert second.popen.poll() is None
    events = agents.world.json("events", "--client", client)
    assert any(row["kind"] == "fenced" for row in events), events
    assert agents.world.backup(client)["state"] == "Completed"


def test_a_revoked_client_loses_access_at_once(agents: Agents) -> None:
    client = f"{DOMAIN}/outcast"
    agent = agents.start("outcast", HOLDFAST_ENROL_TOKEN_FILE=agents.token("--client", "outcast"))
    agents.connected(client)
    agents.world.cli("client", "revoke", client)
    assert agents.world.client_state(client) == "revoked"
    assert agent.popen.wait(10) == 12, log_tail(agent.log)
    assert "revoked" in log_tail(agent.log)
    assert agents.world.client_state(client) == "revoked"
    done = agents.world.run("backup", client)
    assert done.returncode == 12, done.stderr
    assert b"revoked" in done.stderr


def test_config_show_of_the_agent_tells_where_each_value_came_from(
    agents: Agents, tmp_path: Path
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('memory_max = "100M"\nworkers = 3\n')
    environment = agents.settings("shown", HOLDFAST_WEB_SERVICE_PORT="80")
    done = subprocess.run(
        [str(BIN / "holdfast-agent"), "--config", str(file), "--workers", "4", "config", "show"],
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    lines = {line.split()[0]: line for line in done.stdout.decode().splitlines() if line.split()}
    assert done.returncode == 0, done.stderr
    assert f"file {file}" in lines["memory_max"]
    assert "flag --workers" in lines["workers"]
    assert "environment HOLDFAST_ROOTS" in lines["roots"]
    assert "HOLDFAST_WEB_SERVICE_PORT" in done.stdout.decode()
    file.write_text('memroy_max = "100M"\n')
    for args in (["--config", str(file)], ["--nonsense"], ["--workers", "0"]):
        wrong = subprocess.run(
            [str(BIN / "holdfast-agent"), *args],
            env=environment,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert wrong.returncode == 2, wrong.stderr


def test_sigterm_during_a_running_job_is_quick_and_the_job_goes_on(
    own_world: World, tmp_path: Path
) -> None:
    world = own_world
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(3 << 20))
    world.start_agent("shop/busy", [source])
    # Minutes for one pack: however slow the machine, the job is under way at both ends.
    world.cli("client", "set", "shop/busy", "--limit-upload", "20K")
    job = world.detached("shop/busy")
    world.until(lambda: world.job(job)["progress"]["bytes_sent"] > 0, "bytes are sent")
    assert world.server is not None
    started = time.monotonic()
    world.server.popen.send_signal(signal.SIGTERM)
    assert world.server.popen.wait(15) == 0
    assert time.monotonic() - started < 10
    world.start_server()
    world.until_connected("shop/busy")
    started = time.monotonic()
    assert world.stop_agent("shop/busy") == 0
    assert time.monotonic() - started < 10
    assert not world.job(job)["state"].startswith(("Comp", "Fail", "Canc"))
    world.start_agent("shop/busy", [source])
    world.cli("client", "set", "shop/busy", "--limit-upload", "500M")
    assert world.wait(job)["state"] == "Completed"
