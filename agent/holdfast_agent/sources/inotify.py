"""What the kernel tells of changes in a directory: an inotify queue, asked and never waited for.

Only watchdog's bindings are used (imported with the first queue: 2 MiB). Its observer hands events
on half a second later, drops an overflow of the queue without a word and watches by path.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import termios
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from holdfast_agent.sources.directory import by_descriptor

_READ_BYTES: Final = 1 << 16
_READS_MAX: Final = 256
"""16 MiB of events: more than a queue of the usual length holds. What writes faster than that is
taken for an overflow, so that a drain ends."""

_ASKED: Final = (
    "IN_MODIFY",
    "IN_ATTRIB",
    "IN_CLOSE_WRITE",
    "IN_MOVED_FROM",
    "IN_MOVED_TO",
    "IN_CREATE",
    "IN_DELETE",
    "IN_DELETE_SELF",
    "IN_MOVE_SELF",
    "IN_ONLYDIR",
)
"""Whatever changes what a backup has; not IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE, which its own
reading would raise. IN_CLOSE_WRITE comes also when a mapping ends, or a descriptor that was written
to asynchronously: those writes are told by nothing else."""


class Happened(NamedTuple):
    """One event."""

    watch: int
    """Number of the watch; -1: the queue overflowed, events are lost."""
    is_over: bool
    """Whether the watch is gone with it."""


class NoWatch(Exception):
    """The kernel gives no watch; `is_full`: none more at all, neither for other directories."""

    def __init__(self, error: int) -> None:
        super().__init__(os.strerror(error))
        self.is_full = error in (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class ChangeQueue(Protocol):
    """Watches of directories, and what they told. Used by one thread at a time."""

    @property
    def descriptor(self) -> int:
        """What to poll for reading."""

    def watch(self, directory: int) -> int:
        """Watch the directory behind a descriptor; the same one has the same number.

        Raises:
            NoWatch: the kernel refuses.
        """

    def unwatch(self, watch: int) -> None:
        """Give a watch back; one that is gone already is no error."""

    def happened(self) -> Iterator[Happened]:
        """Yield everything that is in the queue, and end."""

    def close(self) -> None:
        """End all watches."""


class InotifyQueue:
    """The kernel's queue; a ChangeQueue."""

    def __init__(self) -> None:
        """Open a queue.

        Raises:
            NoWatch: the kernel, or a limit of it, permits none.
        """
        from watchdog.observers import inotify_c

        self._add, self._remove = inotify_c.inotify_add_watch, inotify_c.inotify_rm_watch
        self._parse = inotify_c.Inotify._parse_event_buffer
        names = inotify_c.InotifyConstants
        self._mask: int = sum(getattr(names, name) for name in _ASKED)
        self._overflow, self._ignored = names.IN_Q_OVERFLOW, names.IN_IGNORED
        self.descriptor = inotify_c.inotify_init()
        if self.descriptor < 0:
            raise NoWatch(ctypes.get_errno())
        os.set_inheritable(self.descriptor, False)
        os.set_blocking(self.descriptor, False)
        self._waiting = array.array("i", [0])

    def watch(self, directory: int) -> int:
        """Watch the directory behind a descriptor: the thing itself, whatever its path."""
        path = by_descriptor(directory).encode()
        watch: int = self._add(self.descriptor, path, self._mask)
        if watch < 0:
            raise NoWatch(ctypes.get_errno())
        return watch

    def unwatch(self, watch: int) -> None:
        """Give a watch back."""
        self._remove(self.descriptor, watch)

    def happened(self) -> Iterator[Happened]:
        """Yield everything that is in the queue.

        The kernel queues an event inside the call that makes the change: whatever ended before this
        is asked is here.
        """
        for _ in range(_READS_MAX):
            fcntl.ioctl(self.descriptor, termios.FIONREAD, self._waiting)
            if not self._waiting[0]:
                return
            try:
                data = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            for watch, mask, _, _ in self._parse(data):
                lost = bool(mask & self._overflow)
                yield Happened(-1 if lost else watch, bool(mask & self._ignored))
        yield Happened(-1, False)

    def close(self) -> None:
        """End all watches."""
        os.close(self.descriptor)
