"""Ordinary files that are written in runs: each is right, or told as if it had come alone."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.crypto.keys import content_id
from holdfast_agent.jobs.tracking import JobProgress
from holdfast_agent.restore import target as targets
from holdfast_agent.restore.directory import TEMPORARY_PREFIX, TargetDirectory
from holdfast_agent.restore.failures import failure_from
from holdfast_agent.restore.metadata import Policy, What
from holdfast_agent.restore.plain import BUNDLE_FILES_MAX, PlainWriter
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles
from holdfast_agent.tree.entry import Content, EntryType, Stat
from holdfast_contract.errors import Cancelled
from holdfast_contract.protocol.control import JobState
from tests.integration.test_restore_metadata import acl
from tests.support.restore_bench import RestoreBench, under
from tests.support.samples import KEYS
from tests.support.trees import compare, scan

PRIVILEGED = os.geteuid() == 0
DATA = memoryview(b"what is to stand there")
UID, GID = os.geteuid(), os.getegid()


def entry(name: bytes = b"f", size: int = len(DATA)) -> Stat:
    return Stat(name, EntryType.FILE, 0o640, size, 1_500_000_000_123_456_789, 0, 1, 0)


def content(data: memoryview = DATA, uid: int = UID, gid: int = GID) -> Content:
    return Content(uid=uid, gid=gid, content_id=content_id(KEYS, data))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[TargetDirectory]:
    with Target.open(os.fsencode(tmp_path), run="r") as target:
        yield target.directory((b"new",), create=True)


@pytest.fixture
def writer(home: TargetDirectory) -> PlainWriter:
    return PlainWriter(home, KEYS, Policy(special=True))


def test_a_file_is_as_it_should_be_and_has_its_name(tmp_path: Path, writer: PlainWriter) -> None:
    for name in (b"f", b"second"):
        assert writer.write(DATA, entry(name), content()) == []
        path = tmp_path / "new" / os.fsdecode(name)
        info = path.stat()
        assert path.read_bytes() == DATA
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o640, 1_500_000_000_123_456_789)
        assert (info.st_uid, info.st_gid) == (UID, GID)
    assert sorted(os.listdir(tmp_path / "new")) == ["f", "second"]


def test_an_existing_file_of_that_name_is_replaced_whole(
    tmp_path: Path, writer: PlainWriter
) -> None:
    (tmp_path / "new" / "f").write_bytes(b"somebody was here first, and wrote much more than that")
    assert writer.write(DATA, entry(), content()) == []
    assert (tmp_path / "new" / "f").read_bytes() == DATA


def test_owners_differ_from_file_to_file(tmp_path: Path, writer: PlainWriter) -> None:
    if not PRIVILEGED:
        return
    owners = [(0, 0), (1000, 1001), (1000, 0), (0, 0)]
    for number, (uid, gid) in enumerate(owners):
        assert writer.write(DATA, entry(b"%d" % number), content(uid=uid, gid=gid)) == []
    found = [(tmp_path / "new" / str(number)).stat() for number in range(len(owners))]
    assert [(info.st_uid, info.st_gid) for info in found] == owners


def test_an_owner_that_cannot_be_given_is_told(
    tmp_path: Path, writer: PlainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(os, "chown", refuse)
    losses = writer.write(DATA, entry(), content(uid=UID + 1))
    assert losses is not None and [loss.what for loss in losses] == [What.OWNER]
    assert stat.S_IMODE((tmp_path / "new" / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize(("call", "what"), [("fchmod", What.MODE), ("utime", What.TIMES)])
def test_what_the_kernel_keeps_differently_is_told(
    writer: PlainWriter, monkeypatch: pytest.MonkeyPatch, call: str, what: What
) -> None:
    monkeypatch.setattr(os, call, lambda *_, **__: None)
    monkeypatch.setattr(os, "chmod", lambda *_, **__: None)
    losses = writer.write(DATA, entry(), content())
    assert losses is not None and [loss.what for loss in losses] == [what]


def test_an_acl_that_only_a_later_file_inherits_is_taken_away(
    tmp_path: Path, writer: PlainWriter
) -> None:
    assert writer.write(DATA, entry(b"before"), content()) == []
    os.setxattr(tmp_path / "new", "system.posix_acl_default", acl(7))
    assert writer.write(DATA, entry(b"after"), content()) == []
    assert os.listxattr(tmp_path / "new" / "after") == []
    assert stat.S_IMODE((tmp_path / "new" / "after").stat().st_mode) == 0o640


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def refusing(call: Callable[..., object], number: int = errno.EIO) -> Callable[..., object]:
    """Do what `call` does, then say that it failed."""

    def refuse(*args: object, **keywords: object) -> object:
        call(*args, **keywords)
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("call", ["pwrite", "close", "fstat"])
def test_where_the_kernel_refuses_nothing_is_left(
    tmp_path: Path, writer: PlainWriter, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refusing(getattr(os, call)))
        assert writer.write(DATA, entry(), content()) is None
    assert os.listdir(tmp_path / "new") == []
    assert open_descriptors() == before


def test_a_name_that_a_directory_has_is_left_to_the_long_way(
    tmp_path: Path, writer: PlainWriter
) -> None:
    (tmp_path / "new" / "f").mkdir()
    assert writer.write(DATA, entry(), content()) is None
    assert os.listdir(tmp_path / "new") == ["f"] and (tmp_path / "new" / "f").is_dir()


@pytest.mark.parametrize(
    ("stat", "wanted"),
    [
        (entry(size=len(DATA) - 1), content()),
        (entry(size=len(DATA) + 1), content()),
        (entry(), content(DATA[1:])),
        (entry(b"../f"), content()),
        (entry(b""), content()),
        (entry(b".."), content()),
        (entry(b"f\0"), content()),
    ],
)
def test_another_length_content_or_no_name_leaves_nothing(
    tmp_path: Path, writer: PlainWriter, stat: Stat, wanted: Content
) -> None:
    assert writer.write(DATA, stat, wanted) is None
    assert os.listdir(tmp_path / "new") == [] and os.listdir(tmp_path) == ["new"]


def test_a_write_that_takes_only_a_part_is_left_to_the_long_way(
    tmp_path: Path, writer: PlainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    assert writer.write(DATA, entry(), content()) is None
    assert os.listdir(tmp_path / "new") == []


def test_an_error_that_is_not_the_kernels_leaves_nothing_either(
    tmp_path: Path, writer: PlainWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MemoryError):
        writer.write(DATA, entry(), content())
    assert os.listdir(tmp_path / "new") == []


# --- in a job
COUNT = 3 * BUNDLE_FILES_MAX


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    """More files than one step takes, one of each further kind among them."""
    bench = RestoreBench(tmp_path)
    folder = bench.volume / "d"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"f{number:04d}").write_bytes(b"content of %d" % number)
    os.link(folder / "f0050", folder / "f0050-link")
    (folder / "f0070-empty").write_bytes(b"")
    (folder / "f0090-set-id").write_bytes(b"tool")
    (folder / "f0090-set-id").chmod(0o4755)
    (folder / "f0110-attribute").write_bytes(b"value")
    os.setxattr(folder / "f0110-attribute", "user.a", b"1")
    (folder / "f0130-below").mkdir()
    (folder / "f0130-below" / "file").write_bytes(b"below")
    (folder / "f0150-symlink").symlink_to("f0001")
    (folder / "f0170-holes").write_bytes(b"")
    os.truncate(folder / "f0170-holes", 100_000)
    return bench


def restored(bench: RestoreBench) -> Path:
    return under(bench.out, bench.volume / "d")


def test_runs_and_what_stands_between_them_come_back(bench: RestoreBench) -> None:
    bench.backed_up()
    predicted = bench.restore(target=bench.out, dry_run=True)
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED
    assert compare(scan(bench.volume), scan(under(bench.out, bench.volume))) == []
    # Two names of one file are one file's bytes.
    assert done.finished.counts.files == COUNT + 7
    assert predicted.finished.counts == done.finished.counts
    created = done.finished.summary["created"]
    assert isinstance(created, int) and len(predicted.result.plan) == created
    assert predicted.finished.summary["created"] == created


def test_what_is_deleted_is_not_what_was_just_written(bench: RestoreBench) -> None:
    bench.backed_up()
    wanted = scan(bench.volume)
    (bench.volume / "d").rename(bench.top / "elsewhere")
    (bench.volume / "extraneous").write_bytes(b"x")
    done = bench.restore(delete=True)
    assert done.finished.state is JobState.COMPLETED
    assert done.finished.summary["deleted"] == 1
    assert compare(wanted, scan(bench.volume)) == []


def test_one_file_that_fails_takes_no_other_with_it(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    real = os.pwrite

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        if bytes(data) == b"content of 20":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    (row,) = done.result.not_exact
    assert (row["path"], row["reason"]) == (f"{bench.volume}/d/f0020", Reason.IO_ERROR)
    assert done.finished.counts.files == COUNT + 6
    names = set(os.listdir(bench.volume / "d")) - set(os.listdir(restored(bench)))
    assert names == {"f0020"}


def test_what_one_file_of_a_run_lost_is_told_with_its_path(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(bench.volume / "d" / "f0020", ns=(0, 77))
    bench.backed_up()
    real = os.utime

    def keep(place: int | str, *, ns: tuple[int, int]) -> None:
        if ns[1] != 77:
            real(place, ns=ns)

    monkeypatch.setattr(os, "utime", keep)
    done = bench.restore(target=bench.out)
    (row,) = done.result.not_exact
    assert (row["path"], row["reason"]) == (f"{bench.volume}/d/f0020", What.TIMES)
    assert done.finished.counts.files == COUNT + 7


def test_a_cancel_within_a_run_ends_after_the_file_and_leaves_whole_ones_only(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    bench.progress = JobProgress()
    real, written = os.rename, 0

    def count(old: bytes, new: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        nonlocal written
        real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        written += 1
        if written == 20:
            bench.cancel.set()

    monkeypatch.setattr(os, "rename", count)
    with pytest.raises(Cancelled):
        bench.restore(target=bench.out)
    names = sorted(os.listdir(restored(bench)))
    assert names == sorted(os.listdir(bench.volume / "d"))[:20]
    assert bench.progress.counts(0).files == 20
    assert all((restored(bench) / name).stat().st_size for name in names)


def test_a_wrong_content_in_a_run_is_damage_of_that_file_alone(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()

    def hashed(keys: object, data: memoryview) -> bytes:
        return bytes(32) if bytes(data) == b"content of 20" else content_id(KEYS, data)

    for module in ("plain", "execute"):
        monkeypatch.setattr(f"holdfast_agent.restore.{module}.content_id", hashed)
    done = bench.restore(target=bench.out)
    assert [row["path"] for row in done.result.damaged] == [f"{bench.volume}/d/f0020"]
    assert "f0020" not in os.listdir(restored(bench))
    assert not [n for n in os.listdir(restored(bench)) if n.startswith(TEMPORARY_PREFIX.decode())]
    assert done.finished.counts.files == COUNT + 6


def test_a_directory_that_cannot_be_made_is_told_once_and_nothing_is_written_in_it(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "e").mkdir()
    (bench.volume / "e" / "file").write_bytes(b"in the next directory")
    bench.backed_up()
    real = targets._made_directory

    def refuse(parent: int, name: bytes, mode: int) -> tuple[int, bool]:
        if name == b"d":
            raise failure_from(PermissionError(errno.EACCES, ""))
        return real(parent, name, mode)

    monkeypatch.setattr(targets, "_made_directory", refuse)
    done = bench.restore(target=bench.out)
    assert [row["path"] for row in done.result.not_exact] == [f"{bench.volume}/d"]
    assert os.listdir(under(bench.out, bench.volume)) == ["e"]
    assert done.finished.counts.files == 1


def test_own_files_are_safe_where_another_made_the_directory(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run trusts only what it has made itself: here somebody is faster, and it is not empty."""
    bench.backed_up()
    make, key = os.mkdir, bench.top / "key"
    key.write_bytes(b"secret")

    def late(name: bytes, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        if name == b"d":
            key.rename(restored(bench) / "f0001")
            make(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", late)
    scope = replace(bench.scope(), own=OwnFiles([os.fsencode(key)]))
    done = bench.restore(target=bench.out, scope=scope)
    assert [row["reason"] for row in done.result.not_exact] == [Reason.OWN_FILE]
    assert (restored(bench) / "f0001").read_bytes() == b"secret"
    assert (restored(bench) / "f0000").read_bytes() == b"content of 0"
