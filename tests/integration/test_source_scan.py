"""A directory's entries as stat parts, from real file systems, without following anything."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.sources import scan as scanning
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.directory import Directory, open_unstamped
from holdfast_agent.sources.filesystems import (
    FilesystemKind,
    Filesystems,
    kind_of_type,
)
from holdfast_agent.sources.findings import Finding, Reason, finding_from, joined
from holdfast_agent.sources.scan import look, pseudo_note
from holdfast_agent.sources.syscalls import filesystem_type
from holdfast_agent.tree.entry import EntryFlag, EntryType
from tests.support.handclock import HandClock
from tests.support.listing import scan
from tests.support.privilege import without_privilege
from tests.support.trees import scan as facts_of

CLOCK = SystemFileClock()
PRIVILEGED = os.geteuid() == 0
LATER_NS = 4_000_000_000_000_000_000
"""A clock far ahead: everything looks old to it."""


def opened(path: Path, clock: HandClock | SystemFileClock = CLOCK) -> Directory:
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = Directory.open(
            parent, os.fsencode(path.name), clock=clock, filesystems=Filesystems()
        )
    finally:
        os.close(parent)
    assert isinstance(found, Directory), found
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    top = tmp_path / "top"
    top.mkdir()
    yield top


def fill(top: Path) -> None:
    (top / "file").write_bytes(b"12345")
    (top / "dir").mkdir()
    (top / "link").symlink_to("file")
    os.mkfifo(top / "fifo")
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    if PRIVILEGED:
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(top / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    (top / "setuid").write_bytes(b"")
    (top / "setuid").chmod(0o6751)
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).write_bytes(b"raw")
    (top / ("n" * 255)).write_bytes(b"long")


def test_every_kind_of_entry_has_the_stat_part_that_lstat_tells(tree: Path) -> None:
    fill(tree)
    with opened(tree, HandClock(LATER_NS)) as directory:
        listing = scan(directory)
    assert not listing.findings
    names = [entry.name for entry in listing.entries]
    assert names == sorted(os.listdir(os.fsencode(tree)))
    kinds = {entry.name: EntryType(entry.type) for entry in listing.entries}
    assert kinds[b"file"] is EntryType.FILE
    assert kinds[b"dir"] is EntryType.DIRECTORY
    assert kinds[b"link"] is EntryType.SYMLINK
    assert kinds[b"fifo"] is EntryType.FIFO
    assert kinds[b"socket"] is EntryType.SOCKET
    assert kinds.get(b"null", EntryType.CHAR_DEVICE) is EntryType.CHAR_DEVICE
    assert kinds.get(b"disk", EntryType.BLOCK_DEVICE) is EntryType.BLOCK_DEVICE
    for entry in listing.entries:
        info = os.lstat(os.path.join(os.fsencode(tree), entry.name))
        assert entry.mode == stat.S_IMODE(info.st_mode)
        assert entry.size == (info.st_size if stat.S_ISREG(info.st_mode) else 0)
        assert (entry.mtime_ns, entry.ctime_ns) == (info.st_mtime_ns, info.st_ctime_ns)
        assert (entry.inode, entry.flags) == (info.st_ino, 0)


def test_one_look_equals_the_scan(tree: Path) -> None:
    fill(tree)
    with opened(tree, HandClock(LATER_NS)) as directory:
        for entry in scan(directory).entries:
            assert look(directory, entry.name) == entry
        gone = look(directory, b"gone")
    assert isinstance(gone, Finding)
    assert gone.reason is Reason.VANISHED


def test_times_before_1970_are_kept(tree: Path) -> None:
    (tree / "old").write_bytes(b"")
    os.utime(tree / "old", ns=(0, -86_400_000_000_001))
    with opened(tree) as directory:
        assert scan(directory).entries[0].mtime_ns == -86_400_000_000_001


def test_a_scan_leaves_access_times_alone(tree: Path) -> None:
    (tree / "a").write_bytes(b"")
    os.utime(tree, ns=(1_000_000_000, 2_000_000_000))
    with opened(tree) as directory:
        scan(directory)
    assert tree.stat().st_atime_ns == 1_000_000_000


def test_a_directory_can_be_scanned_twice(tree: Path) -> None:
    fill(tree)
    with opened(tree) as directory:
        assert scan(directory) == scan(directory)


def test_a_file_changed_after_the_directory_was_opened_is_unsettled(tree: Path) -> None:
    for name in ("before", "at", "after"):
        (tree / name).write_bytes(b"")
    (tree / "folder").mkdir()
    moment = 2_000_000_000_000_000_005
    for name, mtime_ns in (("before", moment - 1), ("at", moment), ("after", moment + 1)):
        os.utime(tree / name, ns=(0, mtime_ns))
    os.utime(tree / "folder", ns=(0, moment + 1))
    with opened(tree, HandClock(moment)) as directory:
        flags = {entry.name: entry.flags for entry in scan(directory).entries}
    assert flags == {
        b"before": 0,
        b"at": EntryFlag.UNSETTLED,
        b"after": EntryFlag.UNSETTLED,
        b"folder": 0,
    }


def test_no_change_after_the_opening_is_stamped_earlier_than_it(tree: Path) -> None:
    """With the precise clock in place of the coarse one most of these look settled."""
    for number in range(200):
        with opened(tree) as directory:
            (tree / f"{number}").write_bytes(b"")
            entry = look(directory, b"%d" % number)
        assert not isinstance(entry, Finding)
        assert entry.ctime_ns >= directory.opened_ns
        assert entry.flags == EntryFlag.UNSETTLED


def test_the_ctime_alone_makes_a_file_unsettled(tree: Path) -> None:
    (tree / "a").write_bytes(b"")
    os.utime(tree / "a", ns=(0, 0))
    ctime_ns = (tree / "a").stat().st_ctime_ns
    with opened(tree, HandClock(ctime_ns)) as directory:
        assert scan(directory).entries[0].flags == EntryFlag.UNSETTLED
    if ctime_ns % 1_000_000_000:
        with opened(tree, HandClock(ctime_ns + 1)) as directory:
            assert scan(directory).entries[0].flags == 0


def test_a_clock_set_back_by_years_settles_nothing_too_early(tree: Path) -> None:
    """What carries a time of the wrong clock is read again until that time is over."""
    year_ns = 365 * 86_400 * 10**9
    for name in ("then", "now"):
        (tree / name).write_bytes(b"")
    now = (tree / "now").stat().st_ctime_ns + 3_000_000_000
    os.utime(tree / "then", ns=(0, now + 5 * year_ns))
    flags = {}
    for moment in (now, now + year_ns, now + 6 * year_ns, now - 2 * year_ns):
        with opened(tree, HandClock(moment)) as directory:
            flags[moment] = {entry.name: entry.flags for entry in scan(directory).entries}
    unsettled = EntryFlag.UNSETTLED
    assert flags == {
        now: {b"then": unsettled, b"now": 0},
        now + year_ns: {b"then": unsettled, b"now": 0},
        now + 6 * year_ns: {b"then": 0, b"now": 0},
        now - 2 * year_ns: {b"then": unsettled, b"now": unsettled},
    }


def test_on_a_distant_file_system_a_minute_has_to_pass(tree: Path) -> None:
    (tree / "a").write_bytes(b"")
    ctime_ns = (tree / "a").stat().st_ctime_ns
    for age_ns, flags in ((59_999_999_999, EntryFlag.UNSETTLED), (60_000_000_001, 0)):
        with opened(tree, HandClock(ctime_ns + age_ns)) as directory:
            directory.kind = FilesystemKind.DISTANT
            assert scan(directory).entries[0].flags == flags


def test_a_clock_of_whole_seconds_gets_two_of_them() -> None:
    directory = Directory(-1, (1, 1), FilesystemKind.LOCAL, 100_000_000_000)
    flags = scanning._flags
    assert flags(directory, 0, 98_000_000_000) == EntryFlag.UNSETTLED
    assert flags(directory, 0, 97_000_000_000) == 0
    assert flags(directory, 0, 99_999_999_999) == 0


def test_an_entry_that_vanishes_in_between_is_not_listed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tree / name).write_bytes(b"")
    with opened(tree) as directory:
        with os.scandir(directory.descriptor) as found:
            listed = list(found)
        (tree / "b").unlink()
        monkeypatch.setattr(os, "scandir", lambda _: contextlib.nullcontext(listed))
        listing = scan(directory)
    assert [entry.name for entry in listing.entries] == [b"a", b"c"]
    assert not listing.findings


def test_an_error_in_the_middle_of_listing_keeps_what_came_before(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "a").write_bytes(b"")

    def broken(entries: list[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        yield from entries
        raise OSError(5, "Input/output error")

    with opened(tree) as directory:
        with os.scandir(directory.descriptor) as found:
            listed = list(found)
        monkeypatch.setattr(os, "scandir", lambda _: contextlib.nullcontext(broken(listed)))
        listing = scan(directory)
    assert [entry.name for entry in listing.entries] == [b"a"]
    assert [(f.path, f.reason) for f in listing.findings] == [(b"", Reason.IO_ERROR)]


def test_a_directory_of_100_000_entries_is_listed_whole(tmp_path: Path) -> None:
    crowd = tmp_path / "crowd"
    crowd.mkdir()
    folder = os.open(crowd, os.O_RDONLY)
    try:
        for number in range(100_000):
            os.symlink("x", f"{number:x}", dir_fd=folder)
    finally:
        os.close(folder)
    with opened(crowd) as directory:
        started = time.perf_counter()
        listing = scan(directory)
        seconds = time.perf_counter() - started
    names = [entry.name for entry in listing.entries]
    assert len(set(names)) == 100_000
    assert names == sorted(names)
    assert seconds < 10, "more than thirty times the usual"


def unsearchable(path: str) -> list[list[object]]:
    with opened(Path(path)) as directory:
        listing = scan(directory)
    assert [f.path for f in listing.findings] == [entry.name for entry in listing.entries]
    return [[e.name.decode(), e.type, e.flags] for e in listing.entries] + [
        [f.reason] for f in listing.findings
    ]


def test_names_whose_status_is_refused_are_skipped_entries_and_findings(open_tmp: Path) -> None:
    top = open_tmp / "top"
    (top / "folder").mkdir(parents=True)
    (top / "file").write_bytes(b"")
    top.chmod(0o444)
    found = without_privilege(unsearchable, str(top))
    top.chmod(0o755)
    assert found == [
        ["file", EntryType.FILE, EntryFlag.SKIPPED],
        ["folder", EntryType.DIRECTORY, EntryFlag.SKIPPED],
        ["denied"],
        ["denied"],
    ]


def test_what_is_no_directory_cannot_be_opened_as_one(tree: Path) -> None:
    fill(tree)
    (tree / "to dir").symlink_to("dir")
    with opened(tree) as directory:
        for name in (b"file", b"link", b"fifo", b"socket", b"to dir", b"gone"):
            for listing in (True, False):
                found = Directory.open(
                    directory.descriptor,
                    name,
                    clock=CLOCK,
                    filesystems=Filesystems(),
                    listing=listing,
                )
                assert isinstance(found, Finding)
                wanted = Reason.VANISHED if name == b"gone" else Reason.REPLACED
                assert (found.path, found.reason) == (name, wanted)
        assert directory.is_directory(b"dir")
        assert not directory.is_directory(b"to dir")


def test_a_closed_directory_says_so_and_can_be_closed_again(tree: Path) -> None:
    directory = opened(tree)
    assert directory.is_open
    directory.close()
    directory.close()
    assert not directory.is_open


def test_a_file_of_somebody_else_is_opened_without_noatime(open_tmp: Path) -> None:
    (open_tmp / "theirs").write_bytes(b"content")
    (open_tmp / "theirs").chmod(0o644)
    assert without_privilege(_content, str(open_tmp), "theirs") == "content"


def _content(folder: str, name: str) -> str:
    parent = os.open(folder, os.O_RDONLY)
    return os.read(open_unstamped(name.encode(), os.O_RDONLY, parent), 100).decode()


def test_kinds_of_file_systems_are_told_by_their_type() -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        assert kind_of_type(filesystem_type(proc)) is FilesystemKind.PSEUDO
        known = Filesystems()
        device = os.fstat(proc).st_dev
        assert known.kind(proc, device) is FilesystemKind.PSEUDO
        assert known.kind(-1, device) is FilesystemKind.PSEUDO, "asked once only"
        assert known.kind(-1, device + 1) is FilesystemKind.DISTANT, "unknown is not trusted"
    finally:
        os.close(proc)
    assert kind_of_type(0xEF53) is FilesystemKind.LOCAL
    assert kind_of_type(0x6969) is FilesystemKind.DISTANT
    assert kind_of_type(0x65735546) is FilesystemKind.DISTANT
    with pytest.raises(OSError, match="Bad file descriptor"):
        filesystem_type(-1)


def test_findings_have_a_word_for_programs_and_a_path_that_can_be_put_below() -> None:
    found = finding_from(b"name", PermissionError(13, "Permission denied"))
    assert found == Finding(b"name", Reason.DENIED, "Permission denied")
    assert found.within(b"/a").path == b"/a/name"
    assert found.within(b"/").path == b"/name"
    assert finding_from(b"", OSError(999, "?")).reason is Reason.UNREADABLE
    assert finding_from(b"", OSError()).message
    assert (joined(b"/a", b""), joined(b"", b"a")) == (b"/a", b"a")
    assert pseudo_note(b"/proc").reason is Reason.PSEUDO


def test_the_comparator_sees_what_the_scan_sees(tree: Path) -> None:
    fill(tree)
    with opened(tree) as directory:
        names = {entry.name for entry in scan(directory).entries}
    assert names | {b"."} == set(facts_of(tree))
