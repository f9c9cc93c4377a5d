"""The way down a tree: never through a symlink, never more than a few descriptors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.restore.removal import remove
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.descent import OPEN_MAX, Descent, components, enter_all
from holdfast_agent.sources.filesystems import FilesystemKind, Filesystems
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.roots import OwnFiles, own_file_note
from tests.support.listing import scan
from tests.support.privilege import without_privilege

CLOCK = SystemFileClock()
PRIVILEGED = os.geteuid() == 0


def at(path: Path | bytes, *, listing: bool = True, shown: bytes = b"") -> Descent:
    base = os.fsencode(path)
    found = Descent.open(base, clock=CLOCK, filesystems=Filesystems(), listing=listing, shown=shown)
    assert isinstance(found, Descent), found
    return found


def refusal(path: Path) -> Finding:
    found = Descent.open(os.fsencode(path), clock=CLOCK, filesystems=Filesystems())
    assert isinstance(found, Finding)
    return found


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def names(where: Descent) -> list[bytes]:
    return [entry.name for entry in scan(where.current).entries]


def test_the_walk_goes_down_and_up_by_names(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"")
    base = os.fsencode(tmp_path)
    with at(tmp_path) as where:
        assert (where.depth, where.path(), where.parents) == (0, base, ())
        assert enter_all(where, [b"a", b"b"]) is None
        assert (where.depth, where.path()) == (2, base + b"/a/b")
        assert (where.base, where.parents) == (base, (b"a", b"b"))
        assert names(where) == [b"file"]
        assert where.leave() is None
        assert names(where) == [b"b"]
        assert where.leave() is None
        assert names(where) == [b"a"]


def test_the_walk_can_begin_at_the_root_of_everything() -> None:
    with at(b"/") as where:
        assert where.path() == b"/"
        assert where.mount_path() == b"/"
        assert b"proc" in names(where)
        assert where.enter(b"proc") is None
        assert where.path() == b"/proc"
        assert where.current.kind is FilesystemKind.PSEUDO
        assert where.mount_path() == b"/proc"
        assert where.leave() is None
        assert where.mount_path() == b"/"


def test_the_mount_point_above_the_base_is_known() -> None:
    with at(b"/proc/sys") as where:
        assert where.mount_path() == b"/proc"


def test_a_symlink_in_the_base_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        found = refusal(path)
        assert (found.path, found.reason) == (os.fsencode(path), Reason.REPLACED)


def test_a_base_that_is_absent_or_a_file_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "gone").reason is Reason.VANISHED
    assert refusal(tmp_path / "gone" / "below").reason is Reason.VANISHED
    assert refusal(tmp_path / "file").reason is Reason.REPLACED


def test_paths_are_shown_as_users_know_them_and_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with at(tmp_path, shown=b"/data") as where:
        assert where.enter(b"a") is None
        assert where.path() == b"/data/a"
        assert where.real_path() == os.fsencode(tmp_path) + b"/a"
        found = where.enter(b"gone")
    assert found is not None
    assert found.path == b"/data/a/gone"


def test_after_a_failed_step_the_walk_stands_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("/")
    with at(tmp_path) as where:
        for name, reason in ((b"file", "replaced"), (b"link", "replaced"), (b"gone", "vanished")):
            found = where.enter(name)
            assert found is not None
            assert (found.path, found.reason) == (os.fsencode(tmp_path) + b"/" + name, reason)
            assert where.depth == 0
        assert enter_all(where, [b"gone", b"file"]) is not None
        assert names(where) == [b"file", b"link"]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Yield a chain of 700 directories with names of 255 bytes: a path of 179,200 bytes."""
    levels = 700
    here = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("deep", dir_fd=here)
    below = os.open("deep", os.O_RDONLY, dir_fd=here)
    for _ in range(levels):
        os.close(here)
        here = below
        os.mkdir("n" * 255, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("n" * 255, os.O_RDONLY, dir_fd=here)
    os.close(here)
    os.close(below)
    yield tmp_path / "deep", levels
    with Target.open(os.fsencode(tmp_path), run="cleanup") as target:
        assert not remove(target.directory(()), b"deep").kept


def test_a_tree_deeper_than_descriptors_and_paths_allow_is_walked(deep: tuple[Path, int]) -> None:
    top, levels = deep
    before = open_descriptors()
    with at(top) as where:
        for _ in range(levels):
            assert where.enter(b"n" * 255) is None
        assert open_descriptors() - before <= OPEN_MAX
        assert len(where.path()) > levels * 256
        assert names(where) == []
        for _ in range(levels):
            assert where.leave() is None
            assert where.current.is_open
            assert names(where) == [b"file", b"n" * 255]
            assert open_descriptors() - before <= OPEN_MAX
        assert where.depth == 0
        for _ in range(OPEN_MAX + 10):
            assert where.enter(b"n" * 255) is None
        assert open_descriptors() - before <= OPEN_MAX
    assert open_descriptors() <= before


def test_a_directory_replaced_while_the_walk_was_far_below_is_a_finding(
    deep: tuple[Path, int],
) -> None:
    top, _ = deep
    name = "n" * 255
    with at(top) as where:
        for _ in range(OPEN_MAX + 20):
            assert where.enter(name.encode()) is None
        (top / name).rename(top / "moved")
        (top / name / name).mkdir(parents=True)
        findings = []
        while where.depth > 0:
            finding = where.leave()
            if finding is not None:
                findings.append(finding)
                assert not where.current.is_open
                refused = where.enter(name.encode())
                assert refused is not None
                assert refused.reason is Reason.REPLACED
        assert where.current.is_open
    assert findings
    assert {finding.reason for finding in findings} == {Reason.REPLACED}


def walked_below_closed(path: str) -> list[str]:
    with at(Path(path)) as where:
        return [name.decode() for name in names(where)]


def test_directories_above_the_base_need_not_be_readable(open_tmp: Path) -> None:
    (open_tmp / "pass" / "read").mkdir(parents=True)
    (open_tmp / "pass" / "read" / "file").write_bytes(b"")
    (open_tmp / "pass").chmod(0o711)
    assert without_privilege(walked_below_closed, str(open_tmp / "pass" / "read")) == ["file"]


def passed_only(path: str) -> list[str | bool]:
    found = Descent.open(os.fsencode(path), clock=CLOCK, filesystems=Filesystems())
    reason = found.reason if isinstance(found, Finding) else ""
    with at(Path(path), listing=False) as where:
        return [reason, where.current.is_directory(b"read")]


def test_a_directory_that_may_only_be_passed_through_can_be_looked_into(open_tmp: Path) -> None:
    (open_tmp / "pass" / "read").mkdir(parents=True)
    (open_tmp / "pass").chmod(0o711)
    reason, found = without_privilege(passed_only, str(open_tmp / "pass"))
    assert found
    assert reason == ("denied" if PRIVILEGED else "")


def test_the_agents_own_files_are_left_out_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "data" / "state").mkdir(parents=True)
    (tmp_path / "data" / "key").write_bytes(b"")
    (tmp_path / "data" / "other").write_bytes(b"")
    (tmp_path / "data" / "later").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    os.link(tmp_path / "data" / "key", tmp_path / "data" / "linked")
    own = OwnFiles(os.fsencode(tmp_path / "data" / name) for name in ("state", "key", "later"))
    os.replace(tmp_path / "data" / "later", tmp_path / "elsewhere" / "later")
    (tmp_path / "data" / "later").write_bytes(b"made anew")
    with at(tmp_path / "data") as where:
        left_out = {
            entry.name: own.leaves_out(where, entry.name, entry.inode)
            for entry in scan(where.current).entries
        }
        assert not own.holds(where.current, b"gone", where.current.inode)
    assert left_out == {
        b"state": True,
        b"key": True,
        b"linked": True,
        b"later": True,
        b"other": False,
    }
    assert own_file_note(b"/data/key").reason is Reason.OWN_FILE


def test_an_inode_of_another_file_system_is_not_the_agents_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    own = OwnFiles([os.fsencode(tmp_path / "file")])
    info = (tmp_path / "file").stat()
    own._identities = frozenset({(info.st_dev + 1, info.st_ino)})
    own._paths = frozenset()
    with at(tmp_path) as where:
        assert not own.leaves_out(where, b"file", info.st_ino)


def test_names_of_a_path() -> None:
    assert components(b"/") == []
    assert components(b"/a//b/") == [b"a", b"b"]
