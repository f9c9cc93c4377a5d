"""Directories of more entries than are held at once: the same pages, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_agent.engine import paging as stretches
from holdfast_agent.engine import walk
from holdfast_agent.sources import names as naming
from holdfast_agent.state.cache import TreeCache
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.tree import page as paging
from holdfast_agent.tree.entry import EntryType
from holdfast_agent.tree.page import decode_page
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import MIB
from tests.support.backup_bench import BackupBench, count, on_disk

TOP = Path(__file__).resolve().parents[2]
ENTRIES_MAX = 20
CROWD = 120_000
CROWD_SOAK = 1_000_000
FEW = 50_000
"""Enough for every buffer, run and batch to be as large as it ever gets."""
GROWTH_BYTES_MAX = 8 * MIB
"""Beyond what a directory of FEW takes: what peaks differ by from run to run. Names and entries of
CROWD - FEW took 25 MB when they were held whole, those of a million 350."""
PEAK_BYTES_MAX = 96 * MIB


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything that is taken in parts be taken in small ones."""
    monkeypatch.setattr(naming, "NAMES_MAX", 50)
    monkeypatch.setattr(naming, "_AHEAD", 9)
    monkeypatch.setattr(walk, "_TAKEN_NAMES", 7)
    for module in (walk, stretches, paging):
        monkeypatch.setattr(module, "PAGE_ENTRIES_MAX", ENTRIES_MAX)


def pages_of(bench: BackupBench) -> dict[bytes, list[list[bytes]]]:
    """Return the names in each page of each directory of the head."""
    snapshot = bench.snapshot()
    pages: dict[bytes, list[list[bytes]]] = {}
    for found in snapshot.walk():
        if found.entry.stat.type != EntryType.DIRECTORY:
            continue
        for extent in snapshot.extents(found.entry):
            data = bytes(snapshot.part(extent))
            page = decode_page(data, ChunkId(extent.chunk), extent.offset)
            names = [stat.name for stat in page.stats]
            pages.setdefault(found.path, []).append(names)
    return pages


def known_directories(bench: BackupBench) -> list[bytes]:
    """Return the directory of each page in the cache."""
    state = StateDirectory(bench.state_path)
    cache = TreeCache(state)
    found = sorted(directory for _, directory in cache.everything())
    cache.close()
    state.close()
    return found


