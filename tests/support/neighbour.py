"""A neighbour at the boundary of system calls: it acts between any two steps of the agent.

A racing process meets the moment between a look and an open a few times in thousands; this one
meets it every time. The agent's calls of `os` go through it: right before the kernel sees a name,
the neighbour may put something else in that name's place (or in its directory's), and later puts it
back. Everything follows from a seed.

    with Neighbour(pod, volume, outside, seed=7) as neighbour:
        run_backup(...)
    assert neighbour.attempts > 0
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.hostile import exchange_between, rename_no_replace

LINK, HARD, FIFO, SOCKET = "link", "hard", "fifo", "socket"
FOLDER, DEEP, FILE, DEVICE, GONE = "folder", "deep", "file", "device", "gone"
TRAPS: Final = (LINK, LINK, LINK, HARD, HARD, FIFO, SOCKET, FOLDER, DEEP, FILE, DEVICE, GONE)
"""What takes a name's place; symlinks and hard links to the outside most often."""
_DEEP_LEVELS: Final = 12
_STEPS_MAX: Final = 200_000
"""More of one run's calls on the volume mean that it goes round in circles."""
_NO_WAIT: Final = os.O_NONBLOCK | os.O_PATH | os.O_DIRECTORY | os.O_EXCL

# Position of the name among the arguments, and the keyword of its directory.
_NAMED: Final = {
    "open": (0, "dir_fd"),
    "stat": (0, "dir_fd"),
    "readlink": (0, "dir_fd"),
    "mkdir": (0, "dir_fd"),
    "unlink": (0, "dir_fd"),
    "rmdir": (0, "dir_fd"),
    "mknod": (0, "dir_fd"),
    "rename": (1, "dst_dir_fd"),
    "symlink": (1, "dir_fd"),
    "link": (1, "dst_dir_fd"),
}
_BARE: Final = (
    *("fstat", "fchmod", "chmod", "chown", "utime", "ftruncate", "lseek", "listdir", "scandir"),
    *("setxattr", "removexattr", "listxattr", "getxattr"),
    *("preadv", "pread", "pwrite", "copy_file_range"),
)
"""Calls that name a descriptor: before them the last name is swapped once more."""


class WouldWait(AssertionError):
    """The agent opens a FIFO in a way that waits for its other end."""


