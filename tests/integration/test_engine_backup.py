"""A backup as the user sees it: what is sent, counted, listed and refused."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast_agent.crypto.records import seal_identity
from holdfast_agent.jobs import backup_source
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.reading import open_file
from holdfast_agent.tree.entry import HOLE_CHUNK, EntryFlag, EntryType
from holdfast_contract.errors import InvalidInput, NothingRead, OutsideRoots, WrongKey
from holdfast_contract.limits import KIB, MIB
from holdfast_contract.protocol.control import JobState
from tests.support import backup_bench, samples
from tests.support.backup_bench import BackupBench, count, id_of, on_disk


def fill(volume: Path, files: int = 40, seed: int = 1, big: int = 3 * MIB) -> None:
    rng = random.Random(seed)
    for number in range(files):
        folder = volume / f"d{number % 5}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number:03d}").write_bytes(rng.randbytes(rng.randrange(1, 30_000)))
    (volume / "big").write_bytes(rng.randbytes(big))


def test_first_backup_counts_everything_as_new(bench: BackupBench) -> None:
    fill(bench.volume)
    (bench.volume / "empty").touch()
    done = bench.run()
    summary = done.finished.summary
    assert done.finished.state is JobState.COMPLETED
    assert (summary["files"], summary["files_new"], summary["dirs"]) == (42, 42, 6)
    assert summary["parent"] is None
    content = on_disk(bench.volume)
    assert summary["bytes"] == summary["bytes_new"] == sum(map(len, content.values()))
    assert summary["bytes_sent"] == bench.session.bytes_sent > int(str(summary["bytes"]))
    assert bench.restored() == content
    bench.check_refs()


def test_unchanged_backup_sends_no_pack_and_less_than_six_kilobytes(bench: BackupBench) -> None:
    fill(bench.volume)
    first = bench.run()
    done = bench.run()
    summary = done.finished.summary
    assert summary["files_unmodified"] == summary["files"] == 41
    assert summary["parent"] == id_of(first).hex()
    assert (bench.session.pack_lengths, bench.session.asked) == ([], [])
    assert count(done, "bytes_sent") < 6 * KIB
    assert (summary["bytes"], summary["bytes_new"]) == (first.finished.summary["bytes"], 0)
    assert bench.restored() == on_disk(bench.volume)


def test_small_change_sends_little_and_only_what_changed_counts(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    (bench.volume / "d1" / "f001").write_bytes(b"changed" * 100)
    (bench.volume / "d2" / "new").write_bytes(b"new")
    (bench.volume / "d3" / "f003").unlink()
    done = bench.run()
    summary = done.finished.summary
    assert (summary["files_new"], summary["files_changed"], summary["files"]) == (1, 1, 41)
    assert summary["bytes_new"] == 703
    assert int(str(summary["bytes_sent"])) < 20 * KIB
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_change_of_mode_alone_sends_no_content(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    os.chmod(bench.volume / "big", 0o600)
    os.chmod(bench.volume / "d0" / "f000", 0o600)
    summary = bench.run().finished.summary
    assert (summary["files_changed"], summary["bytes_new"]) == (2, 0)
    bench.check_refs()


def test_moved_small_files_are_found_by_their_content(bench: BackupBench) -> None:
    fill(bench.volume)
    bench.run()
    os.rename(bench.volume / "d1", bench.volume / "moved")
    os.utime(bench.volume / "moved" / "f001")
    summary = bench.run().finished.summary
    assert summary["bytes_new"] == 0
    assert summary["files_new"] == 8
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_equal_small_files_of_one_backup_are_stored_once(bench: BackupBench) -> None:
    content = random.Random(5).randbytes(20_000)
    for number in range(200):
        (bench.volume / f"copy{number}").write_bytes(content)
    summary = bench.run().finished.summary
    assert (summary["bytes"], summary["bytes_new"]) == (4_000_000, 20_000)
    assert bench.restored() == on_disk(bench.volume)


def test_equal_content_with_other_holes_is_not_taken_for_the_same_file(bench: BackupBench) -> None:
    data = random.Random(9).randbytes(64 * KIB)
    for name in ("a sparse", "c sparse"):
        with (bench.volume / name).open("wb") as file:
            file.write(data)
            file.truncate(320 * KIB)
    (bench.volume / "b full").write_bytes(data.ljust(320 * KIB, b"\0"))
    bench.run()
    holes = {}
    for name in ("a sparse", "b full", "c sparse"):
        found = bench.snapshot().find(os.fsencode(bench.volume / name)).entry
        holes[name] = [e.length for e in found.content.extents if e.chunk == HOLE_CHUNK]
    assert holes == {"a sparse": [256 * KIB], "b full": [], "c sparse": [256 * KIB]}
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_refs_keep_a_shared_chunk_when_one_of_its_files_goes_away(bench: BackupBench) -> None:
    content = random.Random(6).randbytes(2 * MIB)
    for name in ("a/one", "b/two"):
        (bench.volume / name).parent.mkdir()
        (bench.volume / name).write_bytes(content)
    bench.run()
    (bench.volume / "a" / "one").unlink()
    done = bench.run()
    assert done.finished.summary["bytes_new"] == 0
    bench.check_refs()
    assert bench.restored() == {b"b/two": content}


def test_a_half_empty_bundle_is_written_anew(bench: BackupBench) -> None:
    rng = random.Random(7)
    for number in range(30):
        (bench.volume / f"f{number:02d}").write_bytes(rng.randbytes(10_000))
    bench.run()
    bundle = bench.snapshot().find(os.fsencode(bench.volume / "f29")).entry.content.extents[0]
    for number in range(25):
        (bench.volume / f"f{number:02d}").unlink()
    bench.run()
    assert bundle.chunk in bench.repository.refs(bench.snapshot().id)
    bench.run()
    assert bundle.chunk not in bench.repository.refs(bench.snapshot().id)
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()
    assert count(bench.run(), "bytes_sent") < 6 * KIB


def test_excluded_names_are_not_in_the_snapshot(bench: BackupBench) -> None:
    fill(bench.volume, files=10, big=1000)
    done = bench.run(excludes=["d1/", "f00[2-4]"])
    names = set(bench.restored(done))
    assert names == {b"big", b"d0/f000", b"d0/f005", b"d2/f007", b"d3/f008", b"d4/f009"}
    assert done.finished.state is JobState.COMPLETED


def test_pattern_that_is_none_is_refused(bench: BackupBench) -> None:
    with pytest.raises(InvalidInput):
        bench.run(excludes=["a\nb"])


def test_path_outside_the_roots_is_refused_before_a_session_is_opened(bench: BackupBench) -> None:
    fill(bench.volume, files=1)
    with pytest.raises(OutsideRoots):
        bench.run(paths=[os.fsencode(bench.volume), b"/etc"])
    assert bench.uploads is None


def test_absent_path_is_listed_and_the_rest_is_backed_up(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=10)
    absent = os.fsencode(bench.top / "absent")
    done = bench.run(paths=[absent, os.fsencode(bench.volume)])
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert [row["path"] for row in done.result.skipped] == [absent.decode()]
    assert done.result.skipped[0]["reason"] == "vanished"
    assert len(bench.restored(done)) == 4


def test_job_fails_when_nothing_at_all_could_be_read(bench: BackupBench) -> None:
    with pytest.raises(NothingRead):
        bench.run(paths=[os.fsencode(bench.top / "absent"), os.fsencode(bench.top / "gone" / "x")])
    assert bench.repository.snapshots == {}


def test_single_files_and_nested_paths_are_fine(bench: BackupBench) -> None:
    fill(bench.volume, files=6, big=10)
    paths = [bench.volume / "d1", bench.volume / "d1" / "f001", bench.volume / "big"]
    done = bench.run(paths=[os.fsencode(path) for path in paths])
    assert set(bench.restored(done)) == {b"d1/f001", b"big"}
    assert done.finished.summary["dirs"] == 1
    bench.check_refs()


def test_root_given_by_a_symlink_is_shown_as_configured(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    bench = BackupBench(tmp_path / "real")
    fill(bench.volume, files=6, big=600_000)
    (tmp_path / "shown").symlink_to(bench.volume)
    bench.top = tmp_path / "shown"
    bench.volume = tmp_path / "shown"
    assert bench.run().finished.state is JobState.COMPLETED
    assert len(bench.restored()) == 7
    assert bench.run().finished.summary["files_unmodified"] == 7


def test_the_agents_own_state_in_the_volume_is_left_out(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=10)
    bench.state_path = bench.volume / "state"
    assert bench.run().finished.state is JobState.COMPLETED
    done = bench.run()
    assert not [path for path in bench.restored(done) if path.startswith(b"state")]
    assert done.finished.summary["files_unmodified"] == 4


def test_tree_of_empty_directories_only(bench: BackupBench) -> None:
    for number in range(300):
        (bench.volume / f"d{number}" / "below").mkdir(parents=True)
    assert bench.run().finished.summary["dirs"] == 601
    assert count(bench.run(), "bytes_sent") < 6 * KIB
    bench.check_refs()


def test_changes_in_a_large_directory_keep_its_other_pages(bench: BackupBench) -> None:
    for number in range(3000):
        (bench.volume / f"file {number}").touch()
    bench.run()
    (bench.volume / "file 1500").unlink()
    (bench.volume / "file 10000").write_bytes(b"x")
    summary = bench.run().finished.summary
    assert (summary["files_unmodified"], summary["files_new"]) == (2999, 1)
    assert int(str(summary["bytes_sent"])) < 40 * KIB
    assert bench.restored() == on_disk(bench.volume)
    bench.check_refs()


def test_every_name_may_go_and_come_back(bench: BackupBench) -> None:
    rng = random.Random(8)
    for _ in range(6):
        for number in range(900):
            path = bench.volume / f"file {number}"
            if rng.random() < 0.5:
                path.write_bytes(b"%d" % rng.randrange(5))
            else:
                path.unlink(missing_ok=True)
        bench.run()
        assert bench.restored() == on_disk(bench.volume)
        bench.check_refs()


def test_dry_run_counts_and_sends_nothing(bench: BackupBench) -> None:
    fill(bench.volume, files=10, big=MIB)
    dry = bench.run(dry_run=True).finished
    assert (dry.snapshot, dry.summary["files_new"], bench.uploads) == (None, 11, None)
    assert dry.summary["bytes_new"] == dry.summary["bytes"]
    bench.run()
    (bench.volume / "d1" / "f001").write_bytes(b"changed")
    (bench.volume / "more").write_bytes(b"new")
    again = bench.run(dry_run=True).finished.summary
    assert (again["files_changed"], again["files_new"], again["files_unmodified"]) == (1, 1, 10)
    assert (again["bytes_new"], again["bytes_sent"]) == (10, 0)
    assert len(bench.repository.snapshots) == 1
    done = bench.run().finished.summary
    assert done["files_unmodified"] == 10


def denying(monkeypatch: pytest.MonkeyPatch, *names: bytes) -> None:
    def refused(directory: object, entry: object) -> object:
        if entry.name in names:  # type: ignore[attr-defined]
            return Finding(entry.name, Reason.DENIED, "Permission denied")  # type: ignore[attr-defined]
        return open_file(directory, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(backup_source, "open_file", refused)


def test_unreadable_file_is_listed_kept_as_skipped_and_tried_again(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.volume, files=6, big=10)
    path = os.fsencode(bench.volume / "d1" / "f001")
    with monkeypatch.context() as patch:
        denying(patch, b"f001")
        done = bench.run()
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    assert done.finished.skipped_count == 1
    row = {"path": path.decode(), "reason": "denied", "message": "Permission denied"}
    assert done.result.skipped == [row]
    found = bench.snapshot().find(path).entry
    assert found.stat.flags == EntryFlag.SKIPPED
    assert found.content.extents == ()
    summary = done.finished.summary
    assert (summary["files"], summary["files_new"]) == (7, 6)
    (report,) = bench.snapshot().reports()
    assert [(r.path, r.reason) for r in report.rows] == [(path, "denied")]
    assert bench.snapshot().body.result == "skips"
    bench.check_refs()
    again = bench.run()
    assert again.finished.state is JobState.COMPLETED
    assert bench.restored() == on_disk(bench.volume)
    assert bench.snapshot().body.result == "complete"


def test_same_skips_every_night_send_nothing_new(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.volume, files=6, big=10)
    denying(monkeypatch, b"f001")
    bench.run()
    done = bench.run()
    assert done.finished.skipped_count == 1
    assert bench.session.pack_lengths == []
    assert done.finished.summary["files_unmodified"] == 6


def test_special_files_are_recorded_and_never_opened(bench: BackupBench) -> None:
    os.mkfifo(bench.volume / "fifo")
    (bench.volume / "link").symlink_to("/nowhere")
    done = bench.run()
    assert done.finished.state is JobState.COMPLETED
    top = os.fsencode(bench.volume)
    assert bench.snapshot().find(top + b"/fifo").entry.stat.type == EntryType.FIFO
    assert bench.snapshot().find(top + b"/link").entry.content.target == b"/nowhere"
    assert done.finished.summary["files"] == 2


def test_identity_of_another_domain_is_refused_before_anything_is_sent(
    bench: BackupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench.volume, files=1)
    other = samples.identity_body(domain=samples.OTHER_DOMAIN)
    record = seal_identity(other, samples.OTHER_KEYS)
    monkeypatch.setattr(backup_bench, "IDENTITY_RECORD", record)
    with pytest.raises(WrongKey):
        bench.run()
    assert bench.uploads is None


def test_manifest_says_what_was_backed_up(bench: BackupBench) -> None:
    fill(bench.volume, files=2, big=10)
    first = bench.run(tags=["nightly"], excludes=["*.tmp"])
    body = bench.snapshot(first).body
    assert (body.seq, body.tags, body.excludes) == (1, ("nightly",), ("*.tmp",))
    assert body.paths == (os.fsencode(bench.volume),)
    assert (body.prev, body.parent, body.known_seq) == (bytes(32), bytes(32), 0)
    second = bench.run()
    after = bench.snapshot(second).body
    assert (after.seq, after.prev, after.parent) == (
        2,
        first.finished.snapshot,
        first.finished.snapshot,
    )
    assert (after.known_seq, after.known_hash) == (1, id_of(first))
    assert (after.epoch_min, after.epoch_new) == (1, 2)


def test_chain_of_differences_ends_with_a_full_list(bench: BackupBench) -> None:
    fill(bench.volume, files=100, big=30 * MIB)
    lengths: list[int] = []
    for _ in range(18):
        bench.run()
        lengths += bench.session.refs_lengths
    full = lengths[0]
    assert full > 900
    assert [number for number, length in enumerate(lengths) if length == full] == [0, 16]


def test_small_domains_limit_cuts_every_file(tmp_path: Path) -> None:
    bench = BackupBench(tmp_path, small_file_bytes_max=0)
    fill(bench.volume, files=5, big=10)
    bench.run()
    assert bench.restored() == on_disk(bench.volume)
    found = bench.snapshot().find(os.fsencode(bench.volume / "big")).entry
    assert found.content.content_id == b""


def test_epoch_that_is_demanded_sends_older_copies_again(bench: BackupBench) -> None:
    fill(bench.volume, files=3, big=MIB)
    bench.run()
    for chunk, found in list(bench.repository.live.items()):
        old = type(found)(found.object, found.offset, found.sealed, found.type, 1)
        bench.repository.live[chunk] = old
    (bench.state_path / "cache.sqlite").unlink()
    bench.run(epoch_min=2, parent=None)
    assert sum(bench.session.pack_lengths) > MIB
