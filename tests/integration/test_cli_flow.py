"""The administrator's command against a real server and agents: what only the whole can show."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World, under

CLIENT = "shop/cli-0"


@pytest.fixture(scope="module")
def source(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A backed-up volume with one directory that damages no reader."""
    top = tmp_path_factory.mktemp("volume") / "source"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(b"content")
    (top / "big").write_bytes(os.urandom(12 << 20))
    world.start_agent(CLIENT, [top, top.parent / "out"])
    world.backup(CLIENT, top)
    yield top


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, world: World, *words: object) -> None:
        settings = world.environment(TERM="xterm", COLUMNS="120", NO_COLOR="1")
        program = str(world.bin / "holdfast")
        pid, self._fd = pty.fork()
        if pid == 0:
            # What runs in the background of a script ignores it, and hands that on.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(program, [program, *map(str, words)], settings)
        self.pid = pid
        self.shown = b""

    def read(self, until: Callable[[bytes], bool], seconds: float = 60) -> None:
        """Read until something is shown, or to the end."""
        end = time.monotonic() + seconds
        while not until(self.shown):
            assert time.monotonic() < end, self.shown[-2000:]
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    piece = os.read(self._fd, 1 << 16)
                except OSError:
                    return
                if not piece:
                    return
                self.shown += piece

    def type(self, text: bytes) -> None:
        """Type `text`."""
        os.write(self._fd, text)

    def end(self) -> int:
        """Read to the end and return the exit code."""
        self.read(lambda _: False)
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


def is_at_work(shown: bytes) -> bool:
    """Tell whether a second has passed; a slow machine does not show each of them."""
    return re.search(rb" 0:00:0[1-9] ", shown) is not None


def test_ctrl_c_on_a_terminal_cancels_the_job(world: World, source: Path) -> None:
    (source / "more").write_bytes(os.urandom(12 << 20))
    terminal = Terminal(world, "backup", CLIENT, "--path", source, "--limit-upload", "1M")
    terminal.read(is_at_work)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert b"cancelled" in terminal.shown
    newest = world.json("jobs", "--client", CLIENT, "--latest", "1")[0]["id"]
    world.until(lambda: world.job(newest)["state"] == "Cancelled", "the job is cancelled")


def test_a_terminal_sees_a_bar_and_a_script_does_not(world: World, source: Path) -> None:
    terminal = Terminal(world, "backup", CLIENT, "--path", source)
    assert terminal.end() == 0
    assert f"backup {CLIENT}".encode() in terminal.shown
    assert b"files" in terminal.shown
    done = world.run("backup", CLIENT, "--path", source)
    assert done.stderr == b""
    assert done.stdout.startswith(f"backup of {CLIENT}: Completed".encode())


def test_delete_asks_on_a_terminal_and_no_means_no(world: World, source: Path) -> None:
    extra = source / "sub" / "extra"
    extra.write_text("not in the snapshot")
    for answer, code, is_left in ((b"n\n", 130, True), (b"y\n", 0, False)):
        words = ["restore", f"{CLIENT}@latest:{source}/sub", "--in-place", "--delete"]
        terminal = Terminal(world, *words, "--no-progress")
        terminal.read(lambda shown: b"go on?" in shown)
        assert b"1 entries would be removed" in terminal.shown
        terminal.type(answer)
        assert terminal.end() == code
        assert extra.exists() is is_left


