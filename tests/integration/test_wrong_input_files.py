"""What a backup meets in real trees: unreadable, changing, blocking, own files; paths asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World, log_tail, under

WITHOUT_OVERRIDE = (
    *("setpriv", "--bounding-set=-dac_override,-dac_read_search"),
    "--inh-caps=-dac_override,-dac_read_search",
)
CLIENT = "files/a-0"


@pytest.fixture(scope="module")
def source(world: World) -> Path:
    """The root of the module's client, whose agent obeys the modes of files."""
    source = world.top / "source"
    source.mkdir()
    world.start_agent(CLIENT, [source], prefix=WITHOUT_OVERRIDE)
    return source


@pytest.fixture
def place(source: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own below the root."""
    place: Path = source / request.node.name[:60]
    place.mkdir()
    return place


def _skips(summary: dict[str, Any]) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in summary["skipped"]}


def test_unreadable_files_and_folders_are_listed_and_the_rest_is_kept(
    world: World, place: Path
) -> None:
    (place / "open").write_bytes(b"open")
    (place / "closed").write_bytes(b"closed")
    (place / "folder").mkdir()
    (place / "folder" / "inside").write_bytes(b"x")
    for name in ("closed", "folder"):
        os.chown(place / name, 4242, 4242)
        os.chmod(place / name, 0)
    done = world.backup(CLIENT, place, expect=3)
    assert done["state"] == "CompletedWithSkips"
    assert set(_skips(done)) == {f"{place}/closed", f"{place}/folder"}
    shown = world.json("job", "show", done["job"])
    assert len(shown["result"]["skipped"]) == 2
    assert world.json("snapshots", CLIENT, "--latest", 1)[0]["state"] == "skips"
    text = world.run("job", "wait", done["job"])
    assert text.returncode == 3
    assert b"closed" in text.stdout + text.stderr
    for name in ("closed", "folder"):
        os.chmod(place / name, 0o755)
    after = world.backup(CLIENT, place)
    assert after["skipped"] == []
    assert after["files_new"] + after["files_changed"] == 2, "what was skipped is read now"


def test_paths_outside_the_roots_refuse_the_whole_job(world: World, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    before = len(world.json("snapshots", CLIENT))
    for outside in ("/etc", place.parent.parent, f"{place}/../../..", "/"):
        done = world.run("backup", CLIENT, "--path", place, "--path", outside, "--json")
        assert done.returncode == (2 if ".." in str(outside) else 12), (outside, done.stderr)
    assert len(world.json("snapshots", CLIENT)) == before


def test_absent_paths_are_listed_and_fail_only_when_nothing_could_be_read(
    world: World, place: Path
) -> None:
    (place / "file").write_bytes(b"x")
    done = world.backup(CLIENT, place / "file", place / "absent", expect=3)
    assert list(_skips(done)) == [f"{place}/absent"]
    nothing = world.run("backup", CLIENT, "--path", place / "absent", "--json")
    assert nothing.returncode == 1
    assert b'"nothing-read"' in nothing.stderr
    folder = world.run("backup", CLIENT, "--path", place / "file" / "under a file", "--json")
    assert folder.returncode == 1, folder.stderr


def test_fifos_sockets_and_devices_never_block(world: World, place: Path) -> None:
    os.mkfifo(place / "fifo")
    os.mknod(place / "null", 0o20666, os.makedev(1, 3))
    os.mknod(place / "tty", 0o20666, os.makedev(5, 0))
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(place)
        try:
            sock.bind("sock")
        finally:
            os.chdir(here)
        done = world.backup(CLIENT, place)
    assert (done["state"], done["files"]) == ("Completed", 4)
    assert world.backup(CLIENT, place / "fifo")["files"] == 1
    kinds = {
        Path(row["path"]).name: row["type"]
        for row in world.json("ls", f"{done['snapshot']}:{place}")
    }
    assert set(kinds) == {"fifo", "null", "tty", "sock"}
    assert len(set(kinds.values())) == 3


@contextmanager
def _disturbed(action: Any) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_files_that_change_while_read_are_whole_or_listed(world: World, place: Path) -> None:
    for name in ("growing", "rewritten", "shrinking", "replaced"):
        (place / name).write_bytes(bytes(4 << 20))
    (place / "quiet").write_bytes(b"quiet")
    round_ = 0

    def disturb() -> None:
        nonlocal round_
        round_ = (round_ + 1) % 250
        with open(place / "growing", "ab") as file:
            file.write(b"x" * 100)
        with open(place / "rewritten", "r+b") as file:
            file.write(bytes([round_]) * (1 << 20))
        os.truncate(place / "shrinking", (4 << 20) - round_ * 1000)
        (place / "new").write_bytes(bytes([round_]) * 1000)
        os.replace(place / "new", place / "replaced")

    target = place.parent / "restored"
    with _disturbed(disturb):
        done = world.json("backup", CLIENT, "--path", place, "--json", expect=3)
    assert done["state"] == "CompletedWithSkips"
    skipped = _skips(done)
    allowed = {
        f"{place}/{name}" for name in ("growing", "rewritten", "shrinking", "replaced", "new")
    }
    assert set(skipped) <= allowed, skipped
    assert f"{place}/rewritten" in skipped
    back = world.run("restore", done["snapshot"], "--target", target, "--json")
    assert back.returncode in (0, 3), back.stderr
    assert (under(target, place) / "quiet").read_bytes() == b"quiet"
    calm = world.backup(CLIENT, place)
    assert calm["skipped"] == []


def test_vanishing_files_do_no_harm(world: World, place: Path) -> None:
    for number in range(3000):
        (place / f"f{number:04}").write_bytes(b"x" * 500)
    victims = iter(sorted(place.iterdir(), reverse=True))

    def vanish() -> None:
        for _ in range(10):
            if (victim := next(victims, None)) is not None:
                victim.unlink()

    with _disturbed(vanish):
        done = world.run("backup", CLIENT, "--path", place, "--json")
    assert done.returncode in (0, 3), done.stderr
    calm = world.backup(CLIENT, place)
    assert calm["state"] == "Completed"


def test_the_agents_own_files_are_left_out_and_said(world: World, tmp_path: Path) -> None:
    root = world.top
    key = world.domain("own")
    (root / "own-key").mkdir()
    (root / "own-data").mkdir()
    (root / "own-data" / "file").write_bytes(b"x")
    inside = root / "own-key" / "domain.key"
    inside.write_bytes(key.read_bytes())
    client = "own/a-0"
    world.start_agent(
        client,
        [root / "own-key", root / "own-data", root / "state"],
        HOLDFAST_KEY_FILE=str(inside),
    )
    done = world.backup(client)
    assert (done["state"], done["skipped"]) == ("Completed", [])
    names = [row["path"] for row in world.json("ls", done["snapshot"], "-R")]
    assert f"{root}/own-data/file" in names
    assert not [name for name in names if "domain.key" in name], "the key never goes to the server"
    state = str(world.state(client))
    assert not [name for name in names if name.startswith(state + "/")]
    assert done.get("notes") or "left out" in log_tail(world.agents[client].log)


def test_excludes_are_gitignore_patterns(world: World, place: Path) -> None:
    for name in ("a.log", "keep.log", "b.txt", "cache/x", "deep/cache/y", "deep/z.log"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"x")
    options = ["--exclude", "*.log", "--exclude", "!keep.log", "--exclude", "/cache/"]
    done = world.backup(CLIENT, place, options=options)
    rows = world.json("ls", f"{done['snapshot']}:{place}", "-R")
    files = {str(Path(row["path"]).relative_to(place)) for row in rows if row["type"] == "file"}
    assert files == {"keep.log", "b.txt", "deep/cache/y"}
    assert done["skipped"] == []
    dry = world.json("backup", CLIENT, "--path", place, "--dry-run")
    assert dry["snapshot"] is None
    assert dry["files"] == 6
    wrong = world.run("backup", CLIENT, "--path", place, "--exclude", "[a")
    assert wrong.returncode == 2, wrong.stderr


def test_odd_text_in_arguments_is_no_defect(world: World, place: Path) -> None:
    (place / "file").write_bytes(b"x")
    raw = os.fsdecode(b"\xff\xfe")
    for words in (
        ["backup", CLIENT, "--path", f"{place}/{raw}"],
        ["backup", CLIENT, "--path", place, "--exclude", raw],
        ["backup", CLIENT, "--path", place, "--tag", raw],
        ["backup", raw],
        ["snapshots", "--tag", raw],
        ["restore", f"{CLIENT}@latest", "--in-place", "--include", raw],
        ["restore", f"{CLIENT}@latest:/{raw}", "--in-place"],
        ["restore", raw, "--in-place"],
        ["find", raw],
        ["ls", f"latest:/{raw}"],
        ["browse", CLIENT, f"{place}/{raw}"],
        ["client", "show", "a/b/c"],
        ["client", "show", "../x"],
        ["backup", CLIENT, "--path", "/" + "x" * 5000],
        ["backup", CLIENT, "--tag", "t" * 5000],
    ):
        done = world.run(*words, "--json")
        said = done.stderr.decode()
        assert "Traceback" not in said, (words, said)
        assert "defect" not in said, (words, said)
        assert '"internal"' not in said, (words, said)
        assert done.returncode in (0, 1, 2, 3, 10, 12), (words, done.returncode, said)


def test_a_tree_without_any_entry_is_a_backup(world: World, place: Path) -> None:
    done = world.backup(CLIENT, place)
    assert (done["state"], done["files"], done["bytes"]) == ("Completed", 0, 0)
    subprocess.run(["rmdir", place], check=True)
