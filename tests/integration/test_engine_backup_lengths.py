"""Long lists, long attributes, full pages, many names; and the memory that all of it may take."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from holdfast_agent.engine import assembly
from holdfast_agent.jobs.backup_source import VolumePlace
from holdfast_agent.tree.entry import Content, Stat
from holdfast_contract.limits import KIB, MIB
from tests.support.backup_bench import BackupBench, count, on_disk, opened_names

TOP = Path(__file__).resolve().parents[2]


def test_hard_links_are_read_once_and_their_bytes_count_once(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "a"
    path.write_bytes(random.Random(1).randbytes(MIB))
    old = 1_600_000_000
    opened = opened_names(monkeypatch)
    monkeypatch.setattr(VolumePlace, "doubt", lambda place, reader: None)
    (bench.volume / "d").mkdir()
    for name in ("b", "d/c"):
        os.link(path, bench.volume / name)
    os.utime(path, (old, old))
    summary = bench.run().finished.summary
    assert opened == [b"a"]
    assert (summary["files"], summary["bytes"], summary["bytes_new"]) == (3, MIB, MIB)
    top = os.fsencode(bench.volume)
    found = [bench.snapshot().find(top + name).entry.content for name in (b"/a", b"/b", b"/d/c")]
    assert len({content.link_group for content in found}) == 1
    assert found[0].link_group and len({content.extents for content in found}) == 1
    again = bench.run().finished.summary
    assert (again["bytes"], again["files_unmodified"]) == (MIB, 3)
    bench.check_refs()


def test_every_file_is_read_again_within_thirty_days(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {b"f%d" % number for number in range(60)}
    for name in names:
        (bench.volume / os.fsdecode(name)).write_bytes(name)
    bench.run()
    read: list[bytes] = []
    plain = VolumePlace.read_plain

    def count(place: VolumePlace, entries: Sequence[Stat], buffer: memoryview) -> list[Content]:
        # Asked first for every small file, whether it is young or, on a slow machine, no more.
        read.extend(entry.name for entry in entries)
        return plain(place, entries, buffer)

    monkeypatch.setattr(VolumePlace, "read_plain", count)
    assert bench.run().finished.summary["files_unmodified"] == 60
    read.clear()
    for days in (1, 1, 3, 5, 10, 10):
        before = len(read)
        bench.clock.pass_days(days)
        summary = bench.run().finished.summary
        assert (summary["files_unmodified"], summary["bytes_new"]) == (60, 0)
        assert int(str(summary["bytes_sent"])) < 6 * KIB
        assert len(read) - before < 60 * (days + 2) / 10
    assert sorted(read) == sorted(names)


def test_long_extent_lists_go_into_blocks_and_back(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(3)
    (bench.volume / "large").write_bytes(rng.randbytes(20 * MIB))
    (bench.volume / "other").write_bytes(b"1")
    for number in range(4000):
        (bench.volume / "d" / f"file {number}").parent.mkdir(exist_ok=True)
        (bench.volume / "d" / f"file {number}").touch()
    for bound in (4, 2):
        # With a bound of 2 the blocks need a level of their own.
        monkeypatch.setattr(assembly, "INLINE_EXTENTS_MAX", bound)
        monkeypatch.setattr(assembly, "BLOCK_EXTENTS_MAX", 5)
        with (bench.volume / "large").open("r+b") as file:
            file.seek(bound * MIB)
            file.write(b"changed")
        os.chmod(bench.volume / "d", 0o700 + bound)
        os.chmod(bench.volume / "d" / "file 7", 0o600 + bound)
        bench.run()
        content = bench.snapshot().find(os.fsencode(bench.volume / "large")).entry.content
        assert content.spill == (1 if bound == 4 else 2)
        assert bench.restored() == on_disk(bench.volume)
        bench.check_refs()
        (bench.volume / "other").write_bytes(b"%d" % bound)
        bench.run()
        # An unchanged file keeps its blocks, and their ids stay in the refs.
        again = bench.snapshot().find(os.fsencode(bench.volume / "large")).entry.content
        assert again == content
        bench.check_refs()
        assert count(bench.run(), "bytes_sent") < 6 * KIB
        bench.check_refs()
        (bench.state_path / "cache.sqlite").unlink()
        assert bench.run().finished.summary["files_unmodified"] == 4002
        bench.check_refs()
        # A chunk that only a block names may be missing like any other.
        large = bench.snapshot().find(os.fsencode(bench.volume / "large")).entry
        bench.repository.forget(list(bench.snapshot().extents(large))[3].chunk)
        (bench.volume / "other").write_bytes(b"again %d" % bound)
        bench.run()
        assert bench.restored() == on_disk(bench.volume)


def test_long_attributes_go_into_blocks(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.volume / "adorned"
    path.write_bytes(b"x")
    values = [(f"user.{n}".encode(), bytes([n]) * 300) for n in range(5)]
    for name, value in values:
        os.setxattr(path, name, value)
    monkeypatch.setattr(assembly, "attributes_fit_page", lambda attributes: len(attributes) < 3)
    bench.run()
    entry = bench.snapshot().find(os.fsencode(path)).entry
    assert entry.content.xattr_blocks and not entry.content.xattrs
    assert bench.snapshot().attributes(entry) == tuple(values)
    bench.check_refs()
    assert count(bench.run(), "bytes_sent") < 6 * KIB


def test_page_that_would_be_too_long_is_divided(bench: BackupBench) -> None:
    for number in range(60):
        path = bench.volume / f"n{number}"
        path.touch()
        for attribute in range(7):
            os.setxattr(path, f"user.{attribute}", os.urandom(400))
    bench.run()
    assert bench.run().finished.summary["files_unmodified"] == 60


MEASURED = """
import sys
from pathlib import Path
from tests.support.backup_bench import BackupBench, count
from tests.support.memory_repository import MemoryUploads

class Sink(MemoryUploads):
    def put_pack(self, buffers, length):
        self._sent += length
    def put_refs(self, body, length):
        raise SystemExit(0)
    def have(self, ids, epoch_min):
        return [False] * len(ids)

bench = BackupBench(Path(sys.argv[1]), memory_max=int(sys.argv[2]))
order = bench.order()
bench.repository.sessions[order.job] = sink = Sink(bench.repository)
try:
    bench.run(order)
finally:
    # ru_maxrss would be that of the process that started this one, if that was larger.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    print(sink.bytes_sent, int(peak) * 1024)
"""


@pytest.mark.parametrize("memory_max", [96 * MIB, 160 * MIB])
def test_peak_memory_stays_under_the_ceiling(tmp_path: Path, memory_max: int) -> None:
    volume = tmp_path / "volume"
    (volume / "small").mkdir(parents=True)
    rng = random.Random(4)
    with (volume / "large").open("wb") as file:
        for _ in range(240):
            file.write(rng.randbytes(MIB))
    for number in range(300):
        (volume / "small" / f"{number}").write_bytes(rng.randbytes(300 * KIB))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), str(memory_max)],
        cwd=TOP,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(TOP)},
    )
    sent, peak = map(int, done.stdout.split())
    assert sent > 320 * MIB, done.stderr.decode()[-2000:]
    assert peak < memory_max
