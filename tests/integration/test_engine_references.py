"""Small files of a relative are found and not stored again; nothing that it lacks is believed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.engine import content_index, hints, relatives
from holdfast_agent.ports import ChunkStatus, FetchedChunk
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.outline import outlines
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.tree.entry import EntryType
from holdfast_contract.errors import NotFound, Refused
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.layout import Room
from holdfast_contract.protocol import control
from tests.support.backup_bench import BackupBench, count, id_of, on_disk
from tests.support.memory_repository import MemoryChunks, MemoryRepository
from tests.support.samples import DOMAIN, KEYS

FILES = 60
SIZE = 20_000


@pytest.fixture(autouse=True)
def _small_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tree pay after 200 kB of unknown files, so that tests need not write 8 MiB."""
    monkeypatch.setattr(relatives, "UNKNOWN_BYTES_MIN", 200_000)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[BackupBench, BackupBench]:
    """Return two replicas of one workload; the first has a snapshot, the second the same files."""
    return make_pair(tmp_path)


def make_pair(top: Path, **second: object) -> tuple[BackupBench, BackupBench]:
    repository = MemoryRepository(DOMAIN)
    benches = []
    for number in range(2):
        (top / f"pod-{number}").mkdir()
        more = second if number else {}
        bench = BackupBench(
            top / f"pod-{number}",
            repository,
            client=f"shop/db-{number}",
            **more,  # type: ignore[arg-type]
        )
        fill(bench.volume)
        benches.append(bench)
    benches[0].run()
    return benches[0], benches[1]


def fill(volume: Path, seed: int = 1, files: int = FILES) -> None:
    for number in range(files):
        folder = volume / f"d{number % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number:03d}").write_bytes(random.Random(f"{seed} {number}").randbytes(SIZE))


def spoil(volume: Path) -> None:
    """Change a few bytes in every bundle."""
    for folder in volume.iterdir():
        for path in sorted(folder.iterdir())[::7]:
            path.write_bytes(b"changed" + path.read_bytes()[7:])


def newest(bench: BackupBench) -> control.Reference:
    return control.Reference(bench.repository.head(bench.client)[1], bench.client)


def watched(bench: BackupBench) -> list[MemoryChunks]:
    """Return a list that gets the source of stored chunks of each job to come."""
    made: list[MemoryChunks] = []

    def chunks() -> MemoryChunks:
        made.append(MemoryChunks(bench.repository))
        return made[-1]

    bench.chunks = chunks
    return made


def is_right(bench: BackupBench) -> bool:
    bench.check_refs()
    return bench.restored() == on_disk(bench.volume)


