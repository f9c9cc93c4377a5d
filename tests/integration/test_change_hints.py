"""Change hints on real file systems: what is left unread, what never is, what an audit finds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.jobs.backup_hints import TRUSTED_BYTES_MAX
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.inotify import InotifyQueue
from holdfast_agent.sources.roots import OwnFiles
from holdfast_agent.state.directory import StateDirectory
from tests.support.backup_bench import count
from tests.support.hinted import (
    BASES,
    DIRECTORIES,
    HintedBench,
    hinted_bench,
    plant,
    remain_mapped,
    write_through_a_mapping,
)
from tests.support.privilege import without_privilege


@pytest.fixture(params=BASES)
def bench(request: pytest.FixtureRequest) -> Iterator[HintedBench]:
    with hinted_bench(request.param) as made:
        plant(made.volume)
        made.check()
        yield made


def test_nothing_is_read_where_nothing_happened(bench: HintedBench) -> None:
    assert bench.unread() == bench.unread() == DIRECTORIES
    # Other tests make folders beside it: the pages above the volume may be made anew.
    assert sum(bench.session.pack_lengths) < 1500


def test_its_own_backups_tell_an_agent_of_no_change(bench: HintedBench) -> None:
    """They open and read; only what is written, named or described anew is told."""
    for path in bench.volume.rglob("file *"):
        path.read_bytes()
    list(bench.volume.rglob("*"))
    assert bench.unread() == DIRECTORIES


def grow(volume: Path) -> None:
    with open(volume / "a" / "x" / "file 2", "ab") as file:
        file.write(b"more")


def rewrite_with_the_old_time(volume: Path) -> None:
    path = volume / "a" / "x" / "file 2"
    info = path.stat()
    with open(path, "r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def describe_anew(volume: Path) -> None:
    os.setxattr(volume / "a" / "x" / "file 2", "user.note", b"text")


def truncate(volume: Path) -> None:
    os.truncate(volume / "a" / "x" / "file 2", 5)


def allocate(volume: Path) -> None:
    descriptor = os.open(volume / "a" / "x" / "file 2", os.O_WRONLY)
    os.posix_fallocate(descriptor, 0, 9000)
    os.close(descriptor)


def map_and_end(volume: Path) -> None:
    write_through_a_mapping(volume / "a" / "x" / "file 2")


def clone_in(volume: Path) -> None:
    source = os.open(volume / "c" / "file 3", os.O_RDONLY)
    target = os.open(volume / "a" / "x" / "file 2", os.O_WRONLY)
    os.copy_file_range(source, target, 1000)
    os.close(source)
    os.close(target)


CHANGES = [
    grow, rewrite_with_the_old_time, describe_anew, truncate, allocate, map_and_end, clone_in,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place_has_its_directory_read(bench: HintedBench, change: object) -> None:
    assert bench.unread() == DIRECTORIES
    change(bench.volume)  # type: ignore[operator]
    assert bench.unread() == DIRECTORIES - 1
    assert bench.unread() == DIRECTORIES


def test_who_holds_a_file_across_its_rename_is_heard_where_the_file_lies_now(
    bench: HintedBench,
) -> None:
    bench.check()
    held = os.open(bench.volume / "a" / "x" / "file 2", os.O_RDWR)
    os.rename(bench.volume / "a" / "x" / "file 2", bench.volume / "b" / "x" / "moved")
    bench.check()
    os.pwrite(held, b"afterwards", 0)
    assert bench.unread() == DIRECTORIES - 1
    os.close(held)


def test_a_nameless_file_that_gets_a_name_is_found(bench: HintedBench) -> None:
    bench.check()
    place = bench.volume / "a" / "x"
    held = os.open(place, os.O_TMPFILE | os.O_RDWR)
    os.write(held, b"content")
    subprocess.run(["ln", "-L", f"/proc/{os.getpid()}/fd/{held}", place / "named"], check=True)
    assert bench.unread() == DIRECTORIES - 1
    os.write(held, b"more")
    bench.check()
    os.close(held)


def test_directories_that_change_places_are_not_taken_for_each_other(bench: HintedBench) -> None:
    """Their children are told nothing, and have the same names, inodes and times as before."""
    bench.check()
    a, b, c = (bench.volume / name for name in ("a", "b", "between"))
    a.rename(c)
    b.rename(a)
    c.rename(b)
    assert bench.unread() == 1, "only c stayed on its path"
    assert bench.unread() == DIRECTORIES


def test_a_storm_of_renames_costs_nothing_but_reading(bench: HintedBench) -> None:
    bench.check()
    for number in range(500):
        os.rename(bench.volume / "c", bench.volume / f"c{number}")
        os.rename(bench.volume / f"c{number}", bench.volume / "c")
        os.rename(bench.volume / "a" / "x" / "file 2", bench.volume / "a" / "x" / "other")
        os.rename(bench.volume / "a" / "x" / "other", bench.volume / "a" / "x" / "file 2")
    assert bench.watches is not None
    bench.watches.drain()
    assert len(bench.watches) == DIRECTORIES - 3
    assert bench.unread() == DIRECTORIES - 3


# --- never trusted --------------------------------------------------------------------------------


def test_a_large_file_is_looked_at_also_where_nothing_was_told(quiet: HintedBench) -> None:
    path = quiet.volume / "b" / "x" / "database"
    path.write_bytes(bytes(TRUSTED_BYTES_MAX + 1))
    mapped = remain_mapped(path)
    quiet.check()
    for place in (5, 6):
        # Written back, so that the next write is stamped: on tmpfs none would be.
        mapped.flush()
        mapped[place] = 1
        assert quiet.unread() == DIRECTORIES
    mapped.close()


def test_a_file_that_changed_a_short_while_ago_is_looked_at(quiet: HintedBench) -> None:
    path = quiet.volume / "b" / "x" / "file 2"
    mapped = remain_mapped(path)
    quiet.clock.ahead_ns = 0
    for place in range(3):
        path.touch()
        quiet.check()
        mapped.flush()
        mapped[place] ^= 1
        assert quiet.unread() == DIRECTORIES
    mapped.close()


def test_what_is_written_by_another_name_is_looked_at(quiet: HintedBench) -> None:
    with open(quiet.volume / "c" / "same", "ab") as file:
        file.write(b"more")
    assert quiet.unread() == DIRECTORIES - 1, "a/x was told nothing"


def test_a_further_name_elsewhere_has_everything_read(quiet: HintedBench) -> None:
    """Neither the name nor what is written by it is told to the directory of the first one."""
    os.link(quiet.volume / "a" / "y" / "file 3", quiet.volume / "b" / "new")
    with open(quiet.volume / "b" / "new", "ab") as file:
        file.write(b"more")
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_a_further_name_outside_the_backup_does_not_keep_hints_from_being_used(
    quiet: HintedBench,
) -> None:
    os.link(quiet.volume / "a" / "y" / "file 3", quiet.top / "outside")
    (quiet.volume / "a" / "y" / "new").touch()
    assert quiet.unread() == 0
    (quiet.volume / "a" / "y" / "file 3").chmod(0o600)
    assert quiet.unread() == DIRECTORIES - 1


def test_a_file_mounted_over_a_file_is_seen_and_so_is_its_end(quiet: HintedBench) -> None:
    path = quiet.volume / "b" / "x" / "file 2"
    subprocess.run(["mount", "--bind", quiet.volume / "c" / "file 3", path], check=True)
    try:
        assert quiet.unread() == 0
        assert quiet.unread() > 0
    finally:
        subprocess.run(["umount", path], check=True)
    assert quiet.unread() == 0
    assert quiet.unread() == DIRECTORIES


def test_a_file_system_mounted_over_a_quiet_directory_is_read(quiet: HintedBench) -> None:
    path = quiet.volume / "b" / "y"
    subprocess.run(["mount", "-t", "tmpfs", "small", path], check=True)
    try:
        (path / "on top").write_text("of it")
        assert quiet.unread() == 0
        assert quiet.unread() == DIRECTORIES - 1, "what is below the mount is not there"
    finally:
        subprocess.run(["umount", path], check=True)
    assert quiet.unread() == 0


def test_a_directory_that_is_mounted_twice_is_always_read(quiet: HintedBench) -> None:
    (quiet.volume / "twice").mkdir()
    subprocess.run(["mount", "--bind", quiet.volume / "c", quiet.volume / "twice"], check=True)
    try:
        quiet.check()
        (quiet.volume / "c" / "file 2").write_bytes(b"changed")
        assert quiet.unread() == DIRECTORIES - 1
        assert quiet.unread() == DIRECTORIES - 1
    finally:
        subprocess.run(["umount", quiet.volume / "twice"], check=True)


def test_a_writable_layer_tells_of_what_is_copied_up() -> None:
    with hinted_bench(BASES[0]) as bench:
        layers = [bench.top / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        (layers[0] / "file").write_bytes(b"below" * 100)
        place = bench.volume / "layered"
        place.mkdir()
        options = "lowerdir={},upperdir={},workdir={}".format(*layers)
        subprocess.run(["mount", "-t", "overlay", "layers", "-o", options, place], check=True)
        try:
            bench.check()
            assert bench.unread() == 2
            with open(place / "file", "r+b") as file:
                file.write(b"above")
            assert bench.unread() == 1
            assert bench.unread() == 2
        finally:
            subprocess.run(["umount", place], check=True)


def test_where_others_may_write_too_everything_is_read(
    quiet: HintedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Filesystems, "tells_changes", lambda self, device: False)
    assert quiet.unread() == quiet.unread() == 0


def backed_up_thrice(top: str) -> list[object]:
    """Back up what is not all readable; return what each backup listed and left unread."""
    os.mkdir(top)
    bench = HintedBench(Path(top))
    plant(bench.volume)
    (bench.volume / "a" / "y" / "file 1").chmod(0)
    (bench.volume / "b" / "y").chmod(0o300)
    told: list[object] = []
    for _ in range(3):
        done = bench.run()
        told += [sorted(row["path"] for row in done.result.skipped or []), done.finished.summary]
    (bench.volume / "b" / "y").chmod(0o700)
    return told


def test_what_could_not_be_read_is_listed_every_time(open_tmp: Path) -> None:
    open_tmp.chmod(0o777)
    place = open_tmp / "top"
    InotifyQueue().close()  # imports what an ordinary user may not read here
    told = without_privilege(backed_up_thrice, str(place))
    rows, summaries = told[::2], told[1::2]
    volume = place / "volume"
    assert rows == [[str(volume / "a" / "y" / "file 1"), str(volume / "b" / "y")]] * 3
    assert [summary["dirs_unread"] for summary in summaries] == [0, 7, 7]
    assert [summary["files_unmodified"] for summary in summaries][1:] == [18, 18]


def test_the_agents_own_files_stay_left_out(quiet: HintedBench) -> None:
    own = quiet.volume / "c" / "file 3"
    tools = quiet.tools

    def with_own(state: StateDirectory) -> object:
        made = tools(state)
        return type(made)(**{**vars(made), "own": OwnFiles([os.fsencode(own)])})

    quiet.tools = with_own  # type: ignore[assignment, method-assign]
    for expected in (0, DIRECTORIES - 1):
        done = quiet.run()
        assert count(done, "dirs_unread") == expected, "one is read: own files lie there"
        assert b"c/file 3" not in quiet.restored()
