"""Change hints: in which directories nothing has happened since a snapshot was made of them.

A walk looks at each directory that it enters (`Watching.look`) before it reads any name: a watch
is set on the very directory that is open, and what the kernel has told so far is taken in. A
directory is *quiet* where the same one was looked at on the same path for the parent snapshot and
nothing was told of it since. Its first event ends its watch: a directory that is written to costs
one event between two backups, not one a write.

State is a number for each watched directory, the hash of its path: a directory whose ancestor is
renamed gets no event. It is true for one snapshot and one view of the volume. Whatever is in doubt
(another parent, other paths or mounts, a job that does not commit, an overflow of the queue, a
restart) makes the next backup read everything. So does the audit, at the latest every seven days,
which also finds out whether the hints would have missed anything.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from holdfast_agent.sources.directory import Directory
from holdfast_agent.sources.inotify import ChangeQueue, InotifyQueue, NoWatch
from holdfast_contract.clock import Clock
from holdfast_contract.logs import get_logger

WATCHED_MAX: Final = 16_384
"""Most watched directories: each pins about a KiB of the kernel's memory, charged to the pod."""
AUDIT_SECONDS: Final = 7 * 86_400
"""After this time a backup reads everything."""
_LIMIT_FILE: Final = "/proc/sys/fs/inotify/max_user_watches"
_SHARE: Final = 4
"""At most one part in so many of what the kernel gives a user: all pods of a node may be one."""
_FILES_BITS: Final = 32
_FILES_MASK: Final = (1 << _FILES_BITS) - 1
_TOLD_AT_ONCE: Final = 1024
"""Watches given back before their last events are taken in: the queue holds 16,384."""

_log = get_logger(__name__)


class View(NamedTuple):
    """What has to be the same for a hint to count."""

    paths: tuple[bytes, ...]
    real_paths: tuple[bytes, ...]
    excludes: tuple[str, ...]
    own: frozenset[object]
    """The agent's own files, which are left out."""
    mounts: bytes
    """Digest of what is mounted at and below the paths."""


class Audited(NamedTuple):
    """When everything was read."""

    monotonic: float
    wall_ns: int


class OpenQueue(Protocol):
    """Makes the queue, with the first backup."""

    def __call__(self) -> ChangeQueue:
        """Return a new queue.

        Raises:
            NoWatch: there is none to have.
        """