class Neighbour:
    """Swaps names below `volume`; `outside` mirrors its paths, so that what follows gets there."""

    def __init__(
        self,
        volume: Path,
        outside: Path,
        *,
        seed: int,
        traps: Sequence[str] = TRAPS,
        hard_to: Path | None = None,
        share: float = 0.8,
    ) -> None:
        """`hard_to`: what hard links lead to; without it the mirrored file outside."""
        self.volume, self.outside = os.fsencode(volume), os.fsencode(outside)
        self.seed = seed
        self.attempts = 0
        """Swaps made while the agent stood right before a call on that name."""
        self.by_kind: Counter[str] = Counter()
        self.steps = 0
        self.failures: list[str] = []
        """What the agent must never do; also raised, but a broad `except` might hide that."""
        self._traps = traps
        self._hard_to = hard_to
        self._share = share
        self._random = random.Random(seed)
        self._pit = os.fsencode(volume.parent / f"{volume.name}-pit")
        self._held: tuple[int, bytes, bytes] | None = None
        """(directory, name, name in the pit) of the swap that stands."""
        self._last: tuple[int, bytes] | None = None
        self._made = 0
        self._lock = threading.RLock()
        self._busy = False
        self._real: dict[str, Callable[..., Any]] = {}

    # --- standing between the agent and the kernel
    def __enter__(self) -> Self:
        os.makedirs(self._pit, exist_ok=True)
        self._pit_fd = os.open(self._pit, os.O_RDONLY | os.O_DIRECTORY)
        for call in (*_NAMED, *_BARE):
            self._real[call] = getattr(os, call)
            setattr(os, call, self._between(call))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for call, real in self._real.items():
            setattr(os, call, real)
        self._release()
        self._forget_last()
        os.close(self._pit_fd)
        shutil.rmtree(self._pit)
        if error is not None:
            error.add_note(f"neighbour: seed {self.seed}, {self.attempts} attempts")

    def _between(self, call: str) -> Callable[..., Any]:
        real = self._real[call]
        position, keyword = _NAMED.get(call, (0, ""))

        def stepped(*args: Any, **options: Any) -> Any:
            with self._lock:
                if not self._busy:
                    self._busy = True
                    try:
                        if keyword:
                            self._before_name(call, args, options, position, keyword)
                        else:
                            self._before_descriptor()
                    finally:
                        self._busy = False
            return real(*args, **options)

        return stepped

    def _before_name(
        self, call: str, args: Any, options: dict[str, Any], position: int, keyword: str
    ) -> None:
        directory, name = options.get(keyword), args[position]
        if directory is None or not isinstance(name, bytes) or not name or b"/" in name:
            return
        where = os.fsencode(self._real["readlink"](f"/proc/self/fd/{directory}"))
        is_top = (where, name) == os.path.split(self.volume)
        if not is_top and not (where + b"/").startswith(self.volume + b"/"):
            return
        self._count()
        self._forget_last()
        self._last = (os.dup(directory), name)
        self._act(where)
        if call == "open" and not args[1] & _NO_WAIT:
            self._check_no_fifo(name, directory)

    def _before_descriptor(self) -> None:
        if self._last is not None:
            self._count()
            self._act(os.fsencode(self._real["readlink"](f"/proc/self/fd/{self._last[0]}")))

    def _count(self) -> None:
        self.steps += 1
        if self.steps > _STEPS_MAX:
            self._fail("the agent goes round in circles")

    def _check_no_fifo(self, name: bytes, directory: int) -> None:
        try:
            info = self._real["stat"](name, dir_fd=directory, follow_symlinks=True)
        except OSError:
            return
        if stat.S_ISFIFO(info.st_mode):
            self._fail("the agent opens a FIFO and would wait for its other end")

    def _fail(self, why: str) -> None:
        self.failures.append(f"{why} (seed {self.seed}, step {self.steps})")
        raise WouldWait(self.failures[-1])

    def _forget_last(self) -> None:
        if self._last is not None:
            os.close(self._last[0])
            self._last = None

    # --- swapping
    def _act(self, where: bytes) -> None:
        assert self._last is not None
        if self._held is not None:
            if self._random.random() < 0.65:
                self._release()
            return
        if self._random.random() >= self._share:
            return
        directory, name = self._last
        is_top = not (where + b"/").startswith(self.volume + b"/")
        if is_top and self._random.random() < 0.9:
            return  # Without its root a run has few steps.
        if where != self.volume and where.startswith(self.volume) and self._random.random() < 0.25:
            # The directory that the agent stands in, under its feet.
            above, _, name = where.rpartition(b"/")
            self._swap_at(above, name, where)
            return
        self._swap(os.dup(directory), name, where + b"/" + name)

    def _swap_at(self, above: bytes, name: bytes, path: bytes) -> None:
        try:
            directory = self._real["open"](above, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        self._swap(directory, name, path)

    def _swap(self, directory: int, name: bytes, path: bytes) -> None:
        kind = self._random.choice(self._traps)
        self._made += 1
        trap = b"%d" % self._made
        try:
            self._put(directory, name, trap, kind, path)
        except OSError as exc:
            os.close(directory)
            self._clean(trap)
            if exc.errno not in (errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.EINVAL):
                raise
            return
        self._held = (directory, name, trap)
        self.attempts += 1
        self.by_kind[kind] += 1

    def _put(self, directory: int, name: bytes, trap: bytes, kind: str, path: bytes) -> None:
        if kind == GONE:
            rename_no_replace(directory, name, self._pit_fd, trap)
            return
        self._make(kind, trap, path)
        try:
            exchange_between(directory, name, self._pit_fd, trap)
        except FileNotFoundError:
            # Nothing has this name yet: the trap is there before what the agent makes.
            rename_no_replace(self._pit_fd, trap, directory, name)

    def _make(self, kind: str, trap: bytes, path: bytes) -> None:
        mirrored = self.outside + path[len(self.volume) :]
        place = self._pit + b"/" + trap
        if not os.path.lexists(mirrored):
            mirrored = self.outside + b"/secret"
        if kind == HARD:
            wanted = os.fsencode(self._hard_to) if self._hard_to else mirrored
            if os.path.islink(wanted) or not os.path.isfile(wanted):
                wanted = self.outside + b"/secret" if not self._hard_to else wanted
            self._real["link"](wanted, place)
        elif kind == LINK:
            self._real["symlink"](mirrored, place)
        elif kind == FIFO:
            os.mkfifo(place)
        elif kind in (FOLDER, DEEP):
            levels = b"/d" * _DEEP_LEVELS if kind == DEEP else b""
            os.makedirs(place + levels)
        elif kind == FILE:
            os.close(self._real["open"](place, os.O_CREAT | os.O_WRONLY))
        else:
            format_ = stat.S_IFSOCK if kind == SOCKET else stat.S_IFCHR
            self._real["mknod"](place, format_ | 0o600, os.makedev(1, 3))

    def _release(self) -> None:
        """Put things back: what stood there comes back, what stands there now goes."""
        if self._held is None:
            return
        directory, name, trap = self._held
        self._held = None
        try:
            if os.path.lexists(self._pit + b"/" + trap):
                try:
                    exchange_between(directory, name, self._pit_fd, trap)
                except FileNotFoundError:
                    rename_no_replace(self._pit_fd, trap, directory, name)
            else:
                # It was planted where nothing stood.
                rename_no_replace(directory, name, self._pit_fd, trap)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
        finally:
            os.close(directory)
            self._clean(trap)

    def _clean(self, trap: bytes) -> None:
        place = self._pit + b"/" + trap
        if os.path.isdir(place) and not os.path.islink(place):
            shutil.rmtree(place, ignore_errors=True)
        elif os.path.lexists(place):
            self._real["unlink"](place)
