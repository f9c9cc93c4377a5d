"""A restore beside a neighbour that swaps the very name of each step: nothing outside is touched.

What lies outside has the same names and mostly the same content as the snapshot, under other modes
and owners, and more names beside them: whoever follows a link gets there, and whatever is made,
changed, given away or deleted there shows.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast_contract.errors import NotFound, OutsideRoots, Refused
from holdfast_contract.protocol.control import JobState, Overwrite
from tests.support.neighbour import HARD, TRAPS, Neighbour
from tests.support.restore_bench import RestoreBench

ATTEMPTS_OF_EACH = 10_000
RUNS_MAX = 400
NO_HARD = tuple(kind for kind in TRAPS if kind != HARD)
ROOT = os.geteuid() == 0

pytestmark = pytest.mark.timeout(300)


def plant(folder: Path) -> None:
    """Make the tree that is backed up: every kind of entry, and files of several chunks."""
    for number in range(8):
        deep = folder / f"d{number}" / "e"
        deep.mkdir(parents=True)
        for place in (deep, deep.parent):
            for name in "abc":
                (place / name).write_bytes(b"%d" % number * 50)
            (place / "link").symlink_to("a")
            os.mkfifo(place / "fifo")
        (deep / "tool").write_bytes(b"tool")
        (deep / "tool").chmod(0o4755)
    (folder / "large").write_bytes(random.Random(5).randbytes(2_500_000))
    (folder / "hard1").write_bytes(b"linked")
    os.link(folder / "hard1", folder / "hard2")
    (folder / "secret").write_bytes(b"secret")
    for path in folder.rglob("*"):
        if not path.is_symlink():
            os.utime(path, ns=(10**18, 10**18))


def plant_outside(folder: Path, volume: Path) -> None:
    """Make the mirror of the volume: other modes, owners and attributes, and names of its own."""
    shutil.copytree(volume, folder, symlinks=True, copy_function=_copied)
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        path.chmod(0o710 if path.is_dir() else 0o620)
        os.setxattr(path, "user.outside", b"1") if path.is_dir() or path.is_file() else None
        if ROOT:
            os.chown(path, 4321, 4321)
        if path.is_dir():
            (path / "only-here").write_bytes(b"kept")
            (path / "only-here-too").mkdir()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, ns=(10**18, 10**18))


def _copied(one: str, other: str) -> None:
    if stat.S_ISFIFO(os.lstat(one).st_mode):
        os.mkfifo(other)
    else:
        shutil.copyfile(one, other)


def state_of(folder: Path, *, with_ctime: bool) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        is_plain = stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)
        found[str(path)] = (
            (info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns),
            (info.st_ctime_ns, info.st_nlink) if with_ctime else (),
            path.read_bytes() if stat.S_ISREG(info.st_mode) else b"",
            os.listxattr(path) if is_plain else [],
            os.readlink(path) if path.is_symlink() else "",
        )
    return found


def is_sole_file(path: Path) -> bool:
    """Tell whether writing to it changes nothing else: the neighbour may have left a link there."""
    if not os.path.lexists(path):
        return False
    info = path.lstat()
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1


def mess(folder: Path, chance: random.Random) -> None:
    """Change, remove and add some names, so that the next restore has something to do."""
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / "large"]
    for path in chance.sample(paths, min(10, len(paths))):
        if not os.path.lexists(path):
            continue
        what = chance.randrange(5)
        if path.is_dir() and not path.is_symlink():
            if what == 0:
                shutil.rmtree(path)
            elif what < 3:
                path.chmod(0o700)
            else:
                (path / f"extra{chance.random()}" / "below").mkdir(parents=True)
        elif what == 0:
            path.unlink()
        elif is_sole_file(path):
            path.write_bytes(b"changed") if what < 3 else path.chmod(0o600)
        else:
            path.unlink()
            path.mkdir()
    large = folder / "large"
    if chance.random() < 0.3 and is_sole_file(large):
        with open(large, "r+b") as file:
            file.seek(chance.randrange(2_000_000))
            file.write(b"changed")


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    bench = RestoreBench(tmp_path)
    plant(bench.volume)
    plant_outside(tmp_path / "outside", bench.volume)
    bench.backed_up()
    return bench


def restored(bench: RestoreBench, chance: random.Random, *, in_place: bool) -> str:
    options: dict[str, Any] = {
        "overwrite": chance.choice([*Overwrite, Overwrite.ALWAYS, Overwrite.IF_CHANGED]),
        "delete": chance.random() < 0.6,
        "verify": chance.random() < 0.2,
        "dry_run": chance.random() < 0.1,
        "strip": not in_place,
    }
    try:
        outcome = bench.restore([bench.volume], None if in_place else bench.out, **options)
    except (Refused, OutsideRoots, NotFound) as refused:
        return refused.code
    if outcome.finished.error is not None:
        return outcome.finished.error.code
    return outcome.finished.state


def attack(bench: RestoreBench, *, seed: int, traps: tuple[str, ...], attempts: int) -> None:
    outside = bench.top / "outside"
    with_ctime = HARD not in traps
    before = state_of(outside, with_ctime=with_ctime)
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for run in range(max(RUNS_MAX, attempts // 20)):
        chance = random.Random(seed + run)
        in_place = bool(run % 2)
        arena = bench.volume if in_place else bench.out
        if arena.exists():
            mess(arena, chance)
        neighbour = Neighbour(arena, outside, seed=seed + run, traps=traps)
        with neighbour:
            outcomes[restored(bench, chance, in_place=in_place)] += 1
        assert neighbour.failures == []
        kinds += neighbour.by_kind
        after = state_of(outside, with_ctime=with_ctime)
        assert after == before, f"touched by the run of seed {seed + run}"
        if kinds.total() >= attempts:
            break
    assert kinds.total() >= attempts, f"only {kinds}"
    assert min(kinds[kind] for kind in traps) > 50, f"a kind was hardly met: {kinds}"
    done = outcomes[JobState.COMPLETED] + outcomes[JobState.COMPLETED_WITH_SKIPS]
    assert done > outcomes.total() // 2, outcomes


def test_nothing_outside_is_touched_without_hard_links(bench: RestoreBench) -> None:
    attack(bench, seed=1, traps=NO_HARD, attempts=ATTEMPTS_OF_EACH)


def test_nothing_outside_is_touched_through_hard_links(bench: RestoreBench) -> None:
    attack(bench, seed=100_001, traps=TRAPS, attempts=ATTEMPTS_OF_EACH)


def test_a_hard_link_to_outside_in_place_of_a_linked_file_is_replaced_never_mended(
    bench: RestoreBench,
) -> None:
    """Its content is that of the snapshot's group; mode, owner and time are the outside's."""
    for name in ("hard1", "hard2"):
        (bench.volume / name).unlink()
        os.link(bench.top / "outside" / "hard1", bench.volume / name)
    before = state_of(bench.top / "outside", with_ctime=False)
    for overwrite in (Overwrite.IF_CHANGED, Overwrite.ALWAYS):
        outcome = bench.restore([bench.volume], overwrite=overwrite)
        assert outcome.finished.state is JobState.COMPLETED, outcome.result
        assert state_of(bench.top / "outside", with_ctime=False) == before
        assert (bench.volume / "hard1").stat().st_mtime_ns == 10**18
        assert (bench.volume / "hard1").samefile(bench.volume / "hard2")
        assert not (bench.volume / "hard1").samefile(bench.top / "outside" / "hard1")


@pytest.mark.soak
@pytest.mark.parametrize("seed", [10**6, 2 * 10**6])
def test_nothing_outside_is_touched_in_ten_times_as_many(bench: RestoreBench, seed: int) -> None:
    traps = TRAPS if seed == 10**6 else NO_HARD
    attack(bench, seed=seed, traps=traps, attempts=10 * ATTEMPTS_OF_EACH)
