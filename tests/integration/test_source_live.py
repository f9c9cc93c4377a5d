"""`holdfast browse` sees what is there, within the roots, and follows nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.live import LiveView
from holdfast_agent.sources.roots import Roots
from holdfast_agent.tree.entry import EntryType
from holdfast_contract.errors import NotFound, OutsideRoots, Refused
from tests.support.privilege import without_privilege


def view(*roots: Path) -> LiveView:
    configured = Roots.configured(os.fsencode(root) for root in roots)
    return LiveView(configured, clock=SystemFileClock(), filesystems=Filesystems())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"12345")
    (root / "file").chmod(0o640)
    os.utime(root / "file", ns=(0, 1_234_567_890_123_456_789))
    (root / "link").symlink_to("/etc")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_bytes(b"")
    return root


def test_a_directory_shows_a_row_for_each_name(root: Path) -> None:
    here = os.fsencode(root)
    page = view(root).browse(here + b"/", rows_max=100)
    rows = {row.path: row for row in page.rows}
    assert [*rows] == [here + b"/" + name for name in (b"dir", b"file", b"link", b"\xff")]
    assert not page.more
    file = rows[here + b"/file"]
    assert (file.type, file.mode, file.size) == (EntryType.FILE, 0o640, 5)
    assert file.mtime_ns == 1_234_567_890_123_456_789
    assert (file.uid, file.gid) == (os.geteuid(), os.getegid())
    link = rows[here + b"/link"]
    assert (link.type, link.target, link.size) == (EntryType.SYMLINK, b"/etc", 0)


def test_long_directories_come_in_pages(root: Path) -> None:
    here = os.fsencode(root)
    seen: list[bytes] = []
    after, more = b"", True
    while more:
        page = view(root).browse(here, after=after, rows_max=3)
        assert 1 <= len(page.rows) <= 3
        seen += [row.path for row in page.rows]
        after, more = seen[-1].rpartition(b"/")[2], page.more
    assert seen == [here + b"/" + name for name in (b"dir", b"file", b"link", b"\xff")]


def test_without_a_path_the_roots_that_exist_are_shown(root: Path, tmp_path: Path) -> None:
    rows = view(root, tmp_path / "absent").browse(b"", rows_max=100).rows
    assert [(row.path, row.type) for row in rows] == [(os.fsencode(root), EntryType.DIRECTORY)]
    everything = view(Path("/")).browse(b"", rows_max=100).rows
    assert [(row.path, row.type) for row in everything] == [(b"/", EntryType.DIRECTORY)]


def test_a_file_and_a_symlink_show_their_own_row(root: Path) -> None:
    for name, kind in ((b"/file", EntryType.FILE), (b"/link", EntryType.SYMLINK)):
        page = view(root).browse(os.fsencode(root) + name, rows_max=100)
        assert [(row.path, row.type) for row in page.rows] == [(os.fsencode(root) + name, kind)]


def test_a_symlink_is_not_followed_out_of_the_roots(root: Path) -> None:
    with pytest.raises(NotFound):
        view(root).browse(os.fsencode(root) + b"/link/passwd", rows_max=100)


def test_what_is_outside_is_refused_and_what_is_absent_not_found(root: Path) -> None:
    with pytest.raises(OutsideRoots):
        view(root).browse(b"/etc", rows_max=100)
    with pytest.raises(NotFound):
        view(root).browse(os.fsencode(root) + b"/gone", rows_max=100)


def test_a_root_given_by_a_symlink_is_shown_as_configured(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("root")
    rows = view(tmp_path / "alias").browse(os.fsencode(tmp_path / "alias"), rows_max=1).rows
    assert rows[0].path == os.fsencode(tmp_path / "alias" / "dir")


def refused(folder: str) -> str:
    try:
        view(Path(folder)).browse(folder.encode() + b"/closed", rows_max=1)
    except Refused as exc:
        return exc.code
    return ""


def test_a_directory_that_may_not_be_read_is_refused(open_tmp: Path) -> None:
    (open_tmp / "closed").mkdir(mode=0o311)
    assert without_privilege(refused, str(open_tmp)) == "refused"
    (open_tmp / "closed").chmod(0o755)
