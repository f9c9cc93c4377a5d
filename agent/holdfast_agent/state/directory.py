"""The agent's state directory: one process at a time, small files that are whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from holdfast_agent.state.spool import open_spool
from holdfast_contract.errors import (
    Conflict,
    HoldfastError,
    InternalError,
    InvalidInput,
    NoSpace,
    Refused,
)

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_UNFINISHED: Final = ".new"
_PID_FILE: Final = "pid"


def translated(exc: OSError, what: str) -> HoldfastError:
    """Return the product's error for a failure of the state directory's file system."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: the state directory is full", hint="give HOLDFAST_STATE more room")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(
            f"{what}: the state directory cannot be written",
            hint="HOLDFAST_STATE must be writable for the agent's user",
        )
    reason = os.strerror(exc.errno) if exc.errno else "input/output failed"
    return InternalError(f"{what}: {reason}")


class StateDirectory:
    """An open, locked state directory.

    Everything goes through its descriptor, so that it stays the same directory. Files are mode
    0600 and replaced as a whole: written under another name, synced, renamed.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, made with mode 0700 when absent, and lock it until `close` or death.

        Raises:
            Conflict: another agent works with it.
            Refused, NoSpace, InternalError: it cannot be made or opened.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, _DIRECTORY)
        except OSError as exc:
            raise translated(exc, "state directory") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = (self.read(_PID_FILE) or b"?").decode("ascii", "replace").strip()
            os.close(self._fd)
            raise Conflict(
                f"the state directory is in use by another agent (process {owner})",
                hint="each agent needs a state directory of its own",
                pid=owner,
            ) from exc
        self._note_pid()

    def _note_pid(self) -> None:
        try:
            self.write(_PID_FILE, b"%d\n" % os.getpid())
        except HoldfastError:
            # Only there for the message above; a read-only state still serves to read from.
            return

    def close(self) -> None:
        """Unlock and close; nothing may be called afterwards."""
        os.close(self._fd)

    def place(self) -> tuple[int, int]:
        """Return (st_dev, st_ino) of the directory: a walk leaves it out."""
        info = os.fstat(self._fd)
        return info.st_dev, info.st_ino

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, None when it is absent.

        Raises:
            Refused, InternalError: it is there and cannot be read.
        """
        file = self.open(name)
        if file is None:
            return None
        with file:
            try:
                return file.read()
            except OSError as exc:
                raise translated(exc, name) from exc

    def open(self, name: str) -> BinaryIO | None:
        """Return a file open for reading, None when it is absent.

        Raises:
            Refused, InternalError: it is there and cannot be read.
        """
        _check_name(name)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise translated(exc, name) from exc
        return os.fdopen(fd, "rb")

    def write(self, name: str, *parts: bytes | memoryview) -> None:
        """Make `name` hold exactly `parts`, durably; after a crash it holds the old or the new.

        Raises:
            NoSpace, Refused, InternalError: it still holds the old.
        """
        self.replace(name, lambda file: file.writelines(parts))

    def replace(self, name: str, write: Callable[[BinaryIO], None]) -> None:
        """Make `name` hold what `write` writes, as `write` does for what is in memory.

        Raises:
            NoSpace, Refused, InternalError: it still holds the old.
        """
        _check_name(name)
        unfinished = name + _UNFINISHED
        try:
            self._remove(unfinished)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(unfinished, flags, 0o600, dir_fd=self._fd)
            with os.fdopen(fd, "wb") as file:
                write(file)
                file.flush()
                os.fsync(fd)
            os.rename(unfinished, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as exc:
            self._give_up(unfinished)
            raise translated(exc, name) from exc

    def remove(self, name: str) -> None:
        """Remove a file; absent is fine.

        Raises:
            Refused, InternalError: it is still there.
        """
        _check_name(name)
        try:
            self._remove(name)
        except OSError as exc:
            raise translated(exc, name) from exc

    def names(self, suffix: str) -> list[str]:
        """Return the names of the files that end in `suffix`, sorted."""
        return sorted(name for name in os.listdir(self._fd) if name.endswith(suffix))

    def spool(self) -> BinaryIO:
        """Return an empty unnamed file; in memory where the directory has no room for it."""
        return open_spool(f"/proc/self/fd/{self._fd}")

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return

    def _give_up(self, unfinished: str) -> None:
        try:
            self._remove(unfinished)
        except OSError:
            return


def _check_name(name: str) -> None:
    """Refuse what is not one name: job ids are checked when decoded, this is the last line.

    Raises:
        InvalidInput: it would lead out of the directory.
    """
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        raise InvalidInput("not a name of the state directory")
