"""What a restore refuses before it writes, and what it lists where it cannot be exact."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast_agent.crypto.sealing import Opener
from holdfast_agent.jobs.restore import run_restore
from holdfast_agent.restore.destination import RestoreScope, local_scope
from holdfast_agent.sources.roots import Roots
from holdfast_contract.errors import InvalidInput, NoSpace, OutsideRoots, Refused, WrongKey
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.report import decode_report
from holdfast_contract.ids import ChunkId
from holdfast_contract.protocol.control import JobState, Mode, Overwrite
from tests.support.hostile import swapping
from tests.support.privilege import NOBODY, without_privilege
from tests.support.restore_bench import RestoreBench, Source, under
from tests.support.samples import KEYS, OTHER_KEYS
from tests.support.trees import Aspect, differences, scan

ROOT = os.geteuid() == 0
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    (bench.volume / "a").mkdir()
    (bench.volume / "a" / "one").write_bytes(b"one")
    (bench.volume / "a" / "two").write_bytes(b"two")
    return bench


# --- what the pod allows
def test_a_pod_that_allows_no_restore_refuses_all(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(Refused, match="no restore"):
        bench.restore(target=bench.out, scope=bench.scope(Mode.NEVER))
    assert not bench.out.exists()


def test_a_pod_that_allows_targets_only_refuses_original_paths(bench: RestoreBench) -> None:
    bench.backed_up()
    before = scan(bench.volume)
    (bench.volume / "a" / "one").unlink()
    with pytest.raises(Refused, match="original paths"):
        bench.restore(scope=bench.scope(Mode.ALTERNATE))
    assert not (bench.volume / "a" / "one").exists() and before
    done = bench.restore(target=bench.out, scope=bench.scope(Mode.ALTERNATE))
    assert done.finished.state is JobState.COMPLETED


@pytest.mark.parametrize("target", ["elsewhere", "out/../elsewhere", "outside"])
def test_a_target_outside_the_restore_roots_is_refused(bench: RestoreBench, target: str) -> None:
    bench.backed_up()
    with pytest.raises((OutsideRoots, InvalidInput)):
        bench.restore(target=bench.top / target)
    assert not (bench.top / "elsewhere").exists()


def test_original_paths_outside_the_restore_roots_are_refused_before_anything_is_written(
    bench: RestoreBench,
) -> None:
    bench.backed_up()
    (bench.volume / "a" / "one").unlink()
    roots = Roots.configured([os.fsencode(bench.volume / "a" / "below")])
    scope = RestoreScope(mode=Mode.IN_PLACE, roots=roots)
    for paths in ([b"/"], [bench.volume / "a"], [bench.volume / "a" / "one"]):
        with pytest.raises(OutsideRoots):
            bench.restore(paths, scope=scope)
    assert not (bench.volume / "a" / "one").exists()


def test_strip_in_place_is_refused(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(InvalidInput, match="target"):
        bench.restore([bench.volume / "a"], strip=True)


def test_a_root_that_is_gone_is_made_again_and_counted(bench: RestoreBench) -> None:
    bench.volume.chmod(0o750)
    wanted = scan(bench.volume)
    bench.backed_up()
    bench.volume.rename(bench.top / "moved")
    foretold = bench.restore(dry_run=True)
    assert not bench.volume.exists()
    done = bench.restore()
    assert done.finished.summary["created"] == foretold.finished.summary["created"] == 4
    assert scan(bench.volume).keys() == wanted.keys()
    assert differences(bench.top / "moved", bench.volume) == []


def test_a_root_given_by_a_symlink_is_restored_through_it(bench: RestoreBench) -> None:
    link = bench.top / "link"
    link.symlink_to(bench.volume)
    bench.backed_up()
    (bench.volume / "a" / "one").unlink()
    scope = RestoreScope(mode=Mode.IN_PLACE, roots=Roots.configured([os.fsencode(link)]))
    bench.restore(scope=scope)
    assert (bench.volume / "a" / "one").read_bytes() == b"one"


def test_another_domains_key_is_refused_before_anything_is_written(bench: RestoreBench) -> None:
    bench.backed_up()
    with pytest.raises(WrongKey):
        run_restore(
            bench.restore_order(target=bench.out),
            keys=OTHER_KEYS,
            source=Source(bench),
            own_client="",
            scope=local_scope(),
            cancel=bench.cancel,
            progress=bench.progress,
            clock=bench.clock,
        )
    assert not bench.out.exists()


# --- a target that does not take it
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EROFS, Refused)],
)
def test_a_full_or_read_only_target_ends_the_job_and_leaves_no_half_file(
    bench: RestoreBench, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    bench.backed_up()
    original = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if bytes(data) == b"two":
            raise OSError(number, os.strerror(number))
        return original(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(expected):
        bench.restore(target=bench.out)
    assert os.listdir(under(bench.out, bench.volume / "a")) == ["one"]


# --- what another client's snapshot may bring
def special_tree(bench: RestoreBench) -> None:
    (bench.volume / "tool").write_bytes(b"#!")
    (bench.volume / "tool").chmod(0o6755)
    if ROOT:
        os.mknod(bench.volume / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.setxattr(bench.volume / "a" / "one", "security.capability", CAPABILITY)


def test_another_clients_special_bits_are_left_out_and_listed(bench: RestoreBench) -> None:
    special_tree(bench)
    bench.backed_up()
    for _ in range(2):
        done = bench.restore(target=bench.out, own_client="shop/other-0")
        assert done.finished.state is JobState.COMPLETED_WITH_SKIPS
        listed = {(Path(row["path"]).name, row["reason"]) for row in done.result.not_exact}
        assert listed == {("tool", "mode")} | (
            {("null", "device"), ("one", "capability")} if ROOT else set()
        )
        assert done.finished.not_exact_count == len(listed)
    landed = under(bench.out, bench.volume)
    assert stat.S_IMODE((landed / "tool").stat().st_mode) == 0o755
    assert not (landed / "null").exists()


def test_special_brings_them_and_so_does_a_local_restore(bench: RestoreBench) -> None:
    special_tree(bench)
    bench.backed_up()
    done = bench.restore(target=bench.out, own_client="shop/other-0", special=True)
    assert done.finished.state is JobState.COMPLETED, done.result.not_exact
    assert differences(bench.volume, under(bench.out, bench.volume)) == []
    bench.restore_here(bench.top / "here" / "deep")
    assert differences(bench.volume, under(bench.top / "here" / "deep", bench.volume)) == []


def test_the_sealed_list_opens_with_the_key_and_says_the_same(bench: RestoreBench) -> None:
    special_tree(bench)
    bench.backed_up()
    done = bench.restore(target=bench.out, own_client="shop/other-0")
    blob = done.result.not_exact_sealed
    assert blob is not None
    plain = Opener(KEYS).open(ChunkType.REPORT, ChunkId(blob[:32]), blob[32:])
    report = decode_report(plain)
    assert [os.fsdecode(row.path) for row in report.rows] == [
        row["path"] for row in done.result.not_exact
    ]
    assert bench.ask("report", blob=blob) == done.result.not_exact


# --- without privilege
def as_nobody(work: Callable[[RestoreBench], object]) -> object:
    """Run `work` as an ordinary user with a bench of its own, and return what it returns."""

    def run() -> object:
        with tempfile.TemporaryDirectory() as top:
            return work(RestoreBench(Path(top)))

    return without_privilege(run)


def test_owners_are_listed_where_they_cannot_be_given(open_tmp: Path) -> None:
    bench = RestoreBench(open_tmp)
    (bench.volume / "file").write_bytes(b"x")
    if ROOT:
        os.chown(bench.volume / "file", 4242, 4243)
    bench.backed_up()
    bench.out.mkdir()
    if ROOT:
        os.chown(bench.out, NOBODY, NOBODY)

    def restore() -> list[object]:
        done = bench.restore_here(bench.out)
        return [
            done.finished.state,
            [(Path(r["path"]).name, r["reason"]) for r in done.result.not_exact],
        ]

    state, rows = without_privilege(restore)
    content = (under(bench.out, bench.volume) / "file").read_bytes()
    assert content == b"x"
    if ROOT:
        assert state == JobState.COMPLETED_WITH_SKIPS
        assert ["file", "owner"] in rows


def test_directories_without_write_permission_are_filled_and_get_their_mode_back() -> None:
    def work(bench: RestoreBench) -> list[str]:
        (bench.volume / "d").mkdir()
        (bench.volume / "d" / "file").write_bytes(b"x")
        (bench.volume / "d").chmod(0o555)
        wanted = scan(bench.volume)
        bench.backed_up()
        first = bench.restore(target=bench.out)
        assert first.finished.state is JobState.COMPLETED, first.result.not_exact
        (bench.volume / "d").chmod(0o755)
        (bench.volume / "d" / "file").write_bytes(b"edited")
        (bench.volume / "d").chmod(0o555)
        bench.restore()
        found = differences(bench.volume, under(bench.out, bench.volume), ignore=(Aspect.MTIME,))
        assert (scan(bench.volume).keys(), found) == (wanted.keys(), [])
        for top in (bench.volume, under(bench.out, bench.volume)):
            (top / "d").chmod(0o755)
        return found

    assert as_nobody(work) == []


def test_an_unreadable_directory_in_the_way_is_listed_and_the_rest_restored() -> None:
    def work(bench: RestoreBench) -> list[object]:
        for name in ("closed", "open"):
            (bench.volume / name).mkdir()
            (bench.volume / name / "file").write_bytes(b"x")
        bench.backed_up()
        (bench.volume / "open" / "file").unlink()
        (bench.volume / "closed").chmod(0)
        done = bench.restore()
        (bench.volume / "closed").chmod(0o755)
        rows = [(Path(row["path"]).name, row["reason"]) for row in done.result.not_exact]
        return [rows, (bench.volume / "open" / "file").read_text()]

    assert as_nobody(work) == [[["closed", "denied"]], "x"]


def test_a_further_name_is_written_where_the_first_one_could_not_be() -> None:
    def work(bench: RestoreBench) -> list[object]:
        for name in ("closed", "open"):
            (bench.volume / name).mkdir()
        (bench.volume / "closed" / "first").write_bytes(b"x")
        os.link(bench.volume / "closed" / "first", bench.volume / "open" / "second")
        bench.backed_up()
        (bench.volume / "open" / "second").unlink()
        (bench.volume / "closed").chmod(0)
        done = bench.restore()
        (bench.volume / "closed").chmod(0o755)
        return [(bench.volume / "open" / "second").read_text(), done.finished.not_exact_count]

    assert as_nobody(work) == ["x", 1]


# --- a hostile neighbour
def test_a_directory_swapped_for_a_symlink_never_leads_out_of_the_target(
    bench: RestoreBench,
) -> None:
    for number in range(60):
        (bench.volume / "a" / f"{number:02d}").write_bytes(b"%d" % number)
    bench.backed_up()
    elsewhere = bench.top / "elsewhere"
    elsewhere.mkdir()
    landed = under(bench.out, bench.volume)
    (landed / "a").mkdir(parents=True)
    (landed / "trap").symlink_to(elsewhere)
    with swapping(landed, "a", "trap"):
        for _ in range(15):
            bench.restore(target=bench.out, overwrite=Overwrite.ALWAYS)
    assert list(elsewhere.iterdir()) == []
