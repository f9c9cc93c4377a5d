"""Files that change, vanish or are replaced while a backup reads them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import msgspec
import pytest

from holdfast_agent.engine.source import Reader
from holdfast_agent.jobs import backup_source
from holdfast_agent.jobs.backup_source import VolumeListing, VolumePlace, VolumeReader
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.scan import Listing, stats_of
from holdfast_agent.tree.entry import EntryFlag, EntryType, Stat
from holdfast_contract.limits import KIB, MIB
from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import BackupBench, count, on_disk, opened_names


def after_reading(
    monkeypatch: pytest.MonkeyPatch, name: bytes, act: Callable[[int], None]
) -> list[int]:
    """Have `act(n)` called when the n-th reading of `name` has come to its end; count readings."""
    readings: list[int] = []
    plain = VolumeReader.is_unchanged

    def asked(reader: VolumeReader) -> bool:
        if reader.entry.name == name:
            readings.append(1)
            act(len(readings))
        return plain(reader)

    monkeypatch.setattr(VolumeReader, "is_unchanged", asked)
    return readings


def stat_of(bench: BackupBench, name: str) -> Stat:
    return bench.snapshot().find(os.fsencode(bench.volume / name)).entry.stat


def test_old_file_that_changes_while_it_is_read_in_one_go_is_read_again(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.clock.let_files_seem_old()
    path = bench.volume / "log"
    path.write_bytes(b"before")
    (bench.volume / "other").write_bytes(b"stays")
    plain, changes = os.preadv, [b"during", b"after"]

    def preadv(descriptor: int, buffers: tuple[memoryview, ...], offset: int) -> int:
        got = plain(descriptor, buffers, offset)
        if changes and os.fstat(descriptor).st_ino == path.stat().st_ino:
            path.write_bytes(changes.pop(0))
            os.utime(path, ns=(len(changes), len(changes)))
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert not changes
    assert bench.restored() == {b"log": b"after", b"other": b"stays"}
    bench.check_refs()


def test_old_files_are_bundled_deduplicated_and_kept_whole(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.clock.let_files_seem_old()
    opened = opened_names(monkeypatch)
    rng = random.Random(5)
    (bench.volume / "d").mkdir()
    for number in range(300):
        data = rng.randbytes(rng.choice([0, 1, 900, 20_000]))
        (bench.volume / f"{number}").write_bytes(data)
        (bench.volume / "d" / f"copy of {number}").write_bytes(data)
    os.link(bench.volume / "7", bench.volume / "d" / "second name")
    summary = bench.run().finished.summary
    assert opened == [b"7"]
    assert bench.restored() == on_disk(bench.volume)
    assert summary["bytes_new"] == sum(map(len, set(on_disk(bench.volume).values())))
    bench.check_refs()
    assert count(bench.run(), "files_unmodified") == 601


@pytest.mark.parametrize("size", [1000, 2 * MIB])
def test_file_that_changes_once_while_it_is_read_is_read_again(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = bench.volume / "log"
    path.write_bytes(bytes(size))

    def append(reading: int) -> None:
        if reading == 1:
            path.write_bytes(b"new" * size)

    readings = after_reading(monkeypatch, b"log", append)
    done = bench.run()
    assert len(readings) >= 2
    assert done.finished.state is JobState.COMPLETED
    assert bench.restored() == {b"log": b"new" * size}
    bench.check_refs()


@pytest.mark.parametrize("size", [1000, 2 * MIB])
def test_file_that_changes_whenever_it_is_read_is_stored_and_listed(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    path = bench.volume / "log"
    path.write_bytes(bytes(size))

    def append(reading: int) -> None:
        with path.open("ab") as file:
            file.write(b"line\n")

    readings = after_reading(monkeypatch, b"log", append)
    with monkeypatch.context():
        done = bench.run()
    assert len(readings) == 3
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [(row["path"], row["reason"]) for row in done.result.skipped] == [(str(path), "changed")]
    summary = done.finished.summary
    assert (summary["files"], summary["files_new"]) == (1, 1)
    assert bench.restored()[b"log"] == bytes(size) + b"line\n" * 2
    assert stat_of(bench, "log").flags & EntryFlag.UNSETTLED
    monkeypatch.undo()
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.restored() == on_disk(bench.volume)


def test_shrinking_file_is_stored_as_long_as_it_was_read(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "shrinks"
    path.write_bytes(b"x" * 3 * MIB)
    plain = VolumeReader.read_into
    sizes = iter([2 * MIB, 1 * MIB, 600 * KIB])

    def shrink(reader: VolumeReader, buffer: memoryview, offset: int) -> int:
        if offset == 0:
            os.truncate(path, next(sizes))
        return plain(reader, buffer, offset)

    monkeypatch.setattr(VolumeReader, "read_into", shrink)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert bench.restored() == {b"shrinks": b"x" * 600 * KIB}
    assert done.finished.summary["bytes"] == 600 * KIB


def test_change_within_the_same_tick_is_found_by_the_second_look(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "paused writer"
    path.write_bytes(b"old content")
    (bench.volume / "other").write_bytes(b"other")
    plain = VolumePlace.doubt
    changed: list[int] = []

    def doubt(place: VolumePlace, reader: Reader) -> object:
        found = plain(place, reader)
        if reader.entry.name == b"paused writer" and not changed:
            changed.append(1)
            path.write_bytes(b"new content")
        return found

    monkeypatch.setattr(VolumePlace, "doubt", doubt)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert bench.restored() == {b"paused writer": b"new content", b"other": b"other"}
    bench.check_refs()


def test_file_that_is_gone_at_the_second_look_is_no_entry(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("goes", "stays"):
        (bench.volume / "d" / name).parent.mkdir(exist_ok=True)
        (bench.volume / "d" / name).write_bytes(b"content of " + name.encode())
    plain = VolumePlace.doubt

    def doubt(place: VolumePlace, reader: Reader) -> object:
        found = plain(place, reader)
        if reader.entry.name == b"goes":
            (bench.volume / "d" / "goes").unlink()
        return found

    monkeypatch.setattr(VolumePlace, "doubt", doubt)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert done.finished.summary["files"] == 1
    assert bench.restored() == {b"d/stays": b"content of stays"}


def test_file_that_never_comes_to_rest_is_listed(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "restless"
    path.write_bytes(b"0")
    plain = VolumePlace.doubt

    def doubt(place: VolumePlace, reader: Reader) -> object:
        found = plain(place, reader)
        path.write_bytes(path.read_bytes() + b"0")
        return found

    monkeypatch.setattr(VolumePlace, "doubt", doubt)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [(row["path"], row["reason"]) for row in done.result.skipped] == [(str(path), "changed")]
    assert stat_of(bench, "restless").flags & EntryFlag.UNSETTLED


def test_file_that_is_unsettled_twice_with_equal_times_is_read_twice(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a writer in the same tick: no stat part tells the two contents apart."""
    path = bench.volume / "same tick"
    path.write_bytes(b"one")
    plain_open = VolumePlace.open

    def in_doubt(entry: Stat) -> Stat:
        return msgspec.structs.replace(entry, mtime_ns=7, ctime_ns=7, flags=EntryFlag.UNSETTLED)

    def scanned(directory: Directory, names: list[bytes]) -> Listing:
        found = stats_of(directory, names)
        return found._replace(entries=[in_doubt(entry) for entry in found.entries])

    def open_file(place: VolumePlace, entry: Stat) -> VolumeReader:
        reader = plain_open(place, entry)
        reader.entry = in_doubt(reader.entry)
        return reader

    monkeypatch.setattr(backup_source, "stats_of", scanned)
    monkeypatch.setattr(VolumePlace, "open", open_file)
    bench.run()
    path.write_bytes(b"two")
    bench.run()
    assert bench.restored() == {b"same tick": b"two"}


