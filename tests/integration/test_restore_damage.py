"""Damaged chunks cost the files that they touch and nothing else; what is right is not fetched."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.jobs import backup_source
from holdfast_agent.ports import FetchedChunk
from holdfast_agent.restore.directory import TEMPORARY_PREFIX
from holdfast_agent.restore.pipeline import batch_bytes
from holdfast_agent.restore.target import Target
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.reading import FileReader, open_file
from holdfast_agent.tree.entry import EntryFlag, Stat
from holdfast_contract.errors import Cancelled, Damaged, Unreachable
from holdfast_contract.format.layout import Room
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState, Overwrite
from tests.support.restore_bench import RestoreBench, Source, under
from tests.support.trees import compare, differences, scan


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    rng = random.Random(1)
    for name, size in (("big", 6 * MIB), ("d/small 1", 3000), ("d/small 2", 900), ("e/mid", MIB)):
        path = bench.volume / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(size))
    return bench


def chunks_of(bench: RestoreBench, name: str) -> list[bytes]:
    snapshot = bench.snapshot()
    found = snapshot.find(os.fsencode(bench.volume / name))
    return [extent.chunk for extent in snapshot.extents(found.entry)]


def content_fetched(bench: RestoreBench) -> list[bytes]:
    assert bench.source is not None
    live = bench.repository.live
    return [chunk for chunk in bench.source.fetched if live[chunk].type == 1]


def leftovers(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.name.encode().startswith(TEMPORARY_PREFIX)]


# --- damage
def test_a_damaged_chunk_costs_its_file_and_the_rest_comes_back(bench: RestoreBench) -> None:
    bench.backed_up()
    bad = chunks_of(bench, "big")[-1]
    bench.bad = {bad}
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.FAILED
    pack = bench.repository.live[bad].object
    path = str(bench.volume / "big")
    assert done.result.damaged == [{"path": path, "object": pack, "chunk": bad.hex()}]
    failure = done.finished.error
    assert failure is not None and failure.code == "damaged" and failure.hint
    assert pack in failure.message and failure.details["object"] == pack
    assert done.finished.summary["files"] == 3
    landed = under(bench.out, bench.volume)
    found = differences(bench.volume, landed)
    assert [line for line in found if "missing" in line] == ["b'big': presence: missing"]
    assert len(found) == 1 and leftovers(bench.out) == []
    assert {report[1] for report in bench.repository.reports} == {pack}


def test_a_damaged_bundle_costs_all_files_in_it(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.bad = {chunks_of(bench, "d/small 1")[0]}
    done = bench.restore(target=bench.out)
    names = sorted(Path(row["path"]).name for row in done.result.damaged)
    assert names == ["small 1", "small 2"]
    assert done.finished.summary["files"] == 2


def test_a_chunk_that_the_server_does_not_have_is_named_by_its_id(bench: RestoreBench) -> None:
    bench.backed_up()
    gone = chunks_of(bench, "e/mid")[0]
    bench.repository.forget(gone)
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.FAILED
    assert [row["chunk"] for row in done.result.damaged] == [gone.hex()]


def test_what_stands_in_place_of_a_damaged_file_stays(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.bad = set(chunks_of(bench, "d/small 1"))
    (bench.volume / "d" / "small 1").write_bytes(b"mine")
    done = bench.restore(delete=True)
    assert done.finished.state is JobState.FAILED
    assert (bench.volume / "d" / "small 1").read_bytes() == b"mine"


class TwoCopies(Source):
    """The first copy of a bad chunk is damaged, the second, elsewhere, is not."""

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        super().report(chunk, object, offset, reason)
        self.bad.discard(chunk)
        self.broken.discard(chunk)
        found = self._repository.live[chunk]
        self._repository.live[chunk] = replace(found, object="packs/second")


def test_one_bad_copy_is_told_and_the_next_copy_is_used(bench: RestoreBench) -> None:
    bench.backed_up()
    bad = chunks_of(bench, "e/mid")[0]
    bench.bad = {bad}
    bench.make_source = TwoCopies
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED
    assert [report[0] for report in bench.repository.reports] == [bad]
    assert differences(bench.volume, under(bench.out, bench.volume)) == []


def test_a_damaged_page_costs_its_directory_and_nothing_there_is_deleted(
    tmp_path: Path,
) -> None:
    bench = RestoreBench(tmp_path)
    for number in range(9):
        (bench.volume / f"d{number}").mkdir()
        for name in range(500):
            (bench.volume / f"d{number}" / f"{name:04d}{'x' * 200}").write_bytes(b"%d" % name)
    bench.backed_up()
    snapshot = bench.snapshot()
    chunks = {
        number: snapshot.find(os.fsencode(bench.volume / f"d{number}")).entry.content.extents
        for number in range(9)
    }
    root = {
        extent.chunk for extent in snapshot.find(os.fsencode(bench.volume)).entry.content.extents
    }
    above = {extent.chunk for extent in snapshot.body.tree} | root
    bad = next(e.chunk for extents in chunks.values() for e in extents if e.chunk not in above)
    broken = {n for n, extents in chunks.items() if bad in {e.chunk for e in extents}}
    assert broken and len(broken) < 9
    bench.bad = {bad}
    extra = [bench.volume / f"d{number}" / "extra" for number in range(9)]
    for path in extra:
        path.touch()
    done = bench.restore(delete=True)
    assert done.finished.state is JobState.FAILED
    assert {row["path"] for row in done.result.damaged} == {
        str(bench.volume / f"d{number}") for number in broken
    }
    assert {number for number in range(9) if extra[number].exists()} == broken


def test_content_that_is_not_the_files_never_gets_its_name(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    # Small files of one part are hashed at once, others piece by piece.
    restore = "holdfast_agent.restore"
    monkeypatch.setattr(f"{restore}.execute.ContentHasher.digest", lambda self: bytes(32))
    monkeypatch.setattr(f"{restore}.execute.content_id", lambda keys, data: bytes(32))
    monkeypatch.setattr(f"{restore}.plain.content_id", lambda keys, data: bytes(32))
    done = bench.restore([bench.volume / "d"], bench.out)
    assert done.finished.state is JobState.FAILED
    assert len(done.result.damaged) == 2
    assert list(under(bench.out, bench.volume / "d").iterdir()) == []


class AlteredManifest(Source):
    def manifest(self, snapshot: bytes) -> bytes:
        data = super().manifest(snapshot)
        return data[:-1] + bytes((data[-1] ^ 1,))


def test_a_damaged_manifest_ends_the_job_before_anything_is_written(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.make_source = AlteredManifest
    with pytest.raises(Damaged, match="manifest"):
        bench.restore(target=bench.out)
    assert not bench.out.exists()


# --- delta
def test_only_chunks_that_differ_are_fetched(bench: RestoreBench) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    path = bench.volume / "big"
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"damaged by the application")
    done = bench.restore()
    assert compare(wanted, scan(bench.volume)) == []
    assert done.finished.summary["overwritten"] == 1
    fetched = content_fetched(bench)
    assert 1 <= len(fetched) <= 2 < len(chunks_of(bench, "big"))


def test_a_shorter_file_keeps_what_is_right_of_it(bench: RestoreBench) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    os.truncate(bench.volume / "big", 4 * MIB)
    bench.restore()
    assert compare(wanted, scan(bench.volume)) == []
    assert set(content_fetched(bench)) < set(chunks_of(bench, "big"))


def test_right_content_under_a_wrong_time_is_not_fetched(bench: RestoreBench) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    for path in bench.volume.rglob("*"):
        os.utime(path, ns=(7, 7))
    done = bench.restore()
    assert compare(wanted, scan(bench.volume)) == []
    assert content_fetched(bench) == []
    summary = done.finished.summary
    assert (summary["overwritten"], summary["files"], summary["unchanged"]) == (6, 4, 1)


def test_a_bundle_is_fetched_once_for_all_its_files(tmp_path: Path) -> None:
    bench = RestoreBench(tmp_path)
    rng = random.Random(2)
    for number in range(1500):
        (bench.volume / f"{number:04d}").write_bytes(rng.randbytes(1000))
    bench.backed_up()
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED
    fetched = content_fetched(bench)
    assert len(fetched) == len(set(fetched)) <= 4


def test_a_file_that_changes_after_it_was_compared_comes_back_right_all_the_same(
    bench: RestoreBench,
) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    path = bench.volume / "big"
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"damage")
    tampered: list[Sequence[bytes]] = []

    class Tampering(Source):
        def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
            # All parts of the file are compared by now, and those that are right were to be cloned.
            if set(ids) & set(chunks_of(bench, "big")) and not tampered:
                tampered.append(ids)
                path.write_bytes(random.Random(9).randbytes(6 * MIB))
            return super().fetch(ids)

    bench.make_source = Tampering
    bench.restore()
    assert tampered
    assert compare(wanted, scan(bench.volume)) == []


def test_a_file_exchanged_before_its_metadata_is_mended_is_left_alone_and_listed(
    bench: RestoreBench,
) -> None:
    bench.backed_up()
    path = bench.volume / "big"
    path.chmod(0o600)
    (bench.volume / "e" / "mid").unlink()

    class Exchanging(Source):
        def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
            if set(ids) & set(chunks_of(bench, "e/mid")) and path.stat().st_size:
                path.unlink()
                path.touch(0o640)
            return super().fetch(ids)

    bench.make_source = Exchanging
    done = bench.restore()
    listed = [(row["path"], row["reason"]) for row in done.result.not_exact]
    assert listed == [(str(path), "changed")]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_setuid_file_is_never_made_of_one_that_stands_there(bench: RestoreBench) -> None:
    path = bench.volume / "d" / "small 1"
    path.chmod(0o4755)
    wanted = scan(bench.volume)
    bench.backed_up()
    path.chmod(0o755)
    before = path.stat().st_ino
    done = bench.restore()
    assert done.finished.summary["overwritten"] == 1
    assert path.stat().st_ino != before
    assert compare(wanted, scan(bench.volume)) == []
    again = bench.restore(overwrite=Overwrite.ALWAYS)
    assert again.finished.summary["overwritten"] == 0


# --- verify
def test_verify_finds_what_another_process_has_changed_meanwhile(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    path = under(bench.out, bench.volume) / "e" / "mid"

    def tamper(self: object) -> None:
        with path.open("r+b") as file:
            file.write(b"tampered")

    monkeypatch.setattr(Target, "sync", tamper)
    done = bench.restore(target=bench.out, verify=True)
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [(row["path"], row["reason"]) for row in done.result.not_exact] == [
        (str(bench.volume / "e" / "mid"), "verify")
    ]


# --- cancel, loss of the server
def test_cancel_in_the_middle_leaves_nothing_half_written(bench: RestoreBench) -> None:
    bench.backed_up()

    def cancel(count: int) -> None:
        if count >= 6:
            bench.cancel.set()

    bench.before_fetch = cancel
    with pytest.raises(Cancelled):
        bench.restore(target=bench.out)
    assert leftovers(bench.out) == []
    landed = under(bench.out, bench.volume)
    for path in landed.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (bench.volume / path.relative_to(landed)).read_bytes()


def test_a_server_that_goes_away_leaves_nothing_half_written(bench: RestoreBench) -> None:
    bench.backed_up()
    before = threading.active_count()

    def lose(count: int) -> None:
        if count >= 6:
            raise Unreachable("the server does not answer")

    bench.before_fetch = lose
    with pytest.raises(Unreachable):
        bench.restore(target=bench.out)
    assert leftovers(bench.out) == []
    assert threading.active_count() == before


def test_a_job_that_runs_again_removes_what_its_first_run_left(bench: RestoreBench) -> None:
    bench.backed_up()
    order = bench.restore_order(target=bench.out)
    landed = under(bench.out, bench.volume)
    (landed / "d").mkdir(parents=True)
    (landed / "d" / f".holdfast-{order.job}-0123").write_bytes(b"half")
    (landed / "d" / ".holdfast-other-0123").write_bytes(b"another job's")
    bench.restore(target=bench.out, job=order.job)
    assert sorted(os.listdir(landed / "d")) == [".holdfast-other-0123", "small 1", "small 2"]


def test_batches_stay_within_the_memory_that_is_allowed() -> None:
    for ceiling in (96 * MIB, 128 * MIB, 160 * MIB, 192 * MIB):
        # Three batches opened, three sealed, beside what is there at rest.
        assert 72 * MIB + 6 * batch_bytes(ceiling) <= ceiling - 8 * MIB
    assert batch_bytes(1 << 40) == 12 * MIB


# --- skipped files
def denying(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    def refused(directory: Directory, entry: Stat) -> FileReader | Finding:
        if entry.name == name:
            return Finding(name, Reason.DENIED, "Permission denied")
        return open_file(directory, entry)

    monkeypatch.setattr(backup_source, "open_file", refused)


def test_skipped_files_are_neither_restored_nor_deleted(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        denying(patch, b"small 1")
        assert bench.run().finished.state is JobState.COMPLETED_WITH_SKIPS
    found = bench.snapshot().find(os.fsencode(bench.volume / "d" / "small 1"))
    assert found.entry.stat.flags & EntryFlag.SKIPPED
    (bench.volume / "extra").touch()
    done = bench.restore(delete=True, overwrite=Overwrite.ALWAYS)
    assert (done.finished.state, done.finished.summary["deleted"]) == (JobState.COMPLETED, 1)
    assert (bench.volume / "d" / "small 1").exists()
    alone = bench.restore([bench.volume / "d" / "small 1"], bench.out)
    assert [row["reason"] for row in alone.result.not_exact] == ["skipped"]
