"""Every attribute comes back, or the loss is told."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from holdfast_agent.restore import metadata
from holdfast_agent.restore.metadata import Loss, NotExact, Policy, What, apply
from holdfast_agent.restore.target import Target
from holdfast_agent.tree.entry import Content, EntryType, Stat
from tests.support.privilege import NOBODY, without_privilege

PRIVILEGED = os.geteuid() == 0
OWN = Policy(special=True)
FOREIGN = Policy(special=False)
UID, GID = os.geteuid(), os.getegid()
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def acl(mask: int) -> bytes:
    """Return an ACL with user 1000 named in it."""
    rows = [(1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 4, 0xFFFFFFFF), (16, mask, 0xFFFFFFFF)]
    rows.append((32, 0, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def file_entry(mode: int = 0o644, mtime_ns: int = 1_500_000_000_123_456_789) -> Stat:
    return Stat(b"f", EntryType.FILE, mode, 0, mtime_ns, 0, 1, 0)


def given(path: Path, entry: Stat, content: Content, policy: Policy = OWN) -> list[Loss]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return apply(descriptor, entry, content, policy)
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("mode", [0o0, 0o400, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o7777])
def test_every_mode_comes_back(path: Path, mode: int) -> None:
    assert given(path, file_entry(mode), Content(uid=UID, gid=GID)) == []
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize(
    "mtime_ns",
    [0, 1, -1, 999_999_999, -86_400_000_000_001, 1_234_567_890_987_654_321, 4_000_000_000 * 10**9],
)
def test_every_time_comes_back_to_the_nanosecond(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(77, 88))
    assert given(path, file_entry(mtime_ns=mtime_ns), Content(uid=UID, gid=GID)) == []
    assert (path.stat().st_mtime_ns, path.stat().st_atime_ns) == (mtime_ns, 77)


def test_a_time_that_the_file_system_cannot_hold_is_told(path: Path) -> None:
    losses = given(path, file_entry(mtime_ns=9_000_000_000 * 10**9), Content(uid=UID, gid=GID))
    held = path.stat().st_mtime_ns == 9_000_000_000 * 10**9
    assert [loss.what for loss in losses] == ([] if held else [What.TIMES])
    losses = given(path, file_entry(mtime_ns=10**30), Content(uid=UID, gid=GID))
    assert [loss.what for loss in losses] == [What.TIMES]


def test_owners_come_back_with_privilege(path: Path) -> None:
    if not PRIVILEGED:
        return
    assert given(path, file_entry(0o6755), Content(uid=12345, gid=54321)) == []
    info = path.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (12345, 54321, 0o6755)


def test_an_owner_that_means_nobody_to_the_kernel_is_a_loss(path: Path) -> None:
    losses = given(path, file_entry(), Content(uid=0xFFFFFFFF, gid=GID))
    assert [loss.what for loss in losses] == [What.OWNER]


def test_attributes_and_acls_come_back_exactly(path: Path) -> None:
    os.setxattr(path, "user.old", b"goes")
    os.setxattr(path, "user.same", b"stays")
    os.setxattr(path, "user.other", b"before")
    wanted = (
        (b"system.posix_acl_access", acl(4)),
        (b"user.empty", b""),
        (b"user.other", b"\0\xff" * 500),
        (b"user.same", b"stays"),
    )
    assert given(path, file_entry(0o640), Content(uid=UID, gid=GID, xattrs=wanted)) == []
    found = {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
    assert found == dict(wanted)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_acl_inherited_from_the_directory_is_taken_away(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", acl(7))
    with Target.open(os.fsencode(tmp_path), run="r") as target:
        directory = target.directory(())
        with directory.create_file(b"f") as writer:
            assert os.listxattr(writer.descriptor) == ["system.posix_acl_access"]
            assert writer.finish(0, file_entry(0o664), Content(uid=UID, gid=GID), OWN) == []
            writer.commit()
    assert os.listxattr(tmp_path / "f") == []
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o664


def test_capabilities_survive_the_change_of_owner(path: Path) -> None:
    if not PRIVILEGED:
        return
    content = Content(uid=12345, gid=1, xattrs=((b"security.capability", CAPABILITY),))
    assert given(path, file_entry(0o755), content) == []
    assert os.getxattr(path, "security.capability") == CAPABILITY


def test_what_is_special_in_a_foreign_snapshot_is_left_out_and_told(path: Path) -> None:
    xattrs = (
        (b"security.capability", CAPABILITY),
        (b"trusted.overlay.opaque", b"y"),
        (b"user.a", b"1"),
    )
    content = Content(uid=UID, gid=GID, xattrs=xattrs)
    losses = given(path, file_entry(0o6711), content, FOREIGN)
    assert [loss.what for loss in losses] == [What.CAPABILITY, What.XATTR, What.MODE]
    assert os.listxattr(path) == ["user.a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o711
    assert losses[2].at(b"/x/f") == NotExact(b"/x/f", "mode", losses[2].message)


def test_a_sticky_bit_is_not_special(path: Path) -> None:
    assert given(path, file_entry(0o1755), Content(uid=UID, gid=GID), FOREIGN) == []


def test_a_directory_gets_its_metadata_after_its_files(tmp_path: Path) -> None:
    with Target.open(os.fsencode(tmp_path), run="r") as target:
        directory = target.directory((b"d",), create=True, mode=0o700)
        with directory.create_file(b"f") as writer:
            writer.commit()
        entry = Stat(b"d", EntryType.DIRECTORY, 0o2555, 0, -5, 0, 1, 0)
        xattrs = ((b"system.posix_acl_default", acl(5)), (b"user.d", b"1"))
        assert directory.apply(entry, Content(uid=UID, gid=GID, xattrs=xattrs), OWN) == []
    info = (tmp_path / "d").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o2555, -5)
    assert os.getxattr(tmp_path / "d", "system.posix_acl_default") == acl(5)
    (tmp_path / "d").chmod(0o755)


def _losses_of_an_ordinary_user() -> list[object]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(b"")
        uid = os.geteuid()
        losses = given(
            path,
            file_entry(0o6755),
            Content(
                uid=uid + 1,
                gid=os.getegid() + 1,
                xattrs=(
                    (b"security.capability", CAPABILITY),
                    (b"trusted.t", b"1"),
                    (b"user.a", b"1"),
                ),
            ),
        )
        info = path.stat()
        return [
            sorted(loss.what for loss in losses),
            stat.S_IMODE(info.st_mode),
            info.st_uid == uid,
            info.st_mtime_ns,
            os.listxattr(path),
        ]


def test_without_privilege_each_loss_is_told_and_the_rest_is_given() -> None:
    """A setuid program must not become one of the user who restores it."""
    losses, mode, mine, mtime_ns, xattrs = without_privilege(_losses_of_an_ordinary_user)
    assert losses == ["capability", "mode", "owner", "xattr"]
    assert (mode, mine, mtime_ns, xattrs) == (0o755, True, 1_500_000_000_123_456_789, ["user.a"])


def _own_group() -> list[object]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(b"")
        losses = given(path, file_entry(), Content(uid=os.geteuid() + 1, gid=os.getegid()))
        return [[loss.what, loss.message] for loss in losses]


def test_the_loss_of_an_owner_names_both() -> None:
    uid, gid = (NOBODY, NOBODY) if PRIVILEGED else (UID, GID)
    assert without_privilege(_own_group) == [["owner", f"{uid}:{gid}, not {uid + 1}:{gid}"]]


def test_a_group_is_given_even_where_the_owner_cannot_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.chown

    def owner_refused(place: int | str, uid: int, gid: int) -> None:
        if uid != -1:
            raise PermissionError(1, "Operation not permitted")
        real(place, uid, gid)

    monkeypatch.setattr(os, "chown", owner_refused)
    group = GID + 1 if PRIVILEGED else GID
    losses = given(path, file_entry(), Content(uid=UID + 1, gid=group))
    assert [loss.what for loss in losses] == [What.OWNER]
    assert path.stat().st_gid == group


def test_a_kernel_that_takes_a_value_and_keeps_another_is_found_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back is what tells: nothing here raises."""
    monkeypatch.setattr(os, "setxattr", lambda *_: None)
    monkeypatch.setattr(os, "chmod", lambda *_: None)
    monkeypatch.setattr(os, "utime", lambda *_, **__: None)
    content = Content(uid=UID, gid=GID, xattrs=((b"user.a", b"1"),))
    path_mode = stat.S_IMODE(path.stat().st_mode)
    losses = given(path, file_entry(path_mode ^ 0o010), content)
    assert {loss.what for loss in losses} == {What.XATTR, What.MODE, What.TIMES}


