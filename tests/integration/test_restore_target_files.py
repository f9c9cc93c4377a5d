"""Files get their names when they are complete, whatever stood there; what is right is cloned."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from holdfast_agent.restore import writer as writers
from holdfast_agent.restore.failures import EntryFailed, InTheWay
from holdfast_agent.restore.removal import remove
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.syscalls import begin_write_back
from tests.support.targets import POLICY, entry, mine, temporaries, write


# --- files
def test_a_file_gets_its_name_when_it_is_complete(target: Target, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "file").write_bytes(b"before")
    with target.directory(()).create_file(b"file") as writer:
        writer.write(b"after", 0)
        assert (top / "file").read_bytes() == b"before"
        (temporary,) = temporaries(top)
        assert stat.S_IMODE((top / temporary).stat().st_mode) == 0o600
        writer.finish(5, entry(b"file", 5), mine(), POLICY)
        inode = writer.identity()[1]
        writer.commit()
    info = (top / "file").stat()
    assert (top / "file").read_bytes() == b"after"
    assert (info.st_ino, stat.S_IMODE(info.st_mode)) == (inode, 0o640)
    assert info.st_mtime_ns == 1_000_000_007
    assert temporaries(top) == []


def test_a_file_that_is_given_up_leaves_nothing(target: Target, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "file").write_bytes(b"before")
    with (
        pytest.raises(RuntimeError, match="damaged"),
        target.directory(()).create_file(b"file") as writer,
    ):
        writer.write(b"half", 0)
        raise RuntimeError("damaged")
    assert os.listdir(top) == ["file"]
    assert (top / "file").read_bytes() == b"before"
    assert target.directory(()).holders == 0
    writer.abort()


def test_what_is_never_written_is_a_hole(target: Target, tmp_path: Path) -> None:
    size = (5 << 30) + 1
    with target.directory(()).create_file(b"sparse") as writer:
        writer.write(b"middle", 1 << 30)
        writer.finish(size, entry(b"sparse", size), mine(), POLICY)
        writer.commit()
    info = (tmp_path / "top" / "sparse").stat()
    assert info.st_size == size
    assert info.st_blocks * 512 < 1 << 20
    with (tmp_path / "top" / "sparse").open("rb") as file:
        file.seek((1 << 30) - 1)
        assert file.read(8) == b"\0middle\0"


def test_a_file_is_cut_to_its_length(target: Target, tmp_path: Path) -> None:
    with target.directory(()).create_file(b"file") as writer:
        writer.write(b"0123456789", 0)
        writer.finish(4, entry(b"file", 4), mine(), POLICY)
        writer.commit()
    assert (tmp_path / "top" / "file").read_bytes() == b"0123"


def test_the_disk_is_at_work_before_all_is_written(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []

    def begin(descriptor: int) -> None:
        begun.append((descriptor, os.fstat(descriptor).st_size))
        begin_write_back(descriptor)

    monkeypatch.setattr(writers, "begin_write_back", begin)
    monkeypatch.setattr(writers, "DIRTY_BYTES_MAX", 1000)
    with target.directory(()).create_file(b"file") as writer:
        for offset in range(0, 3000, 400):
            writer.write(b"x" * 400, offset)
        assert begun == [(writer.descriptor, 1200), (writer.descriptor, 2400)]
        writer.finish(3200, entry(b"file", 3200), mine(), POLICY)
        writer.commit()
    assert (tmp_path / "top" / "file").read_bytes() == b"x" * 3200


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(999, []), (1000, [1000]), (2000, [2000]), (2999, [2000]), (3000, [2000, 3000])],
)
def test_the_end_of_a_long_file_is_not_kept_until_all_files_are_written(
    target: Target, monkeypatch: pytest.MonkeyPatch, length: int, wanted: list[int]
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(writers, "begin_write_back", lambda fd: begun.append(os.fstat(fd).st_size))
    monkeypatch.setattr(writers, "DIRTY_BYTES_MAX", 2000)
    monkeypatch.setattr(writers, "REST_BYTES_MIN", 1000)
    with target.directory(()).create_file(b"file") as writer:
        for offset in range(0, length, 1000):
            writer.write(b"x" * min(1000, length - offset), offset)
        writer.finish(length, entry(b"file", length), mine(), POLICY)
    assert begun == wanted


def test_a_kernel_that_does_not_begin_is_no_error(tmp_path: Path) -> None:
    ends = os.pipe()
    for end in ends:
        begin_write_back(end)
        os.close(end)


def test_a_short_write_is_continued(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    write(target.directory(()), b"file", b"0123456789")
    assert (tmp_path / "top" / "file").read_bytes() == b"0123456789"


def test_a_directory_in_the_way_of_a_file_is_told_and_can_be_removed(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "top" / "file" / "below").mkdir(parents=True)
    with target.directory(()).create_file(b"file") as writer:
        writer.write(b"new", 0)
        with pytest.raises(InTheWay):
            writer.commit()
        remove(target.directory(()), b"file")
        writer.commit()
    assert (tmp_path / "top" / "file").read_bytes() == b"new"
    assert temporaries(tmp_path / "top") == []


def test_a_symlink_of_the_same_name_is_replaced_not_written_through(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (tmp_path / "top" / "file").symlink_to(tmp_path / "outside")
    write(target.directory(()), b"file", b"new")
    assert not (tmp_path / "top" / "file").is_symlink()
    assert (tmp_path / "outside").read_bytes() == b"outside"


def test_hard_links_of_the_file_that_is_replaced_keep_their_content(
    target: Target, tmp_path: Path
) -> None:
    (tmp_path / "top" / "file").write_bytes(b"before")
    os.link(tmp_path / "top" / "file", tmp_path / "other")
    write(target.directory(()), b"file", b"after")
    assert (tmp_path / "other").read_bytes() == b"before"


# --- delta
def test_content_that_is_right_already_is_cloned(target: Target, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "top" / "file").write_bytes(data)
    directory = target.directory(())
    existing = directory.open_existing(b"file")
    assert existing is not None
    with existing, directory.create_file(b"file") as writer:
        buffer = memoryview(bytearray(100))
        assert existing.read_into(buffer, 256) == 100
        assert existing.info.st_size == len(data)
        writer.clone(existing, 0, 500_000)
        writer.write(b"NEW", 500_000)
        writer.clone(existing, 500_003, len(data) - 500_003)
        assert writer.read_into(buffer, 499_990) == 100
        assert bytes(buffer[10:13]) == b"NEW"
        writer.finish(len(data), entry(b"file", len(data)), mine(), POLICY)
        writer.commit()
    assert (tmp_path / "top" / "file").read_bytes() == data[:500_000] + b"NEW" + data[500_003:]


def test_cloning_works_where_the_kernel_cannot(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    data = b"x" * ((3 << 20) + 5)
    (tmp_path / "top" / "file").write_bytes(data)
    directory = target.directory(())
    existing = directory.open_existing(b"file")
    assert existing is not None
    with existing, directory.create_file(b"copy") as writer:
        writer.clone(existing, 5, len(data) - 5)
        writer.commit()
    assert (tmp_path / "top" / "copy").read_bytes() == b"\0" * 5 + data[5:]


def test_an_existing_file_that_has_become_shorter_is_told(target: Target, tmp_path: Path) -> None:
    (tmp_path / "top" / "file").write_bytes(b"short")
    directory = target.directory(())
    existing = directory.open_existing(b"file")
    assert existing is not None
    with existing, directory.create_file(b"copy") as writer:
        with pytest.raises(EntryFailed) as failed:
            writer.clone(existing, 0, 100)
        assert failed.value.reason == Reason.CHANGED


@pytest.mark.timeout(20)
def test_only_regular_files_are_read_for_a_delta(target: Target, tmp_path: Path) -> None:
    top = tmp_path / "top"
    os.mkfifo(top / "fifo")
    (top / "folder").mkdir()
    (top / "file").write_bytes(b"")
    (top / "link").symlink_to("file")
    directory = target.directory(())
    for name in (b"fifo", b"folder", b"link", b"gone"):
        assert directory.open_existing(name) is None
