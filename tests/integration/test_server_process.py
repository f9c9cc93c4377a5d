"""`holdfast-server` as a process: first start, one a directory, an orderly end, clear refusals."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_contract.errors import Conflict, UsageError
from holdfast_server.api import serving as serving_module
from holdfast_server.auth.tokens import TokenKind, hash_token, token_kind
from holdfast_server.catalog import tokens
from holdfast_server.data_directory import DataDirectory
from holdfast_server.main import main
from holdfast_server.runtime import ensure_admin_token, server_url
from tests.support.apiworld import made, serving
from tests.support.uploads import Served

COMMAND = [sys.executable, "-m", "holdfast_server.main"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}


class Process:
    """A running server; its output is kept in a file."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.log = data.parent / f"log-{len(list(data.parent.glob('log-*')))}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "--data", str(data), "--listen", "127.0.0.1:0", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=CLEAN,
            )
        end = time.monotonic() + 30
        while b" is ready: " not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)

    def output(self) -> bytes:
        return self.log.read_bytes()

    @property
    def url(self) -> str:
        return (self.data / "url").read_text().strip()

    def get(self, path: str) -> Any:
        context = ssl.create_default_context(cafile=self.data / "tls" / "ca.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        token = (self.data / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20, context=context) as reply:
            return json.loads(reply.read())

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    found = Process(tmp_path / "data")
    yield found
    found.stop()


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=60, env=CLEAN, check=False
    )


def test_the_first_start_makes_a_server_and_says_what_to_do_next(server: Process) -> None:
    assert stat.S_IMODE((server.data / "admin.token").stat().st_mode) == 0o600
    assert stat.S_IMODE((server.data / "tls" / "ca.key").stat().st_mode) == 0o600
    assert server.get("/healthz") == {"status": "ok"}
    assert server.get("/v1/status")["clients"] == 0
    text = server.output().decode()
    assert server.url in text
    assert "CA fingerprint (SHA-256)" in text
    for step in ("HOLDFAST_DATA=", "holdfast login", "domain create", "enrol-token create"):
        assert step in text
    assert (server.data / "admin.token").read_text().strip() not in text


def test_a_second_server_on_the_same_directory_is_refused_with_the_pid(server: Process) -> None:
    second = run("--data", str(server.data), "--listen", "127.0.0.1:0")
    assert second.returncode == 11
    assert str(server.process.pid) in second.stderr
    assert "hint: " in second.stderr
    assert "Traceback" not in second.stderr
    assert server.get("/healthz") == {"status": "ok"}


def test_an_interrupt_ends_the_server_with_0(server: Process) -> None:
    assert server.stop(signal.SIGINT) == 0


def test_a_signal_ends_the_server_with_0_although_somebody_waits(server: Process) -> None:
    """A long poll, an idle connection and one in the middle of its request do not hold it up."""
    host, port = server.url.removeprefix("https://").split(":")
    context = ssl.create_default_context(cafile=server.data / "tls" / "ca.pem")
    token = (server.data / "admin.token").read_text().strip()
    head = f"Host: x\r\nAuthorization: Bearer {token}\r\n"
    starts = (
        f"GET /v1/events?after=1000000&wait=60 HTTP/1.1\r\n{head}\r\n",
        "",
        f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: 1000\r\n\r\nx",
    )
    open_sockets = []
    for start in starts:
        plain = socket.create_connection((host, int(port)))
        open_sockets.append(context.wrap_socket(plain, server_hostname=host))
        open_sockets[-1].sendall(start.encode())
    assert server.get("/healthz") == {"status": "ok"}
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    for each in open_sockets:
        each.close()