def change(volume: Path, rng: random.Random, names: set[str]) -> None:
    """Add, remove and rewrite names, some scattered and some in a row; or only add at the end."""
    if names and rng.random() < 0.3:
        last = max(names)
        for number in range(rng.choice([1, 4, 30])):
            (volume / f"{last}{number:02}").write_bytes(b"at the end")
            names.add(f"{last}{number:02}")
        return
    for name in rng.sample(sorted(names), len(names) // 10):
        path = volume / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        names.discard(name)
    for name in rng.sample(sorted(names), min(3, len(names))):
        if (volume / name).is_file():
            (volume / name).write_bytes(rng.randbytes(30))
    start = rng.randrange(1000)
    new = [f"{rng.randrange(1000):04}" for _ in range(10)]
    new += [f"{start:04}.{number:03}" for number in range(rng.choice([3, 15, 70]))]
    for name in set(new) - names:
        path = volume / name
        if rng.random() < 0.1:
            path.mkdir()
            (path / "within").write_bytes(name.encode())
        else:
            path.write_bytes(rng.randbytes(rng.randrange(3) * 10))
        names.add(name)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("seed", range(4))
def test_pages_of_a_changed_crowd_are_those_of_a_first_backup(
    tmp_path: Path, bench: BackupBench, seed: int
) -> None:
    """Whatever was there before: otherwise equal directories would not make equal chunks."""
    rng = random.Random(seed)
    names: set[str] = set()
    bench.clock.let_files_seem_old()
    for _ in range(12):
        change(bench.volume, rng, names)
    for _ in range(5):
        bench.run()
        assert bench.restored() == on_disk(bench.volume)
        bench.check_refs()
        fresh = BackupBench(tmp_path)
        fresh.clock = bench.clock
        fresh.state_path = tmp_path / "another state"
        fresh.run()
        assert pages_of(bench) == pages_of(fresh)
        assert known_directories(bench) == known_directories(fresh)
        shutil.rmtree(fresh.state_path)
        assert count(bench.run(), "files_unmodified") == len(on_disk(bench.volume))
        change(bench.volume, rng, names)


@pytest.mark.usefixtures("small_bounds")
def test_a_crowd_before_the_first_known_name_goes_out_page_by_page(bench: BackupBench) -> None:
    for number in range(30):
        (bench.volume / f"z{number:02}").write_bytes(b"%d" % number)
    bench.run()
    for number in range(400):
        (bench.volume / f"a{number:03}").write_bytes(b"")
    bench.run()
    assert bench.restored() == on_disk(bench.volume)
    pages = pages_of(bench)[os.fsencode(bench.volume)]
    assert max(map(len, pages)) <= ENTRIES_MAX
    assert [name for page in pages for name in page] == sorted(
        os.listdir(os.fsencode(bench.volume))
    )
    bench.check_refs()


def test_names_that_come_one_by_one_behind_the_last_share_a_page(bench: BackupBench) -> None:
    """As in a directory of logs; a page for each of them would be a thousand after three years."""
    bench.clock.let_files_seem_old()
    for day in range(8):
        (bench.volume / f"log {day}").write_bytes(b"%d" % day)
        bench.run()
    pages = pages_of(bench)[os.fsencode(bench.volume)]
    assert pages == [[b"log %d" % day for day in range(8)]]
    bench.check_refs()


def test_a_directory_that_is_empty_by_an_exclude_loses_its_old_pages(bench: BackupBench) -> None:
    """Its own status does not change, so that its entry is made from what the parent had."""
    (bench.volume / "d").mkdir()
    (bench.volume / "d" / "a.log").write_bytes(b"1")
    (bench.volume / "kept").write_bytes(b"2")
    bench.run()
    bench.run(excludes=["*.log"])
    assert bench.restored() == {b"kept": b"2"}
    bench.check_refs()


_BACKUPS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {top!r})
from holdfast_agent.runtime.allocator import return_freed_buffers
from tests.support.backup_bench import BackupBench

def peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024

return_freed_buffers()
(Path({place!r}) / "empty" / "volume").mkdir(parents=True)
BackupBench(Path({place!r}) / "empty").run()
bench, found = BackupBench(Path({place!r}) / "crowd"), [peak()]
for _ in range(2):
    summary = bench.run().finished.summary
    found += [peak(), summary["files"], summary["files_unmodified"]]
print(json.dumps(found))
"""


def backups_of_a_crowd(place: Path, entries: int) -> list[int]:
    """Return the peak before, then peak, files and unmodified files of two backups, in bytes."""
    crowd = place / "crowd" / "volume" / "many"
    crowd.mkdir(parents=True)
    folder = os.open(crowd, os.O_RDONLY)
    try:
        for number in range(entries):
            name = f"a name of some length {number:08x}"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=folder))
    finally:
        os.close(folder)
    script = _BACKUPS.format(top=str(TOP), place=str(place))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr.decode()
    return [int(number) for number in json.loads(done.stdout)]


@pytest.mark.parametrize(
    "entries", [CROWD, pytest.param(CROWD_SOAK, marks=[pytest.mark.soak, pytest.mark.timeout(0)])]
)
def test_a_directory_of_many_entries_takes_no_more_memory_than_one_of_few(
    tmp_path: Path, entries: int
) -> None:
    _, few, _, _, few_again, _, _ = backups_of_a_crowd(tmp_path / "few", FEW)
    _, first, files, _, second, _, unmodified = backups_of_a_crowd(tmp_path / "many", entries)
    assert (files, unmodified) == (entries, entries)
    assert first - few < GROWTH_BYTES_MAX
    assert second - few_again < GROWTH_BYTES_MAX
    assert max(first, second) < PEAK_BYTES_MAX
    shutil.rmtree(tmp_path / "few")
    shutil.rmtree(tmp_path / "many")
