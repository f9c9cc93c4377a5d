"""Young files are looked at once more: what changed within the tick does not stay unseen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_agent.sources.clock import SystemFileClock
from holdfast_agent.sources.descent import Descent, enter_all
from holdfast_agent.sources.filesystems import Filesystems
from holdfast_agent.sources.reading import FileReader, open_file
from holdfast_agent.sources.scan import look
from holdfast_agent.sources.secondlook import (
    REMEMBERED_MAX,
    WAIT_SECONDS,
    YOUNG_NS,
    Doubt,
    SecondLook,
)
from holdfast_agent.tree.entry import Stat
from tests.support.handclock import HandClock

KNOWN = Filesystems()


def note(
    looks: SecondLook,
    top: Path,
    names: list[bytes],
    started_ns: int = 1 << 62,
    *,
    is_local: bool = True,
) -> bool:
    base = os.fsencode(top)
    where = Descent.open(base, clock=SystemFileClock(), filesystems=KNOWN)
    assert isinstance(where, Descent)
    with where:
        assert enter_all(where, names[:-1]) is None
        entry = look(where.current, names[-1])
        assert isinstance(entry, Stat)
        reader = open_file(where.current, entry)
        assert isinstance(reader, FileReader)
        with reader:
            return looks.note(base, names[:-1], reader, started_ns, is_local=is_local)


def again(looks: SecondLook, clock: HandClock) -> list[tuple[tuple[bytes, ...], bytes]]:
    return [(doubt.parents, doubt.name) for doubt in looks.settle(clock.sleep)]


def young_clock(path: Path) -> HandClock:
    return HandClock(path.stat().st_ctime_ns)


def test_an_unchanged_file_is_settled_after_the_wait(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "a")
    looks = SecondLook(clock, KNOWN)
    assert note(looks, tmp_path, [b"a"])
    assert len(looks) == 1
    assert again(looks, clock) == []
    assert len(looks) == 0
    assert clock.slept == [pytest.approx(WAIT_SECONDS)]


def test_a_file_that_is_due_already_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "a")
    looks = SecondLook(clock, KNOWN)
    note(looks, tmp_path, [b"a"])
    clock.seconds += WAIT_SECONDS
    again(looks, clock)
    assert clock.slept == []


def test_an_old_file_needs_no_second_look(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    ctime_ns = (tmp_path / "a").stat().st_ctime_ns
    looks = SecondLook(HandClock(ctime_ns + YOUNG_NS + 1), KNOWN)
    assert not note(looks, tmp_path, [b"a"])
    looks = SecondLook(HandClock(ctime_ns + YOUNG_NS), KNOWN)
    assert note(looks, tmp_path, [b"a"])


def test_a_file_from_before_the_clock_was_set_back_needs_no_second_look(tmp_path: Path) -> None:
    """A change made now would bear another stamp; without this it would be listed for ever."""
    (tmp_path / "a").write_bytes(b"")
    ctime_ns = (tmp_path / "a").stat().st_ctime_ns
    clock = HandClock(ctime_ns - 3_600_000_000_000)
    looks = SecondLook(clock, KNOWN)
    assert not note(looks, tmp_path, [b"a"], started_ns=clock.stamp)
    # Elsewhere the clock that stamps may be ahead, and go on stamping so.
    assert note(looks, tmp_path, [b"a"], started_ns=clock.stamp, is_local=False)


def test_changed_replaced_and_vanished_files_are_to_be_read_again(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for name in ("same", "grown", "replaced", "gone"):
            (tmp_path / folder / name).write_bytes(b"1")
    clock = young_clock(tmp_path / "y" / "gone")
    looks = SecondLook(clock, KNOWN)
    for parent in (b"x", b"y"):
        for kind in (b"same", b"grown", b"replaced", b"gone"):
            assert note(looks, tmp_path, [parent, kind])
    for folder in ("x", "y"):
        (tmp_path / folder / "grown").write_bytes(b"22")
        (tmp_path / folder / "new").write_bytes(b"1")
        os.replace(tmp_path / folder / "new", tmp_path / folder / "replaced")
        (tmp_path / folder / "gone").unlink()
    assert again(looks, clock) == [
        ((folder,), name) for folder in (b"x", b"y") for name in (b"grown", b"replaced", b"gone")
    ]


def test_a_directory_that_became_a_symlink_makes_its_files_doubtful(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "dir" / "a")
    looks = SecondLook(clock, KNOWN)
    note(looks, tmp_path, [b"dir", b"a"])
    (tmp_path / "dir").rename(tmp_path / "moved")
    (tmp_path / "dir").symlink_to("moved")
    assert again(looks, clock) == [((b"dir",), b"a")]


def test_a_base_that_is_gone_makes_its_files_doubtful(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "top" / "a")
    looks = SecondLook(clock, KNOWN)
    note(looks, tmp_path / "top", [b"a"])
    (tmp_path / "top").rename(tmp_path / "moved")
    assert again(looks, clock) == [((), b"a")]


def test_a_change_in_the_tick_of_the_reading_is_never_taken_as_proven(tmp_path: Path) -> None:
    """An equal signature says nothing of a file that changed in the tick in which it was read."""
    (tmp_path / "a").write_bytes(b"")
    ctime_ns = (tmp_path / "a").stat().st_ctime_ns
    clock = HandClock(ctime_ns)
    looks = SecondLook(clock, KNOWN)
    assert note(looks, tmp_path, [b"a"], started_ns=ctime_ns)
    found = looks.settle(clock.sleep)
    assert [(doubt.name, doubt.proven) for doubt in found] == [(b"a", False)]
    assert note(looks, tmp_path, [b"a"], started_ns=ctime_ns + 1)
    assert looks.settle(clock.sleep) == []


def test_memory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "a")
    looks = SecondLook(clock, KNOWN)
    note(looks, tmp_path, [b"a"])
    doubt: Doubt = looks._doubts[0]
    looks._doubts.extend([doubt] * (REMEMBERED_MAX - 2))
    assert not looks.is_full
    looks._doubts.append(doubt)
    assert looks.is_full
    assert again(looks, clock) == []
    assert not looks.is_full


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"")
    clock = young_clock(tmp_path / "x" / "a")
    looks = SecondLook(clock, KNOWN)
    for parent in (b"x", b"y", b"z"):
        note(looks, tmp_path, [parent, b"a"])
    before = len(os.listdir("/proc/self/fd"))
    again(looks, clock)
    assert len(os.listdir("/proc/self/fd")) <= before
