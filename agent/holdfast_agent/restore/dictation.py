"""Having ordinary files written by a second process: what it is told, and what it answers.

It is begun when a restore turns out to be a large one, and is told nothing before it says that it
is there. Where there can be none, or it ends by itself, everything goes on without it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from holdfast_agent.ports import Cancel
from holdfast_agent.restore.directory import TargetDirectory
from holdfast_agent.restore.scribe import MESSAGE_BYTES_MAX, ROOMS_MAX, Answer, Charge, Task
from holdfast_agent.restore.steps import Bundle
from holdfast_agent.snapshots.arena import Arena
from holdfast_contract.logs import get_logger

if TYPE_CHECKING:
    from subprocess import Popen

FILES_BEFORE: Final = 2048
"""Ordinary files that are written here first: to begin a process costs as much as to write 3,000
files. Meanwhile it comes up."""
WAITING_MAX: Final = 8
"""Tasks that are told and not yet done."""
_POLL_SECONDS: Final = 0.2
_END_SECONDS: Final = 10.0
"""For a process that has nothing to do any more to end by itself."""

_log = get_logger(__name__)


class Lost(Exception):
    """The second process has ended by itself: whatever it has not answered is to be done here."""


class Dictation:
    """One restore's second process, or the lack of it; for one thread."""

    def __init__(self, key: bytes, run: str, rooms: Sequence[Arena], cancel: Cancel) -> None:
        """Nothing begins yet. `rooms` hold what may be dictated; none: nothing is."""
        assert len(rooms) <= ROOMS_MAX
        self._charge = Charge(key, run, [len(room) for room in rooms])
        self._rooms = rooms
        self._cancel = cancel
        self._files_before = FILES_BEFORE
        self._process: Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._has_begun = not rooms or len(os.sched_getaffinity(0)) < 2
        self._is_ready = False
        self._stops = False
        self._told: deque[int] = deque()
        """Number of files of each task under way."""
        self._home: TargetDirectory | None = None
        """Where the tasks are for."""

    @property
    def waiting(self) -> int:
        """How many tasks are not answered yet."""
        return len(self._told)

    def takes(self, bundle: Bundle, home: TargetDirectory, data: memoryview) -> bool:
        """Have the files of `bundle` written, whose chunk is `data`; False: they are not.

        Each task that was taken is answered in its turn.

        Raises:
            Cancelled: while there was no room for another task.
            Lost: as `answer`.
        """
        if not self._has_begun:
            self._files_before -= len(bundle.stats)
            if self._files_before <= 0:
                self._has_begun = True
                self._begin()
        connection = self._connection
        if connection is None or not (self._is_ready or self._has_come(connection)):
            return False
        place = self._place_of(data)
        if place is None:
            return False
        special = bundle.portion.policy.special
        task = Task(special, *place, len(data), bundle.stats, bundle.contents)
        message = msgspec.msgpack.encode(task)
        # Names of owners may be long.
        if len(message) > MESSAGE_BYTES_MAX:
            return False
        descriptors = [] if home is self._home else [home.descriptor]
        self._send(connection, message, descriptors)
        self._home = home
        self._told.append(len(bundle.stats))
        return True

    def answer(self) -> Answer:
        """Wait for the first task that is not answered yet, and return what became of it.

        Raises:
            Cancelled: before it was.
            Lost: the process has ended, or speaks nonsense; `waiting` tells of how many tasks
                nothing is known. Files of the last ones may be there, or begun.
        """
        assert self._connection is not None and self._told
        while True:
            try:
                message = self._connection.recv(MESSAGE_BYTES_MAX)
            except TimeoutError:
                if not self._stops:
                    self._cancel.check()
                continue
            except OSError:
                message = b""
            break
        count = self._told[0]
        try:
            answer = msgspec.msgpack.decode(message, type=Answer)
        except msgspec.MsgspecError:
            raise self._lost() from None
        if not all(0 <= n < count for n in [*answer.undone, *(n for n, _ in answer.lost)]):
            raise self._lost()
        self._told.popleft()
        return answer

    def forget(self) -> None:
        """Expect no answers any more: their tasks are done here."""
        self._told.clear()

    def stop(self) -> None:
        """Have it end after the file that it writes; what it has written is answered."""
        self._stops = True
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """End it; harmless where there is none."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._end(self._process)
            self._process = None

    def _place_of(self, data: memoryview) -> tuple[int, int] | None:
        """Return in which memory it lies, and where; None: in none that is shared."""
        for number, room in enumerate(self._rooms):
            start = room.offset_of(data)
            if start is not None:
                return number, start
        return None

    # --- the process
    def _begin(self) -> None:
        import subprocess  # with the first large restore: an agent that idles does without

        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                # Its own group: Ctrl-C is for the process that gives it its orders.
                self._process = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "holdfast_agent.restore.scribe",
                        str(its.fileno()),
                    ],
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    process_group=0,
                )
                descriptors = [room.descriptor for room in self._rooms]
                socket.send_fds(ours, [msgspec.msgpack.encode(self._charge)], descriptors)
            except OSError as exc:
                _log.info("no second process", reason=str(exc))
                ours.close()
                return
        ours.setblocking(False)
        self._connection = ours

    def _end(self, process: Popen[bytes]) -> None:
        import subprocess

        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _has_come(self, connection: socket.socket) -> bool:
        try:
            self._is_ready = bool(connection.recv(1))
        except BlockingIOError:
            return False
        except OSError:
            self._is_ready = False
        connection.settimeout(_POLL_SECONDS)
        if not self._is_ready:
            self.close()
        return self._is_ready

    def _send(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                if descriptors:
                    socket.send_fds(connection, [message], descriptors)
                else:
                    connection.send(message)
                return
            except TimeoutError:
                self._cancel.check()
            except OSError:
                raise self._lost() from None

    def _lost(self) -> Lost:
        if not self._stops:
            _log.warning("the second process has ended", waiting=self.waiting)
        self.close()
        return Lost()
