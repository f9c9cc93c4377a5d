"""Rows about snapshots and the live pod, and the bytes of one file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from holdfast_contract.errors import (
    Damaged,
    InvalidInput,
    NotAtHand,
    NotFound,
    OutsideRoots,
)
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import Browse
from tests.support.restore_bench import RestoreBench

Rows = list[dict[str, object]]


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    (bench.volume / "a" / "b").mkdir(parents=True)
    (bench.volume / "a" / "one.txt").write_bytes(b"one")
    (bench.volume / "a" / "b" / "Two.TXT").write_bytes(b"second")
    (bench.volume / "big").write_bytes(random.Random(1).randbytes(9 * MIB))
    (bench.volume / "link").symlink_to("a/one.txt")
    os.mkfifo(bench.volume / "fifo", 0o640)
    os.utime(bench.volume / "a" / "one.txt", ns=(0, -1_500_000_000))
    return bench


def names(rows: Rows) -> list[str]:
    return [Path(str(row["path"])).name for row in rows]


# --- ls
def test_ls_of_a_directory_lists_its_entries_with_all_fields(bench: RestoreBench) -> None:
    bench.backed_up()
    rows = bench.ask("ls", bench.volume / "a")
    assert names(rows) == ["b", "one.txt"]
    assert rows[1] == {
        "path": str(bench.volume / "a" / "one.txt"),
        "type": "file",
        "mode": 0o644,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "size": 3,
        "mtime": "1969-12-31T23:59:58.500000Z",
        "target": "",
    }


def test_ls_names_types_and_targets(bench: RestoreBench) -> None:
    bench.backed_up()
    kinds = {Path(str(row["path"])).name: row["type"] for row in bench.ask("ls", bench.volume)}
    assert kinds == {"a": "directory", "big": "file", "fifo": "fifo", "link": "symlink"}
    (row,) = bench.ask("ls", bench.volume / "link")
    assert (row["target"], row["path"]) == ("a/one.txt", str(bench.volume / "link"))


def test_ls_recursive_lists_everything_below_and_not_the_top(bench: RestoreBench) -> None:
    bench.backed_up()
    rows = bench.ask("ls", bench.volume, recursive=True)
    assert names(rows) == ["a", "b", "Two.TXT", "one.txt", "big", "fifo", "link"]


def test_ls_recursive_says_of_each_entry_what_its_own_list_says(bench: RestoreBench) -> None:
    os.close(os.open(os.fsencode(bench.volume) + b"/a/\xff", os.O_CREAT))
    (bench.volume / "a" / "far").write_bytes(b"")
    os.utime(bench.volume / "a" / "far", ns=(0, (1 << 62) - 1))
    os.symlink(b"\xfe", os.fsencode(bench.volume) + b"/odd")
    os.chown(bench.volume / "big", 12, 34)
    bench.backed_up()

    def below(path: bytes) -> Rows:
        found: Rows = []
        for row in bench.ask("ls", path):
            found.append(row)
            if row["type"] == "directory":
                found += below(os.fsencode(str(row["path"])))
        return found

    rows = below(os.fsencode(bench.volume))
    assert {"path_b64", "target_b64"} <= {field for row in rows for field in row}
    assert bench.ask("ls", bench.volume, recursive=True) == rows


def test_ls_recursive_of_a_file_lists_it(bench: RestoreBench) -> None:
    bench.backed_up()
    assert names(bench.ask("ls", bench.volume / "big", recursive=True)) == ["big"]


def test_ls_of_the_root_lists_the_first_directory_above_the_backed_up_paths(
    bench: RestoreBench,
) -> None:
    bench.backed_up()
    assert names(bench.ask("ls", b"/")) == [bench.volume.parts[1]]


def test_ls_of_a_name_that_is_not_utf8_has_its_bytes(bench: RestoreBench) -> None:
    path = os.fsencode(bench.volume) + b"/a/\xff"
    os.close(os.open(path, os.O_CREAT))
    bench.backed_up()
    row = bench.ask("ls", bench.volume / "a")[-1]
    assert str(row["path"]).endswith("\\xff")
    assert msgspec.json.decode(f'"{row["path_b64"]}"', type=bytes) == path


def test_ls_of_what_the_snapshot_does_not_have_is_an_error_at_once(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(NotFound, match="nothing"):
        bench.answer("ls", bench.volume / "nothing")


# --- find
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["one.txt"]),
        ("*.[tT]?[tT]", ["Two.TXT", "one.txt"]),
        ("b", ["b"]),
        ("*/a/*", ["b", "Two.TXT", "one.txt"]),
        ("one", []),
    ],
)
def test_find_matches_the_name_or_with_a_slash_the_path(
    bench: RestoreBench, pattern: str, expected: list[str]
) -> None:
    bench.backed_up()
    rows = bench.ask("find", b"/", pattern=pattern)
    assert names(rows) == expected


def test_find_says_in_which_snapshot_and_of_which_client(bench: RestoreBench) -> None:
    first = bench.backed_up()
    (bench.volume / "later.txt").touch()
    second = bench.backed_up()
    rows = bench.ask("find", b"/", b"/", pattern="later*", snapshots=[first, second])
    assert [(row["snapshot"], row["client"]) for row in rows] == [(second.hex(), "shop/db-0")]


def test_find_passes_over_snapshots_without_the_path(bench: RestoreBench) -> None:
    first = bench.backed_up()
    (bench.volume / "new").mkdir()
    (bench.volume / "new" / "file").touch()
    second = bench.backed_up()
    where = bench.volume / "new"
    rows = bench.ask("find", where, where, pattern="file", snapshots=[first, second])
    assert [row["snapshot"] for row in rows] == [second.hex()]


def test_find_without_a_pattern_is_refused(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(InvalidInput, match="empty"):
        bench.answer("find", b"/", pattern=" ")


# --- diff
def changes(rows: Rows) -> list[tuple[object, str]]:
    return sorted((row["change"], Path(str(row["path"])).name) for row in rows)


def test_diff_tells_every_kind_of_change(bench: RestoreBench) -> None:
    first = bench.backed_up()
    (bench.volume / "added").mkdir()
    (bench.volume / "added" / "inside").touch()
    (bench.volume / "a" / "one.txt").write_bytes(b"uno")
    (bench.volume / "a" / "b" / "Two.TXT").unlink()
    (bench.volume / "a" / "b").rmdir()
    (bench.volume / "fifo").chmod(0o600)
    (bench.volume / "link").unlink()
    (bench.volume / "link").touch()
    with (bench.volume / "big").open("r+b") as file:
        file.write(b"x")
    second = bench.backed_up()
    rows = bench.ask("diff", b"/", b"/", snapshots=[first, second])
    assert changes(rows) == [
        ("added", "added"),
        ("added", "inside"),
        ("metadata", "fifo"),
        ("modified", "big"),
        ("modified", "one.txt"),
        ("removed", "Two.TXT"),
        ("removed", "b"),
        ("type", "link"),
    ]
    assert {row["size"] for row in rows if row["change"] == "removed"} == {0, 6}


def test_diff_of_a_snapshot_with_itself_reads_one_page_and_says_nothing(
    bench: RestoreBench,
) -> None:
    bench.backed_up()
    assert bench.ask("diff", b"/", b"/") == []


def test_diff_sees_through_a_time_alone_and_through_another_bundle(bench: RestoreBench) -> None:
    first = bench.backed_up()
    (bench.volume / "a" / "0 first").write_bytes(b"new neighbour")
    os.utime(bench.volume / "a" / "one.txt", ns=(0, 5))
    second = bench.backed_up()
    rows = bench.ask("diff", bench.volume, bench.volume, snapshots=[first, second])
    assert changes(rows) == [("added", "0 first"), ("metadata", "one.txt")]


def test_diff_needs_two_snapshots(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(InvalidInput, match="two"):
        bench.answer("diff", b"/")


# --- dump
@pytest.mark.parametrize("name", ["big", "a/one.txt"])
def test_dump_gives_the_bytes(bench: RestoreBench, name: str) -> None:
    bench.backed_up()
    assert b"".join(bench.answer("dump", bench.volume / name)) == (bench.volume / name).read_bytes()


def test_dump_writes_holes_as_zeros(bench: RestoreBench) -> None:
    with (bench.volume / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"end")
    bench.backed_up()
    assert b"".join(bench.answer("dump", bench.volume / "sparse")) == bytes(3 * MIB) + b"end"


def test_dump_of_an_empty_file_gives_nothing(bench: RestoreBench) -> None:
    (bench.volume / "empty").touch()
    bench.backed_up()
    assert b"".join(bench.answer("dump", bench.volume / "empty")) == b""


@pytest.mark.parametrize("name", ["a", "link", "fifo"])
def test_dump_of_what_is_no_regular_file_is_refused(bench: RestoreBench, name: str) -> None:
    bench.backed_up()
    with pytest.raises(InvalidInput, match="regular"):
        bench.answer("dump", bench.volume / name)


def test_dump_of_damaged_content_is_an_error_at_once(bench: RestoreBench) -> None:
    bench.backed_up()
    snapshot = bench.snapshot()
    entry = snapshot.find(os.fsencode(bench.volume / "a" / "one.txt")).entry
    bench.bad = {extent.chunk for extent in snapshot.extents(entry)}
    with pytest.raises(Damaged):
        bench.answer("dump", bench.volume / "a" / "one.txt")


# --- browse, and what the pod shows
def test_browse_lists_the_roots_and_a_live_directory(bench: RestoreBench) -> None:
    assert [row["path"] for row in bench.ask("browse")] == [str(bench.volume)]
    rows = bench.ask("browse", path=os.fsencode(bench.volume))
    assert names(rows) == ["a", "big", "fifo", "link"]
    assert rows[3]["target"] == "a/one.txt"


def test_browse_goes_on_behind_the_first_thousand_names(bench: RestoreBench) -> None:
    for number in range(2100):
        (bench.volume / "a" / f"{number:04d}").touch()
    rows = bench.ask("browse", path=os.fsencode(bench.volume / "a"))
    assert names(rows) == sorted(os.listdir(bench.volume / "a"))


def test_browse_outside_the_roots_is_refused_at_once(bench: RestoreBench) -> None:
    with pytest.raises(OutsideRoots):
        bench.answer("browse", path=b"/etc")


@pytest.mark.parametrize("kind", ["browse", "ls", "find", "diff", "dump", "report"])
def test_a_pod_that_shows_nothing_refuses_every_kind(bench: RestoreBench, kind: str) -> None:
    bench.backed_up()
    with pytest.raises(NotAtHand):
        bench.answer(kind, bench.volume / "big", browse=Browse.NEVER, pattern="x")


def test_a_pod_that_shows_names_refuses_content_only(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(NotAtHand, match="does not show"):
        bench.answer("dump", bench.volume / "big", browse=Browse.NAMES)
    assert bench.ask("ls", bench.volume, browse=Browse.NAMES)


def test_an_answer_that_is_not_read_to_its_end_leaves_no_thread(bench: RestoreBench) -> None:
    import threading

    bench.backed_up()
    before = threading.active_count()
    answer = bench.answer("ls", b"/", recursive=True)
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
