"""A process that shares the volume swaps names all the time: nothing leaves its place.

Each test goes on until both sides of the race were met often, so it cannot pass by luck of timing.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent.restore.failures import EntryFailed, InTheWay
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.nodes import make_node
from holdfast_agent.restore.removal import remove
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.attributes import Attributes, OwnerNames, attributes_at
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.descent import Descent
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.reading import FileReader, open_file
from holdfast_agent.sources.roots import Root, Roots
from holdfast_agent.sources.scan import look
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_contract.errors import Refused
from tests.support.hostile import swapping
from tests.support.listing import scan

ATTEMPTS = 300
OFTEN = 10
SECONDS_MAX = 40
CLOCK = SystemFileClock()
KNOWN = Filesystems()
POLICY = Policy(special=True)

pytestmark = pytest.mark.timeout(60)


def until_both(attempt: Callable[[], bool], *, needed: int = ATTEMPTS) -> Counter[bool]:
    """Repeat `attempt`, at least so many times, until it came out either way often enough."""
    outcomes: Counter[bool] = Counter()
    end = time.monotonic() + SECONDS_MAX
    while outcomes.total() < needed or min(outcomes[True], outcomes[False]) < OFTEN:
        outcomes[attempt()] += 1
        assert time.monotonic() < end, f"the race was never met both ways: {outcomes}"
    return outcomes


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a root with `dir` (holds `inside`), and beside the root what must stay untouched."""
    (tmp_path / "root" / "dir").mkdir(parents=True)
    (tmp_path / "root" / "dir" / "inside").write_bytes(b"inside")
    (tmp_path / "outside").mkdir(mode=0o751)
    (tmp_path / "outside" / "secret").write_bytes(b"outside")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    return tmp_path / "root"


def state_of(folder: Path) -> list[tuple[str, int, int, int, bytes]]:
    rows = []
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        rows.append((path.name, info.st_mode, info.st_uid, info.st_ctime_ns, content))
    return rows


def standing_in(volume: Path) -> Descent:
    where = Descent.open(os.fsencode(volume), clock=CLOCK, filesystems=KNOWN)
    assert isinstance(where, Descent)
    return where


def test_a_walk_never_enters_what_a_symlink_points_to(volume: Path) -> None:
    with standing_in(volume) as where, swapping(volume, "dir", "link"):

        def attempt() -> bool:
            finding = where.enter(b"dir")
            if finding is not None:
                assert finding.reason is Reason.REPLACED
                return False
            names = [entry.name for entry in scan(where.current).entries]
            assert names == [b"inside"]
            assert where.leave() is None
            return True

        until_both(attempt)


def test_the_way_to_a_path_never_leads_through_a_symlink(volume: Path) -> None:
    (volume.parent / "outside" / "inside").mkdir()
    (volume / "dir" / "inside").unlink()
    (volume / "dir" / "inside").mkdir()
    wanted = (volume / "dir" / "inside").stat().st_ino
    with swapping(volume, "dir", "link"):

        def attempt() -> bool:
            found = Descent.open(
                os.fsencode(volume / "dir" / "inside"), clock=CLOCK, filesystems=KNOWN
            )
            if isinstance(found, Finding):
                return False
            with found:
                assert found.current.inode == wanted
            return True

        until_both(attempt)


@pytest.mark.parametrize("trap", ["link", "fifo", "socket"])
def test_a_file_is_read_itself_or_not_at_all(volume: Path, trap: str) -> None:
    """Neither what a symlink points to, nor does a FIFO make the agent wait."""
    (volume / "file").write_bytes(b"inside")
    if trap == "link":
        (volume / "trap").symlink_to(volume.parent / "outside" / "secret")
    elif trap == "fifo":
        os.mkfifo(volume / "trap")
    else:
        os.mknod(volume / "trap", stat.S_IFSOCK | 0o600)
    names = OwnerNames()
    with standing_in(volume) as where, swapping(volume, "file", "trap"):
        buffer = memoryview(bytearray(100))

        def attempt() -> bool:
            described = attributes_at(where.current, b"file", names)
            assert isinstance(described, Attributes)
            entry = look(where.current, b"file")
            assert isinstance(entry, Stat)
            found = open_file(where.current, entry)
            if isinstance(found, Finding):
                return False
            assert isinstance(found, FileReader)
            with found:
                assert bytes(buffer[: found.read_into(buffer, 0)]) == b"inside"
            return True

        until_both(attempt)


