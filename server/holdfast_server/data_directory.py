"""The server's own directory: one server in it at a time, and small files that are whole.

lock          held while a server runs; says its pid
url           where the running server answers
admin.token   the first administrator's token, made once
tls/          its certificates (auth.certificates)
store/        objects, unless --store names another place
catalog.db    the catalog, unless --catalog names another
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from holdfast_contract.errors import Conflict, HoldfastError, NoSpace, StoreFailed, UsageError

DIRECTORY_MODE = 0o700
SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
_TEMPORARY = ".new"
"""One server at a time and one writer of each file: a fixed name leaves at most one leftover."""


class DataDirectory:
    """The directory of one server, locked from `open` to `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> Self:
        """Make the directory where it is absent, and lock it.

        The kernel lets go of the lock when the process ends, however it ends.

        Raises:
            Conflict: another server runs in it; its pid is in the message.
            UsageError: `path` is no directory, or may not be entered.
        """
        try:
            _make_durable(path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:
            _take(lock, path)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock)

    @property
    def url_file(self) -> Path:
        """Where the server answers."""
        return self.path / "url"

    @property
    def token_file(self) -> Path:
        """The first administrator's token."""
        return self.path / "admin.token"

    @property
    def tls(self) -> Path:
        """Where certificates lie."""
        return self.path / "tls"

    def write_url(self, url: str) -> None:
        """Say where the server answers, in `url`."""
        write_file(self.url_file, url.encode() + b"\n", PUBLIC_MODE)

    def write_token(self, token: str) -> None:
        """Keep the first administrator's token in `admin.token`, for its owner only."""
        write_file(self.token_file, token.encode() + b"\n", SECRET_MODE)

    def close(self) -> None:
        """Let the next server in."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        """Begin a block at whose end the directory is given back."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the directory back."""
        self.close()


def _make_durable(path: Path) -> None:
    absent = [above for above in (path, *path.parents) if not above.exists()]
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    for made in absent:
        sync_directory(made.parent)


def _take(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        who = f"the server with pid {pid}" if pid.isdecimal() else "another server"
        raise Conflict(
            f"the directory {path} is in use by {who}",
            hint="stop that server first, or give this one another --data",
            pid=int(pid) if pid.isdecimal() else None,
        ) from exc
    except OSError as exc:
        raise _unusable(path, exc) from exc
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Put `content` into the file `path`, durable; a crash leaves the old file or the new one.

    Raises:
        NoSpace, StoreFailed: it is the old one.
    """
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()  # a crash may have left it, with another mode
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        _write_synced(os.open(temporary, flags, mode), content, mode)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        raise file_error(path, exc) from exc


def _write_synced(descriptor: int, content: bytes, mode: int) -> None:
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)  # whatever the umask says
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make the names in the directory `path` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_error(path: Path, exc: OSError) -> HoldfastError:
    """Return the product's error for an OSError about one of the server's own files."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space for {path}")
    return StoreFailed(f"{path}: {exc.strerror}")


def _unusable(path: Path, exc: OSError) -> HoldfastError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space for {path}")
    return UsageError(
        f"the data directory cannot be used: {path}: {exc.strerror}",
        hint="--data names a directory that this user may write",
    )
