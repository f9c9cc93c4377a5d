"""The quick list of paths says what the walk says, and refuses what it refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_contract.errors import Damaged
from tests.support.backup_bench import CLIENT
from tests.support.restore_bench import RestoreBench
from tests.support.samples import KEYS


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    """A bench whose volume has empty, flat, deep and wide directories, and names of every order."""
    made = RestoreBench(tmp_path)
    for folder in (b"a", b"a.b", b"a/deep/er", b"empty", b"wide", b"z\xff"):
        os.makedirs(os.path.join(os.fsencode(made.volume), folder), exist_ok=True)
    for number in range(3_000):
        (made.volume / "wide" / f"{number:04d}{'x' * 60}").touch()
    for name in ("a/file", "a/deep/er/file", "a.b/file", "last"):
        (made.volume / name).write_bytes(name.encode())
    (made.volume / "link").symlink_to("a")
    (made.volume / "wide" / "inside").mkdir()
    os.link(made.volume / "last", made.volume / "a" / "other name")
    return made


@contextmanager
def opened(bench: RestoreBench) -> Iterator[Snapshot]:
    """The head of the bench."""
    source = bench.make_source(bench)
    reader = ChunkReader(KEYS, source)
    try:
        head = bench.repository.head(CLIENT)[1]
        yield Snapshot(head, keys=KEYS, source=source, chunks=reader)
    finally:
        reader.close()


def listed(snapshot: Snapshot, start: Found) -> list[bytes]:
    """All paths, in one list."""
    return list(chain.from_iterable(snapshot.paths(start)))


@pytest.mark.parametrize("below", [b"", b"/a", b"/wide", b"/empty"])
def test_paths_are_those_of_the_walk_in_its_order(bench: RestoreBench, below: bytes) -> None:
    bench.backed_up()
    with opened(bench) as snapshot:
        start = snapshot.find(os.fsencode(bench.volume) + below)
        walked = [found.path for found in snapshot.walk(start)]
        assert [start.path, *listed(snapshot, start)] == walked
        assert len(walked) == len(set(walked))


def test_the_whole_snapshot_begins_at_the_root(bench: RestoreBench) -> None:
    bench.backed_up()
    with opened(bench) as snapshot:
        root = Found(b"/", snapshot.root)
        assert listed(snapshot, root) == [found.path for found in snapshot.walk()][1:]


def test_a_file_has_its_own_path_only(bench: RestoreBench) -> None:
    bench.backed_up()
    with opened(bench) as snapshot:
        file = snapshot.find(os.fsencode(bench.volume / "last"))
        assert listed(snapshot, file) == [file.path]


def test_a_directory_that_could_not_be_read_has_nothing_below_it(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def opening(path: object, *args: object, **options: object) -> int:
        if path == b"wide":
            raise PermissionError(errno.EACCES, "no")
        return really(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opening)
    outcome = bench.run()
    monkeypatch.undo()
    assert outcome.finished.skipped_count == 1
    with opened(bench) as snapshot:
        start = snapshot.find(os.fsencode(bench.volume))
        paths = listed(snapshot, start)
        assert start.path + b"/wide" in paths
        assert not [path for path in paths if b"/wide/" in path]


def test_more_entries_than_the_manifest_counts_end_the_list(bench: RestoreBench) -> None:
    bench.backed_up()
    with opened(bench) as snapshot:
        snapshot.body = msgspec.structs.replace(snapshot.body, files=2_000)
        with pytest.raises(Damaged, match="than its manifest counts"):
            listed(snapshot, Found(b"/", snapshot.root))


def test_a_lost_tree_chunk_is_damage_and_named(bench: RestoreBench) -> None:
    bench.backed_up()
    with opened(bench) as snapshot:
        bench.bad.update(extent.chunk for extent in snapshot.root.content.extents)
    with opened(bench) as snapshot, pytest.raises(Damaged) as damage:
        listed(snapshot, Found(b"/", snapshot.root))
    assert damage.value.details["chunk"]