def test_a_killed_server_starts_again_with_all_that_it_knew(tmp_path: Path) -> None:
    first = Process(tmp_path / "data")
    first.process.kill()
    first.process.wait()
    token = (first.data / "admin.token").read_bytes()
    authority = (first.data / "tls" / "ca.pem").read_bytes()
    second = Process(tmp_path / "data")
    assert second.get("/v1/status")["version"]
    assert (second.data / "admin.token").read_bytes() == token
    assert (second.data / "tls" / "ca.pem").read_bytes() == authority
    assert second.stop() == 0


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ([], 2, "--data"),
        (["--nonsense"], 2, "--nonsense"),
        (["serve"], 2, "unknown command"),
        (["--data", "/proc/holdfast"], 2, "data directory"),
        (["--data", "DIR", "--listen", "here"], 2, "HOST:PORT"),
        (["--data", "DIR", "--listen", "192.0.2.1:0"], 2, "listen"),
        (["--data", "DIR", "--store", "s3://bucket"], 2, "s3"),
        (["--data", "DIR", "--store", "file:relative"], 2, "absolute"),
        (["--data", "DIR", "--catalog", "postgresql://x/y"], 2, "postgresql"),
        (["--data", "DIR", "--tls-cert", "/nowhere"], 2, "--tls-key"),
        (["--data", "DIR", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"], 2, "certificate"),
        (["--data", "DIR", "--log-level", "loud"], 2, "log"),
    ],
)
def test_a_start_that_cannot_be_is_one_clear_line(
    tmp_path: Path, options: list[str], code: int, text: str
) -> None:
    done = run(*[str(tmp_path / "data") if option == "DIR" else option for option in options])
    last = [line for line in done.stderr.splitlines() if not line.startswith("  hint: ")][-1]
    assert done.returncode == code
    assert last.startswith("holdfast-server: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_help_version_and_settings_need_no_directory(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as ended:
            main([option], {})
        assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert "holdfast-server 0." in text
    assert main(["config", "show", "--json", "--jobs-running-max", "3"], {}) == 0
    shown = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in shown["settings"]}
    assert (rows["jobs_running_max"]["value"], rows["jobs_running_max"]["source"]) == (3, "flag")


# --- the first token
@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


def test_the_first_token_is_made_once(tmp_path: Path, catalog: Served) -> None:
    with DataDirectory.open(tmp_path / "data") as directory:
        assert ensure_admin_token(directory, catalog.catalog) is True
        secret = directory.token_file.read_text().strip()
        assert token_kind(secret) is TokenKind.API
        assert tokens.find(catalog.catalog, hash_token(secret)) is not None
        assert ensure_admin_token(directory, catalog.catalog) is False
        directory.token_file.unlink()
        assert ensure_admin_token(directory, catalog.catalog) is False
        assert not directory.token_file.exists()


def test_a_crash_between_the_tokens_file_and_its_row_is_made_good(
    tmp_path: Path, catalog: Served
) -> None:
    from holdfast_server.auth.tokens import new_token

    secret = new_token(TokenKind.API)
    with DataDirectory.open(tmp_path / "data") as directory:
        directory.write_token(secret)
        assert ensure_admin_token(directory, catalog.catalog) is True
    assert tokens.find(catalog.catalog, hash_token(secret)) is not None


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "https://127.0.0.1:7"),
        ("0.0.0.0", "https://127.0.0.1:7"),
        ("::", "https://[::1]:7"),
        ("::1", "https://[::1]:7"),
        ("backup.lan", "https://backup.lan:7"),
    ],
)
def test_the_url_is_one_that_can_be_dialled(host: str, url: str) -> None:
    assert server_url(host, 7) == url


# --- the port
async def test_a_port_that_is_in_use_is_a_conflict_and_a_foreign_address_wrong_usage(
    tmp_path: Path,
) -> None:
    served, token = await asyncio.to_thread(made, tmp_path)
    async with serving(served, token) as world:
        other = serving_module.Serving(world.services, shutdown_seconds=1)
        with pytest.raises(Conflict, match=str(world.port)):
            await other.open("127.0.0.1", world.port, None)
        other = serving_module.Serving(world.services, shutdown_seconds=1)
        with pytest.raises(UsageError, match="cannot listen"):
            await other.open("192.0.2.1", 0, None)
    await asyncio.to_thread(served.stop)


async def test_a_connection_that_never_asks_anything_is_closed_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "HEAD_SECONDS", 0.3)
    served, token = await asyncio.to_thread(made, tmp_path)
    async with serving(served, token) as world:
        mute, mute_writer = await asyncio.open_connection("127.0.0.1", world.port)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", world.port)
        slow_writer.write(b"GET /healthz HT")
        good, good_writer = await asyncio.open_connection("127.0.0.1", world.port)
        good_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await good.readline()
        async with asyncio.timeout(20):
            assert await mute.read() == b""
            assert await slow.read() == b""
        while not good.at_eof() and (await good.readline()) not in (b"\r\n", b""):
            pass
        assert await good.readexactly(4)
        good_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.wait_for(good.readline(), 20)
        for writer in (mute_writer, slow_writer, good_writer):
            writer.close()
    await asyncio.to_thread(served.stop)


async def test_a_thousand_connections_from_one_address_are_served(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    served, token = await asyncio.to_thread(made, tmp_path)
    async with serving(served, token) as world:
        streams = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(1000)]
        for _, writer in streams:
            writer.write(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, _ in streams:
            assert b"200" in await reader.readline()
        for _, writer in streams:
            writer.close()
    await asyncio.to_thread(served.stop)