def test_a_symlink_to_the_very_file_that_was_scanned_is_not_followed_either(volume: Path) -> None:
    """Its inode is the scanned one, as when the file had a name outside: the link itself counts."""
    secret = volume.parent / "outside" / "secret"
    os.link(secret, volume / "file")
    names = OwnerNames()
    with standing_in(volume) as where:
        entry = look(where.current, b"file")
        assert isinstance(entry, Stat)
        (volume / "file").unlink()
        (volume / "file").symlink_to(secret)
        found = open_file(where.current, entry)
        assert isinstance(found, Finding) and found.reason is Reason.REPLACED
        described = attributes_at(where.current, b"file", names)
        assert isinstance(described, Attributes)
        assert stat.S_ISLNK(described.info.st_mode) and described.content.target == os.fsencode(
            secret
        )
        assert standing_open_existing(volume, b"file") is None


def standing_open_existing(volume: Path, name: bytes) -> object:
    with Target.open(os.fsencode(volume), run="r") as target:
        return target.directory(()).open_existing(name)


def test_a_restore_never_writes_where_a_symlink_points_to(volume: Path) -> None:
    outside = state_of(volume.parent / "outside")
    entry = Stat(b"new", EntryType.FILE, 0o666, 3, 5, 0, 1, 0)
    folder = Stat(b"dir", EntryType.DIRECTORY, 0o777, 0, 5, 0, 1, 0)
    fifo = Stat(b"fifo", EntryType.FIFO, 0o666, 0, 5, 0, 1, 0)
    content = Content(uid=os.geteuid(), gid=os.getegid())

    def attempt() -> bool:
        with Target.open(os.fsencode(volume), run="r") as target:
            try:
                directory = target.directory((b"dir",), create=True)
                with directory.create_file(b"new") as writer:
                    writer.write(b"new", 0)
                    writer.finish(3, entry, content, POLICY)
                    writer.commit()
                make_node(directory, fifo, content, POLICY)
                directory.apply(folder, content, POLICY)
            except InTheWay:
                return False
            except EntryFailed as exc:
                assert exc.reason == Reason.REPLACED
                return False
            return True

    with swapping(volume, "dir", "link"):
        until_both(attempt)
    assert state_of(volume.parent / "outside") == outside


def test_a_target_is_never_reached_through_a_symlink(volume: Path) -> None:
    outside = state_of(volume.parent / "outside")
    root = os.path.realpath(os.fsencode(volume))
    # As the agent does it: the root was resolved before, what is below is not.
    limits = Roots((Root(root, root),))

    def attempt() -> bool:
        try:
            with (
                Target.open(root + b"/dir/new", run="r", limits=limits) as target,
                target.directory(()).create_file(b"f") as writer,
            ):
                writer.commit()
        except Refused:
            return False
        return True

    with swapping(volume, "dir", "link"):
        until_both(attempt)
    assert state_of(volume.parent / "outside") == outside


def test_a_removal_never_reaches_what_a_symlink_points_to(volume: Path) -> None:
    outside = state_of(volume.parent / "outside")
    tree = volume / "tree"

    def attempt() -> bool:
        (tree / "a").mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(tree / "b"):
            (tree / "b").symlink_to(volume.parent / "outside")
        with swapping(tree, "a", "b"), Target.open(os.fsencode(volume), run="r") as target:
            done = remove(target.directory(()), b"tree")
        for name in ("a", "b"):
            if (tree / name).is_symlink():
                (tree / name).unlink()
        return not done.kept

    for _ in range(100):
        attempt()
    assert state_of(volume.parent / "outside") == outside


def test_a_file_replaced_by_a_link_while_it_is_written_stays_as_it_is(volume: Path) -> None:
    """The final name is swapped with a symlink all the time: it is replaced, never followed."""
    outside = state_of(volume.parent / "outside")
    (volume / "file").write_bytes(b"")
    (volume / "trap").symlink_to(volume.parent / "outside" / "secret")
    entry = Stat(b"file", EntryType.FILE, 0o666, 3, 5, 0, 1, 0)
    content = Content(uid=os.geteuid(), gid=os.getegid())
    links = 0
    with Target.open(os.fsencode(volume), run="r") as target, swapping(volume, "file", "trap"):
        top = target.directory(())
        for _ in range(ATTEMPTS):
            with top.create_file(b"file") as writer:
                writer.write(b"new", 0)
                assert writer.finish(3, entry, content, POLICY) == []
                writer.commit()
            if not (volume / "file").is_symlink() and not (volume / "trap").is_symlink():
                links += 1
                target_name = volume / "other"
                target_name.symlink_to(volume.parent / "outside" / "secret")
                os.replace(target_name, volume / "trap")
    assert links > 0, "no symlink was ever replaced"
    assert state_of(volume.parent / "outside") == outside
