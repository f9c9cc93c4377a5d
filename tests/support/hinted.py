"""A client whose change hints are kept, and a twin beside it that reads everything."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast_agent.jobs.outcome import Outcome
from holdfast_agent.sources.inotify import Happened, InotifyQueue
from holdfast_agent.sources.watches import Watches
from tests.support.backup_bench import BackupBench, count
from tests.support.snapshot_facts import snapshot_facts
from tests.support.trees import Aspect, Tree, compare, scan

BASES = ["/dev/shm", tempfile.gettempdir()]
"""Folders on a tmpfs, and on what the machine has else (ext4, overlayfs)."""
DIRECTORIES = 9
"""Of the planted volume, its top included."""
# The comparator knows holes by the file system's blocks, a snapshot by units of 64 KiB.
GRAIN = (Aspect.HOLES, Aspect.ALLOCATION)
SAME = ("files", "dirs", "bytes", "files_new", "files_changed", "files_unmodified")


class OverflowingQueue(InotifyQueue):
    """The kernel's queue, which overflows when a test says so."""

    overflows = False

    def happened(self) -> Iterator[Happened]:
        told = super().happened()
        if self.overflows:
            self.overflows = False
            list(told)
            yield Happened(-1, is_over=False)
        yield from told


class HintedBench(BackupBench):
    """Backs up by hints; files count as long at rest, so that they are trusted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.twin = BackupBench(self.top)
        self.twin.state_path = self.top / "state of the twin"
        self.twin.clock = self.clock
        self.clock.pass_days(2)
        self.restart()

    def restart(self) -> None:
        """Start the agent again: what was watched is not known any more."""
        if self.watches is not None:
            self.watches.close()
        self.watches = Watches(self.clock, open_queue=self._opened)

    def _opened(self) -> OverflowingQueue:
        self.queue = OverflowingQueue()
        return self.queue

    def check(self, **changes: Any) -> Outcome:
        """Back up by hints and without; both snapshots and their counts have to be the same.

        Both are compared with what lies on disk.
        """
        outcome = self.run(**changes)
        twin = self.twin.run(**changes)
        assert "hints_missed" not in outcome.finished.summary
        assert self.tree() == self.twin_tree()
        if not changes:
            assert compare(scan(self.volume), self.tree(), ignore=GRAIN) == []
        self.check_refs()
        hinted, read = outcome.finished.summary, twin.finished.summary
        assert {name: hinted[name] for name in SAME} == {name: read[name] for name in SAME}
        assert outcome.result == twin.result
        assert outcome.finished.state is twin.finished.state
        return outcome

    def unread(self, **changes: Any) -> int:
        """Do `check`; return how many directories were left unread."""
        return count(self.check(**changes), "dirs_unread")

    def tree(self) -> Tree:
        return snapshot_facts(self.snapshot(), os.fsencode(self.volume))

    def twin_tree(self) -> Tree:
        return snapshot_facts(self.twin.snapshot(), os.fsencode(self.volume))


@contextmanager
def hinted_bench(base: str) -> Iterator[HintedBench]:
    """Provide a client whose volume lies below the folder `base`."""
    top = Path(tempfile.mkdtemp(prefix="holdfast-hints-", dir=base))
    bench = HintedBench(top)
    try:
        yield bench
    finally:
        if bench.watches is not None:
            bench.watches.close()
        shutil.rmtree(top)


def plant(volume: Path) -> None:
    """Make directories with files of all kinds in them, some on the same names."""
    for folder in ("a/x", "a/y", "b/x", "b/y/z", "c"):
        place = volume / folder
        place.mkdir(parents=True)
        for number in range(4):
            (place / f"file {number}").write_bytes(bytes([number + 1]) * 700 * number)
    (volume / "c" / "link").symlink_to("nowhere")
    os.mkfifo(volume / "c" / "pipe")
    os.link(volume / "a" / "x" / "file 1", volume / "c" / "same")


def write_through_a_mapping(path: Path) -> None:
    """Change a byte of a file by a mapping, which ends at once: only that is told.

    The kernel stamps no time of change for it on tmpfs, where no backup that goes by status finds
    such a change; there the test touches the file.
    """
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        before = os.fstat(file.fileno()).st_ctime_ns
        mapped[0] ^= 0xFF
        if os.fstat(file.fileno()).st_ctime_ns == before:
            os.utime(path)


def remain_mapped(path: Path) -> mmap.mmap:
    """Map a file for writing; until that ends nothing is told of what is written."""
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)
