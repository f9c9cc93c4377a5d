"""A snapshot made on top of others says what one made from nothing says, and so does the cache.

Pages that have changed copy the rows of what has not (`tree/rows.py`), take the parent's page's
number in the cache, and count only what is new and gone. None of that may show: not in the entries,
not in how pages are cut, not in what is counted as used of bundles and groups.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_agent.jobs.backup_source import VolumePlace
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.state.cache import TreeCache
from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.tree.entry import HOLE_CHUNK, Content, EntryType, Stat
from holdfast_agent.tree.page import cut_pages, decode_page
from holdfast_contract.ids import ChunkId
from tests.support.backup_bench import BackupBench, on_disk
from tests.support.samples import KEYS

COUNTED = ("files", "dirs", "bytes", "files_new", "files_changed", "files_unmodified")


class Day:
    """Changes a volume the way days of work do, all of it decided by the seed."""

    def __init__(self, volume: Path, rng: random.Random) -> None:
        self.volume = volume
        self.rng = rng
        self.serial = 0

    def name(self) -> str:
        self.serial += 1
        return f"{self.rng.choice('abcxyz')}{self.rng.randrange(1 << 30):08x}-{self.serial}"

    def content(self) -> bytes:
        # Out of few seeds: equal files and files that move are among them.
        kind = self.rng.random()
        if kind < 0.1:
            return b""
        size = self.rng.randrange(1, 3000)
        return random.Random(self.rng.randrange(300)).randbytes(size)

    def begin(self) -> None:
        for name, files in (("many", 700), ("some", 40), ("some/below", 30)):
            (self.volume / name).mkdir()
            for _ in range(files):
                self.add(self.volume / name)

    def add(self, directory: Path) -> None:
        path = directory / self.name()
        kind = self.rng.random()
        if kind < 0.02:
            path.mkdir()
            (path / "in it").write_bytes(self.content())
        elif kind < 0.05:
            os.symlink(self.name(), path)
        elif kind < 0.08:
            path.write_bytes(self.content())
            os.link(path, directory / self.name())
        elif kind < 0.1:
            with open(path, "wb") as file:
                file.truncate(1 << 20)
                file.seek(1 << 17)
                file.write(self.content())
        else:
            path.write_bytes(self.content())
            if kind < 0.13:
                os.setxattr(path, "user.note", self.name().encode())
            if kind > 0.9:
                os.chown(path, self.rng.randrange(3), 7)

    def some(self, share: float) -> list[Path]:
        found = sorted(p for p in self.volume.rglob("*") if p.is_file() and not p.is_symlink())
        return self.rng.sample(found, max(1, int(len(found) * share)))

    def pass_by(self) -> None:
        share = self.rng.choice((0.003, 0.02, 0.3))
        for path in self.some(share):
            what = self.rng.random()
            if what < 0.5:
                path.write_bytes(self.content())
            elif what < 0.6:
                path.unlink()
            elif what < 0.7:
                path.rename(path.with_name(self.name()))
            elif what < 0.75:
                os.chown(path, self.rng.randrange(3), self.rng.randrange(3))
            elif what < 0.8:
                os.setxattr(path, "user.more", b"1")
            elif what < 0.85:
                path.unlink()
                path.mkdir()
                self.add(path)
            else:
                self.add(path.parent)
        below = sorted(path for path in (self.volume / "many").iterdir() if path.is_dir())
        gone, moved = self.rng.sample(below, 2)
        shutil.rmtree(gone)
        moved.rename(moved.with_name(self.name()))


def entries_of(snapshot: Snapshot) -> dict[bytes, tuple[Any, Content]]:
    """Return every entry by its path, without where its content lies."""
    blank: dict[str, Any] = {"extents": (), "xattr_blocks": ()}
    return {
        found.path: (found.entry.stat, msgspec.structs.replace(found.entry.content, **blank))
        for found in snapshot.walk()
    }


def pages_of(cache: TreeCache) -> list[tuple[bytes, bytes, bytes, int]]:
    return [
        (directory, page.first, page.last, len(page.opened().stats))
        for page, directory in cache.everything()
    ]


def ends_a_page(name: str) -> bool:
    return cut_pages([name.encode(), b"~"], KEYS.name) == [1, 2]


def used_of(cache: TreeCache) -> Counter[bytes]:
    """Return the bytes that pages and entries use of each bundle and group."""
    used: Counter[bytes] = Counter()
    for known, _ in cache.everything():
        used[known.chunk] += len(known.data)
        page = decode_page(known.data, ChunkId(known.chunk), known.offset)
        for content in page.contents:
            counted = (*content.extents,) if content.content_id or content.spill else ()
            for extent in (*counted, *content.xattr_blocks):
                used[extent.chunk] += extent.length
    del used[HOLE_CHUNK]
    return used


def stale_of(cache: TreeCache, held: dict[int, set[bytes]]) -> Counter[int]:
    """Return how many contents are found under a page's number that are not in the page."""
    keys = {row: {found[:12] for found in contents} for row, contents in held.items()}
    stale: Counter[int] = Counter()
    for (records,) in cache._db.execute("SELECT records FROM main.contents"):
        for at in range(0, len(records), 16):
            row = int.from_bytes(records[at + 12 : at + 16], "big")
            stale[row] += records[at : at + 12] not in keys.get(row, set())
    return stale


