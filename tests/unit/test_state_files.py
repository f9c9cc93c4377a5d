"""The state directory: whole or absent, one agent at a time; identity, memory and journal in it."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from holdfast_agent.state.directory import StateDirectory
from holdfast_agent.state.identity import IdentityFiles
from holdfast_agent.state.journal import JobJournal, JournalledJob, SignedCommit
from holdfast_agent.state.memory import NOTHING, Memory, Remembered
from holdfast_agent.state.spool import MEMORY_BYTES_MAX
from holdfast_contract.errors import Conflict, InternalError, InvalidInput, NoSpace, Refused


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory(tmp_path / "a" / "state")
    yield opened
    opened.close()


def test_directory_and_files_are_for_the_owner_only(state: StateDirectory) -> None:
    state.write("x", b"secret")
    assert stat.S_IMODE(os.stat(state.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(state.path / "x").st_mode) == 0o600


def test_what_was_written_is_read_and_absent_is_none(state: StateDirectory) -> None:
    assert state.read("x") is None
    assert state.open("x") is None
    state.write("x", b"one", b"two")
    assert state.read("x") == b"onetwo"
    state.write("x", b"")
    assert state.read("x") == b""
    state.remove("x")
    state.remove("x")
    assert state.read("x") is None


def test_symlink_in_place_of_a_file_is_not_followed(state: StateDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"not the agent's")
    (state.path / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InternalError):
        state.read("x")
    state.write("x", b"mine")
    assert (tmp_path / "elsewhere").read_bytes() == b"not the agent's"


@pytest.mark.parametrize(
    ("number", "error"),
    [(28, NoSpace), (122, NoSpace), (30, Refused), (13, Refused), (5, InternalError)],
)
def test_failed_write_leaves_the_old_content_and_nothing_beside_it(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    state.write("x", b"old")
    before = sorted(os.listdir(state.path))

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error):
        state.write("x", b"new")
    assert state.read("x") == b"old"
    assert sorted(os.listdir(state.path)) == before


def test_file_left_by_a_crash_does_not_stop_the_next_write(state: StateDirectory) -> None:
    (state.path / "x.new").write_bytes(b"half")
    state.write("x", b"whole")
    assert state.read("x") == b"whole"


def test_lock_ends_with_the_process(tmp_path: Path) -> None:
    script = (
        "import sys, os\nfrom pathlib import Path\n"
        "from holdfast_agent.state.directory import StateDirectory\n"
        "StateDirectory(Path(sys.argv[1]))\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with pytest.raises(Conflict) as refused:
            StateDirectory(tmp_path)
        assert refused.value.details["pid"] == str(other.pid)
        other.kill()
    StateDirectory(tmp_path).close()


def test_spool_is_empty_unnamed_and_gone_when_closed(state: StateDirectory) -> None:
    before = sorted(os.listdir(state.path))
    with state.spool() as spool:
        spool.write(b"x" * 100)
        assert sorted(os.listdir(state.path)) == before
    assert sorted(os.listdir(state.path)) == before


def test_spool_is_in_memory_where_no_file_can_be_made(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def refuse(**where: object) -> None:
        raise OSError(28, "full")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check_spool(state.spool())


def check_spool(spool: BinaryIO) -> None:
    """Write more than is buffered, here and there, and read it back."""
    content = bytearray(b"".join(n.to_bytes(4, "big") for n in range(250_000)))
    spool.write(content)
    for at in (900_000, 5, 500_000):
        spool.seek(at)
        spool.write(b"written over")
        content[at : at + 12] = b"written over"
    assert spool.seek(0, 2) == len(content)
    spool.seek(3)
    assert spool.read(700_000) == content[3:700_003]
    spool.seek(0)
    assert spool.read() == content
    spool.close()


def limited(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let files take so many bytes, in pieces, as a disk does that fills up."""
    pwrite = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        left = room - offset
        if left <= 0:
            raise OSError(28, "full")
        return pwrite(fd, memoryview(data)[:left], offset)

    monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("room", [1 << 30, 700_001, 262_144, 1, 0])
