"""What the store has lost is made again as it was, beside new, changed and moved files."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from holdfast_agent.ports import Committed, Missing
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import BackupBench, count, id_of, on_disk
from tests.support.memory_repository import MemoryUploads


def fill(volume: Path, files: int = 200) -> None:
    rng = random.Random(7)
    for number in range(files):
        folder = volume / f"d{number % 7}" / "below"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:03d}").write_bytes(rng.randbytes(rng.randrange(1, 40_000)))
    (volume / "big").write_bytes(rng.randbytes(9 * MIB))


def disturb(volume: Path) -> None:
    """Add, change, remove and move files, so that no bundle or group of a walk begins as before."""
    for folder in ("d0", "d3", "d6"):
        (volume / folder / "below" / "f000 new").write_bytes(os.urandom(30_000))
    (volume / "a new folder").mkdir()
    (volume / "a new folder" / "first").write_bytes(os.urandom(20_000))
    (volume / "d1" / "below" / "f001").write_bytes(b"changed")
    (volume / "d2" / "below" / "f002").unlink()


def damage(bench: BackupBench, chunks: Iterable[bytes]) -> set[bytes]:
    found = set(chunks)
    for chunk in found:
        bench.repository.damage(chunk)
    return found


def chunks_of(bench: BackupBench, path: str) -> list[bytes]:
    found = bench.snapshot().find(os.fsencode(bench.volume / path))
    return [extent.chunk for extent in found.entry.content.extents]


def test_everything_is_lost_and_older_snapshots_are_whole_again(bench: BackupBench) -> None:
    fill(bench.volume)
    first, before = bench.run(), on_disk(bench.volume)
    damage(bench, bench.repository.refs(id_of(first)))
    (bench.volume / "a new folder").mkdir()
    (bench.volume / "a new folder" / "first").write_bytes(b"new")
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert done.finished.summary["files_unmodified"] == 201
    assert bench.repository.damaged == set()
    assert bench.restored(first) == before
    assert bench.restored(done) == on_disk(bench.volume)
    bench.check_refs(done)


def test_a_bundle_and_a_tree_chunk_heal_beside_files_that_changed(bench: BackupBench) -> None:
    fill(bench.volume)
    first, before = bench.run(), on_disk(bench.volume)
    # Of these files nothing has changed: d1/f001 and d2/f002 lie in other bundles.
    spoiled = {chunks_of(bench, f"d1/below/f{n:03d}")[0] for n in (1,)}
    spoiled |= {chunks_of(bench, f"d2/below/f{n:03d}")[0] for n in (2,)}
    whole = {chunks_of(bench, f"d{n % 7}/below/f{n:03d}")[0] for n in range(200)} - spoiled
    assert whole
    lost = damage(bench, {*whole, bench.snapshot().body.tree[0].chunk, *chunks_of(bench, "big")})
    disturb(bench.volume)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert not lost & bench.repository.damaged
    assert bench.restored(first) == before
    assert bench.restored(done) == on_disk(bench.volume)
    bench.check_refs(done)


def test_what_cannot_be_made_again_is_left_behind_and_costs_the_new_snapshot_nothing(
    bench: BackupBench,
) -> None:
    fill(bench.volume)
    first = bench.run()
    gone, changed = chunks_of(bench, "d2/below/f002")[0], chunks_of(bench, "big")[0]
    lost = damage(bench, {gone, changed})
    (bench.volume / "d2" / "below" / "f002").unlink()
    with open(bench.volume / "big", "r+b") as file:
        file.write(b"other bytes")
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert bench.repository.damaged == lost, "the older snapshot still says so"
    assert lost <= set(bench.repository.refs(id_of(first)))
    assert not lost & set(bench.repository.refs(id_of(done)))
    assert bench.restored(done) == on_disk(bench.volume)
    # Nor does a later backup take a record that leads to what is lost, also for the same content.
    again = bench.run()
    assert count(again, "files_unmodified") == count(again, "files")
    assert not lost & set(bench.repository.refs(id_of(again)))


def test_a_file_moved_meanwhile_is_not_found_in_a_damaged_bundle(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    moved = bench.volume / "d2" / "below" / "f002"
    (lost,) = damage(bench, chunks_of(bench, "d2/below/f002"))
    moved.rename(bench.volume / "moved")
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert lost not in bench.repository.refs(id_of(done))
    assert bench.restored() == on_disk(bench.volume)


def test_a_lying_path_gives_nothing_away(bench: BackupBench) -> None:
    """A name that leads elsewhere now is not followed, and other bytes are never sent as these."""
    fill(bench.volume)
    bench.run()
    secret = bench.top / "secret"
    (bench.volume / "d2" / "below" / "f002").rename(secret)
    (lost,) = damage(bench, {chunks_of(bench, "d2/below/f002")[0]})
    (bench.volume / "d2" / "below" / "f002").symlink_to(secret)
    bench.run()
    assert lost in bench.repository.damaged


def test_damage_that_only_the_commit_names_is_mended_without_reading_all_again(
    bench: BackupBench,
) -> None:
    fill(bench.volume)
    first, before = bench.run(), on_disk(bench.volume)
    disturb(bench.volume)
    damage(bench, [*chunks_of(bench, "d5/below/f005"), *chunks_of(bench, "big")[1:2]])
    done = bench.run(damaged=0)
    assert done.finished.state is JobState.COMPLETED
    assert bench.session.commits == 2
    assert bench.repository.damaged == set()
    assert bench.restored(first) == before
    assert bench.restored(done) == on_disk(bench.volume)
    bench.check_refs(done)


def test_damage_heals_with_a_lost_cache_too(bench: BackupBench) -> None:
    fill(bench.volume)
    first, before = bench.run(), on_disk(bench.volume)
    damage(bench, chunks_of(bench, "d5/below/f005"))
    damage(bench, chunks_of(bench, "big")[1:2])
    (bench.state_path / "cache.sqlite").unlink()
    disturb(bench.volume)
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.repository.damaged == set()
    assert bench.restored(first) == before


def test_a_base_that_the_server_cannot_read_makes_the_next_list_a_full_one(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.volume)
    bench.run()
    bench.repository.refs_objects.clear()
    commit = MemoryUploads.commit

    def checked(self: MemoryUploads, seq: int) -> Committed | Missing:
        try:
            return commit(self, seq)
        except Exception as exc:
            assert "base of the refs" in str(exc)
            return Missing(frozenset(), frozenset())

    monkeypatch.setattr(MemoryUploads, "commit", checked)
    disturb(bench.volume)
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    assert bench.session.commits == 2
    difference, full = bench.session.refs_lengths
    assert difference < full
    assert len(bench.session.asked) < 12, "the volume was walked once"
    bench.check_refs(done)
    # The list after it builds on the full one.
    (bench.volume / "later").write_bytes(b"later")
    assert bench.run().finished.state is JobState.COMPLETED
    assert bench.session.commits == 1
    assert bench.session.refs_lengths[0] < full