@pytest.mark.parametrize(
    ("calls", "lost"),
    [
        (("chmod", "fchmod"), {What.MODE}),
        (("utime",), {What.TIMES}),
        (("chmod", "fchmod", "utime"), {What.MODE, What.TIMES}),
    ],
)
def test_of_a_plain_file_too_what_is_kept_differently_is_found_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], lost: set[What]
) -> None:
    """Without attributes the short way is taken: it looks at what has come of it as well."""
    for name in calls:
        monkeypatch.setattr(os, name, lambda *_, **__: None)
    mode = stat.S_IMODE(path.stat().st_mode)
    losses = given(path, file_entry(mode ^ 0o010), Content(uid=UID, gid=GID))
    assert {loss.what for loss in losses} == lost


def test_of_a_plain_file_too_a_refusal_is_a_loss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("chmod", "fchmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    mode = stat.S_IMODE(path.stat().st_mode)
    losses = given(path, file_entry(mode ^ 0o010), Content(uid=UID, gid=GID))
    assert [loss.what for loss in losses] == [What.MODE, What.TIMES]
    assert all("not permitted" in loss.message for loss in losses)


def test_refusals_of_the_kernel_are_losses_with_its_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.setxattr(path, "user.old", b"1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("chmod", "utime", "setxattr", "removexattr"):
        monkeypatch.setattr(os, name, refuse)
    content = Content(uid=UID, gid=GID, xattrs=((b"user.a", b"1"), (b"user.\0", b"")))
    losses = given(path, file_entry(0o4711), content)
    assert sorted(loss.what for loss in losses) == ["mode", "times", "xattr", "xattr", "xattr"]
    assert all("not permitted" in loss.message for loss in losses[:1])


def test_an_attribute_too_large_is_a_loss_and_not_a_full_disk(path: Path) -> None:
    content = Content(uid=UID, gid=GID, xattrs=((b"user.big", b"x" * 70_000),))
    assert [loss.what for loss in given(path, file_entry(), content)] == [What.XATTR]


def test_names_of_attributes_are_shown_as_text() -> None:
    assert metadata._shown("user.\udcff") == "user.\\udcff"
