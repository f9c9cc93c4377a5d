"""Removing a tree removes that tree: nothing behind a symlink, nothing of the agent's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.restore import removal
from holdfast_agent.restore.failures import EntryFailed
from holdfast_agent.restore.removal import Removed, remove
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles
from holdfast_contract.errors import Refused
from tests.support.privilege import NOBODY, without_privilege

PRIVILEGED = os.geteuid() == 0


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "top").mkdir()
    yield tmp_path / "top"


def removed(top: Path, name: bytes, own: OwnFiles | None = None) -> Removed:
    with Target.open(os.fsencode(top), run="r", own=own) as target:
        return remove(target.directory(()), name)


def test_a_tree_of_every_kind_is_removed_and_counted(top: Path) -> None:
    (top / "tree" / "a" / "b").mkdir(parents=True)
    (top / "tree" / "empty").mkdir()
    for name in ("f", "a/f", "a/b/f"):
        (top / "tree" / name).write_bytes(b"")
    os.mkfifo(top / "tree" / "fifo")
    (top / "tree" / "a" / "link").symlink_to("/nowhere")
    Path(os.fsdecode(os.fsencode(top) + b"/tree/\xff")).write_bytes(b"")
    (top / "beside").write_bytes(b"")
    done = removed(top, b"tree")
    assert (done.entries, done.directories, done.kept) == (6, 4, [])
    assert os.listdir(top) == ["beside"]
    done = removed(top, b"beside")
    assert (done.entries, done.directories) == (1, 0)
    done = removed(top, b"beside")
    assert (done.entries, done.directories, done.kept) == (0, 0, [])


def test_symlinks_are_removed_and_not_followed(top: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"")
    (top / "tree").mkdir()
    (top / "tree" / "link").symlink_to(tmp_path / "outside")
    (top / "link").symlink_to(tmp_path / "outside")
    assert removed(top, b"tree").entries == 1
    assert removed(top, b"link").entries == 1
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_the_agents_own_files_and_what_holds_them_stay(top: Path) -> None:
    (top / "tree" / "state" / "below").mkdir(parents=True)
    (top / "tree" / "x").mkdir()
    (top / "tree" / "x" / "key").write_bytes(b"secret")
    (top / "tree" / "x" / "other").write_bytes(b"")
    own = OwnFiles(os.fsencode(top / "tree" / name) for name in ("state", "x/key"))
    done = removed(top, b"tree", own)
    assert (done.entries, done.directories) == (1, 0)
    assert sorted((f.path, f.reason) for f in done.kept) == [
        (b"tree/state", Reason.OWN_FILE),
        (b"tree/x/key", Reason.OWN_FILE),
    ]
    assert (top / "tree" / "state" / "below").is_dir()
    assert removed(top, b"tree", OwnFiles([os.fsencode(top / "tree")])).entries == 0


def test_another_file_system_mounted_below_stays(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "tree" / "mount").mkdir(parents=True)
    (top / "tree" / "mount" / "data").write_bytes(b"")
    inode = (top / "tree" / "mount").stat().st_ino
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        info = real(descriptor)
        if info.st_ino != inode:
            return info
        return os.stat_result((*info[:2], info.st_dev + 1, *info[3:]))

    monkeypatch.setattr(os, "fstat", fstat)
    done = removed(top, b"tree")
    assert [finding.path for finding in done.kept] == [b"tree/mount"]
    assert (top / "tree" / "mount" / "data").exists()


def test_a_directory_that_is_filled_all_the_time_is_given_up(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (top / "tree").mkdir()
    real = os.rmdir

    def rmdir(name: bytes, *, dir_fd: int) -> None:
        (top / "tree" / "new").write_bytes(b"")
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    done = removed(top, b"tree")
    assert done.entries == removal._ATTEMPTS - 1
    assert [(f.path, f.reason) for f in done.kept] == [(b"tree", Reason.CHANGED)]


def test_a_read_only_target_ends_the_removal(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / "file").write_bytes(b"")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(Refused):
        removed(top, b"file")


def test_deep_trees_need_few_descriptors(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.open(top, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT, dir_fd=here))
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    most = 0
    real = os.unlink

    def unlink(name: bytes, *, dir_fd: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))
        real(name, dir_fd=dir_fd)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "unlink", unlink)
    done = removed(top, b"d")
    assert (done.entries, done.directories, done.kept) == (299, 300, [])
    assert most - before < 80
    assert os.listdir(top) == ["f"]


def _kept(folder: str) -> list[list[str]]:
    done = removed(Path(folder), b"tree")
    return sorted([finding.path.decode(), finding.reason] for finding in done.kept)


def test_what_may_not_be_removed_is_told(open_tmp: Path) -> None:
    tree = open_tmp / "tree"
    (tree / "closed" / "below").mkdir(parents=True)
    (tree / "closed" / "file").write_bytes(b"")
    (tree / "unread").mkdir(mode=0)
    for path in (open_tmp, tree, tree / "closed", tree / "closed" / "below", tree / "unread"):
        if PRIVILEGED:
            os.chown(path, NOBODY, NOBODY)
    (tree / "closed").chmod(0o555)
    assert without_privilege(_kept, str(open_tmp)) == [
        ["tree/closed/below", "denied"],
        ["tree/closed/file", "denied"],
        ["tree/unread", "denied"],
    ]
    (tree / "closed").chmod(0o755)
    (tree / "unread").chmod(0o755)


def test_a_name_that_cannot_be_looked_at_fails(top: Path) -> None:
    with Target.open(os.fsencode(top), run="r") as target, pytest.raises(EntryFailed):
        remove(target.directory(()), b"n" * 256)