class Watches:
    """The watched directories of one agent. Thread-safe."""

    def __init__(
        self,
        clock: Clock,
        *,
        watched_max: int | None = None,
        open_queue: OpenQueue = InotifyQueue,
    ) -> None:
        """Watch nothing yet."""
        self._clock = clock
        self._watched_max = _watches_permitted() if watched_max is None else watched_max
        self._open_queue = open_queue
        self._opened: Callable[[int], None] | None = None
        self._lock = threading.Lock()
        self._queue: ChangeQueue | None = None
        self._before: dict[int, int] = {}
        """Hash of the path by watch: looked at for the snapshot of `_truth`, quiet since."""
        self._now: dict[int, int] = {}
        """Looked at by the job that is under way, quiet since."""
        self._rests: dict[int, int] = {}
        """By watch: files, and bytes above them, where no entry needs to be looked at."""
        self._truth: tuple[bytes, View] | None = None
        self._audited: Audited | None = None
        self._busy: Watching | None = None
        self._is_off = False

    def __len__(self) -> int:
        """Number of directories that are watched."""
        return len(self._before) + len(self._now)

    def when_opened(self, opened: Callable[[int], None]) -> None:
        """Have `opened` told the descriptor to poll, once there is one.

        `drain` is to be called when it can be read, so that the queue stays short between backups.
        """
        self._opened = opened

    def begin(self, parent: bytes, view: View, *, is_known: bool) -> Watching | None:
        """Begin a job; None: no hints for this one, and none are made.

        `is_known`: the pages of the snapshot `parent` are at hand just as they were committed.
        """
        with self._lock:
            if self._is_off or self._busy is not None or not self._has_queue():
                return None
            self._drain()
            is_true = is_known and self._truth == (parent, view)
            self._truth = None
            if not is_true:
                self._rests = {}
            is_audit = is_true and self._is_audit_due()
            self._busy = Watching(self, view, is_true=is_true, is_audit=is_audit)
            return self._busy

    def drain(self) -> None:
        """Take in what was told so far; returns at once where a walk is just doing so."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._drain()
        finally:
            self._lock.release()

    def close(self) -> None:
        """End all watches."""
        with self._lock:
            self._is_off = True
            self._before, self._now, self._rests = {}, {}, {}
            if self._queue is not None:
                self._queue.close()
                self._queue = None

    # --- what Watching calls ---
    def look(self, directory: Directory, mark: int) -> tuple[int, bool]:
        """Watch a directory; return its watch and whether it is quiet.

        Raises:
            NoWatch: it cannot be watched.
        """
        with self._lock:
            if self._queue is None:
                raise NoWatch(errno.EBADF)
            # What was told ends watches: drained before, so that this one lasts. What is told from
            # here on counts for the next backup.
            self._drain()
            watch = self._queue.watch(directory.descriptor)
            # On two paths of one walk (a bind mount) it has the mark of the second, and the first
            # takes that away the next time: neither is quiet.
            before = self._before.pop(watch, None)
            if before != mark:
                self._rests.pop(watch, None)
            is_new = before is None and watch not in self._now
            if is_new and len(self) >= self._watched_max:
                self._queue.unwatch(watch)
                raise NoWatch(errno.ENOSPC)
            self._now[watch] = mark
            return watch, before == mark

    def forget(self, watch: int) -> None:
        """Have a directory read the next time."""
        with self._lock:
            self._forget(watch)

    def take_rest(self, watch: int) -> tuple[int, int] | None:
        """Return what `note_rest` noted, once; None where nothing is noted any more."""
        packed = self._rests.pop(watch, None)
        return None if packed is None else (packed & _FILES_MASK, packed >> _FILES_BITS)

    def note_rest(self, watch: int, files: int, size: int) -> None:
        """Note of a directory that is quiet how many files and bytes it has."""
        with self._lock:
            if watch in self._now and files <= _FILES_MASK:
                # One number, not two and a pair: this is kept for every directory.
                self._rests[watch] = size << _FILES_BITS | files

    def quiet_of(self, watches: set[int]) -> set[int]:
        """Return those of `watches` of which nothing was told up to now."""
        with self._lock:
            self._drain()
            return watches & self._now.keys()

    def again(self) -> None:
        """Begin another round of the same job: nothing that was looked at counts as quiet."""
        with self._lock:
            self._before |= self._now
            self._now, self._rests = {}, {}

    def end(self, job: Watching, truth: tuple[bytes, View] | None, *, has_read_all: bool) -> None:
        """End a job; what it looked at is true for the snapshot of `truth`, None: for none."""
        with self._lock:
            if self._busy is not job:
                return
            self._busy = None
            self._truth = truth
            if truth is None:
                self._before |= self._now
            else:
                self._drop_all(self._before)
                self._before = self._now
                if has_read_all:
                    self._audited = Audited(self._clock.monotonic(), self._clock.now_ns())
            self._now = {}

    def switch_off(self) -> None:
        """Give no hints until the agent starts again."""
        with self._lock:
            self._is_off = True
            self._truth = None
            self._forget_all()

    # --- inside, with the lock ---
    def _has_queue(self) -> bool:
        if self._queue is None:
            try:
                self._queue = self._open_queue()
            except NoWatch as refused:
                _log.info("no change hints: every backup reads everything", reason=str(refused))
                return False
            if self._opened is not None:
                self._opened(self._queue.descriptor)
        return True

    def _is_audit_due(self) -> bool:
        if self._audited is None:
            return True
        passed = self._clock.monotonic() - self._audited.monotonic
        wall = (self._clock.now_ns() - self._audited.wall_ns) / 1e9
        return max(passed, wall) >= AUDIT_SECONDS

    def _drain(self) -> None:
        if self._queue is None:
            return
        for watch, is_over in self._queue.happened():
            if watch < 0:
                self._lose_all()
            elif is_over:
                self._before.pop(watch, None)
                self._now.pop(watch, None)
                self._rests.pop(watch, None)
            else:
                self._forget(watch)

    def _forget(self, watch: int) -> None:
        before = self._before.pop(watch, None)
        now = self._now.pop(watch, None)
        self._rests.pop(watch, None)
        was_watched = before is not None or now is not None
        if was_watched and self._queue is not None:
            self._queue.unwatch(watch)

    def _lose_all(self) -> None:
        if len(self):
            _log.info("more changes than the queue of events holds: everything is read")
        self._forget_all()

    def _forget_all(self) -> None:
        gone = [*self._before, *self._now]
        self._before, self._now, self._rests = {}, {}, {}
        if self._queue is not None:
            for watch in gone:
                self._queue.unwatch(watch)

    def _drop_all(self, watches: dict[int, int]) -> None:
        """Give watches back of which nobody asks any more."""
        gone = list(watches)
        watches.clear()
        for number, watch in enumerate(gone, 1):
            self._rests.pop(watch, None)
            if self._queue is not None:
                self._queue.unwatch(watch)
            if number % _TOLD_AT_ONCE == 0:
                self._drain()


class Watching:
    """The hints of one job: used by its thread."""

    def __init__(self, watches: Watches, view: View, *, is_true: bool, is_audit: bool) -> None:
        self._watches = watches
        self._view = view
        self._is_true = is_true
        self.is_audit = is_audit
        """Whether this job reads everything to find out what the hints would have missed."""
        self.unread = 0
        """Directories whose names were not read."""
        self._suspects: dict[int, int] = {}
        self._missed = 0
        self._is_told = False
        self._rounds = 0

    def begin_round(self) -> None:
        """Begin a round of the walk; only the first one goes by hints."""
        self._rounds += 1
        if self._rounds > 1:
            self._is_true = self.is_audit = False
            self.unread = 0
            self._watches.again()

    def look(self, directory: Directory, path: bytes) -> tuple[int, bool]:
        """Watch the directory at `path`, just entered; return its watch and whether it is quiet.

        The watch is -1 where there is none.
        """
        try:
            watch, is_quiet = self._watches.look(directory, hash(path))
        except NoWatch as refused:
            if refused.is_full and not self._is_told:
                self._is_told = True
                _log.info("no more directories can be watched: the others are always read")
            return -1, False
        return watch, is_quiet and self._is_true

    def take_rest(self, watch: int) -> tuple[int, int] | None:
        """Return how many files and bytes a quiet directory holds, if nothing in it is doubted.

        To be noted again where that stays so.
        """
        return self._watches.take_rest(watch)

    def note_rest(self, watch: int, files: int, size: int) -> None:
        """Note that of a quiet directory no entry needed to be looked at."""
        self._watches.note_rest(watch, files, size)

    def distrust(self, watch: int) -> None:
        """Have a directory read the next time: not all about it is ordinary."""
        if watch >= 0:
            self._watches.forget(watch)

    def suspect(self, watch: int, entries: int) -> None:
        """Note that a quiet directory was found to differ from the parent in so many entries."""
        self._suspects[watch] = self._suspects.get(watch, 0) + entries

    def missed(self) -> int:
        """Return in how many entries the hints would have been wrong; asked once all is read.

        What changed while it was looked at has told so by now.
        """
        if self._suspects:
            silent = self._watches.quiet_of(set(self._suspects))
            self._missed = sum(self._suspects[watch] for watch in silent)
        return self._missed

    def keep(self, snapshot: bytes) -> None:
        """End the job: what was looked at is what `snapshot` has."""
        has_read_all = self.unread == 0
        self._watches.end(self, (snapshot, self._view), has_read_all=has_read_all)
        _log.info("directories left unread", unread=self.unread, watched=len(self._watches))
        if self._missed:
            _log.warning("changes that the kernel did not tell: no more hints", missed=self._missed)
            self._watches.switch_off()

    def close(self) -> None:
        """End the job without a snapshot, if it has none: the next one reads everything."""
        self._watches.end(self, None, has_read_all=False)


def _watches_permitted() -> int:
    try:
        with open(_LIMIT_FILE, "rb") as file:
            limit = int(file.read())
    except (OSError, ValueError):
        return WATCHED_MAX
    return min(WATCHED_MAX, limit // _SHARE)