# --- what is found
def test_a_new_replica_sends_only_what_its_relative_has_not(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first, second = pair
    spoil(second.volume)
    done = second.run(references=[newest(first)])
    assert (count(done, "files_new"), count(done, "bytes_new")) == (FILES, 12 * SIZE)
    assert count(done, "bytes_sent") < 12 * SIZE + 15_000
    assert is_right(second)
    content = second.snapshot().find(os.fsencode(second.volume / "d2" / "f006")).entry.content
    shared = first.snapshot().find(os.fsencode(first.volume / "d2" / "f006")).entry.content
    assert content.extents == shared.extents
    # The next backup has a parent of its own.
    assert count(second.run(references=[newest(first)]), "files_unmodified") == FILES


def test_without_a_reference_everything_is_sent(pair: tuple[BackupBench, BackupBench]) -> None:
    """The control of all the others: one changed file spoils its bundle."""
    spoil(pair[1].volume)
    assert count(pair[1].run(), "bytes_sent") > FILES * SIZE / 2
    assert is_right(pair[1])


def test_files_are_found_whatever_their_names_and_order(
    pair: tuple[BackupBench, BackupBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_index, "_PAGES_AT_HAND", 1)
    first, second = pair
    paths = sorted(path for path in second.volume.rglob("*") if path.is_file())
    random.Random(3).shuffle(paths)
    for number, path in enumerate(paths):
        path.rename(second.volume / f"{number:03d}")
    done = second.run(references=[newest(first)])
    assert count(done, "bytes_new") == 0
    assert is_right(second)


def test_several_references_are_asked_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relatives, "_UNKNOWN_BYTES_FIRST", 0)
    first, second = make_pair(tmp_path)
    third = BackupBench(tmp_path, first.repository, client="shop/db-2")
    fill(third.volume)
    for number in range(30):
        path = Path(f"d{number % 4}") / f"f{number:03d}"
        mine = random.Random(number).randbytes(SIZE)
        (first.volume / path).write_bytes(mine)
    first.run()
    second.run(references=[])
    references = [newest(first), newest(second)]
    assert count(third.run(references=references), "bytes_new") == 0
    assert is_right(third)


def test_the_clients_own_snapshot_of_other_paths_may_be_a_reference(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first, second = pair
    order = first.order(paths=[os.fsencode(second.volume)], parent=None)
    first.top = first.top.parent
    done = first.run(msgspec.structs.replace(order, references=[newest(first)]))
    assert count(done, "bytes_new") == 0


# --- when it is fetched
def test_little_that_is_unknown_does_not_fetch_a_tree(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first, second = pair
    second.run(references=[newest(first)])
    sources = watched(second)
    for number in range(9):
        (second.volume / f"new{number}").write_bytes(random.Random(number + 70).randbytes(SIZE))
    second.run(references=[newest(first)])
    assert sources[-1].fetched == []
    for number in range(12):
        (second.volume / f"more{number}").write_bytes(random.Random(number + 90).randbytes(SIZE))
    second.run(references=[newest(first)])
    assert sources[-1].fetched != []
    assert is_right(second)


def test_a_first_backup_fetches_the_tree_of_a_relative_that_is_worth_it(
    pair: tuple[BackupBench, BackupBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    monkeypatch.setattr(relatives, "UNKNOWN_BYTES_MIN", FILES * SIZE)
    sources = watched(second)
    second.run(references=[newest(first)])
    assert sources[-1].fetched == []


# --- what is not believed
@pytest.mark.parametrize("named", ["shop/web-0", "shop/db", "shop/db-0-1", "bank/db-0", "db", ""])
def test_a_snapshot_of_another_workload_is_refused_before_anything_is_sent(
    pair: tuple[BackupBench, BackupBench], named: str
) -> None:
    first, second = pair
    with pytest.raises(Refused, match="names a snapshot of"):
        second.run(references=[control.Reference(newest(first).snapshot, named)])
    assert second.uploads is None


def test_a_foreign_snapshot_under_a_relatives_name_is_refused(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path)
    foreign = BackupBench(tmp_path, first.repository, client="shop/web-0")
    fill(foreign.volume)
    foreign.run()
    lie = control.Reference(newest(foreign).snapshot, "shop/db-0")
    with pytest.raises(Refused, match="shop/web-0"):
        second.run(references=[lie])
    assert second.repository.head("shop/db-1")[0] == 0
    assert second.session.pack_lengths == []


def test_a_parent_of_another_client_is_refused(pair: tuple[BackupBench, BackupBench]) -> None:
    first, second = pair
    with pytest.raises(Refused, match="as the parent"):
        second.run(parent=newest(first))
    assert second.session.pack_lengths == []


def test_a_forged_manifest_is_not_used(pair: tuple[BackupBench, BackupBench]) -> None:
    first, second = pair

    class Forger(MemoryChunks):
        def manifest(self, snapshot: bytes) -> bytes:
            whole = super().manifest(snapshot)
            return whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:]

    second.chunks = lambda: Forger(second.repository)
    done = second.run(references=[newest(first)])
    assert done.finished.summary["files"] == FILES
    assert is_right(second)


def test_a_domain_that_does_not_share_ignores_what_the_server_names(tmp_path: Path) -> None:
    first, second = make_pair(tmp_path, share_references=False)
    spoil(second.volume)
    done = second.run(references=[newest(first)])
    assert count(done, "bytes_new") > FILES * SIZE / 2


def test_a_hint_is_only_a_hint(
    pair: tuple[BackupBench, BackupBench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were 12 bytes of a content id enough, a file would get another one's content."""
    first, second = pair
    monkeypatch.setattr(hints.ContentHints, "find", lambda self, content_id: iter(range(4)))
    fill(second.volume, seed=2, files=30)
    done = second.run(references=[newest(first)])
    assert count(done, "bytes_new") == 30 * SIZE
    assert is_right(second)


# --- what is lost
def tree_chunks(bench: BackupBench) -> list[bytes]:
    live = bench.repository.live
    return [
        chunk
        for chunk in bench.repository.refs(bench.snapshot().id)
        if live[chunk].type == ChunkType.TREE
    ]


def bundles(bench: BackupBench) -> list[bytes]:
    snapshot = bench.snapshot()
    found = (entry.entry for entry in snapshot.walk() if entry.entry.stat.type == EntryType.FILE)
    return sorted({extent.chunk for entry in found for extent in snapshot.extents(entry)})


def test_a_damaged_tree_of_a_relative_is_done_without(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first, second = pair
    for chunk in tree_chunks(first):
        first.repository.damage(chunk)
    done = second.run(references=[newest(first)])
    assert done.finished.state is control.JobState.COMPLETED
    assert is_right(second)


def test_a_damaged_bundle_of_a_relative_is_sent_again(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first, second = pair
    lost = bundles(first)[0]
    first.repository.damage(lost)
    done = second.run(references=[newest(first)])
    assert done.finished.state is control.JobState.COMPLETED
    assert 0 < count(done, "bytes_new") < FILES * SIZE
    refs = second.repository.refs(id_of(done))
    assert lost not in refs or lost not in second.repository.damaged
    assert is_right(second)


def test_what_vanishes_between_look_up_and_commit_is_stored_after_all(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    """The relative's snapshot was pruned and collected meanwhile: the commit says what is gone."""
    first, second = pair

    def lose(step: str) -> None:
        if step == "commit" and second.session.commits == 0:
            for chunk in bundles(first):
                second.repository.forget(chunk)
            first.repository.snapshots.pop(newest(first).snapshot)

    second.prepare = lambda uploads: setattr(uploads, "fault", lose)
    done = second.run(references=[newest(first)])
    assert second.session.commits == 2
    assert done.finished.state is control.JobState.COMPLETED
    assert count(done, "bytes_new") == FILES * SIZE
    assert is_right(second)


class Fading(MemoryChunks):
    """A source whose relative goes away after some questions."""

    def __init__(self, repository: MemoryRepository, answers: int, *, is_rude: bool) -> None:
        super().__init__(repository)
        self.left = answers
        self.is_rude = is_rude

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        for chunk in ids:
            self.left -= 1
            if self.left >= 0:
                yield from super().fetch([chunk])
            elif self.is_rude:
                raise NotFound("no such job")
            else:
                yield FetchedChunk(chunk, ChunkStatus.NOT_THERE, "", 0, b"")


@pytest.mark.parametrize("is_rude", [False, True])
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_relative_that_vanishes_while_it_is_read_is_done_without(
    pair: tuple[BackupBench, BackupBench],
    monkeypatch: pytest.MonkeyPatch,
    answers: int,
    is_rude: bool,
) -> None:
    first, second = pair
    # Nothing stays at hand: every page is asked for when it is needed.
    monkeypatch.setattr("holdfast_agent.snapshots.chunks._TREE_CACHE_BYTES", 0)
    monkeypatch.setattr(content_index, "_PAGES_AT_HAND", 1)
    second.chunks = lambda: Fading(second.repository, answers, is_rude=is_rude)
    done = second.run(references=[newest(first)])
    assert done.finished.state is control.JobState.COMPLETED
    assert is_right(second)


def test_a_snapshot_that_is_gone_at_once_is_done_without(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    reference = newest(pair[0])
    pair[0].repository.snapshots.pop(reference.snapshot)
    assert pair[1].run(references=[reference]).finished.state is control.JobState.COMPLETED


def test_a_bundle_that_is_replaced_is_not_found_in_a_relative_again(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    """Otherwise the half-empty bundle, which the relative uses too, would never go."""
    first, second = pair
    second.run(references=[])
    own = bundles(second)
    keep = second.volume / "d0"
    for path in [path for path in second.volume.rglob("*") if path.is_file()]:
        if path.parent != keep:
            path.unlink()
    second.run(references=[])
    before = set(bundles(second))
    assert before <= set(own)
    done = second.run(references=[newest(first)])
    half_empty = before - set(bundles(second))
    assert half_empty
    assert count(done, "bytes_new") > 0
    assert is_right(second)


# --- the tree of a stored snapshot, in outline
def opened(bench: BackupBench) -> Snapshot:
    chunks = bench.repository.chunks()
    reader = ChunkReader(KEYS, chunks)
    reader.close()
    return Snapshot(bench.snapshot().id, keys=KEYS, source=chunks, chunks=reader)


def fail(damage: Exception) -> None:
    raise AssertionError(damage)


def test_the_outline_of_a_tree_has_every_content_once(
    pair: tuple[BackupBench, BackupBench],
) -> None:
    first = pair[0]
    (first.volume / "large").write_bytes(random.Random(8).randbytes(600_000))
    (first.volume / "empty").touch()
    (first.volume / "a" / "b" / "c").mkdir(parents=True)
    first.run()
    snapshot = opened(first)
    walked = [found.entry for found in snapshot.walk()]
    expected = sorted(e.content.content_id for e in walked if e.content.content_id)
    found = [outline for _, outline in outlines(snapshot, fail)]
    assert sorted(one for outline in found for one in outline.content_ids) == expected
    # All but the root itself, which no page names.
    assert sum(outline.entries for outline in found) == len(walked) - 1
