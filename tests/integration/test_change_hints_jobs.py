"""Change hints from one backup to the next: what has everything read, races, turns, audits."""

from __future__ import annotations

import os
import subprocess

import pytest

from holdfast_agent.jobs.backup_hints import TRUSTED_BYTES_MAX, QuietListing
from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.findings import Finding, Reason
from holdfast_agent.sources.names import LeavesOut, Names
from holdfast_agent.tree.entry import Stat
from holdfast_contract.errors import Cancelled
from holdfast_contract.protocol.control import JobState
from tests.support.backup_bench import BackupBench, count, interrupting, on_disk
from tests.support.hinted import (
    BASES,
    DIRECTORIES,
    HintedBench,
    hinted_bench,
    plant,
    remain_mapped,
)
from tests.support.memory_repository import MemoryUploads

# --- what makes everything be read ----------------------------------------------------------------


def cancelled_at(bench: BackupBench, step: str) -> None:
    fault = interrupting(bench.cancel, step)

    def prepare(uploads: MemoryUploads) -> None:
        uploads.fault = fault

    bench.prepare = prepare
    with pytest.raises(Cancelled):
        bench.run()
    bench.prepare = lambda uploads: None
    bench.cancel = type(bench.cancel)()


@pytest.mark.parametrize("step", ["refs", "manifest"])
def test_a_backup_that_does_not_commit_has_everything_read(quiet: HintedBench, step: str) -> None:
    (quiet.volume / "c" / "file 2").write_bytes(b"changed")
    cancelled_at(quiet, step)
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_an_agent_that_starts_again_reads_everything(quiet: HintedBench) -> None:
    quiet.restart()
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_another_paths_backup_in_between_has_everything_read(quiet: HintedBench) -> None:
    done = quiet.run(paths=[os.fsencode(quiet.volume / "a")])
    assert count(done, "dirs_unread") == 0
    assert count(quiet.run(), "dirs_unread") == 0
    assert quiet.restored() == on_disk(quiet.volume)


def test_other_excludes_have_everything_read(quiet: HintedBench) -> None:
    done = quiet.check(excludes=["file 3"])
    assert count(done, "dirs_unread") == 0
    assert not any(name.endswith(b"file 3") for name in quiet.restored())


def test_what_was_counted_with_other_excludes_does_not_count(quiet: HintedBench) -> None:
    for excludes in ([], ["file 3"], ["file [23]"]):
        for _ in range(3):
            done = quiet.check(excludes=excludes)
        assert count(done, "dirs_unread") == DIRECTORIES


def test_what_was_counted_at_rest_ends_with_the_next_change(quiet: HintedBench) -> None:
    place = quiet.volume / "b" / "y" / "z"
    for number in range(3):
        (place / f"new {number}").write_bytes(bytes(100))
        (place / f"file {number}").unlink()
        for expected in (DIRECTORIES - 1, DIRECTORIES, DIRECTORIES):
            assert quiet.unread() == expected


def test_a_lost_cache_has_everything_read_once(quiet: HintedBench) -> None:
    (quiet.state_path / "cache.sqlite").unlink()
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_a_cache_rebuilt_from_a_damaged_parent_hides_no_file(quiet: HintedBench) -> None:
    """What was damaged is left out of such a cache: a directory that is quiet must be read."""
    (quiet.state_path / "cache.sqlite").unlink()
    tree = {
        extent.chunk for found in quiet.snapshot().walk() for extent in found.entry.content.extents
    }
    quiet.repository.damaged |= tree
    quiet.run()
    assert quiet.restored() == on_disk(quiet.volume)


def test_a_dry_run_reads_everything_and_leaves_hints_as_they_are(quiet: HintedBench) -> None:
    (quiet.volume / "c" / "file 2").write_bytes(b"changed")
    dry = quiet.run(dry_run=True).finished.summary
    assert (dry["files_changed"], dry["dirs_unread"]) == (1, 0)
    assert quiet.unread() == DIRECTORIES - 1


