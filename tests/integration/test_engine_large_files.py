"""Large files that change a little: what is sent, counted and kept, from the volume to the tree."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from holdfast_agent.engine import assembly, groups
from holdfast_agent.engine.files import FileContents
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_agent.tree.entry import HOLE_CHUNK
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Room
from holdfast_contract.limits import KIB, MIB
from tests.support.backup_bench import BackupBench, count, on_disk
from tests.support.memory_repository import MemoryChunks

SIZE = 8 * MIB


@pytest.fixture
def bench(tmp_path: Path) -> BackupBench:
    """Return a client with one large file, backed up."""
    made = BackupBench(tmp_path)
    large(made).write_bytes(random.Random(1).randbytes(SIZE))
    return made


def large(bench: BackupBench) -> Path:
    return bench.volume / "large"


def write(bench: BackupBench, offset: int, data: bytes) -> None:
    with large(bench).open("r+b") as file:
        file.seek(offset)
        file.write(data)


class Gone(MemoryChunks):
    """A source that has no chunk any more."""

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        for chunk in ids:
            yield FetchedChunk(chunk, ChunkStatus.NOT_THERE, "", 0, b"")


def content_chunks(bench: BackupBench) -> set[bytes]:
    return {
        chunk for chunk, copy in bench.repository.live.items() if copy.type == ChunkType.CONTENT
    }


def is_right(bench: BackupBench) -> bool:
    bench.check_refs()
    return bench.restored() == on_disk(bench.volume)


LISTS = ("in the page", "in blocks", "in blocks of blocks")


@pytest.fixture(params=LISTS)
def lists(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have lists of extents stand elsewhere, as those of files of many gigabytes do."""
    if request.param != "in the page":
        monkeypatch.setattr(assembly, "BLOCK_EXTENTS_MAX", 2)
        monkeypatch.setattr(
            assembly, "INLINE_EXTENTS_MAX", 2 if request.param.endswith("of blocks") else 4
        )
    return str(request.param)


@pytest.fixture(params=[1, 2**32], ids=["own group", "one group"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the tree group end with the file's directory, or go on; else its path decides."""
    monkeypatch.setattr(groups, "_CUT_DIVISOR", request.param)


@pytest.mark.usefixtures("lists")
def test_one_changed_byte_and_an_appended_line_send_one_chunk_each(bench: BackupBench) -> None:
    bench.run()
    for offset, data in ((SIZE // 2, b"!"), (SIZE, b"hello, tail\n")):
        before = content_chunks(bench)
        write(bench, offset, data)
        done = bench.run()
        assert (count(done, "files_changed"), count(done, "files_unmodified")) == (1, 0)
        (chunk,) = content_chunks(bench) - before
        assert count(done, "bytes_new") <= 4 * MIB
        assert count(done, "bytes_sent") < len(bench.repository.live[chunk].sealed) + 10 * KIB
        assert is_right(bench)


@pytest.mark.usefixtures("ends")
def test_a_file_that_is_read_and_is_the_same_keeps_its_list(bench: BackupBench, lists: str) -> None:
    bench.run()
    path = os.fsencode(large(bench))
    before = bench.snapshot().find(path).entry.content
    mode = large(bench).stat().st_mode
    large(bench).chmod(0o600)
    large(bench).chmod(mode)
    done = bench.run()
    # Another ctime is no modification, but a page that says it.
    assert (count(done, "files_unmodified"), count(done, "bytes_new")) == (1, 0)
    assert bench.snapshot().find(path).entry.content == before
    assert before.spill == LISTS.index(lists)
    assert is_right(bench)


@pytest.mark.usefixtures("lists", "ends")
def test_a_file_is_not_read_again_for_the_place_of_its_list(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    write(bench, SIZE, b"more")
    bench.run()
    assert is_right(bench)
    read: list[int] = []
    monkeypatch.setattr(FileContents, "read", lambda *_: read.append(1))
    assert count(bench.run(), "files_unmodified") == 1
    assert not read


@pytest.mark.usefixtures("lists")
def test_a_list_that_cannot_be_read_makes_the_file_be_cut_anew(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    monkeypatch.setattr(bench, "chunks", lambda: Gone(bench.repository))
    write(bench, 5 * MIB, b"changed")
    done = bench.run()
    assert count(done, "bytes_new") <= 4 * MIB
    assert is_right(bench)


def test_holes_are_kept_through_changes_and_never_read(tmp_path: Path) -> None:
    bench = BackupBench(tmp_path)
    rng = random.Random(4)
    hole = 4 * MIB
    with large(bench).open("wb") as file:
        for number in range(3):
            file.seek(number * hole)
            file.write(rng.randbytes(MIB))
        file.truncate(3 * hole)
    bench.run()
    path = os.fsencode(large(bench))

    def holes() -> int:
        found = bench.snapshot().extents(bench.snapshot().find(path).entry)
        return sum(extent.length for extent in found if extent.chunk == HOLE_CHUNK)

    assert holes() == 3 * hole - 3 * MIB
    steps = [
        (hole + MIB // 2, rng.randbytes(5)),
        # Into a hole, at its beginning, at its end, and over its end.
        (2 * hole - 2 * MIB, rng.randbytes(MIB // 2)),
        (MIB, rng.randbytes(64 * KIB)),
        (hole - 64 * KIB, rng.randbytes(128 * KIB)),
        (3 * hole, rng.randbytes(MIB)),
    ]
    for offset, data in steps:
        write(bench, offset, data)
        assert 0 < count(bench.run(), "bytes_new") <= len(data) + 8 * MIB
        assert is_right(bench)
        assert holes() > hole
