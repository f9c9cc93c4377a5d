"""The second process of a large restore: it writes ordinary files, and does nothing else.

Half of writing a small file is the kernel's, and the other half needs the interpreter, which the
threads that receive and open chunks need, too. A process of its own shares the memory that these
fill, and neither waits for the other. What it is told comes as messages over a socket:

    Charge                with the descriptors of the memory
    Task, Task, ...       with the descriptor of the directory where that is another one
    -> b"" once, then an Answer to each task, in order

It gets its directories as descriptors, and the one key that content ids are made with. It ends when
the socket does; told by a signal it ends after the file that it writes.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from holdfast_agent.crypto.keys import ContentKey
from holdfast_agent.restore.directory import SCRIBE_MARK, TargetDirectory, TemporaryNames
from holdfast_agent.restore.metadata import Loss, Policy
from holdfast_agent.restore.plain import PlainWriter
from holdfast_agent.sources.roots import OwnFiles
from holdfast_agent.tree.entry import Content, Stat

MESSAGE_BYTES_MAX: Final = 96 << 10
"""Less than a socket takes at once by default (208 KiB), or is mapped anew each time (128)."""
ROOMS_MAX: Final = 8


class Charge(msgspec.Struct, array_like=True):
    """What it works with."""

    key: bytes
    """Of content ids."""
    run: str
    """For temporary names."""
    rooms: Sequence[int]
    """Length of each shared memory."""


class Task(msgspec.Struct, array_like=True):
    """Ordinary files to be written into the directory that came last."""

    special: bool
    """As `Policy` has it."""
    room: int
    """The memory in which their chunk lies: from `start` on, `length` bytes."""
    start: int
    length: int
    stats: Sequence[Stat]
    contents: Sequence[Content]


class Answer(msgspec.Struct, array_like=True):
    """What became of the files of a task, by their numbers in it; those not named are right."""

    undone: list[int]
    """Nothing of them is there: what the long way is for."""
    lost: list[tuple[int, list[Loss]]]


class Scribe:
    """Serves one restore over `connection`, until that ends or it is told to stop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stops = False
        self._home: TargetDirectory | None = None
        self._writers: dict[bool, PlainWriter] = {}

    def stop(self, *_: object) -> None:
        """End after the file that is being written: a handler of signals."""
        self._stops = True

    def serve(self) -> None:
        """Take the charge, then task after task."""
        message, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES_MAX, ROOMS_MAX)
        if not message:
            return
        charge = msgspec.msgpack.decode(message, type=Charge)
        rooms = [_mapped(*pair) for pair in zip(descriptors, charge.rooms, strict=True)]
        key, names = ContentKey(charge.key), TemporaryNames(charge.run, os.urandom, SCRIBE_MARK)
        decode = msgspec.msgpack.Decoder(Task).decode
        parent = os.getppid()
        self._connection.send(b"\0")
        while not self._stops:
            message, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES_MAX, 1)
            # What was told by one who is killed can be read still: the job goes on without it.
            if not message or os.getppid() != parent:
                return
            task = decode(message)
            if descriptors:
                self._enter(TargetDirectory(descriptors[0], names, OwnFiles(()), created=True))
            data = rooms[task.room][task.start : task.start + task.length]
            answer = self._written(task, self._writer(key, special=task.special), data)
            self._connection.send(msgspec.msgpack.encode(answer))

    def _enter(self, home: TargetDirectory) -> None:
        if self._home is not None:
            self._home.close()
        self._home = home
        self._writers.clear()

    def _writer(self, key: ContentKey, *, special: bool) -> PlainWriter:
        assert self._home is not None, "the first task comes with a directory"
        if special not in self._writers:
            self._writers[special] = PlainWriter(self._home, key, Policy(special=special))
        return self._writers[special]

    def _written(self, task: Task, writer: PlainWriter, data: memoryview) -> Answer:
        answer = Answer([], [])
        for number, (stat, content) in enumerate(zip(task.stats, task.contents, strict=True)):
            if self._stops:
                answer.undone.append(number)
                continue
            extent = content.extents[0]
            part = data[extent.offset : extent.offset + extent.length]
            losses = writer.write(part, stat, content)
            if losses is None:
                answer.undone.append(number)
            elif losses:
                answer.lost.append((number, losses))
        return answer


def _mapped(descriptor: int, length: int) -> memoryview:
    try:
        return memoryview(mmap.mmap(descriptor, length, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    # What is imported stays, and what comes is dropped in no cycles.
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        scribe = Scribe(inherited)
        signal.signal(signal.SIGTERM, scribe.stop)
        # Who gave the orders may be gone.
        with suppress(BrokenPipeError):
            scribe.serve()