def after_listing(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    plain = VolumeListing.take

    def take(listing: VolumeListing, last: bytes | None, entries_max: int) -> list[Stat]:
        found = plain(listing, last, entries_max)
        act()
        return found

    monkeypatch.setattr(VolumeListing, "take", take)


def test_file_that_vanishes_before_it_is_opened_is_no_skip(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("goes", "stays"):
        (bench.volume / name).write_bytes(b"x")
    after_listing(monkeypatch, lambda: (bench.volume / "goes").unlink(missing_ok=True))
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert (done.finished.summary["files"], bench.restored()) == (1, {b"stays": b"x"})


def test_file_that_was_replaced_by_another_is_read_as_it_is_now(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "saved"
    path.write_bytes(b"old")

    def save() -> None:
        (bench.volume / ".saved.tmp").write_bytes(b"new content")
        os.replace(bench.volume / ".saved.tmp", path)

    after_listing(monkeypatch, save)
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.restored()[b"saved"] == b"new content"


@pytest.mark.parametrize("kind", [EntryType.FIFO, EntryType.SYMLINK, EntryType.DIRECTORY])
def test_file_that_became_something_else_never_leads_away(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch, kind: EntryType
) -> None:
    path = bench.volume / "was a file"
    path.write_bytes(b"x")
    (bench.top / "secret").write_bytes(b"outside")

    def replace() -> None:
        path.unlink(missing_ok=True)
        if kind is EntryType.FIFO:
            os.mkfifo(path)
        elif kind is EntryType.SYMLINK:
            path.symlink_to(bench.top / "secret")
        else:
            path.mkdir()

    after_listing(monkeypatch, replace)
    done = bench.run()
    found = bench.snapshot().find(os.fsencode(path)).entry
    assert found.stat.type == kind
    assert bench.restored() == {}
    is_skip = kind is EntryType.DIRECTORY
    assert (done.finished.state is JobState.COMPLETED_WITH_SKIPS) == is_skip


def test_directory_that_is_exchanged_for_a_symlink_is_not_followed(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.volume / "d").mkdir()
    (bench.top / "outside").mkdir()
    (bench.top / "outside" / "secret").write_bytes(b"outside")
    plain = VolumePlace.enter

    def enter(place: VolumePlace, name: bytes) -> bool:
        if name == b"d":
            (bench.volume / "d").rmdir()
            (bench.volume / "d").symlink_to(bench.top / "outside")
        return plain(place, name)

    monkeypatch.setattr(VolumePlace, "enter", enter)
    done = bench.run()
    assert bench.restored() == {}
    assert [row["reason"] for row in done.result.skipped] == ["replaced"]