def check_cache(bench: BackupBench, full: BackupBench) -> None:
    state, state_of_full = StateDirectory(bench.state_path), StateDirectory(full.state_path)
    cache, cache_of_full = TreeCache(state), TreeCache(state_of_full)
    try:
        assert pages_of(cache) == pages_of(cache_of_full)
        query = "SELECT id, used FROM main.chunks"
        counted = {chunk: used for chunk, used in cache._db.execute(query) if chunk != HOLE_CHUNK}
        assert counted == dict(used_of(cache))
        pages = {known.row: known.decoded().contents for known, _ in cache.everything()}
        assert len(pages) == len(pages_of(cache))
        held = {row: {content.content_id for content in found} for row, found in pages.items()}
        for found in set().union(*held.values()) - {b""}:
            assert any(found in held[row] for row in cache.rows_with_content(found))
        stale = stale_of(cache, held)
        for known, _ in cache.everything():
            assert stale[known.row] <= known.stale
            assert known.has_links == any(content.link_group for content in pages[known.row])
    finally:
        for opened in (cache, cache_of_full, state, state_of_full):
            opened.close()


def check(bench: BackupBench, full: BackupBench, before: dict[bytes, Any]) -> dict[bytes, Any]:
    outcome, whole = bench.run(), full.run(paths=[os.fsencode(bench.volume)])
    entries = entries_of(bench.snapshot(outcome))
    assert entries == entries_of(full.snapshot(whole))
    assert bench.restored(outcome) == on_disk(bench.volume)
    bench.check_refs(outcome)
    check_counts(outcome, whole, before, entries)
    check_cache(bench, full)
    return entries


def check_counts(
    outcome: Outcome, whole: Outcome, before: dict[bytes, Any], entries: dict[bytes, Any]
) -> None:
    summary, of_full = outcome.finished.summary, whole.finished.summary
    assert [summary[name] for name in COUNTED[:3]] == [of_full[name] for name in COUNTED[:3]]
    leaves = {path: e for path, e in entries.items() if e[0].type != EntryType.DIRECTORY}
    new = sum(path not in before or before[path][0].type == EntryType.DIRECTORY for path in leaves)
    same = sum(
        path in before
        and facts(before[path]) == facts(entry)
        and before[path][0].type != EntryType.DIRECTORY
        for path, entry in leaves.items()
    )
    assert summary["files_unmodified"] == same
    assert int(summary["files_new"] or 0) + int(summary["files_changed"] or 0) == len(leaves) - same
    assert int(summary["files_new"] or 0) == new


def facts(entry: Any) -> Any:
    stat, content = entry
    return stat.type, stat.mode, stat.size, stat.mtime_ns, content


def check_days(top: Path, seed: int) -> None:
    bench = BackupBench(top)
    bench.clock.let_files_seem_old()
    day = Day(bench.volume, random.Random(seed))
    day.begin()
    before: dict[bytes, Any] = {}
    for number in range(4):
        full = BackupBench(top)
        full.clock.let_files_seem_old()
        full.state_path = top / f"state of {number}"
        before = check(bench, full, before)
        day.pass_by()


@pytest.mark.parametrize("seed", range(3))
def test_increments_say_what_a_snapshot_from_nothing_says(seed: int, tmp_path: Path) -> None:
    check_days(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_increments_say_what_snapshots_from_nothing_say(seed: int, tmp_path: Path) -> None:
    check_days(tmp_path, seed)


def test_new_names_that_end_a_page_divide_it(tmp_path: Path) -> None:
    bench = BackupBench(tmp_path)
    bench.clock.let_files_seem_old()
    names = [f"{number:04}" for number in range(5000)]
    ending = [name for name in names if ends_a_page(name)]
    others = [name for name in names if not ends_a_page(name)][:800]
    for name in others:
        (bench.volume / name).write_bytes(name.encode())
    bench.run()
    # In the middle of the only page; then at its end as well.
    for added in (ending[:2], ending[-1:]):
        for name in added:
            (bench.volume / name).write_bytes(b"new")
        bench.run()
        full = BackupBench(tmp_path)
        full.clock.let_files_seem_old()
        full.state_path = tmp_path / f"state of {added[-1]}"
        full.run(paths=[os.fsencode(bench.volume)])
        check_cache(bench, full)


def test_a_page_of_as_many_entries_as_before_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = BackupBench(tmp_path)
    bench.clock.let_files_seem_old()
    for name in "abcde":
        (bench.volume / name).write_bytes(name.encode())
    bench.run()
    (bench.volume / "b").write_bytes(b"changed, and gone when it is to be read")
    (bench.volume / "x").write_bytes(b"new")
    plain = VolumePlace.read_plain

    def read(place: VolumePlace, entries: Sequence[Stat], buffer: memoryview) -> list[Content]:
        if entries[0].name == b"b":
            (bench.volume / "b").unlink()
        return plain(place, entries, buffer)

    monkeypatch.setattr(VolumePlace, "read_plain", read)
    bench.run()
    assert set(bench.restored()) == {b"a", b"c", b"d", b"e", b"x"}
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_a_page_gets_a_number_of_its_own_before_most_that_is_found_under_it_is_stale(
    tmp_path: Path,
) -> None:
    bench = BackupBench(tmp_path)
    bench.clock.let_files_seem_old()
    for number in range(4):
        (bench.volume / f"{number}").write_bytes(b"%d" % number)
    numbers = []
    for day in range(12):
        bench.run()
        state = StateDirectory(bench.state_path)
        cache = TreeCache(state)
        (known,) = cache.pages(os.fsencode(bench.volume))
        held = {content.content_id for content in known.decoded().contents}
        assert stale_of(cache, {known.row: held})[known.row] <= known.stale <= 4
        assert all(known.row in cache.rows_with_content(found) for found in held)
        numbers.append(known.row)
        cache.close()
        state.close()
        (bench.volume / f"{day % 4}").write_bytes(b"day %d" % day)
    # Four rewritten files later, and again: not each day, and not never.
    assert 2 <= len(set(numbers)) <= 4