def test_spool_goes_on_in_memory_where_the_disk_fills_up(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    limited(monkeypatch, room)
    check_spool(state.spool())


def test_spool_takes_no_more_memory_than_it_may(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 4096)
    spool = state.spool()
    with pytest.raises(NoSpace):
        for _ in range(2 * MEMORY_BYTES_MAX >> 20):
            spool.write(bytes(1 << 20))
    spool.close()


# --- identity
def test_identity_keys_are_made_once(state: StateDirectory) -> None:
    files = IdentityFiles(state)
    assert files.keys() is None
    made = files.keys_or_new(lambda: (b"s" * 32, b"b" * 32))
    assert made == files.keys_or_new(lambda: (b"x" * 32, b"y" * 32)) == files.keys()


def test_keys_that_cannot_be_kept_are_not_used(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str, *parts: bytes) -> None:
        raise NoSpace("full")

    monkeypatch.setattr(state, "write", full)
    with pytest.raises(NoSpace):
        IdentityFiles(state).keys_or_new(lambda: (b"s" * 32, b"b" * 32))


@pytest.mark.parametrize("content", [b"", b"holdfast-identity-keys-1\nshort", b"x" * 100])
def test_damaged_key_file_is_refused_and_stays(state: StateDirectory, content: bytes) -> None:
    state.write("identity.keys", content)
    with pytest.raises(Conflict):
        IdentityFiles(state).keys_or_new(lambda: (b"s" * 32, b"b" * 32))
    assert state.read("identity.keys") == content


def test_identity_record_is_the_last_one_kept(state: StateDirectory) -> None:
    files = IdentityFiles(state)
    assert files.record() is None
    files.keep_record(b"one")
    files.keep_record(b"two")
    assert files.record() == b"two"


# --- memory
def test_memory_starts_empty_and_keeps_the_last(state: StateDirectory) -> None:
    memory = Memory(state)
    assert memory.load() == NOTHING
    memory.keep(Remembered(7, b"h" * 32))
    assert Memory(state).load() == Remembered(7, b"h" * 32)


def test_torn_memory_is_not_taken_for_an_empty_one(state: StateDirectory) -> None:
    memory = Memory(state)
    memory.keep(Remembered(7, b"h" * 32))
    whole = state.read("memory")
    assert whole is not None
    for torn in (b"", whole[:-1], whole + b"x", b"X" + whole[1:]):
        state.write("memory", torn)
        with pytest.raises(Conflict):
            memory.load()


# --- journal
def test_journal_goes_from_begun_to_signed_to_ended_to_forgotten(state: StateDirectory) -> None:
    journal = JobJournal(state)
    assert journal.begin("J1", b"order") == JournalledJob("J1", b"order")
    signed = SignedCommit(3, b"manifest", b"outcome")
    journal.sign("J1", signed, io.BytesIO(b"refs" * 1000))
    again = JobJournal(state)
    assert again.begin("J1", b"order of another time") == JournalledJob("J1", b"order", signed)
    refs = again.refs("J1")
    assert refs is not None
    with refs:
        assert refs.read() == b"refs" * 1000
    again.end("J1", b"the end")
    assert again.all() == [JournalledJob("J1", b"order", None, b"the end")]
    assert again.refs("J1") is None
    again.forget("J1")
    again.forget("J1")
    assert again.all() == []
    assert not [name for name in os.listdir(state.path) if name.startswith("J1")]


def test_jobs_of_the_journal_do_not_touch_each_other(state: StateDirectory) -> None:
    journal = JobJournal(state)
    for name in ("J2", "J1", "J3"):
        journal.begin(name, name.encode())
    journal.forget("J3")
    assert [known.order for known in journal.all()] == [b"J1", b"J2"]


def test_end_of_a_job_that_was_never_noted_is_refused(state: StateDirectory) -> None:
    with pytest.raises(InvalidInput):
        JobJournal(state).end("J1", b"the end")


def test_file_of_the_journal_that_is_not_understood_hides_no_other(state: StateDirectory) -> None:
    journal = JobJournal(state)
    journal.begin("J1", b"order")
    state.write("J0.job", b"\xc1 nonsense")
    assert [known.job for known in journal.all()] == ["J1"]
    assert journal.begin("J0", b"anew").order == b"anew"
