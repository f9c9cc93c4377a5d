"""Where restored entries go, and what becomes of what stands there already."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from holdfast_agent.restore import execute
from holdfast_agent.restore.failures import EntryFailed
from holdfast_contract.errors import InvalidInput, NotFound
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState, Overwrite
from tests.support.restore_bench import RestoreBench, under
from tests.support.trees import Aspect, compare, differences, scan

GRAIN = (Aspect.HOLES, Aspect.ALLOCATION)
DAY_NS = 86_400 * 10**9


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    for name, content in (("a/one", b"one"), ("a/b/two.txt", b"two"), ("c/three.txt", b"three")):
        path = bench.volume / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (bench.volume / "link").symlink_to("a/one")
    (bench.volume / "a" / "big").write_bytes(random.Random(3).randbytes(5 * MIB))
    return bench


def names_below(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def plan(outcome: object) -> list[tuple[str, str]]:
    return [(row["action"], Path(row["path"]).name) for row in outcome.result.plan]  # type: ignore[attr-defined]


def numbers(outcome: object) -> tuple[object, ...]:
    summary = outcome.finished.summary  # type: ignore[attr-defined]
    return tuple(summary[name] for name in ("created", "overwritten", "deleted", "unchanged"))


# --- places
def test_a_path_of_a_snapshot_lands_under_its_absolute_path(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.restore([bench.volume / "a" / "b"], bench.out)
    landed = under(bench.out, bench.volume)
    assert names_below(landed) == ["a", "a/b", "a/b/two.txt"]
    assert differences(bench.volume / "a" / "b", landed / "a" / "b") == []


def test_directories_above_a_restored_path_are_made_plain_and_not_counted(
    bench: RestoreBench,
) -> None:
    (bench.volume / "a").chmod(0o700)
    bench.backed_up()
    done = bench.restore([bench.volume / "a" / "one"], bench.out / "x" / "y")
    assert (done.finished.summary["files"], done.finished.summary["dirs"]) == (1, 0)
    made = under(bench.out / "x" / "y", bench.volume / "a")
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert stat.S_IMODE(bench.out.stat().st_mode) == 0o755


def test_strip_drops_the_path_of_a_directory_and_of_a_file(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.restore([bench.volume / "a", bench.volume / "c" / "three.txt"], bench.out, strip=True)
    assert names_below(bench.out) == ["b", "b/two.txt", "big", "one", "three.txt"]


def test_strip_of_a_whole_snapshot_drops_what_stands_above_its_paths(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.restore(target=bench.out, strip=True)
    assert compare(
        {path: facts for path, facts in scan(bench.volume).items() if path != b"."},
        {path: facts for path, facts in scan(bench.out).items() if path != b"."},
    ) == []  # fmt: skip


def test_an_item_inside_another_is_restored_once(bench: RestoreBench) -> None:
    bench.backed_up()
    done = bench.restore([bench.volume / "a" / "b", bench.volume / "a"], bench.out)
    assert (done.finished.summary["files"], done.finished.summary["dirs"]) == (3, 2)


def test_two_snapshots_in_one_order_both_come_back(bench: RestoreBench) -> None:
    first = bench.backed_up()
    (bench.volume / "c" / "three.txt").write_bytes(b"changed")
    second = bench.backed_up()
    bench.restore([bench.volume / "a"], bench.out, snapshot=first)
    bench.restore([bench.volume / "c"], bench.out, snapshot=second)
    landed = under(bench.out, bench.volume)
    assert (landed / "a" / "one").read_bytes() == b"one"
    assert (landed / "c" / "three.txt").read_bytes() == b"changed"


def test_a_path_that_the_snapshot_does_not_have_is_an_error_before_anything_is_written(
    bench: RestoreBench,
) -> None:
    bench.backed_up()
    with pytest.raises(NotFound, match="nothing here"):
        bench.restore([bench.volume / "a", bench.volume / "nothing here"], bench.out)
    assert not bench.out.exists()


# --- include, exclude
def test_excluded_names_stay_away(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.restore([bench.volume], bench.out, exclude=["*.txt", "/a/big"])
    landed = under(bench.out, bench.volume)
    assert names_below(landed) == ["a", "a/b", "a/one", "c", "link"]


def test_included_names_bring_their_directories_and_nothing_else(bench: RestoreBench) -> None:
    bench.backed_up()
    done = bench.restore([bench.volume], bench.out, include=["*.txt"], exclude=["/c"])
    landed = under(bench.out, bench.volume)
    assert names_below(landed) == ["a", "a/b", "a/b/two.txt"]
    assert (done.finished.summary["files"], done.finished.summary["dirs"]) == (1, 3)
    assert differences(bench.volume / "a" / "b", landed / "a" / "b") == []


def test_an_included_directory_brings_all_below_it(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.restore([bench.volume], bench.out, include=["a/b/"])
    assert names_below(under(bench.out, bench.volume)) == ["a", "a/b", "a/b/two.txt"]


def test_directories_that_are_only_passed_keep_their_metadata(bench: RestoreBench) -> None:
    bench.backed_up()
    (bench.volume / "a").chmod(0o711)
    (bench.volume / "a" / "b" / "two.txt").unlink()
    bench.restore([bench.volume], include=["two.txt"])
    assert stat.S_IMODE((bench.volume / "a").stat().st_mode) == 0o711
    assert (bench.volume / "a" / "b" / "two.txt").read_bytes() == b"two"


def test_a_pattern_that_is_none_is_an_error_before_anything_is_written(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(InvalidInput, match=r"\["):
        bench.restore(target=bench.out, exclude=["[never closed"])
    assert not bench.out.exists()


# --- overwrite
def edited(bench: RestoreBench, name: str, content: bytes, *, days: int = 0) -> Path:
    """Overwrite a file of the volume, `days` after (before) what it was."""
    path = bench.volume / name
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before + days * DAY_NS))
    return path


def test_if_changed_trusts_size_and_time_and_always_does_not(bench: RestoreBench) -> None:
    bench.backed_up()
    path = edited(bench, "a/one", b"two")
    done = bench.restore(overwrite=Overwrite.IF_CHANGED)
    assert (numbers(done), path.read_bytes()) == ((0, 0, 0, 9), b"two")
    done = bench.restore(overwrite=Overwrite.ALWAYS)
    assert (numbers(done), path.read_bytes()) == ((0, 1, 0, 8), b"one")


def test_if_changed_brings_back_what_differs(bench: RestoreBench) -> None:
    bench.backed_up()
    path = edited(bench, "a/one", b"longer")
    done = bench.restore()
    assert (numbers(done), path.read_bytes()) == ((0, 1, 0, 8), b"one")


def test_if_newer_keeps_what_was_changed_later(bench: RestoreBench) -> None:
    bench.backed_up()
    later = edited(bench, "a/one", b"later", days=1)
    earlier = edited(bench, "c/three.txt", b"earlier", days=-1)
    bench.restore(overwrite=Overwrite.IF_NEWER)
    assert (later.read_bytes(), earlier.read_bytes()) == (b"later", b"three")


def test_never_touches_nothing_that_exists_and_makes_what_is_missing(bench: RestoreBench) -> None:
    bench.backed_up()
    path = edited(bench, "a/one", b"mine", days=-1)
    (bench.volume / "a").chmod(0o711)
    (bench.volume / "link").unlink()
    done = bench.restore(overwrite=Overwrite.NEVER)
    assert (path.read_bytes(), os.readlink(bench.volume / "link")) == (b"mine", "a/one")
    assert stat.S_IMODE((bench.volume / "a").stat().st_mode) == 0o711
    assert numbers(done) == (1, 0, 0, 8)


def test_metadata_alone_is_mended_without_writing_the_file_again(bench: RestoreBench) -> None:
    bench.backed_up()
    wanted = scan(bench.volume)
    path = bench.volume / "a" / "big"
    inode = path.stat().st_ino
    path.chmod(0o600)
    os.setxattr(path, "user.new", b"x")
    os.utime(path, ns=(5, 5))
    foretold = bench.restore(dry_run=True)
    assert plan(foretold) == [("metadata", "big")]
    done = bench.restore()
    assert numbers(done) == numbers(foretold) == (0, 1, 0, 8)
    assert compare(wanted, scan(bench.volume)) == []
    assert path.stat().st_ino == inode


def test_nothing_is_touched_where_everything_is_right(bench: RestoreBench) -> None:
    bench.backed_up()
    before = {path: path.lstat().st_ctime_ns for path in bench.volume.rglob("*")}
    done = bench.restore(overwrite=Overwrite.ALWAYS, delete=True)
    assert numbers(done) == (0, 0, 0, 9)
    assert {path: path.lstat().st_ctime_ns for path in bench.volume.rglob("*")} == before


# --- another type in the way
def test_a_directory_in_the_way_of_a_file_is_listed_and_kept(bench: RestoreBench) -> None:
    bench.backed_up()
    (bench.volume / "a" / "one").unlink()
    (bench.volume / "a" / "one").mkdir()
    (bench.volume / "a" / "one" / "precious").touch()
    done = bench.restore()
    assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
    (row,) = done.result.not_exact
    assert (row["path"], row["reason"]) == (str(bench.volume / "a" / "one"), "replaced")
    assert "directory is in the way" in row["message"]
    assert names_below(bench.volume / "a") == ["b", "b/two.txt", "big", "one", "one/precious"]


def test_with_delete_a_directory_in_the_way_goes_and_is_counted(bench: RestoreBench) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    (bench.volume / "a" / "one").unlink()
    (bench.volume / "a" / "one").mkdir()
    (bench.volume / "a" / "one" / "old").touch()
    foretold = bench.restore(delete=True, dry_run=True)
    done = bench.restore(delete=True)
    assert numbers(done) == numbers(foretold)
    assert done.finished.summary["deleted"] == 2
    assert compare(wanted, scan(bench.volume)) == []


@pytest.mark.parametrize("kind", ["file", "symlink", "fifo"])
def test_what_is_in_the_way_of_a_directory_is_replaced(bench: RestoreBench, kind: str) -> None:
    wanted = scan(bench.volume)
    bench.backed_up()
    elsewhere = bench.top / "elsewhere"
    elsewhere.mkdir()
    os.rename(bench.volume / "c", bench.top / "old c")
    path = bench.volume / "c"
    match kind:
        case "file":
            path.touch()
        case "symlink":
            path.symlink_to(elsewhere)
        case _:
            os.mkfifo(path)
    done = bench.restore()
    assert done.finished.state is JobState.COMPLETED
    assert compare(wanted, scan(bench.volume)) == []
    assert list(elsewhere.iterdir()) == []


def test_a_symlink_in_the_way_is_never_followed_with_overwrite_never(bench: RestoreBench) -> None:
    bench.backed_up()
    elsewhere = bench.top / "elsewhere"
    elsewhere.mkdir()
    os.rename(bench.volume / "c", bench.top / "old c")
    (bench.volume / "c").symlink_to(elsewhere)
    done = bench.restore(overwrite=Overwrite.NEVER)
    assert [row["path"] for row in done.result.not_exact] == [str(bench.volume / "c")]
    assert list(elsewhere.iterdir()) == []


# --- hard links
def test_names_of_one_file_are_one_file_again_and_others_are_parted(bench: RestoreBench) -> None:
    os.link(bench.volume / "a" / "big", bench.volume / "c" / "big too")
    wanted = scan(bench.volume)
    bench.backed_up()
    (bench.volume / "c" / "big too").unlink()
    (bench.volume / "c" / "three.txt").unlink()
    os.link(bench.volume / "a" / "one", bench.volume / "c" / "three.txt")
    foretold = bench.restore(overwrite=Overwrite.ALWAYS, dry_run=True)
    done = bench.restore(overwrite=Overwrite.ALWAYS)
    assert compare(wanted, scan(bench.volume)) == []
    assert numbers(done) == numbers(foretold)
    assert done.finished.summary["bytes"] == 5 * MIB + 11


def test_two_files_of_two_names_each_are_parted_again(bench: RestoreBench) -> None:
    for number in range(2):
        (bench.volume / f"x{number}").write_bytes(b"the same")
        os.utime(bench.volume / f"x{number}", ns=(0, 0))
        os.link(bench.volume / f"x{number}", bench.volume / f"y{number}")
    wanted = scan(bench.volume)
    bench.backed_up()
    for name in ("y0", "x1", "y1"):
        (bench.volume / name).unlink()
        os.link(bench.volume / "x0", bench.volume / name)
    foretold = bench.restore(dry_run=True)
    done = bench.restore()
    assert compare(wanted, scan(bench.volume)) == []
    assert numbers(done) == numbers(foretold)


def test_a_single_name_of_a_linked_file_is_a_file_of_its_own(bench: RestoreBench) -> None:
    os.link(bench.volume / "a" / "big", bench.volume / "c" / "big too")
    bench.backed_up()
    done = bench.restore([bench.volume / "c"], bench.out)
    landed = under(bench.out, bench.volume) / "c" / "big too"
    assert landed.read_bytes() == (bench.volume / "a" / "big").read_bytes()
    assert (done.finished.state, landed.stat().st_nlink) == (JobState.COMPLETED, 1)


def test_names_of_one_file_in_two_items_are_one_file_again(bench: RestoreBench) -> None:
    os.link(bench.volume / "a" / "one", bench.volume / "c" / "one too")
    bench.backed_up()
    bench.restore([bench.volume / "a" / "one", bench.volume / "c"], bench.out)
    landed = under(bench.out, bench.volume)
    assert (landed / "a" / "one").stat().st_ino == (landed / "c" / "one too").stat().st_ino


def test_a_name_that_cannot_be_linked_is_a_file_of_its_own_and_listed(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.link(bench.volume / "a" / "big", bench.volume / "c" / "big too")
    os.link(bench.volume / "a" / "one", bench.volume / "c" / "one too")
    bench.backed_up()

    def refused(*arguments: object) -> None:
        raise EntryFailed("unreadable", "Too many links")

    monkeypatch.setattr(execute, "make_link", refused)
    done = bench.restore(target=bench.out)
    listed = sorted((Path(row["path"]).name, row["reason"]) for row in done.result.not_exact)
    assert listed == [("big too", "link"), ("one too", "link")]
    found = differences(bench.volume, under(bench.out, bench.volume), ignore=(Aspect.LINKS,))
    assert found == []


# --- --delete
def test_delete_removes_only_inside_what_is_restored(bench: RestoreBench) -> None:
    bench.backed_up()
    for name in ("extra", "a/extra", "a/b/extra"):
        (bench.volume / name).mkdir()
        (bench.volume / name / "file").touch()
    done = bench.restore([bench.volume / "a"], delete=True)
    assert done.finished.summary["deleted"] == 4
    assert (bench.volume / "extra" / "file").exists()
    assert names_below(bench.volume / "a") == ["b", "b/two.txt", "big", "one"]


def test_delete_keeps_what_excludes_hide_and_what_holds_it(bench: RestoreBench) -> None:
    bench.backed_up()
    (bench.volume / "extra" / "deep").mkdir(parents=True)
    (bench.volume / "extra" / "deep" / "x.log").touch()
    (bench.volume / "extra" / "other").touch()
    (bench.volume / "y.log").touch()
    foretold = bench.restore(delete=True, exclude=["*.log"], dry_run=True)
    done = bench.restore(delete=True, exclude=["*.log"])
    assert numbers(foretold) == numbers(done)
    assert done.finished.summary["deleted"] == 1
    assert names_below(bench.volume / "extra") == ["deep", "deep/x.log"]
    assert (bench.volume / "y.log").exists()


def test_delete_keeps_what_the_backup_excluded(bench: RestoreBench) -> None:
    (bench.volume / "cache").mkdir()
    (bench.volume / "cache" / "file").touch()
    bench.run(excludes=["/cache"])
    (bench.volume / "extra").touch()
    done = bench.restore(delete=True)
    assert done.finished.summary["deleted"] == 1
    assert (bench.volume / "cache" / "file").exists()


def test_delete_keeps_what_includes_do_not_name(bench: RestoreBench) -> None:
    bench.backed_up()
    for name in ("a/extra.txt", "a/extra.bin"):
        (bench.volume / name).touch()
    bench.restore([bench.volume / "a"], delete=True, include=["*.txt"])
    assert (bench.volume / "a" / "extra.bin").exists()


def test_delete_never_follows_a_symlink(bench: RestoreBench) -> None:
    bench.backed_up()
    elsewhere = bench.top / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (bench.volume / "away").symlink_to(elsewhere)
    done = bench.restore(delete=True)
    assert done.finished.summary["deleted"] == 1
    assert (elsewhere / "file").exists()


def test_delete_leaves_the_agents_own_state_alone(bench: RestoreBench) -> None:
    bench.backed_up()
    bench.state_path = bench.volume / "own"
    bench.state_path.mkdir()
    (bench.state_path / "file").touch()
    bench.restore(delete=True)
    assert (bench.state_path / "file").exists()


# --- sparse
def test_holes_are_not_written(bench: RestoreBench) -> None:
    with (bench.volume / "sparse").open("wb") as file:
        file.seek(300 * MIB)
        file.write(b"end")
    bench.backed_up()
    bench.restore(target=bench.out)
    landed = under(bench.out, bench.volume) / "sparse"
    assert landed.stat().st_size == 300 * MIB + 3
    assert landed.stat().st_blocks * 512 < MIB
    assert differences(bench.volume, under(bench.out, bench.volume), ignore=GRAIN) == []
