"""At start: does the file system below the store keep what the store promises?

Each lie here has lost somebody's data: a link that overwrites, a write that is cut without a word,
a directory that cannot be synced, a name that stays after its deletion.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from holdfast_contract.errors import HoldfastError, NoSpace, StoreFailed
from holdfast_server.stores.failures import store_error
from holdfast_server.stores.filesystem import FileSystem

PROBE_BYTES = 64 * 1024 + 1
"""More than one page and block, and no multiple of either."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)


def probe_directory(
    disk: FileSystem, directory: int, path: str, new_name: Callable[[], str]
) -> None:
    """Write, link, read back and delete two small files in `directory`; nothing stays of them.

    Raises:
        StoreFailed: the file system lies, or cannot do what is needed; `path` is named.
        NoSpace: it is too full to tell.
    """
    names = [new_name() for _ in range(3)]
    try:
        _probe(disk, directory, path, names)
    except OSError as exc:
        error = store_error(exc, "try out", path)
        raise error if isinstance(error, NoSpace) else _refused(path, str(exc)) from exc
    finally:
        for name in names:
            with suppress(OSError):
                disk.unlink(name, directory)


def _probe(disk: FileSystem, directory: int, path: str, names: list[str]) -> None:
    one, two, linked = names
    content, other = bytes(range(251)) * (PROBE_BYTES // 251 + 1), b"another file"
    content = content[:PROBE_BYTES]
    _write_file(disk, directory, one, content)
    _write_file(disk, directory, two, other)
    try:
        disk.link(one, directory, linked, directory)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        raise _refused(path, "it has no hard links") from exc
    try:
        disk.sync(directory)
    except OSError as exc:
        raise _refused(path, "it cannot sync a directory") from exc
    if _replaces(disk, directory, two, linked):
        raise _refused(path, "it overwrites files that exist")
    if _read_file(disk, directory, linked) != content:
        raise _refused(path, "it does not return what was written")
    disk.unlink(linked, directory)
    if linked in [name for name, _ in disk.names(directory)]:
        raise _refused(path, "a deleted name stays")


def _replaces(disk: FileSystem, directory: int, name: str, existing: str) -> bool:
    with suppress(FileExistsError):
        disk.link(name, directory, existing, directory)
        return True
    with suppress(FileExistsError):
        disk.close(disk.create(existing, directory))
        return True
    return False


def _write_file(disk: FileSystem, directory: int, name: str, content: bytes) -> None:
    descriptor = disk.create(name, directory)
    try:
        view = memoryview(content)
        while view:
            view = view[disk.write(descriptor, view) :]
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def _read_file(disk: FileSystem, directory: int, name: str) -> bytes:
    descriptor = disk.open_file(name, directory)
    try:
        content = b""
        while part := disk.read_at(descriptor, PROBE_BYTES, len(content)):
            content += part
        return content
    finally:
        disk.close(descriptor)


def _refused(path: str, why: str) -> HoldfastError:
    return StoreFailed(
        f"the store {path} cannot be trusted: {why}",
        hint="use a local file system such as ext4 or xfs",
    )
