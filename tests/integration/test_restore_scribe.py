"""The second process of a large restore: what it writes is right, and what it does not is told."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.crypto.keys import content_id
from holdfast_agent.jobs.tracking import JobProgress
from holdfast_agent.restore import dictation
from holdfast_agent.restore.bundles import Bundles, Data
from holdfast_agent.restore.dictation import Dictation
from holdfast_agent.restore.directory import TEMPORARY_PREFIX, TargetDirectory
from holdfast_agent.restore.metadata import What
from holdfast_agent.restore.pipeline import ROOMS
from holdfast_agent.restore.plain import BUNDLE_FILES_MAX
from holdfast_agent.restore.scribe import Answer, Charge, Scribe, Task
from holdfast_agent.restore.steps import Bundle
from holdfast_agent.snapshots.arena import Arena
from holdfast_agent.sources.findings import Reason
from holdfast_agent.tree.entry import Content, EntryType, Extent, Stat
from holdfast_contract.errors import Cancelled
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState
from tests.support.restore_bench import RestoreBench, under
from tests.support.samples import KEYS
from tests.support.trees import compare, scan

FOLDERS = 4
FILES = 2 * BUNDLE_FILES_MAX + 5
COUNT = FOLDERS * FILES
UNKNOWN_UID = 0xFFFFFFFF
"""A uid that means «leave as it is» to the kernel: no file can be given to it."""


class Told:
    """What the second process of a restore did, as seen from the process that tells it."""

    def __init__(self) -> None:
        self.dictations: list[Dictation] = []
        self.pids: set[int] = set()
        self.files = 0
        self.answers = 0
        self.before_answer: Callable[[int], None] = lambda number: None
        """Called with the number of answers that have come, before the next one."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Have the second process begin with the first bundle, and wait until it is there."""
    told = Told()
    takes, has_come, answer = Dictation.takes, Dictation._has_come, Dictation.answer

    def noted(self: Dictation, bundle: Bundle, home: TargetDirectory, data: memoryview) -> bool:
        is_taken = takes(self, bundle, home, data)
        told.files += len(bundle.stats) if is_taken else 0
        return is_taken

    def waited(self: Dictation, connection: socket.socket) -> bool:
        assert self._process is not None
        told.dictations.append(self)
        told.pids.add(self._process.pid)
        assert select.select([connection], [], [], 120)[0], "it does not come up"
        return has_come(self, connection)

    def answered(self: Dictation) -> Answer:
        told.before_answer(told.answers)
        told.answers += 1
        return answer(self)

    monkeypatch.setattr(Dictation, "takes", noted)
    monkeypatch.setattr(Dictation, "_has_come", waited)
    monkeypatch.setattr(Dictation, "answer", answered)
    monkeypatch.setattr(dictation, "FILES_BEFORE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    return told


@pytest.fixture
def bench(tmp_path: Path) -> RestoreBench:
    """Folders with several bundles each, one of each further kind between them."""
    bench = RestoreBench(tmp_path)
    for folder in (bench.volume / f"d{number}" for number in range(FOLDERS)):
        folder.mkdir()
        for number in range(FILES):
            path = folder / f"f{number:04d}"
            path.write_bytes(b"content of %d in %s" % (number, os.fsencode(folder.name)))
            path.chmod(0o600 + number % 0o200)
            os.utime(path, ns=(1, 1_500_000_000_000_000_000 + number))
        os.link(folder / "f0050", folder / "f0050-link")
        (folder / "f0060-empty").write_bytes(b"")
        (folder / "f0070-attribute").write_bytes(b"value")
        os.setxattr(folder / "f0070-attribute", "user.a", b"1")
        (folder / "f0080-below").mkdir()
        (folder / "f0080-below" / "file").write_bytes(b"below")
        (folder / "f0090-symlink").symlink_to("f0001")
        folder.chmod(0o750)
        os.utime(folder, ns=(1, 1_400_000_000_000_000_000))
    (bench.volume / "large").write_bytes(os.urandom(3 * MIB))
    return bench


def restored(bench: RestoreBench, name: str = "") -> Path:
    return under(bench.out, bench.volume) / name


def left_behind(bench: RestoreBench) -> list[str]:
    """Return the temporary names in what was restored."""
    prefix = TEMPORARY_PREFIX.decode()
    return [name for _, _, names in os.walk(bench.out) for name in names if name.startswith(prefix)]


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def changing(monkeypatch: pytest.MonkeyPatch, name: bytes, **changes: object) -> None:
    """Have one file's content part say something else, as a forged page would."""
    write = Bundles.write

    def forged(self: Bundles, bundle: Bundle, data: Data) -> None:
        def content(at: int) -> Content:
            one = bundle.contents[at]
            is_it = bundle.stats[at].name == name and bundle.level.name == b"d3"
            return msgspec.structs.replace(one, **changes) if is_it else one

        contents = [content(at) for at in range(len(bundle.stats))]
        write(self, msgspec.structs.replace(bundle, contents=contents), data)

    monkeypatch.setattr(Bundles, "write", forged)


def test_what_it_writes_comes_back_and_what_it_is_not_for_beside_it(
    bench: RestoreBench, told: Told
) -> None:
    bench.backed_up()
    bench.progress = JobProgress()
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED, done.result.not_exact
    assert compare(scan(bench.volume), scan(under(bench.out, bench.volume))) == []
    assert told.files >= COUNT - FOLDERS, "all but those that have another name"
    assert done.finished.counts.files == COUNT + FOLDERS * 5 + 1
    assert bench.progress.counts(0).files == COUNT + FOLDERS * 5 + 1
    assert all(map(has_ended, told.pids)) and len(told.pids) == 1


def test_a_small_restore_has_none(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dictation, "FILES_BEFORE", COUNT + 1)
    bench.backed_up()
    assert bench.restore(target=bench.out).finished.state is JobState.COMPLETED
    assert not told.pids and not told.files


@pytest.mark.parametrize("stays_for", [0, 3])
def test_where_it_is_killed_all_of_its_files_are_written_here(
    bench: RestoreBench, told: Told, stays_for: int
) -> None:
    bench.backed_up()

    def kill(number: int) -> None:
        if number == stays_for:
            (pid,) = told.pids
            os.kill(pid, signal.SIGKILL)

    told.before_answer = kill
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED
    assert compare(scan(bench.volume), scan(under(bench.out, bench.volume))) == []
    assert done.finished.counts.files == COUNT + FOLDERS * 5 + 1
    assert left_behind(bench) == []
    assert all(map(has_ended, told.pids))


def test_a_file_that_a_killed_one_was_at_goes_away_and_others_files_stay(
    bench: RestoreBench, told: Told
) -> None:
    """Names that it draws begin with a letter that no other temporary name has."""
    bench.backed_up()
    order = bench.restore_order(target=bench.out)
    half = f"{TEMPORARY_PREFIX.decode()}{order.job}-s0123456789abcdef"
    other = f"{TEMPORARY_PREFIX.decode()}{order.job}-0123456789abcdef"

    def kill(number: int) -> None:
        if number == 0:
            (pid,) = told.pids
            os.kill(pid, signal.SIGKILL)
            assert has_ended(pid) or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            for name in (half, other):
                (restored(bench) / "d0" / name).write_bytes(b"half")

    told.before_answer = kill
    done = bench.restore(target=bench.out, job=order.job)
    assert done.finished.state is JobState.COMPLETED
    assert left_behind(bench) == [other]


@pytest.mark.parametrize("message", [b"", b"\xc1", msgspec.msgpack.encode(([FILES], []))])
def test_nonsense_ends_it_and_all_of_its_files_are_written_here(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    bench.backed_up()

    def replace(number: int) -> None:
        if number == 2:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            its.send(message)
            its.close()
            (one,) = told.dictations
            assert one._connection is not None
            one._connection.close()
            one._connection = ours

    told.before_answer = replace
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED
    assert compare(scan(bench.volume), scan(under(bench.out, bench.volume))) == []
    assert done.finished.counts.files == COUNT + FOLDERS * 5 + 1


def test_a_wrong_content_is_damage_of_that_file_alone(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    changing(monkeypatch, b"f0020", content_id=bytes(32))
    done = bench.restore(target=bench.out)
    assert [row["path"] for row in done.result.damaged] == [f"{bench.volume}/d3/f0020"]
    assert not (restored(bench) / "d3" / "f0020").exists() and left_behind(bench) == []
    assert told.files >= COUNT - FOLDERS
    assert done.finished.counts.files == COUNT + FOLDERS * 5


def test_what_a_file_lost_is_told_with_its_path(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    changing(monkeypatch, b"f0020", uid=UNKNOWN_UID)
    done = bench.restore(target=bench.out)
    (row,) = done.result.not_exact
    assert (row["path"], row["reason"]) == (f"{bench.volume}/d3/f0020", What.OWNER)
    assert done.finished.counts.files == COUNT + FOLDERS * 5 + 1


def test_a_name_that_a_directory_has_is_told_and_the_directory_stays(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    takes = Dictation.takes

    def made(self: Dictation, bundle: Bundle, home: TargetDirectory, data: memoryview) -> bool:
        if bundle.level.name == b"d3" and bundle.stats[0].name == b"f0000":
            os.mkdir(b"f0001", dir_fd=home.descriptor)
        return takes(self, bundle, home, data)

    monkeypatch.setattr(Dictation, "takes", made)
    done = bench.restore(target=bench.out)
    (row,) = done.result.not_exact
    assert (row["path"], row["reason"]) == (f"{bench.volume}/d3/f0001", Reason.REPLACED)
    assert (restored(bench) / "d3" / "f0001").is_dir() and left_behind(bench) == []


def stopping(monkeypatch: pytest.MonkeyPatch, told: Told, then: Callable[[], None]) -> None:
    """Have the second process stand still from before it is told of the first bundle of d1 on."""
    takes = Dictation.takes

    def stop(self: Dictation, bundle: Bundle, home: TargetDirectory, data: memoryview) -> bool:
        if bundle.level.name == b"d1" and bundle.stats[0].name == b"f0000":
            (pid,) = told.pids
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
            then()
        return takes(self, bundle, home, data)

    monkeypatch.setattr(Dictation, "takes", stop)


def test_a_cancel_ends_it_after_the_file_that_it_writes(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.backed_up()
    bench.progress = JobProgress()
    end = Dictation.stop

    def go_on(self: Dictation) -> None:
        end(self)
        for pid in told.pids:
            os.kill(pid, signal.SIGCONT)

    stopping(monkeypatch, told, bench.cancel.set)
    monkeypatch.setattr(Dictation, "stop", go_on)
    with pytest.raises(Cancelled):
        bench.restore(target=bench.out)
    assert all(map(has_ended, told.pids)) and left_behind(bench) == []
    assert os.listdir(restored(bench, "d1")) == [], "what it was told last is not begun"
    found = [Path(top) / name for top, _, names in os.walk(bench.out) for name in names]
    files = [path for path in found if not path.is_symlink()]
    for path in files:
        assert path.read_bytes() == (bench.volume / path.relative_to(restored(bench))).read_bytes()
    assert 0 < bench.progress.counts(0).files <= len(found)


def test_it_holds_nothing_but_what_it_needs(bench: RestoreBench, told: Told) -> None:
    """Its socket, the memory, one directory of the target; no connection of the agent's."""
    bench.backed_up()
    held: list[str] = []

    def look(number: int) -> None:
        (pid,) = told.pids
        for name in set(os.listdir(f"/proc/{pid}/fd")) - {"0", "1", "2"}:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            held.append("target" if link.startswith(f"{bench.out}/") else link.split(":")[0])
        told.before_answer = lambda number: None

    told.before_answer = look
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        assert bench.restore(target=bench.out).finished.state is JobState.COMPLETED
    assert held.count("socket") == 1 and held.count("/memfd") == ROOMS
    assert set(held) <= {"socket", "/memfd", "target"}


def test_a_directory_gets_its_time_after_the_last_file_in_it(
    bench: RestoreBench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left when everything that was told before is answered: here that takes its time."""
    bench.backed_up()
    stopped: list[bool] = []

    def go_on(number: int) -> None:
        for pid in told.pids:
            os.kill(pid, signal.SIGCONT)

    told.before_answer = go_on
    stopping(monkeypatch, told, lambda: stopped.append(True))
    done = bench.restore(target=bench.out)
    assert done.finished.state is JobState.COMPLETED and stopped == [True]
    for number in range(FOLDERS):
        assert (restored(bench) / f"d{number}").stat().st_mtime_ns == 1_400_000_000_000_000_000


CONTENTS = [b"content of %d" % number for number in range(10)]


@pytest.fixture
def charged(tmp_path: Path) -> Iterator[tuple[Scribe, socket.socket]]:
    """Provide one in this process, and the socket by which it was told to write ten files."""
    at = [sum(map(len, CONTENTS[:number])) for number in range(10)]
    arena = Arena(1000, is_shared=True)
    chunk = arena.take(500)
    chunk[:] = b"".join(CONTENTS).ljust(500)
    stats, contents = [], []
    for number, data in enumerate(CONTENTS):
        stats.append(Stat(b"f%d" % number, EntryType.FILE, 0o640, len(data), 5, 0, 1, 0))
        extent = Extent(bytes(32), at[number], len(data))
        found = content_id(KEYS, data)
        uid, gid = os.geteuid(), os.getegid()
        contents.append(Content(uid=uid, gid=gid, content_id=found, extents=(extent,)))
    task = Task(special=True, room=0, start=0, length=500, stats=stats, contents=contents)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    home = os.open(tmp_path, os.O_RDONLY)
    charge = Charge(KEYS.content, "run", [1000])
    socket.send_fds(ours, [msgspec.msgpack.encode(charge)], [arena.descriptor])
    socket.send_fds(ours, [msgspec.msgpack.encode(task)], [home])
    scribe = Scribe(its)
    yield scribe, ours
    if scribe._home is not None:
        scribe._home.close()
    os.close(home)
    arena.close()
    for one in (ours, its):
        one.close()


def test_told_to_stop_it_writes_no_further_file_and_says_which_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, charged: tuple[Scribe, socket.socket]
) -> None:
    """The order comes while the third of ten files is written."""
    (scribe, ours), rename = charged, os.rename

    def stop(old: bytes, new: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if new == b"f2":
            scribe.stop()
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", stop)
    scribe.serve()
    assert ours.recv(10) == b"\0"
    answer = msgspec.msgpack.decode(ours.recv(1000), type=Answer)
    assert answer == Answer([3, 4, 5, 6, 7, 8, 9], [])
    assert sorted(os.listdir(tmp_path)) == ["f0", "f1", "f2"]
    assert [(tmp_path / f"f{n}").read_bytes() for n in range(3)] == CONTENTS[:3]


@pytest.mark.parametrize("parents", [(7, 7), (7, 1)])
def test_what_one_who_was_killed_had_told_is_left_to_the_next_attempt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    charged: tuple[Scribe, socket.socket],
    parents: tuple[int, int],
) -> None:
    (scribe, ours), ids = charged, iter(parents)
    monkeypatch.setattr(os, "getppid", lambda: next(ids, parents[-1]))
    ours.shutdown(socket.SHUT_WR)
    scribe.serve()
    is_orphan = parents[0] != parents[1]
    assert len(os.listdir(tmp_path)) == (0 if is_orphan else len(CONTENTS))
