"""Regular files are read safely, holes are found, and what changes meanwhile is known."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.sources import reading
from holdfast_agent.sources.attributes import OwnerNames
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.reading import (
    HOLE_BYTES_MIN,
    FileReader,
    ReadFailed,
    data_runs,
    open_file,
    read_plain,
)
from holdfast_agent.sources.scan import look
from holdfast_agent.tree.entry import Content, EntryFlag, Stat
from tests.support.directories import opened
from tests.support.privilege import without_privilege

UNIT = HOLE_BYTES_MIN
PRIVILEGED = os.geteuid() == 0


def scanned(directory: Directory, name: bytes) -> Stat:
    entry = look(directory, name)
    assert isinstance(entry, Stat), entry
    return entry


def reader_of(folder: Path, name: str) -> FileReader:
    with opened(folder) as directory:
        found = open_file(directory, scanned(directory, name.encode()))
    assert isinstance(found, FileReader), found
    return found


def runs_of(path: Path) -> list[tuple[int, int]]:
    with reader_of(path.parent, path.name) as reader:
        return list(reader.data_runs())


def write_at(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def test_a_file_is_read_in_the_callers_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    (tmp_path / "file").write_bytes(data)
    with reader_of(tmp_path, "file") as reader:
        assert reader.size == len(data)
        buffer = memoryview(bytearray(1000))
        assert reader.read_into(buffer, 0) == 1000
        assert bytes(buffer) == data[:1000]
        assert reader.read_into(buffer, 2000) == 560
        assert bytes(buffer[:560]) == data[2000:]
        assert reader.read_into(buffer, 5000) == 0
        assert reader.is_unchanged()
    reader.close()
    assert not reader.is_unchanged()


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.utime(tmp_path / "file", ns=(1_000_000_000, 2_000_000_000))
    with reader_of(tmp_path, "file") as reader:
        reader.read_into(memoryview(bytearray(10)), 0)
    assert (tmp_path / "file").stat().st_atime_ns == 1_000_000_000


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:3]], at))
    with reader_of(tmp_path, "file") as reader:
        buffer = memoryview(bytearray(10))
        assert reader.read_into(buffer, 0) == 10
    assert bytes(buffer) == b"0123456789"


def test_an_input_output_error_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with reader_of(tmp_path, "file") as reader, pytest.raises(ReadFailed) as failed:
        reader.read_into(memoryview(bytearray(10)), 0)
    assert failed.value.finding[:2] == (b"file", Reason.IO_ERROR)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "folder", "device", "gone"])
def test_what_has_taken_the_place_of_a_file_is_neither_read_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "file").write_bytes(b"")
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        (tmp_path / "file").unlink()
        if kind == "fifo":
            os.mkfifo(tmp_path / "file")
        elif kind == "socket":
            os.mknod(tmp_path / "file", stat.S_IFSOCK | 0o600)
        elif kind == "link":
            (tmp_path / "file").symlink_to("outside")
        elif kind == "folder":
            (tmp_path / "file").mkdir()
        elif kind == "device" and PRIVILEGED:
            os.mknod(tmp_path / "file", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        found = open_file(directory, entry)
    assert isinstance(found, Finding)
    gone = kind == "gone" or (kind == "device" and not PRIVILEGED)
    assert found.reason is (Reason.VANISHED if gone else Reason.REPLACED)


def test_another_file_of_the_same_name_counts_as_changed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "new").write_bytes(b"")
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        os.replace(tmp_path / "new", tmp_path / "file")
        found = open_file(directory, entry)
        assert isinstance(found, Finding)
        assert found.reason is Reason.CHANGED
        again = open_file(directory, scanned(directory, b"file"))
    assert isinstance(again, FileReader)
    again.close()


def test_the_entry_is_as_the_file_was_when_opened_not_when_scanned(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        (tmp_path / "file").write_bytes(b"longer")
        found = open_file(directory, entry)
        assert isinstance(found, FileReader)
        with found:
            assert found.entry.size == 6
            assert found.entry.flags == EntryFlag.UNSETTLED
            assert found.entry.ctime_ns >= entry.ctime_ns


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "chmod", "replace"])
def test_a_change_while_reading_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(0, 0))
    with reader_of(tmp_path, "file") as reader:
        assert reader.is_unchanged()
        if change == "grow":
            with path.open("ab") as file:
                file.write(b"more")
        elif change == "shrink":
            os.truncate(path, 3)
        elif change == "rewrite":
            path.write_bytes(b"CONTENT")
        elif change == "chmod":
            path.chmod(0o400)
            os.utime(path, ns=(0, 0))
        else:
            (tmp_path / "new").write_bytes(b"")
            os.replace(tmp_path / "new", path)
        # Where the clock has not ticked since, only the second look can tell the last two.
        ticked = os.fstat(reader.descriptor).st_ctime_ns != reader.signature.ctime_ns
        assert not reader.is_unchanged() or (change in ("chmod", "replace") and not ticked)


def denied(folder: str) -> list[str]:
    with opened(Path(folder)) as directory:
        found = open_file(directory, scanned(directory, b"closed"))
    assert isinstance(found, Finding)
    return [found.path.decode(), found.reason]


def test_a_file_that_may_not_be_read_is_a_finding(open_tmp: Path) -> None:
    (open_tmp / "closed").write_bytes(b"secret")
    (open_tmp / "closed").chmod(0)
    assert without_privilege(denied, str(open_tmp)) == ["closed", "denied"]


def test_a_dense_file_is_one_run_and_an_empty_one_none(tmp_path: Path) -> None:
    (tmp_path / "dense").write_bytes(b"x" * (3 * UNIT + 5))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "small").write_bytes(b"x")
    assert runs_of(tmp_path / "dense") == [(0, 3 * UNIT + 5)]
    assert runs_of(tmp_path / "empty") == []
    assert runs_of(tmp_path / "small") == [(0, 1)]


def test_a_file_that_is_one_hole_has_no_run(tmp_path: Path) -> None:
    write_at(tmp_path / "hole", 10 * UNIT + 1, {})
    assert runs_of(tmp_path / "hole") == []


def test_data_between_holes_is_found_in_whole_units(tmp_path: Path) -> None:
    write_at(
        tmp_path / "sparse",
        64 * UNIT,
        {4 * UNIT + 4096: b"x" * 100, 20 * UNIT: b"y" * UNIT, 63 * UNIT: b"z"},
    )
    assert runs_of(tmp_path / "sparse") == [
        (4 * UNIT, UNIT),
        (20 * UNIT, UNIT),
        (63 * UNIT, UNIT),
    ]


def test_a_hole_at_the_end_reaches_the_end(tmp_path: Path) -> None:
    write_at(tmp_path / "sparse", 10 * UNIT + 7, {0: b"x"})
    assert runs_of(tmp_path / "sparse") == [(0, UNIT)]


def test_a_small_hole_is_read_as_zeros(tmp_path: Path) -> None:
    write_at(tmp_path / "sparse", 4 * UNIT, {0: b"x" * 4096, UNIT - 4096: b"y" * (3 * UNIT)})
    assert runs_of(tmp_path / "sparse")[0][0] == 0
    assert sum(length for _, length in runs_of(tmp_path / "sparse")) >= 3 * UNIT + 4096
    write_at(tmp_path / "two", 2 * UNIT, {0: b"x", UNIT + 4096: b"y" * (UNIT - 4096)})
    assert runs_of(tmp_path / "two") == [(0, 2 * UNIT)]


def test_runs_hold_all_data_whatever_the_layout(tmp_path: Path) -> None:
    """Every byte that is not zero lies in a run; runs are ordered, apart, and within the file."""
    for seed in range(40):
        size = (seed * 7919) % (40 * UNIT) + 1
        pieces = {(seed * k * 104_729) % size: b"d" * (seed * k % 70_000 + 1) for k in range(1, 6)}
        path = tmp_path / f"{seed}"
        write_at(path, size, pieces)
        data = path.read_bytes()
        found = runs_of(path)
        kept = bytearray(len(data))
        end = -1
        for offset, length in found:
            assert offset > end
            assert length > 0
            kept[offset : offset + length] = data[offset : offset + length]
            end = offset + length
        assert end <= len(data)
        assert bytes(kept) == data


def test_a_file_system_that_does_not_tell_holes_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at(tmp_path / "sparse", 4 * UNIT, {})

    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    assert runs_of(tmp_path / "sparse") == [(0, 4 * UNIT)]


def test_a_file_cut_while_its_holes_are_sought_ends_the_search(tmp_path: Path) -> None:
    write_at(tmp_path / "sparse", 64 * UNIT, {n * 4 * UNIT: b"x" for n in range(16)})
    with reader_of(tmp_path, "sparse") as reader:
        runs = reader.data_runs()
        assert next(runs) == (0, UNIT)
        os.truncate(tmp_path / "sparse", 8 * UNIT)
        rest = list(runs)
    assert all(0 < offset < 64 * UNIT for offset, _ in rest)


def test_a_file_over_4_gib_keeps_its_far_end(tmp_path: Path) -> None:
    size = (5 << 30) + 3
    write_at(tmp_path / "far", size, {size - 3: b"end"})
    with reader_of(tmp_path, "far") as reader:
        runs = list(data_runs(reader.descriptor, reader.info))
        assert sum(length for _, length in runs) <= UNIT + 3
        buffer = memoryview(bytearray(3))
        assert reader.read_into(buffer, size - 3) == 3
    assert bytes(buffer) == b"end"
    assert reading.signature_of(os.stat(tmp_path / "far")).size == size


# --- in one go ---
def plainly(directory: Directory, entry: Stat) -> tuple[Content | None, bytes]:
    buffer = bytearray(entry.size)
    found = in_one_go(directory, [entry], buffer)
    return found[0] if found else None, bytes(buffer)


def in_one_go(
    directory: Directory, entries: Sequence[Stat], buffer: bytearray, young_ns: int = 1 << 63
) -> list[Content]:
    return read_plain(directory, entries, memoryview(buffer), OwnerNames(), young_ns=young_ns)


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_an_ordinary_file_is_read_in_one_go(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        content, read = plainly(directory, entry)
        os.setxattr(tmp_path / "file", "user.a", b"1")
        marked, _ = plainly(directory, scanned(directory, b"file"))
    assert read == data
    assert content is not None
    assert (content.uid, content.gid, content.xattrs) == (os.getuid(), os.getgid(), ())
    assert marked is not None
    assert marked.xattrs == ((b"user.a", b"1"),)


def test_files_are_read_one_behind_the_other(tmp_path: Path) -> None:
    contents = [b"first", b"", b"the second", b"3"]
    for number, data in enumerate(contents):
        (tmp_path / f"f{number}").write_bytes(data)
    os.setxattr(tmp_path / "f2", "user.a", b"1")
    if os.getuid() == 0:
        os.chown(tmp_path / "f3", 1234, 4321)
    buffer = bytearray(16)
    with opened(tmp_path) as directory:
        entries = [scanned(directory, b"f%d" % number) for number in range(4)]
        found = in_one_go(directory, entries, buffer)
    assert bytes(buffer) == b"".join(contents)
    assert [bool(content.xattrs) for content in found] == [False, False, True, False]
    owners = [(info.st_uid, info.st_gid) for info in map(os.stat, sorted(tmp_path.iterdir()))]
    assert [(content.uid, content.gid) for content in found] == owners


@pytest.mark.parametrize("kind", ["link", "gone", "touched", "grown", "cut", "young"])
def test_reading_ends_before_the_first_file_that_is_not_ordinary(tmp_path: Path, kind: str) -> None:
    for number in range(4):
        path = tmp_path / f"f{number}"
        path.write_bytes(b"%d" % number * 5)
        os.utime(path, ns=(1, 1))
    buffer, odd = bytearray(20), tmp_path / "f2"
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path) as directory:
        if kind == "young":
            # A moment later than the others, on file systems of any tick.
            while odd.stat().st_ctime_ns <= (tmp_path / "f3").stat().st_ctime_ns:
                odd.touch()
        entries = [scanned(directory, b"f%d" % number) for number in range(4)]
        if kind in ("link", "gone"):
            odd.unlink()
        if kind == "link":
            odd.symlink_to("f1")
        elif kind == "touched":
            os.utime(odd, ns=(2, 2))
        elif kind == "grown":
            odd.write_bytes(b"longer than it was")
            os.utime(odd, ns=(1, 1))
        elif kind == "cut":
            os.truncate(odd, 2)
            os.utime(odd, ns=(1, 1))
        young_ns = entries[2].ctime_ns if kind == "young" else 1 << 63
        found = in_one_go(directory, entries, buffer, young_ns)
    assert len(found) == 2
    assert bytes(buffer[:10]) == b"0000011111"
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "kind", ["fifo", "link", "folder", "gone", "another", "grown", "touched", "mode", "hard link"]
)
def test_what_is_not_as_it_was_scanned_is_not_read_in_one_go(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        if kind in ("fifo", "link", "folder", "gone", "another"):
            path.rename(tmp_path / "away")
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("away")
        elif kind == "folder":
            path.mkdir()
        elif kind == "another":
            path.write_bytes(b"context")
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        elif kind == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        elif kind == "touched":
            os.utime(path, ns=(1, 1))
        elif kind == "mode":
            path.chmod(0o600)
        elif kind == "hard link":
            os.link(path, tmp_path / "second")
            entry = scanned(directory, b"file")
        assert plainly(directory, entry)[0] is None
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("fact", ["inode", "size", "mode", "mtime_ns", "ctime_ns"])
def test_a_single_fact_that_was_scanned_otherwise_is_enough(tmp_path: Path, fact: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        other = msgspec.structs.replace(entry, **{fact: getattr(entry, fact) - 1})
        assert plainly(directory, entry)[0] is not None
        assert plainly(directory, other)[0] is None


def test_a_short_read_is_left_to_the_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:3]], at))
    with opened(tmp_path) as directory:
        assert plainly(directory, scanned(directory, b"file"))[0] is None


def test_a_file_with_a_hole_is_not_read_in_one_go(tmp_path: Path) -> None:
    write_at(tmp_path / "file", 4 * UNIT, {0: b"a", 3 * UNIT: b"b"})
    with opened(tmp_path) as directory:
        assert plainly(directory, scanned(directory, b"file"))[0] is None


@pytest.mark.parametrize("change", ["written", "cut", "renewed", "disguised"])
def test_a_file_that_changes_while_it_is_read_is_not_read_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(1, 1))
    made_ns = path.stat().st_ctime_ns
    plain = os.preadv

    def act() -> None:
        if change == "written":
            with path.open("r+b") as file:
                file.write(b"X")
        elif change == "cut":
            os.truncate(path, 4)
        elif change == "disguised":
            # Until the clock of the file system has gone on.
            while path.stat().st_ctime_ns == made_ns:
                path.write_bytes(b"9876543210")
                os.utime(path, ns=(1, 1))
        else:
            path.chmod(0o640)

    def preadv(descriptor: int, buffers: tuple[memoryview, ...], offset: int) -> int:
        got = plain(descriptor, buffers, offset)
        act()
        return got

    with opened(tmp_path) as directory:
        entry = scanned(directory, b"file")
        assert plainly(directory, entry)[0] is not None
        monkeypatch.setattr(os, "preadv", preadv)
        assert plainly(directory, entry)[0] is None


def test_attributes_that_cannot_be_read_are_left_to_the_long_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.setxattr(tmp_path / "file", "user.a", b"1")

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "getxattr", denied)
    with opened(tmp_path) as directory:
        assert plainly(directory, scanned(directory, b"file"))[0] is None
