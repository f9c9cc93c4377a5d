"""The server's directory: one server at a time, and files that are whole."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_contract.errors import Conflict, HoldfastError, NoSpace, StoreFailed, UsageError
from holdfast_server.data_directory import DataDirectory, write_file

HOLDER = (
    "import sys, pathlib\n"
    "from holdfast_server.data_directory import DataDirectory\n"
    "held = DataDirectory.open(pathlib.Path(sys.argv[1]))\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_absent_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with DataDirectory.open(place) as directory:
        assert directory.path == place
        assert mode(place) == 0o700
        assert (place / "lock").read_text() == f"{os.getpid()}\n"


def test_a_second_server_is_refused_with_the_first_one_s_pid(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path), pytest.raises(Conflict) as caught:
        DataDirectory.open(tmp_path)
    assert f"pid {os.getpid()}" in caught.value.message
    assert caught.value.exit_code == 11
    assert caught.value.details["pid"] == os.getpid()
    DataDirectory.open(tmp_path).close()


def test_without_a_pid_in_the_lock_the_message_still_stands(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(Conflict, match="in use by another server"):
            DataDirectory.open(tmp_path)


def test_a_killed_server_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Conflict, match=f"pid {holder.pid}"):
            DataDirectory.open(tmp_path)
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with DataDirectory.open(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ):
        directory.close()
        DataDirectory.open(tmp_path).close()


def test_a_file_in_place_of_the_directory_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="cannot be used"):
            DataDirectory.open(place)


def test_url_and_token_are_files_of_their_own_mode(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path) as directory:
        directory.write_url("https://127.0.0.1:1")
        directory.write_url("https://127.0.0.1:2")
        directory.write_token("hfa_x")
    assert (tmp_path / "url").read_text() == "https://127.0.0.1:2\n"
    assert (tmp_path / "admin.token").read_text() == "hfa_x\n"
    assert (mode(tmp_path / "url"), mode(tmp_path / "admin.token")) == (0o644, 0o600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["admin.token", "lock", "url"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "public", b"x", 0o644)
        os.umask(0)
        write_file(tmp_path / "secret", b"x", 0o600)
    finally:
        os.umask(before)
    assert (mode(tmp_path / "public"), mode(tmp_path / "secret")) == (0o644, 0o600)


def test_a_leftover_of_a_crash_is_not_written_into(tmp_path: Path) -> None:
    leftover = tmp_path / "secret.new"
    leftover.write_text("old")
    leftover.chmod(0o644)
    kept = leftover.open()
    write_file(tmp_path / "secret", b"new", 0o600)
    assert (tmp_path / "secret").read_bytes() == b"new"
    assert mode(tmp_path / "secret") == 0o600
    assert not leftover.exists()
    with kept:
        assert kept.read() == "old"


class Stop(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["open", "write", "fchmod", "fsync", "close"])
@pytest.mark.parametrize("error", [Stop(), OSError(errno.EIO, "x"), OSError(errno.ENOSPC, "x")])
def test_a_fault_at_any_call_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "url"
    write_file(path, b"old", 0o644)

    def failing(*args: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        try:
            write_file(path, b"new", 0o644)
            raise AssertionError("no fault")
        except HoldfastError as exc:
            assert isinstance(error, OSError)
            wanted = NoSpace if error.errno == errno.ENOSPC else StoreFailed
            assert type(exc) is wanted
            assert not (tmp_path / "url.new").exists()
        except Stop:
            assert isinstance(error, Stop)
    assert path.read_bytes() == b"old"
    write_file(path, b"again", 0o644)
    assert path.read_bytes() == b"again"
