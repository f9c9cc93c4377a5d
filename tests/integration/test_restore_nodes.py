"""Symlinks, hard links, FIFOs, sockets and devices are made again, each safely."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.restore.failures import EntryFailed, InTheWay
from holdfast_agent.restore.metadata import Policy, What
from holdfast_agent.restore.nodes import make_link, make_node
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles
from holdfast_agent.tree.entry import Content, EntryType, Stat
from tests.support.privilege import without_privilege

PRIVILEGED = os.geteuid() == 0
OWN = Policy(special=True)
UID, GID = (4242, 4343) if PRIVILEGED else (os.geteuid(), os.getegid())
TIME_NS = -5_000_000_001


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with Target.open(os.fsencode(tmp_path / "top"), run="r") as opened:
        yield opened


def node(name: bytes, kind: EntryType, mode: int = 0o640) -> Stat:
    return Stat(name, kind, mode, 0, TIME_NS, 0, 1, 0)


def check(path: bytes, kind: int, mode: int | None = 0o640) -> os.stat_result:
    info = os.lstat(path)
    assert stat.S_IFMT(info.st_mode) == kind
    assert (info.st_uid, info.st_gid, info.st_mtime_ns) == (UID, GID, TIME_NS)
    assert mode is None or stat.S_IMODE(info.st_mode) == mode
    return info


def test_a_symlink_comes_back_with_owner_and_time(target: Target, tmp_path: Path) -> None:
    wanted = b"../\xff/" + b"x" * 4000
    content = Content(uid=UID, gid=GID, target=wanted)
    entry = node(b"link", EntryType.SYMLINK, 0o777)
    assert make_node(target.directory(()), entry, content, OWN).losses == []
    path = os.fsencode(tmp_path / "top" / "link")
    check(path, stat.S_IFLNK, None)
    assert os.readlink(path) == wanted


def test_metadata_of_a_symlink_does_not_reach_what_it_points_to(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_bytes(b"")
    before = (tmp_path / "outside").stat()
    xattrs = ((b"trusted.t", b"1"),) if PRIVILEGED else ()
    content = Content(uid=UID, gid=GID, target=os.fsencode(tmp_path / "outside"), xattrs=xattrs)
    entry = node(b"link", EntryType.SYMLINK, 0o6777)
    assert make_node(target.directory(()), entry, content, OWN).losses == []
    after = (tmp_path / "outside").stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert os.listxattr(tmp_path / "outside") == []


@pytest.mark.parametrize(
    ("kind", "format_"),
    [(EntryType.FIFO, stat.S_IFIFO), (EntryType.SOCKET, stat.S_IFSOCK)],
)
@pytest.mark.timeout(20)
def test_fifos_and_sockets_come_back(
    target: Target, tmp_path: Path, kind: EntryType, format_: int
) -> None:
    name = b"s" * 255
    assert (
        make_node(target.directory(()), node(name, kind), Content(uid=UID, gid=GID), OWN).losses
        == []
    )
    check(os.fsencode(tmp_path / "top") + b"/" + name, format_)


@pytest.mark.parametrize(
    ("kind", "format_"),
    [(EntryType.CHAR_DEVICE, stat.S_IFCHR), (EntryType.BLOCK_DEVICE, stat.S_IFBLK)],
)
def test_devices_come_back_with_privilege(
    target: Target, tmp_path: Path, kind: EntryType, format_: int
) -> None:
    content = Content(uid=UID, gid=GID, device=os.makedev(300, 70_000))
    if not PRIVILEGED:
        with pytest.raises(EntryFailed):
            make_node(target.directory(()), node(b"dev", kind), content, OWN)
        return
    assert make_node(target.directory(()), node(b"dev", kind), content, OWN).losses == []
    info = check(os.fsencode(tmp_path / "top" / "dev"), format_)
    assert info.st_rdev == os.makedev(300, 70_000)


def test_a_device_of_a_foreign_snapshot_is_not_made(target: Target, tmp_path: Path) -> None:
    entry = node(b"dev", EntryType.CHAR_DEVICE)
    with pytest.raises(EntryFailed) as failed:
        make_node(target.directory(()), entry, Content(device=259), Policy(special=False))
    assert failed.value.reason == What.DEVICE
    assert os.listdir(tmp_path / "top") == []


def _device_denied(folder: str) -> list[object]:
    import tempfile

    with (
        tempfile.TemporaryDirectory() as place,
        Target.open(place.encode(), run="r") as target,
    ):
        entry = node(b"dev", EntryType.CHAR_DEVICE)
        try:
            make_node(target.directory(()), entry, Content(device=259), OWN)
        except EntryFailed as exc:
            return [str(exc.reason), os.listdir(place)]
    return [folder]


def test_a_device_without_privilege_fails_alone(open_tmp: Path) -> None:
    assert without_privilege(_device_denied, str(open_tmp)) == ["denied", []]


def test_a_node_takes_the_place_of_a_file_but_not_of_a_directory(
    target: Target, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    (top / "file").write_bytes(b"")
    (top / "folder").mkdir()
    directory = target.directory(())
    content = Content(uid=UID, gid=GID, target=b"x")
    make_node(directory, node(b"file", EntryType.SYMLINK), content, OWN)
    assert (top / "file").is_symlink()
    with pytest.raises(InTheWay):
        make_node(directory, node(b"folder", EntryType.SYMLINK), content, OWN)
    with pytest.raises(InTheWay):
        make_node(directory, node(b"folder", EntryType.FIFO), content, OWN)
    assert sorted(os.listdir(top)) == ["file", "folder"]


@pytest.mark.parametrize("wrong", [b"", b"a\0b"])
def test_a_symlink_without_a_possible_target_fails_alone(
    target: Target, tmp_path: Path, wrong: bytes
) -> None:
    with pytest.raises(EntryFailed):
        make_node(target.directory(()), node(b"l", EntryType.SYMLINK), Content(target=wrong), OWN)
    assert os.listdir(tmp_path / "top") == []


def test_something_else_under_the_temporary_name_gets_no_metadata(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a neighbour replaces the FIFO by a hard link to one that is not ours to give."""
    victim = tmp_path / "victim"
    os.mkfifo(victim, 0o600)
    before = victim.stat()
    real = os.mknod

    def replaced(name: bytes, mode: int, device: int, *, dir_fd: int) -> None:
        real(name, mode, device, dir_fd=dir_fd)
        os.unlink(name, dir_fd=dir_fd)
        os.link(victim, os.fsdecode(name), dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", replaced)
    content = Content(uid=UID, gid=GID)
    with pytest.raises(EntryFailed) as failed:
        make_node(target.directory(()), node(b"fifo", EntryType.FIFO), content, OWN)
    assert failed.value.reason == Reason.REPLACED
    after = victim.stat()
    assert (after.st_uid, after.st_mode, after.st_mtime_ns) == (
        before.st_uid,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert os.listdir(tmp_path / "top") == []


def test_hard_links_come_back_across_directories(target: Target, tmp_path: Path) -> None:
    top = tmp_path / "top"
    one = target.directory((b"one",), create=True)
    two = target.directory((b"two",), create=True)
    with one.create_file(b"first") as writer:
        writer.write(b"content", 0)
        identity = writer.identity()
        writer.commit()
    (top / "two" / "other").write_bytes(b"replaced")
    make_link(two, b"second", one, b"first", identity)
    make_link(two, b"other", one, b"first", identity)
    make_link(two, b"second", one, b"first", identity)
    inodes = {(top / name).stat().st_ino for name in ("one/first", "two/second", "two/other")}
    assert len(inodes) == 1
    assert (top / "one" / "first").stat().st_nlink == 3
    assert sorted(os.listdir(top / "two")) == ["other", "second"]


@pytest.mark.parametrize("kind", [EntryType.SYMLINK, EntryType.FIFO, EntryType.SOCKET])
def test_other_kinds_have_several_names_too(
    target: Target, tmp_path: Path, kind: EntryType
) -> None:
    directory = target.directory(())
    content = Content(uid=UID, gid=GID, target=b"nowhere" if kind is EntryType.SYMLINK else b"")
    made = make_node(directory, node(b"one", kind), content, OWN)
    make_link(directory, b"two", directory, b"one", made.identity, kind)
    one, two = (os.lstat(tmp_path / "top" / name) for name in ("one", "two"))
    assert (one.st_ino, one.st_mode, one.st_nlink) == (two.st_ino, two.st_mode, 2)
    with pytest.raises(EntryFailed):
        make_link(directory, b"three", directory, b"one", made.identity, EntryType.FILE)


def test_a_link_to_a_file_that_was_replaced_is_not_made(target: Target, tmp_path: Path) -> None:
    directory = target.directory(())
    with directory.create_file(b"first") as writer:
        identity = writer.identity()
        writer.commit()
    (tmp_path / "victim").write_bytes(b"not ours")
    os.unlink(tmp_path / "top" / "first")
    for replace in (os.link, os.symlink):
        replace(tmp_path / "victim", tmp_path / "top" / "first")
        with pytest.raises(EntryFailed) as failed:
            make_link(directory, b"second", directory, b"first", identity)
        assert failed.value.reason == Reason.REPLACED
        assert os.listdir(tmp_path / "top") == ["first"]
        os.unlink(tmp_path / "top" / "first")
    with pytest.raises(EntryFailed) as failed:
        make_link(directory, b"second", directory, b"first", identity)
    assert failed.value.reason == Reason.VANISHED


def test_a_link_in_place_of_a_directory_is_in_the_way(target: Target, tmp_path: Path) -> None:
    directory = target.directory(())
    with directory.create_file(b"first") as writer:
        identity = writer.identity()
        writer.commit()
    (tmp_path / "top" / "second").mkdir()
    with pytest.raises(InTheWay):
        make_link(directory, b"second", directory, b"first", identity)
    assert sorted(os.listdir(tmp_path / "top")) == ["first", "second"]


def test_the_agents_own_file_is_not_replaced_by_a_node_or_link(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "key").write_bytes(b"secret")
    own = OwnFiles([os.fsencode(tmp_path / "top" / "key")])
    with Target.open(os.fsencode(tmp_path / "top"), run="r", own=own) as target:
        directory = target.directory(())
        with directory.create_file(b"first") as writer:
            identity = writer.identity()
            writer.commit()
        with pytest.raises(EntryFailed):
            make_link(directory, b"key", directory, b"first", identity)
        with pytest.raises(EntryFailed):
            make_node(directory, node(b"key", EntryType.SYMLINK), Content(target=b"x"), OWN)
    assert (tmp_path / "top" / "key").read_bytes() == b"secret"
