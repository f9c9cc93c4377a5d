"""A target's directories: reached without a symlink, made on demand, left as they were found."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent.restore import target as targets
from holdfast_agent.restore.directory import TEMPORARY_PREFIX, TemporaryNames
from holdfast_agent.restore.failures import EntryFailed, InTheWay, Vanished, failure_from
from holdfast_agent.restore.nodes import make_node
from holdfast_agent.restore.removal import remove
from holdfast_agent.restore.target import OPEN_MAX, Target
from holdfast_agent.restore.writer import Writer
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles, Roots
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_contract.errors import (
    InvalidInput,
    NoSpace,
    NotFound,
    OutsideRoots,
    Refused,
    StoreFailed,
)
from tests.support.privilege import make_read_only, on_small_disk, without_privilege
from tests.support.targets import POLICY, write

PRIVILEGED = os.geteuid() == 0


# --- the way to the target
def test_missing_directories_of_a_target_are_made_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = os.fsencode(tmp_path / "a" / "b" / "c")
        with Target.open(path, run="r") as target:
            assert target.directories_made == 3
            assert target.directory(()).created
        with Target.open(path, run="r") as target:
            assert target.directories_made == 0
            assert not target.directory(()).created
    finally:
        os.umask(before)
    for name in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755


def test_a_target_that_is_absent_is_told_when_nothing_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Target.open(os.fsencode(tmp_path / "a"), run="r", create=False)
    assert not (tmp_path / "a").exists()


def test_a_root_itself_is_made_but_nothing_above_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    roots = Roots.configured([os.fsencode(root)])
    with Target.open(os.fsencode(root / "x" / "y"), run="r", limits=roots) as target:
        assert target.directories_made == 3
    far = Roots.configured([os.fsencode(tmp_path / "no" / "root")])
    with pytest.raises(NotFound):
        Target.open(os.fsencode(tmp_path / "no" / "root"), run="r", limits=far)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("below", ["", "other", "rootx", "root/../other"])
def test_a_target_outside_the_restore_roots_is_refused(tmp_path: Path, below: str) -> None:
    roots = Roots.configured([os.fsencode(tmp_path / "root")])
    wanted = os.fsencode(f"{tmp_path}/{below}")
    with pytest.raises((OutsideRoots, InvalidInput)):
        Target.open(wanted, run="r", limits=roots)
    assert os.listdir(tmp_path) == []


def test_a_symlink_below_a_restore_root_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    roots = Roots.configured([os.fsencode(tmp_path / "root")])
    for path in ("root/link", "root/link/below"):
        with pytest.raises(Refused):
            Target.open(os.fsencode(tmp_path / path), run="r", limits=roots)
    assert os.listdir(tmp_path / "outside") == []


def test_a_command_lines_own_directory_may_be_given_by_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Target.open(os.fsencode(tmp_path / "link" / "new"), run="r") as target:
        write(target.directory(()), b"file", b"x")
    assert (tmp_path / "real" / "new" / "file").read_bytes() == b"x"


def test_a_file_in_place_of_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("file", "file/below"):
        with pytest.raises(Refused):
            Target.open(os.fsencode(tmp_path / path), run="r")
    with pytest.raises(InvalidInput):
        Target.open(b"relative", run="r")


def test_a_target_that_cannot_be_made_without_privilege_is_refused(open_tmp: Path) -> None:
    (open_tmp / "closed").mkdir(mode=0o555)
    assert without_privilege(_refusal, str(open_tmp / "closed" / "new")) == "refused"


def _refusal(path: str) -> str:
    try:
        Target.open(path.encode(), run="r")
    except Refused as exc:
        return exc.code
    return ""


# --- directories
def test_directories_are_made_on_demand_and_told_apart(target: Target, tmp_path: Path) -> None:
    with pytest.raises(Vanished):
        target.directory((b"a", b"b"))
    made = target.directory((b"a", b"b"), create=True, mode=0o700)
    assert made.created
    assert stat.S_IMODE((tmp_path / "top" / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "top" / "a" / "b").stat().st_mode) == 0o700
    assert target.directory((b"a", b"b")) is made
    (tmp_path / "top" / "old").mkdir(mode=0o711)
    assert not target.directory((b"old",), create=True).created
    assert stat.S_IMODE((tmp_path / "top" / "old").stat().st_mode) == 0o711


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling", "fifo"])
def test_what_is_no_directory_is_in_the_way_of_one(
    target: Target, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "top" / "a"
    if kind == "file":
        place.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        (tmp_path / "outside").mkdir()
        place.symlink_to(tmp_path / ("outside" if kind == "symlink" else "nowhere"))
    with pytest.raises(InTheWay):
        target.directory((b"a", b"b"), create=True)
    assert remove(target.directory(()), b"a").entries == 1
    assert target.directory((b"a", b"b"), create=True).created
    assert kind != "symlink" or os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b"])
def test_what_is_not_one_name_goes_nowhere(target: Target, tmp_path: Path, name: bytes) -> None:
    with pytest.raises(InvalidInput):
        target.directory((name,), create=True)
    with pytest.raises(InvalidInput):
        target.directory(()).create_file(name)
    with pytest.raises(InvalidInput):
        remove(target.directory(()), name)
    assert os.listdir(tmp_path) == ["top"]


def test_more_directories_than_descriptors_are_no_problem(target: Target, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for round_ in range(2):
        for number in range(OPEN_MAX + 100):
            directory = target.directory((b"%d" % number, b"below"), create=True)
            write(directory, b"file%d" % round_, b"x")
            assert len(os.listdir("/proc/self/fd")) - before <= OPEN_MAX + 1
    assert len(list((tmp_path / "top").rglob("file?"))) == 2 * (OPEN_MAX + 100)


def test_a_directory_stays_open_while_a_writer_needs_it(target: Target, tmp_path: Path) -> None:
    held = target.directory((b"held",), create=True)
    writer = held.create_file(b"file")
    for number in range(OPEN_MAX + 50):
        target.directory((b"%d" % number,), create=True)
    assert held.descriptor >= 0
    writer.write(b"late", 0)
    writer.commit()
    target.directory((b"one more",), create=True)
    assert held.descriptor < 0
    assert (tmp_path / "top" / "held" / "file").read_bytes() == b"late"


def test_a_directory_just_asked_for_is_open_even_when_writers_hold_all_others(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "OPEN_MAX", 2)
    writers = [
        target.directory((name,), create=True).create_file(b"file") for name in (b"a", b"b", b"c")
    ]
    last = target.directory((b"d",), create=True)
    write(last, b"file", b"x")
    for writer in writers:
        writer.abort()


def test_a_target_deeper_than_any_path_is_written_and_removed(
    target: Target, tmp_path: Path
) -> None:
    levels = 600
    place: tuple[bytes, ...] = ()
    for _ in range(levels):
        place += (b"n" * 255,)
        write(target.directory(place, create=True), b"f" * 255, b"deep")
    for depth in range(levels, 0, -1):
        found = target.directory(place[:depth]).open_existing(b"f" * 255)
        assert found is not None
        found.close()
    target.forget(place[:1])
    done = remove(target.directory(()), b"n" * 255)
    assert (done.entries, done.directories, done.kept) == (levels, levels, [])
    assert os.listdir(tmp_path / "top") == []


def test_a_directory_that_takes_no_files_is_opened_for_the_restore(open_tmp: Path) -> None:
    found = without_privilege(_restore_into_read_only, str(open_tmp_of_nobody(open_tmp)))
    assert found == [["denied", True], 0o755, False]


def open_tmp_of_nobody(open_tmp: Path) -> Path:
    folder = open_tmp / "mine"
    folder.mkdir()
    if PRIVILEGED:
        os.chown(folder, 12345, 12345)
    return folder


def _restore_into_read_only(folder: str) -> list[object]:
    os.mkdir(folder + "/closed")
    os.chmod(folder + "/closed", 0o555)
    with Target.open(folder.encode(), run="r") as target:
        directory = target.directory((b"closed",))
        try:
            write(directory, b"file", b"x")
        except EntryFailed as exc:
            first = str(exc.reason)
        widened = directory.allow_writing()
        write(directory, b"file", b"x")
        mode = stat.S_IMODE(os.stat(folder + "/closed").st_mode)
        return [[first, widened], mode, directory.allow_writing()]


# --- cleaning up, limits, errors
def test_leftovers_of_the_same_run_are_removed_and_others_are_not(
    target: Target, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    abandoned = Writer(target.directory(()), b"file")
    os.close(abandoned.descriptor)
    (top / ".holdfast-run2-00").write_bytes(b"")
    (top / ".holdfast-mine").write_bytes(b"")
    with Target.open(os.fsencode(top), run="run1") as again:
        assert again.directory(()).remove_leftovers() == 1
        assert again.directory(()).remove_leftovers() == 0
        assert again.directory(()).names() == [b".holdfast-mine", b".holdfast-run2-00"]


def test_temporary_names_are_not_to_be_guessed() -> None:
    names = TemporaryNames("run", os.urandom)
    found = {names.fresh() for _ in range(1000)}
    assert len(found) == 1000
    assert all(name.startswith(TEMPORARY_PREFIX) and len(name) < 64 for name in found)


def test_a_temporary_name_that_is_taken_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / ".holdfast-r-0000000000000000").symlink_to(tmp_path / "outside")
    with Target.open(os.fsencode(tmp_path / "top"), run="r", random=bytes) as target:
        with pytest.raises(EntryFailed):
            target.directory(()).create_file(b"file")
        assert target.directory(()).holders == 0
    assert (tmp_path / "outside").read_bytes() == b"outside"


def test_own_files_are_looked_for_where_somebody_else_was_faster_to_make_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "key").write_bytes(b"secret")
    own = OwnFiles([os.fsencode(tmp_path / "key")])
    make = os.mkdir

    def late(name: bytes, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        (tmp_path / "key").rename(tmp_path / "top" / "sub" / "key")
        make(name, mode, dir_fd=dir_fd)

    with Target.open(os.fsencode(tmp_path / "top"), run="r", own=own) as target:
        monkeypatch.setattr(os, "mkdir", late)
        directory = target.directory((b"sub",), create=True)
        with directory.create_file(b"key") as writer:
            with pytest.raises(EntryFailed) as failed:
                writer.commit()
            assert failed.value.reason == Reason.OWN_FILE
    assert (tmp_path / "top" / "sub" / "key").read_bytes() == b"secret"


def test_the_agents_own_files_are_neither_replaced_nor_entered(tmp_path: Path) -> None:
    (tmp_path / "top" / "state").mkdir(parents=True)
    (tmp_path / "top" / "key").write_bytes(b"secret")
    own = OwnFiles(os.fsencode(tmp_path / "top" / name) for name in ("state", "key"))
    with Target.open(os.fsencode(tmp_path / "top"), run="r", own=own) as target:
        with pytest.raises(EntryFailed) as failed:
            target.directory((b"state",))
        assert failed.value.reason == Reason.OWN_FILE
        with target.directory(()).create_file(b"key") as writer:
            with pytest.raises(EntryFailed) as failed:
                writer.commit()
            assert failed.value.reason == Reason.OWN_FILE
        write(target.directory(()), b"other", b"x")
    assert (tmp_path / "top" / "key").read_bytes() == b"secret"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EROFS, Refused),
        (errno.EISDIR, InTheWay),
        (errno.EACCES, EntryFailed),
        (errno.EIO, EntryFailed),
    ],
)
def test_a_full_or_read_only_target_ends_the_job_and_the_rest_one_entry(
    target: Target, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with target.directory(()).create_file(b"file") as writer:
        monkeypatch.setattr(os, "pwrite", refuse)
        with pytest.raises(error):
            writer.write(b"x", 0)
    assert type(failure_from(OSError(number, ""))) is error
    assert target.directory(()).names() == []


def test_a_full_disk_leaves_no_half_written_file(tmp_path: Path) -> None:
    found = on_small_disk(_fill, str(tmp_path))
    assert found in (None, ["no-space", 14, [], "after"])


def _fill(folder: str) -> list[object]:
    with Target.open(folder.encode(), run="r") as target:
        directory = target.directory(())
        try:
            with directory.create_file(b"large") as writer:
                for number in range(64):
                    writer.write(b"x" * 65_536, number * 65_536)
        except NoSpace as exc:
            left = os.listdir(folder)
            write(directory, b"small", b"after")
            return [exc.code, exc.exit_code, left, Path(folder, "small").read_text()]
    return []


def test_a_read_only_target_is_refused(tmp_path: Path) -> None:
    assert on_small_disk(_read_only, str(tmp_path)) in (None, ["refused"] * 4)


def _read_only(folder: str) -> list[str]:
    def code(attempt: Callable[[], object]) -> str:
        try:
            attempt()
        except Refused as exc:
            return exc.code
        return "nothing"

    os.mkdir(folder + "/old")
    make_read_only(folder)
    link = Stat(b"l", EntryType.SYMLINK, 0, 0, 0, 0, 1, 0)
    with Target.open(folder.encode(), run="r") as target:
        top = target.directory(())
        return [
            code(lambda: top.create_file(b"file")),
            code(lambda: target.directory((b"new",), create=True)),
            code(lambda: make_node(top, link, Content(target=b"x"), POLICY)),
            code(lambda: remove(top, b"old")),
        ]


def test_sync_reaches_the_disk_or_says_so(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target.directory((b"a",), create=True), b"file", b"x")
    target.sync()

    def refusing(number: int) -> Callable[[int], None]:
        def refuse(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return refuse

    monkeypatch.setattr(targets, "sync_filesystem", refusing(errno.EIO))
    with pytest.raises(StoreFailed):
        target.sync()
    monkeypatch.setattr(targets, "sync_filesystem", refusing(errno.ENOSPC))
    with pytest.raises(NoSpace):
        target.sync()


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Target.open(os.fsencode(tmp_path / "top"), run="r") as target:
        for number in range(10):
            write(target.directory((b"%d" % number,), create=True), b"f", b"")
    for wrong in (tmp_path / "top" / "0" / "f" / "x", tmp_path / "top" / "0" / "f"):
        with pytest.raises(Refused):
            Target.open(os.fsencode(wrong), run="r")
    assert len(os.listdir("/proc/self/fd")) <= before