def test_sigterm_leaves_the_job_running(world: World, source: Path) -> None:
    (source / "even more").write_bytes(os.urandom(8 << 20))
    words = ["backup", CLIENT, "--path", source, "--limit-upload", "2M", "--json"]
    waiting = subprocess.Popen(
        [world.bin / "holdfast", *map(str, words)],
        env=world.environment(),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert waiting.stdout is not None
    job = json.loads(waiting.stdout.readline())["job"]
    waiting.send_signal(signal.SIGTERM)
    waiting.wait(30)
    waiting.stdout.close()
    assert world.wait(job)["state"] == "Completed"


def test_an_interrupted_local_restore_leaves_no_half_file(
    world: World, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "here"
    words = ["restore", f"{CLIENT}@latest", "--local", target, "--key-file", world.domain("shop")]
    terminal = Terminal(world, *words, "--limit-download", "2M")
    terminal.read(is_at_work)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    for path in target.rglob("*"):
        if path.is_file():
            original = Path("/") / path.relative_to(target)
            assert path.read_bytes() == original.read_bytes()
    assert world.json(*words)["state"] == "Completed"
    assert (under(target, source) / "sub" / "file").read_bytes() == b"content"


def test_a_context_is_enough_after_a_login(world: World, source: Path) -> None:
    place = ["--server", world.url, "--ca", world.ca, "--token-file", world.data / "admin.token"]
    bare: dict[str, Any] = {"HOLDFAST_SERVER": "", "HOLDFAST_CA": "", "HOLDFAST_TOKEN_FILE": ""}
    world.cli("login", *place, "--name", "mine", **bare)
    assert world.json("clients", **bare)[0]["name"] == CLIENT
    assert world.json("clients", "--context", "mine", **bare)[0]["name"] == CLIENT
    assert world.json("clients", HOLDFAST_DATA=str(world.data), **bare)[0]["name"] == CLIENT
    world.cli("clients", "--context", "other", expect=10, **bare)
    world.cli("login", "--server", world.url, "--ca", world.ca, "--token-file", world.ca, expect=12)
    untrusted = ["--server", world.url, "--token-file", world.data / "admin.token"]
    world.cli("login", *untrusted, expect=12, **bare)


def test_a_recipient_recovers_the_key_of_a_domain(world: World, source: Path) -> None:
    top = source.parent
    pair = ["--private-out", top / "ops.private", "--out", top / "ops.recipient"]
    world.cli("key", "recipients", "create", *pair)
    key = world.domain("shop")
    world.cli("key", "recipients", "add", top / "ops.recipient", "--key-file", key)
    out = ["--key-out", top / "recovered"]
    words = ["key", "recover", "--domain", "shop", "--recovery", top / "ops.private", *out]
    proof = world.json(*words)["proved_by"]
    assert proof == world.json("snapshots")[0]["id"]
    assert (top / "recovered").read_text() == key.read_text()
    listed = world.json("key", "recipients", "list", "--domain", "shop")
    assert (top / "ops.recipient").read_text().split()[1] in listed


def test_names_that_the_server_forgot_are_opened_by_key_or_agent(
    own_world: World, tmp_path: Path
) -> None:
    volume, out = tmp_path / "volume", tmp_path / "out"
    volume.mkdir()
    (volume / "good").write_text("x")
    os.mkfifo(volume / "fifo")
    (volume / "odd").write_text("y")
    (volume / "odd").chmod(0)
    os.chown(volume / "odd", 12345, 12345)
    drop = "--bounding-set=-dac_override,-dac_read_search"
    inherit = drop.replace("--bounding-set", "--inh-caps")
    own_world.start_agent("shop/a", [volume, out], prefix=["setpriv", drop, inherit])
    done = own_world.backup("shop/a", volume, expect=3)
    assert [row["path"] for row in done["skipped"]] == [str(volume / "odd")]
    own_world.stop_server()
    own_world.start_server()
    own_world.until_connected("shop/a")
    key: dict[str, Any] = {"HOLDFAST_KEY_FILE": str(own_world.domain("shop"))}
    for env in (key, {}):
        shown = own_world.json("job", "show", done["job"], **env)
        assert shown["result"]["skipped"] == done["skipped"]
        assert shown["result"]["skipped_count"] == 1
    own_world.stop_agent("shop/a")
    own_world.until(lambda: own_world.client_state("shop/a") == "offline", "it is offline")
    assert own_world.json("job", "show", done["job"])["result"]["skipped"] is None
    waited = own_world.json("job", "wait", done["job"], expect=3, **key)
    assert waited["result"]["skipped"] == done["skipped"]


def test_find_sees_what_the_key_opens_and_no_more(world: World, source: Path) -> None:
    other = source.parent / "other.key"
    world.cli("domain", "create", "elsewhere", "--key-out", other, "--no-recovery")
    found = world.json("find", "file", HOLDFAST_KEY_FILE=str(world.domain("shop")))
    assert {row["path"] for row in found} == {str(source / "sub" / "file")}
    assert {row["client"] for row in found} == {CLIENT}
    assert world.json("find", "file", HOLDFAST_KEY_FILE=str(other)) == []


def test_completion_knows_commands_and_options(world: World) -> None:
    asked: dict[str, Any] = {"_HOLDFAST_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert world.cli(**asked, COMP_WORDS="holdfast snap").split() == [
        "plain,snapshots",
        "plain,snapshot",
    ]
    asked["COMP_CWORD"] = "2"
    assert "plain,--in-place" in world.cli(**asked, COMP_WORDS="holdfast restore --in").split()


def test_a_reader_that_goes_away_ends_a_list_quietly(world: World, source: Path) -> None:
    done = subprocess.run(
        f"'{world.bin / 'holdfast'}' events | head -c 1",
        shell=True,
        env=world.environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert len(done.stdout) == 1
    assert done.stderr == b""
