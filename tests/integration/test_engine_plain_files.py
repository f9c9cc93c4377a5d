"""Ordinary small files, which are read together, among all that is not ordinary."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from holdfast_agent.engine.files import PLAIN_BYTES_MAX
from holdfast_agent.engine.visit import PLAIN_FILES_MAX
from holdfast_agent.jobs.backup_source import VolumePlace
from holdfast_agent.tree.entry import EntryType, Stat
from holdfast_contract.errors import Cancelled
from holdfast_contract.limits import KIB
from tests.support.backup_bench import BackupBench, count, on_disk, opened_names


def make_tree(bench: BackupBench) -> dict[str, bytes]:
    """Fill the volume with files of all sizes, and others between them; return the former."""
    draw = random.Random(5)
    sizes = (0, 1, 100, 1000, 5000, 40 * KIB, PLAIN_BYTES_MAX, PLAIN_BYTES_MAX + 1, 300 * KIB)
    files: dict[str, bytes] = {}
    for number in range(300):
        name = f"{number:03} file"
        if number % 7 == 3:
            # As it was a few files ago: in the same reading, or in the one before.
            data = files[f"{number - draw.randrange(1, 30) if number > 30 else 1:03} file"]
        else:
            data = draw.randbytes(draw.choice(sizes if number % 10 == 0 else sizes[:5]))
        files[name] = data
        (bench.volume / name).write_bytes(data)
    for number in range(0, 300, 20):
        (bench.volume / f"{number:03} folder").mkdir()
        (bench.volume / f"{number:03} folder" / "f").write_bytes(b"%d" % number)
        (bench.volume / f"{number:03} link").symlink_to("000 file")
    os.link(bench.volume / "010 file", bench.volume / "011 other name")
    os.mkfifo(bench.volume / "050 pipe")
    with (bench.volume / "060 sparse").open("wb") as file:
        file.truncate(400 * KIB)
        file.seek(200 * KIB)
        file.write(b"data")
    os.setxattr(bench.volume / "070 file", "user.a", b"1")
    return files


def test_every_file_among_others_comes_back_and_only_odd_ones_are_opened_alone(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_tree(bench)
    bench.clock.let_files_seem_old()
    opened = opened_names(monkeypatch)
    read: list[int] = []
    read_plain = VolumePlace.read_plain

    def counted(place: VolumePlace, entries: Sequence[Stat], buffer: memoryview) -> object:
        found = read_plain(place, entries, buffer)
        assert len(buffer) <= PLAIN_BYTES_MAX or len(entries) == 1
        read.append(len(found))
        return found

    monkeypatch.setattr(VolumePlace, "read_plain", counted)
    first = bench.run()
    assert opened == [b"010 file", b"060 sparse"]
    assert sum(read) == 300 - 1 + 15
    assert max(read) > 8 and max(read) <= PLAIN_FILES_MAX
    assert bench.restored(first) == on_disk(bench.volume)
    # Equal contents are stored once, whichever of them came first; the sparse one's four bytes too.
    distinct = {data for data in files.values() if data} | {b"%d" % n for n in range(0, 300, 20)}
    assert count(first, "bytes_new") == sum(map(len, distinct)) + 64 * KIB
    find = bench.snapshot().find
    top = os.fsencode(bench.volume)
    assert find(top + b"/070 file").entry.content.xattrs == ((b"user.a", b"1"),)
    assert find(top + b"/071 file").entry.content.xattrs == ()
    assert find(top + b"/050 pipe").entry.stat.type == EntryType.FIFO
    bench.check_refs()
    read.clear()
    again = bench.run()
    assert (count(again, "files_unmodified"), read) == (count(first, "files"), [])


def test_files_that_were_bundled_before_are_found_by_their_content(bench: BackupBench) -> None:
    make_tree(bench)
    bench.clock.let_files_seem_old()
    first = bench.run()
    stored = on_disk(bench.volume)
    (bench.volume / "moved").mkdir()
    for name in stored:
        if b"/" not in name and not name.startswith(b"060"):
            os.rename(bench.volume / os.fsdecode(name), bench.volume / "moved" / os.fsdecode(name))
    second = bench.run()
    assert count(second, "bytes_new") == 0
    assert bench.restored(second) == on_disk(bench.volume)
    assert len(bench.restored(first)) == len(stored)
    bench.check_refs()


def test_a_job_that_is_cancelled_reads_no_further_group(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5 * PLAIN_FILES_MAX):
        (bench.volume / f"f{number}").write_bytes(b"x")
    bench.clock.let_files_seem_old()
    read: list[int] = []
    plain = VolumePlace.read_plain

    def cancelling(place: VolumePlace, entries: Sequence[Stat], buffer: memoryview) -> object:
        read.append(len(entries))
        bench.cancel.set()
        return plain(place, entries, buffer)

    monkeypatch.setattr(VolumePlace, "read_plain", cancelling)
    with pytest.raises(Cancelled):
        bench.run()
    assert read == [PLAIN_FILES_MAX]
