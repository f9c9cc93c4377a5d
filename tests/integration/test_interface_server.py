"""The server as its administrator meets it: first start, modes, certificate, doors, signals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.world import BIN, World

METHODS = ("get", "post", "put", "patch", "delete")
OPEN = ("/healthz", "/v1/openapi.json", "/agent/v1/control")


def _server(*args: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return subprocess.run(
        [str(BIN / "holdfast-server"), *map(str, args)],
        env=clean | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )


def _strict(world: World) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=world.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _request(world: World, method: str, path: str, token: str = "") -> tuple[int, Any]:
    request = urllib.request.Request(world.url + path, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10, context=_strict(world)) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_first_start_makes_and_prints_what_an_administrator_needs(world: World) -> None:
    for name in ("tls/ca.pem", "admin.token", "url", "store"):
        assert (world.data / name).exists(), name
    assert stat.S_IMODE((world.data / "admin.token").stat().st_mode) == 0o600
    secrets = [path for path in (world.data / "tls").iterdir() if "key" in path.name]
    assert secrets
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert (world.data / "url").read_text().strip() == world.url
    # It answers a little before it has printed everything.
    world.until(lambda: "holdfast backup demo/first" in world.logs()["server"], "all is printed")
    printed = world.logs()["server"]
    digest = ssl.PEM_cert_to_DER_cert(world.ca.read_text())
    fingerprint = hashlib.sha256(digest).hexdigest()
    assert world.url in printed
    assert fingerprint in printed.replace(":", "").lower()
    assert "holdfast domain create" in printed
    assert (world.data / "admin.token").read_text().strip() not in printed


def test_certificates_hold_under_strict_checking_for_every_promised_name(world: World) -> None:
    host, _, port = world.url.removeprefix("https://").rpartition(":")
    context = _strict(world)
    for name in (host, "localhost", "127.0.0.1"):
        with (
            socket.create_connection(("127.0.0.1", int(port)), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=name) as tls,
        ):
            assert tls.version() == "TLSv1.3"


def test_only_health_and_the_description_are_open(world: World) -> None:
    assert _request(world, "GET", "/healthz")[0] == 200
    status, body = _request(world, "GET", "/v1/openapi.json")
    assert status == 200
    description = json.loads(body)
    tried = 0
    for path, methods in description["paths"].items():
        place = re.sub(r"\{[^}]*\}", "x", path)
        for method in methods:
            if method in METHODS and place not in OPEN:
                status, body = _request(world, method.upper(), place)
                assert status == 401, (method, path, status)
                assert json.loads(body)["code"] == "not-authenticated"
                tried += 1
    assert tried > 25
    # The control channel proves an identity over a nonce, so it has no token: it is no page either.
    assert _request(world, "GET", "/agent/v1/control")[0] == 400
    for place in ("/metrics", "/agent/v1/domain"):
        assert _request(world, "GET", place)[0] == 401, place
    token = (world.data / "admin.token").read_text().strip()
    assert _request(world, "GET", "/metrics", token)[0] == 200
    assert _request(world, "GET", "/v1/unknown", token)[0] == 404
    assert _request(world, "GET", "/v1/clients", token + "x")[0] == 401


def test_a_second_server_on_one_directory_is_refused_with_the_pid_of_the_first(
    world: World,
) -> None:
    assert world.server is not None
    second = _server("--data", world.data, "--listen", "127.0.0.1:0")
    assert second.returncode == 11
    assert str(world.server.popen.pid).encode() in second.stderr
    assert b"Traceback" not in second.stderr
    assert world.get("/healthz") == 200


def test_a_busy_address_is_told_without_a_trace(world: World, tmp_path: Path) -> None:
    busy = world.url.removeprefix("https://")
    done = _server("--data", tmp_path / "other", "--listen", busy)
    assert done.returncode == 11, done.stderr
    assert busy.encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_config_show_tells_origins_and_masks_secrets(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('listen = "127.0.0.1:1"\nlog_level = "debug"\n')
    done = _server(
        "--config",
        file,
        "--log-level",
        "error",
        "config",
        "show",
        HOLDFAST_DATA=str(tmp_path / "d"),
        HOLDFAST_CATALOG="postgresql://user:hunter2@db/holdfast",
        HOLDFAST_SERVER_SERVICE_HOST="10.0.0.1",
    )
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "environment HOLDFAST_DATA" in lines["data"]
    assert f"file {file}" in lines["listen"]
    assert "flag --log-level" in lines["log_level"]
    assert "default" in lines["log_format"]
    assert "HOLDFAST_SERVER_SERVICE_HOST" in text
    assert "10.0.0.1" not in text
    assert "hunter2" not in text
    assert not (tmp_path / "d").exists(), "showing settings starts nothing"


def test_what_is_not_known_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("lisen = 'x'\n")
    data = tmp_path / "data"
    tries: list[tuple[object, ...]] = [
        ("--data", data, "--nonsense"),
        ("--config", file, "--data", data),
        ("--data", data, "--listen", "no port"),
        ("--data", data, "--listen", "127.0.0.1:99999"),
        ("--data", data, "--log-level", "loud"),
        ("--data", data, "--store", "gopher://x"),
        ("--data", data, "--config", tmp_path / "absent.toml"),
        ("frobnicate",),
        (),
    ]
    for args in tries:
        done = _server(*args)
        assert done.returncode == 2, (args, done.returncode, done.stderr)
        assert b"Traceback" not in done.stderr
    assert not (data / "admin.token").exists()


def test_kill_9_and_a_new_start_serve_the_same_directory(own_world: World) -> None:
    world = own_world
    before = world.url, world.ca.read_bytes(), (world.data / "admin.token").read_bytes()
    world.domain("kept")
    world.kill_server()
    world.start_server(HOLDFAST_SERVICE_PORT="1", HOLDFAST_WHATEVER="x")
    assert before == (world.url, world.ca.read_bytes(), (world.data / "admin.token").read_bytes())
    assert [row["name"] for row in world.json("domain", "list")] == ["kept"]
    assert world.server is not None
    world.server.popen.send_signal(signal.SIGTERM)
    assert world.server.popen.wait(10) == 0


def test_300_idle_connections_from_one_address_are_served(world: World) -> None:
    host, _, port = world.url.removeprefix("https://").rpartition(":")
    context = _strict(world)
    held: list[ssl.SSLSocket] = []
    try:
        for _ in range(300):
            raw = socket.create_connection((host, int(port)), timeout=10)
            held.append(context.wrap_socket(raw, server_hostname=host))
        assert world.get("/healthz") == 200
        for tls in (held[0], held[150], held[299]):
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for tls in held:
            tls.close()
