"""What verify says of files whose content is not whole: each by its path, however it is fetched."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_agent.crypto.keys import ContentHasher
from holdfast_agent.jobs import verify_content
from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.jobs.tracking import JobProgress
from holdfast_agent.ports import FetchedChunk
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.tree.entry import HOLE_CHUNK, Entry, Extent
from holdfast_contract.errors import Damaged, Unreachable
from holdfast_contract.format.layout import Room
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState
from tests.support.restore_bench import RestoreBench, Source

SMALL = [f"small/{number:02d}" for number in range(24)]
FILES = ["big 1", "big 2", "hole", *SMALL, "sparse"]


@pytest.fixture(params=[1, 12 * MIB], ids=["each by itself", "many together"])
def bench(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestoreBench:
    monkeypatch.setattr(verify_content, "batch_bytes", lambda memory_max: request.param)
    bench = RestoreBench(tmp_path)
    rng = random.Random(8)
    sizes = dict.fromkeys(SMALL, 70_000) | {"big 1": 6 * MIB, "big 2": 5 * MIB, "empty": 0}
    for name, size in sizes.items():
        (bench.volume / name).parent.mkdir(exist_ok=True)
        (bench.volume / name).write_bytes(rng.randbytes(size))
    with (bench.volume / "sparse").open("wb") as file:
        file.write(rng.randbytes(9000))
        file.seek(256 * 1024)
        file.write(rng.randbytes(9000))
    with (bench.volume / "hole").open("wb") as file:
        file.truncate(400_000)
    bench.backed_up()
    return bench


def extents_of(bench: RestoreBench, name: str) -> list[Extent]:
    snapshot = bench.snapshot()
    return list(snapshot.extents(snapshot.find(os.fsencode(bench.volume / name)).entry))


def touched(bench: RestoreBench, *bad: bytes) -> list[str]:
    """Return the files that have a part in one of these chunks."""
    return [
        name for name in FILES if any(extent.chunk in bad for extent in extents_of(bench, name))
    ]


def named(bench: RestoreBench, done: Outcome) -> list[str]:
    return sorted(str(Path(row["path"]).relative_to(bench.volume)) for row in done.result.damaged)


def test_all_of_it_is_whole_and_every_chunk_was_fetched_and_counted(bench: RestoreBench) -> None:
    bench.progress = JobProgress()
    done = bench.verify()
    assert (done.finished.state, done.result.damaged) == (JobState.COMPLETED, [])
    wanted = {
        extent.chunk
        for name in FILES
        for extent in extents_of(bench, name)
        if extent.chunk != HOLE_CHUNK
    }
    assert bench.source is not None
    fetched = [chunk for chunk in bench.source.fetched if chunk in wanted]
    assert set(fetched) == wanted and len(fetched) == done.finished.summary["chunks"]
    counts = bench.progress.counts(0)
    assert (counts.files, counts.bytes) == (counts.files_total, counts.bytes_total)


def test_each_damaged_chunk_of_a_file_is_told_to_the_server_and_the_file_named_once(
    bench: RestoreBench,
) -> None:
    chunks = [extent.chunk for extent in extents_of(bench, "big 1")]
    bench.bad = {chunks[0], chunks[-1]}
    done = bench.verify()
    assert named(bench, done) == ["big 1"]
    assert {report[0] for report in bench.repository.reports} == bench.bad


@pytest.mark.parametrize("which", [0, -1])
def test_damage_at_either_end_of_a_file_costs_the_others_nothing(
    bench: RestoreBench, which: int
) -> None:
    bench.bad = {extents_of(bench, name)[which].chunk for name in ("big 1", "sparse")}
    assert named(bench, bench.verify()) == touched(bench, *bench.bad)


def test_every_small_file_of_a_damaged_chunk_is_named(bench: RestoreBench) -> None:
    chunks = {extents_of(bench, name)[0].chunk for name in SMALL}
    assert len(chunks) > 1
    for bad in chunks:
        bench.bad = {bad}
        assert named(bench, bench.verify()) == touched(bench, bad)


def test_content_with_another_id_than_the_tree_says_is_damage(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verify_content, "content_id", lambda keys, data: bytes(32))
        assert named(bench, bench.verify()) == SMALL
    monkeypatch.setattr(ContentHasher, "digest", lambda self: bytes(32))
    assert named(bench, bench.verify()) == ["hole", "sparse"]


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("change", ["too long", "further on", "missing"])
def test_extents_that_do_not_fit_their_chunks_or_their_file_are_damage(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch, change: str, at: int
) -> None:
    size = (bench.volume / "big 1").stat().st_size
    original = Snapshot.extents

    def altered(self: Snapshot, entry: Entry) -> Iterator[Extent]:
        extents = list(original(self, entry))
        if entry.stat.size == size:
            old = extents[at]
            if change == "missing":
                del extents[at]
            elif change == "too long":
                extents[at] = msgspec.structs.replace(old, length=old.length + 1)
            else:
                extents[at] = msgspec.structs.replace(old, offset=1)
        return iter(extents)

    monkeypatch.setattr(Snapshot, "extents", altered)
    assert named(bench, bench.verify()) == ["big 1"]


def test_a_list_of_extents_that_breaks_off_is_damage_of_its_file_alone(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (bench.volume / "big 1").stat().st_size
    original = Snapshot.extents

    def breaking(self: Snapshot, entry: Entry) -> Iterator[Extent]:
        extents = list(original(self, entry))
        if entry.stat.size != size:
            yield from extents
            return
        yield from extents[:-1]
        raise Damaged("a block is damaged", object="packs/b")

    monkeypatch.setattr(Snapshot, "extents", breaking)
    done = bench.verify()
    assert named(bench, done) == ["big 1"]
    assert done.result.damaged[0]["object"] == "packs/b"


def test_a_file_whose_attributes_are_damaged_has_its_content_opened_all_the_same(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (bench.volume / "big 2").stat().st_size

    def attributes(self: Snapshot, entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
        if entry.stat.size == size:
            raise Damaged("a block is damaged", object="packs/b")
        return ()

    monkeypatch.setattr(Snapshot, "attributes", attributes)
    bench.bad = {extents_of(bench, "big 2")[1].chunk}
    done = bench.verify()
    assert [row["object"] for row in done.result.damaged] == ["packs/b"]
    assert {report[0] for report in bench.repository.reports} == bench.bad


class Refusing(Source):
    """Answers a request for certain chunks with an error instead of chunks."""

    refused: frozenset[bytes] = frozenset()
    error: type[Damaged] | type[Unreachable] = Damaged

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        if self.refused & set(ids):
            raise self.error("the pack cannot be read", object="packs/x")
        yield from super().fetch(ids, room)


def test_a_request_that_is_refused_as_damaged_names_every_file_it_was_for(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = extents_of(bench, SMALL[20])[0].chunk
    monkeypatch.setattr(Refusing, "refused", frozenset({bad}))
    bench.make_source = Refusing
    done = bench.verify()
    assert done.finished.state is JobState.FAILED
    assert set(touched(bench, bad)) <= set(named(bench, done))
    assert {row["object"] for row in done.result.damaged} == {"packs/x"}


def test_a_server_that_goes_away_is_no_damage(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "refused", frozenset({extents_of(bench, "big 2")[0].chunk}))
    monkeypatch.setattr(Refusing, "error", Unreachable)
    bench.make_source = Refusing
    with pytest.raises(Unreachable):
        bench.verify()
