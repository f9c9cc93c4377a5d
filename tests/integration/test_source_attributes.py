"""Everything of an entry beside its stat part, read without opening what must not be opened."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from holdfast_agent.sources import attributes
from holdfast_agent.sources.attributes import (
    Attributes,
    OwnerNames,
    attributes_at,
    attributes_of,
    is_kept,
    read_xattrs,
)
from holdfast_agent.sources.findings import Finding, Reason
from tests.support.directories import opened
from tests.support.privilege import without_privilege

PRIVILEGED = os.geteuid() == 0
NAMES = OwnerNames()
ACL = struct.pack(
    "<IHHIHHIHHIHHIHHI",
    2, 1, 6, 0xFFFFFFFF, 2, 4, 1000, 4, 4, 0xFFFFFFFF, 16, 6, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF,
)  # fmt: skip


def attributes_in(folder: Path, name: str) -> Attributes:
    with opened(folder) as directory:
        found = attributes_at(directory, name.encode(), NAMES)
    assert isinstance(found, Attributes), found
    return found


def test_attributes_and_acls_of_a_file_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.setxattr(tmp_path / "file", "user.z", b"\0binary\xff")
    os.setxattr(tmp_path / "file", "user.a", b"")
    os.setxattr(tmp_path / "file", "system.posix_acl_access", ACL)
    os.setxattr(tmp_path / "folder", "system.posix_acl_default", ACL)
    found = attributes_in(tmp_path, "file").content
    assert found.xattrs == (
        (b"system.posix_acl_access", ACL),
        (b"user.a", b""),
        (b"user.z", b"\0binary\xff"),
    )
    assert attributes_in(tmp_path, "folder").content.xattrs == ((b"system.posix_acl_default", ACL),)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        by_file = attributes_of(descriptor, os.fstat(descriptor), NAMES)
    finally:
        os.close(descriptor)
    assert by_file.content == found


def test_a_symlink_is_described_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.setxattr(tmp_path / "file", "user.of", b"the file")
    target = b"fi\xffle/" + b"x" * 4000
    os.symlink(target, os.fsencode(tmp_path / "link"))
    (tmp_path / "to file").symlink_to("file")
    found = attributes_in(tmp_path, "link")
    assert found.content.target == target
    assert stat.S_ISLNK(found.info.st_mode)
    assert attributes_in(tmp_path, "to file").content.xattrs == ()


def test_fifos_sockets_and_devices_are_described_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tmp_path, os.O_PATH)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    for name in ("fifo", "socket"):
        content = attributes_in(tmp_path, name).content
        assert (content.uid, content.device) == (os.geteuid(), 0)
    if PRIVILEGED:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o600, os.makedev(300, 70_000))
        assert attributes_in(tmp_path, "null").content.device == os.makedev(1, 3)
        assert attributes_in(tmp_path, "disk").content.device == os.makedev(300, 70_000)


def test_owners_have_numbers_and_names(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"")
    content = attributes_in(tmp_path, "mine").content
    assert (content.uid, content.gid) == (os.geteuid(), os.getegid())
    if PRIVILEGED:
        assert (content.user, content.group) == ("root", "root")
        os.chown(tmp_path / "mine", 12345, 54321)
        content = attributes_in(tmp_path, "mine").content
        assert (content.uid, content.gid, content.user, content.group) == (12345, 54321, "", "")


def test_names_of_owners_are_looked_up_once_and_not_without_bound() -> None:
    asked: list[int] = []

    def user_of(uid: int) -> str:
        asked.append(uid)
        if uid == 7:
            raise OSError(5, "directory service is away")
        return f"u{uid}"

    names = OwnerNames(user_of, user_of)
    assert [names.user(1), names.user(1), names.group(1), names.user(7)] == ["u1", "u1", "u1", ""]
    assert asked == [1, 1, 7]
    for uid in range(10_000):
        names.user(uid)
    assert len(names._users) <= attributes._NAMES_MAX


def test_a_name_that_is_no_text_does_not_reach_a_page() -> None:
    names = OwnerNames(lambda _: "caf\udce9", lambda _: "g")
    assert names.user(1).encode()


def test_links_are_counted(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"")
    os.link(tmp_path / "one", tmp_path / "two")
    assert attributes_in(tmp_path, "one").info.st_nlink == 2


def test_labels_of_the_host_and_computed_views_are_not_kept() -> None:
    kept = ["user.a", "trusted.b", "security.capability", "system.posix_acl_access", "security.me"]
    left = ["security.selinux", "security.ima", "security.evm", "system.nfs4_acl"]
    assert [name for name in kept + left if is_kept(name)] == kept


def test_capabilities_and_trusted_attributes_are_read_with_privilege(tmp_path: Path) -> None:
    if not PRIVILEGED:
        return
    (tmp_path / "file").write_bytes(b"")
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(tmp_path / "file", "security.capability", capability)
    os.setxattr(tmp_path / "file", "trusted.t", b"1")
    (tmp_path / "link").symlink_to("file")
    os.setxattr(tmp_path / "link", "trusted.l", b"2", follow_symlinks=False)
    assert attributes_in(tmp_path, "file").content.xattrs == (
        (b"security.capability", capability),
        (b"trusted.t", b"1"),
    )
    assert attributes_in(tmp_path, "link").content.xattrs == ((b"trusted.l", b"2"),)


def read_denied(folder: str) -> list[object]:
    with opened(Path(folder)) as directory:
        found = attributes_at(directory, b"closed", OwnerNames())
    assert isinstance(found, Attributes), found
    return [found.content.uid, [list(f[1:]) for f in found.findings]]


def test_an_attribute_that_cannot_be_read_is_a_finding_and_the_rest_is_there(
    open_tmp: Path,
) -> None:
    (open_tmp / "closed").write_bytes(b"")
    os.setxattr(open_tmp / "closed", "user.a", b"1")
    (open_tmp / "closed").chmod(0o200)
    uid, findings = without_privilege(read_denied, str(open_tmp))
    assert uid == os.geteuid()
    assert findings == [["attributes", "user.a: Permission denied"]]


def test_a_file_system_without_attributes_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def listxattr(_: object) -> list[str]:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "listxattr", listxattr)

    refuse(95)
    assert read_xattrs(0) == ((), ())
    refuse(5)
    xattrs, findings = read_xattrs(0)
    assert xattrs == ()
    assert findings[0].reason is Reason.ATTRIBUTES


def test_what_has_vanished_is_a_finding(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        found = attributes_at(directory, b"gone", NAMES)
    assert isinstance(found, Finding)
    assert found.reason is Reason.VANISHED
