"""What a second process is told, and when there is none."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from holdfast_agent.jobs.tracking import JobCancel
from holdfast_agent.restore import dictation
from holdfast_agent.restore.dictation import Dictation, Lost
from holdfast_agent.restore.metadata import Policy
from holdfast_agent.restore.scribe import MESSAGE_BYTES_MAX, Answer, Charge, Task
from holdfast_agent.restore.steps import Bundle
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.tree.entry import Content, EntryType, Extent, Stat
from holdfast_contract.errors import Cancelled

KEY = b"k" * 32


class Process:
    """Stands for the one that would be begun; the test has the other end of its socket."""

    made: Process
    stays = False
    """Whether it does not end by itself."""

    def __init__(self, command: list[str], *, pass_fds: list[int], **_: object) -> None:
        self.socket = socket.socket(fileno=os.dup(pass_fds[0]))
        self.command = command
        self.calls: list[str] = []
        Process.made = self

    def terminate(self) -> None:
        self.calls.append("terminate")

    def kill(self) -> None:
        self.calls.append("kill")

    def wait(self, timeout: float | None = None) -> None:
        self.calls.append("wait")
        if timeout is not None and self.stays:
            raise subprocess.TimeoutExpired("", timeout)

    def next(self, kind: type[Any]) -> tuple[Any, list[int]]:
        message, descriptors, _, _ = socket.recv_fds(self.socket, MESSAGE_BYTES_MAX, 8)
        for descriptor in descriptors:
            os.close(descriptor)
        return msgspec.msgpack.decode(message, type=kind), descriptors


class Home:
    """Stands for a directory of the target."""

    descriptor = 0


@pytest.fixture
def room() -> Iterator[Arena]:
    arena = Arena(10_000, is_shared=True)
    yield arena
    arena.close()


@pytest.fixture
def told(room: Arena, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dictation]:
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(dictation, "FILES_BEFORE", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    one = Dictation(KEY, "run", [room], JobCancel())
    yield one
    one.close()
    Process.made.socket.close()


def bundle(count: int = 2, user: str = "") -> Bundle:
    stats = [Stat(b"f%d" % n, EntryType.FILE, 0o640, 10, 0, 0, 1, 0) for n in range(count)]
    contents = [Content(user=user, extents=(Extent(b"c" * 32, 0, 10),))] * count

    class Portion:
        policy = Policy(special=True)

    portion: Any = Portion()
    level: Any = None
    return Bundle(portion, level, stats, contents, b"c" * 32, 10)


def takes(told: Dictation, data: memoryview, home: object, one: Bundle | None = None) -> bool:
    return told.takes(one or bundle(), home, data)  # type: ignore[arg-type]


def begun(told: Dictation, data: memoryview) -> Process:
    assert not takes(told, data, Home()) and not takes(told, data, Home())
    return Process.made


def test_it_begins_with_many_files_and_is_told_nothing_before_it_is_there(
    told: Dictation, room: Arena
) -> None:
    room.take(100)
    data, home = room.take(500), Home()
    process = begun(told, data)
    assert process.command[1:-1] == ["-P", "-m", "holdfast_agent.restore.scribe"]
    charge, descriptors = process.next(Charge)
    assert (charge.key, charge.run, charge.rooms, len(descriptors)) == (KEY, "run", [10_000], 1)
    assert not takes(told, data, home)
    process.socket.send(b"\0")
    assert takes(told, data, home) and takes(told, data, home) and takes(told, data, Home())
    assert told.waiting == 3
    tasks = [process.next(Task) for _ in range(3)]
    assert [len(descriptors) for _, descriptors in tasks] == [1, 0, 1], "a directory once"
    for task, _ in tasks:
        assert (task.special, task.room, task.start, task.length) == (True, 0, 100, 500)
        assert (task.stats, task.contents) == (bundle().stats, bundle().contents)


def test_answers_come_in_order_and_name_what_is_not_right(told: Dictation, room: Arena) -> None:
    data = room.take(500)
    process = begun(told, data)
    process.socket.send(b"\0")
    home = Home()
    assert takes(told, data, home) and takes(told, data, home)
    process.socket.send(msgspec.msgpack.encode(Answer([1], [])))
    process.socket.send(msgspec.msgpack.encode(Answer([], [])))
    assert (told.answer(), told.waiting) == (Answer([1], []), 1)
    assert (told.answer(), told.waiting) == (Answer([], []), 0)


def test_what_lies_in_no_shared_memory_or_is_too_long_is_not_told(
    told: Dictation, room: Arena
) -> None:
    data = room.take(500)
    process = begun(told, data)
    process.socket.send(b"\0")
    assert not takes(told, memoryview(bytearray(500)), Home())
    assert not takes(told, data, Home(), bundle(2, user="u" * (MESSAGE_BYTES_MAX // 2)))
    assert told.waiting == 0
    assert takes(told, data, Home())


@pytest.mark.parametrize("answer", [([2], []), ([-1], []), ([], [[2, []]]), ["x"]])
def test_an_answer_about_files_that_it_was_not_told_is_none(
    told: Dictation, room: Arena, answer: object
) -> None:
    data = room.take(500)
    process = begun(told, data)
    process.socket.send(b"\0")
    assert takes(told, data, Home())
    process.socket.send(msgspec.msgpack.encode(answer))
    with pytest.raises(Lost):
        told.answer()
    assert told.waiting == 1 and process.calls == ["wait"]
    told.forget()
    assert told.waiting == 0 and not takes(told, data, Home())


def test_one_that_ends_before_it_is_there_is_none(told: Dictation, room: Arena) -> None:
    data = room.take(500)
    process = begun(told, data)
    process.socket.close()
    assert not takes(told, data, Home()) and process.calls == ["wait"]
    assert not takes(told, data, Home())


def test_one_that_ends_while_it_is_told_is_lost(told: Dictation, room: Arena) -> None:
    data = room.take(500)
    process = begun(told, data)
    process.socket.send(b"\0")
    assert takes(told, data, Home())
    process.socket.close()
    with pytest.raises(Lost):
        for _ in range(2):
            takes(told, data, Home())
    assert told.waiting == 1


def test_who_waits_looks_whether_the_job_is_cancelled_until_it_is_told_to_stop(
    room: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(dictation, "FILES_BEFORE", 3)
    monkeypatch.setattr(dictation, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    cancel, data = JobCancel(), room.take(500)
    told = Dictation(KEY, "run", [room], cancel)
    process = begun(told, data)
    process.socket.send(b"\0")
    assert takes(told, data, Home())
    cancel.set()
    with pytest.raises(Cancelled):
        told.answer()
    told.stop()
    assert process.calls == ["terminate"]
    process.socket.send(msgspec.msgpack.encode(Answer([0], [])))
    assert told.answer() == Answer([0], [])
    told.close()
    assert process.calls == ["terminate", "wait"]
    process.socket.close()


def test_one_that_does_not_end_is_killed(told: Dictation, room: Arena) -> None:
    process = begun(told, room.take(500))
    process.stays = True
    told.close()
    assert process.calls == ["wait", "kill", "wait"]


def test_where_there_can_be_no_process_there_is_none(
    room: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(dictation, "FILES_BEFORE", 1)
    data = room.take(500)
    for rooms, cores in (([room], {0, 1}), ([room], {0}), ([], {0, 1})):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: cores)
        told = Dictation(KEY, "run", rooms, JobCancel())
        assert not takes(told, data, Home()) and not takes(told, data, Home())
        told.stop()
        told.close()