def test_files_have_their_turn_in_quiet_directories_too() -> None:
    """What changed without an event, and without another status, is found within thirty days.

    On tmpfs a mapping writes so: as a disk does that rots.
    """
    with hinted_bench(BASES[0]) as bench:
        plant(bench.volume)
        paths = [bench.volume / folder / "file 3" for folder in ("a/x", "a/y", "b/x", "b/y/z")]
        mapped = [remain_mapped(path) for path in paths]
        bench.check()
        bench.check()
        for mapping in mapped:
            mapping[0] ^= 1
        assert bench.unread(tags=["at once"]) == DIRECTORIES
        assert bench.restored() != on_disk(bench.volume)
        unread = 0
        for _ in range(30):
            bench.clock.pass_days(1)
            unread += bench.unread(tags=["daily"])
        assert bench.restored() == on_disk(bench.volume)
        assert unread == DIRECTORIES * (30 - 30 // 7), "all but the audits went by hints"


def test_what_touches_a_lost_chunk_is_read_again_in_a_directory_at_rest(
    quiet: HintedBench,
) -> None:
    """A part of the chunk was of a file that is gone: it cannot be made again as it was."""
    content = os.urandom(3000)
    path = quiet.volume / "b" / "x" / "precious"
    path.write_bytes(content)
    (path.parent / "short-lived").write_bytes(os.urandom(300))
    quiet.check()
    (path.parent / "short-lived").unlink()
    for _ in range(3):
        quiet.check()
    [extent] = quiet.snapshot().find(os.fsencode(path)).entry.content.extents
    quiet.repository.damaged.add(extent.chunk)
    done = quiet.run()
    assert done.finished.state is JobState.COMPLETED
    assert count(done, "dirs_unread") == DIRECTORIES
    assert quiet.restored()[b"b/x/precious"] == content
    quiet.check_refs()


# --- races ----------------------------------------------------------------------------------------


def test_a_name_that_comes_while_names_are_read_is_in_the_next_backup(
    quiet: HintedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = quiet.volume / "b" / "x"
    plain = Names._read
    made: list[int] = []

    def read(names: Names, directory: Directory, leaves_out: LeavesOut | None) -> list[bytes]:
        found = plain(names, directory, leaves_out)
        if directory.inode == place.stat().st_ino and not made:
            made.append((place / "late").write_bytes(b"late"))
        return found

    (place / "file 2").write_bytes(b"changed")
    monkeypatch.setattr(Names, "_read", read)
    quiet.run()
    assert made
    assert b"b/x/late" not in quiet.restored()
    assert count(quiet.run(), "dirs_unread") == DIRECTORIES - 1
    assert quiet.restored() == on_disk(quiet.volume)


def test_names_that_could_be_read_in_part_only_are_read_and_listed_again(
    quiet: HintedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = (quiet.volume / "b" / "x").stat().st_ino
    plain = Names._read

    def read(names: Names, directory: Directory, leaves_out: LeavesOut | None) -> list[bytes]:
        found = plain(names, directory, leaves_out)
        if directory.inode == inode:
            names.findings.append(Finding(b"", Reason.IO_ERROR, "input/output failed"))
        return found

    (quiet.volume / "b" / "x" / "file 2").write_bytes(b"changed")
    with monkeypatch.context() as sick:
        sick.setattr(Names, "_read", read)
        for _ in range(3):
            done = quiet.run()
            assert (done.finished.skipped_count, done.finished.summary["dirs_unread"]) == (1, 8)
    assert count(quiet.run(), "dirs_unread") == DIRECTORIES - 1
    assert count(quiet.run(), "dirs_unread") == DIRECTORIES


# --- many entries ---------------------------------------------------------------------------------


def test_a_large_quiet_directory_is_taken_page_by_page(quiet: HintedBench) -> None:
    place = quiet.volume / "many"
    place.mkdir()
    for number in range(9000):
        os.close(os.open(place / f"{number:05d}", os.O_CREAT | os.O_WRONLY))
    quiet.check()
    assert quiet.unread() == DIRECTORIES + 1
    (place / "04500").unlink()
    (place / "04500 and more").write_bytes(b"x")
    assert quiet.unread() == DIRECTORIES
    (place / "below").mkdir()
    (place / "08000").write_bytes(b"y")
    quiet.check()
    (place / "below" / "new").touch()
    assert quiet.unread() == DIRECTORIES + 1, "many itself is not read for what is below it"


# --- audit ----------------------------------------------------------------------------------------


def test_an_audit_finds_what_was_missed_and_puts_it_right(quiet: HintedBench) -> None:
    mapped = remain_mapped(quiet.volume / "b" / "x" / "file 2")
    quiet.check()
    assert quiet.unread() == DIRECTORIES
    mapped.flush()
    mapped[0] ^= 1
    missed = quiet.run()
    assert count(missed, "dirs_unread") == DIRECTORIES
    assert quiet.restored() != on_disk(quiet.volume), "said openly: missed until the audit"
    quiet.clock.pass_days(7)
    done = quiet.run()
    assert (count(done, "dirs_unread"), count(done, "hints_missed")) == (0, 1)
    assert quiet.restored() == on_disk(quiet.volume)
    for _ in range(2):
        after = quiet.run().finished.summary
        assert after["dirs_unread"] == 0, "no more hints until the agent starts again"
        assert "hints_missed" not in after
    mapped.close()


def test_what_is_always_looked_at_is_not_missed_when_it_changes_during_an_audit(
    quiet: HintedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = quiet.volume / "b" / "x" / "database"
    path.write_bytes(bytes(TRUSTED_BYTES_MAX + 1))
    mapped = remain_mapped(path)
    quiet.check()
    quiet.check()
    mapped.flush()
    plain = QuietListing.take
    written = []

    def take(listing: QuietListing, last: bytes | None, entries_max: int) -> list[Stat]:
        found = plain(listing, last, entries_max)
        if any(stat.name == b"database" for stat in found):
            written.append(mapped)
            mapped[9] ^= 1
        return found

    monkeypatch.setattr(QuietListing, "take", take)
    quiet.clock.pass_days(7)
    done = quiet.run().finished.summary
    assert written
    assert (done["dirs_unread"], done.get("hints_missed")) == (0, None)
    assert quiet.restored() == on_disk(quiet.volume)
    assert count(quiet.run(), "dirs_unread") == DIRECTORIES
    mapped.close()


def test_an_audit_that_finds_nothing_says_nothing_and_hints_go_on(quiet: HintedBench) -> None:
    subprocess.run(["chattr", "+A", quiet.volume / "b" / "x" / "file 2"], check=True)
    (quiet.volume / "a" / "x" / "file 2").write_bytes(b"told")
    quiet.clock.pass_days(7)
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_a_further_name_that_an_audit_meets_is_looked_at_from_then_on(quiet: HintedBench) -> None:
    """The directory of the first name is told neither of the new one, nor of what it writes."""
    quiet.check()
    quiet.clock.pass_days(8)
    name = quiet.volume / "c" / "another name"
    os.link(quiet.volume / "a" / "y" / "file 3", name)
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES
    for _ in range(3):
        with name.open("ab") as file:
            file.write(b"more")
        quiet.check()


@pytest.mark.parametrize("days", [1, 8])
def test_a_further_name_outside_is_minded_once_the_file_was_read_again(
    quiet: HintedBench, days: int
) -> None:
    name = quiet.top / "outside"
    path = quiet.volume / "b" / "x" / "file 2"
    os.link(path, name)

    def is_known() -> bool:
        return bool(quiet.snapshot().find(os.fsencode(path)).entry.content.link_group)

    for _ in range(30):
        quiet.clock.pass_days(days)
        quiet.run()
        if is_known():
            break
    assert is_known(), "by its turn, or by an audit"
    quiet.twin.run()
    for _ in range(3):
        with name.open("ab") as file:
            file.write(b"more")
        assert quiet.unread() == DIRECTORIES
