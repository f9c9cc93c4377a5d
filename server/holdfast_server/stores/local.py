"""A store in a local directory.

An object is written to a temporary file below `.incoming`, synced, linked to its name (a link never
overwrites, a rename does), and the folder is synced. So a name stands for all bytes or for none,
at every moment and after every crash. Temporary files that a crash left are removed at start: the
lock file says that no other process is writing here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from holdfast_contract.errors import (
    Conflict,
    Damaged,
    InvalidInput,
    NoSpace,
    NotFound,
    UsageError,
)
from holdfast_contract.ids import ObjectName, new_ulid
from holdfast_contract.logs import get_logger
from holdfast_server.stores.failures import store_error, translated
from holdfast_server.stores.filesystem import FileStatus, FileSystem, LinuxFileSystem
from holdfast_server.stores.folders import Folders
from holdfast_server.stores.incoming import LocalIncoming, Temporary
from holdfast_server.stores.names import check_object_name, check_prefix, is_component
from holdfast_server.stores.port import Space
from holdfast_server.stores.probe import probe_directory
from holdfast_server.stores.reserve import Reserve

INCOMING = ".incoming"
LOCK = ".lock"
ROOMS_MAX = 1024
"""So many pieces of memory the kernel fills in one call."""

_Names = list[tuple[str, bool]]

_log = get_logger(__name__)


class LocalStore:
    """Objects as files below one directory; safe to use from several threads.

    Life cycle: `open` (lock, clean up, probe), any number of calls, `close`.
    """

    def __init__(
        self,
        root: int,
        incoming: int,
        lock: int,
        filesystem: FileSystem,
        new_name: Callable[[], str],
    ) -> None:
        self._root = root
        self._incoming = incoming
        self._lock = lock
        self._filesystem = filesystem
        self._new_name = new_name
        self._reserve = Reserve(lambda: filesystem.free(root))
        self._folders = Folders(root, filesystem)

    @classmethod
    def open(
        cls,
        path: str,
        filesystem: FileSystem | None = None,
        new_name: Callable[[], str] = new_ulid,
    ) -> Self:
        """Open the store in the directory `path`, making its last component where it is absent.

        Raises:
            UsageError: the directory above is absent, or `path` is no directory.
            Conflict: another process has it open.
            StoreFailed: the file system below cannot keep what the store promises.
        """
        disk = filesystem or LinuxFileSystem()
        root = _open_root(disk, path)
        opened = [root]
        try:
            with translated("open", path):
                lock = disk.lock(LOCK, root)
                if lock is None:
                    raise Conflict(
                        f"the store {path} is in use by another server",
                        hint="stop that server, or give this one a store of its own",
                    )
                opened.append(lock)
                incoming = _incoming_folder(disk, root)
                opened.append(incoming)
            store = cls(root, incoming, lock, disk, new_name)
            store._remove_leftovers()
            store._probe(path)
        except BaseException:
            for descriptor in reversed(opened):
                with suppress(OSError):
                    disk.close(descriptor)
            raise
        return store

    # --- writing

    def put(
        self,
        name: ObjectName,
        data: bytes | bytearray | memoryview,
        *,
        may_use_reserve: bool = False,
    ) -> None:
        """Store `data` under `name`, durable on return; see `Store.put`."""
        view = memoryview(data).cast("B")
        with self.begin(name, bytes_max=len(view), may_use_reserve=may_use_reserve) as incoming:
            incoming.write(view)
            incoming.commit()

    def begin(
        self, name: ObjectName, *, bytes_max: int, may_use_reserve: bool = False
    ) -> LocalIncoming:
        """Begin an object of at most `bytes_max` bytes; see `Store.begin`."""
        check_object_name(name)
        with translated("look at the room for", name):
            self._reserve.admit(bytes_max, may_use_reserve=may_use_reserve)
        temporary = self._new_name()
        try:
            with translated("create", name):
                descriptor = self._filesystem.create(temporary, self._incoming)
        except BaseException:
            self._reserve.release(bytes_max)
            raise
        return LocalIncoming(
            name,
            bytes_max,
            Temporary(self._filesystem, self._incoming, temporary, descriptor),
            publish=self._publish,
            release=self._reserve.release,
        )

    def _publish(self, temporary: str, name: ObjectName) -> None:
        """Link a synced temporary file to its name and make the name durable."""
        *folders, leaf = name.split("/")
        with translated("store", name), self._folders.durable(tuple(folders)) as folder:
            try:
                self._filesystem.link(temporary, self._incoming, leaf, folder)
            except FileExistsError as exc:
                raise Conflict(f"the object exists: {name}", object=name) from exc
            try:
                self._filesystem.sync(folder)
            except OSError:
                # What an fsync that failed left on the disk is unknown: the object is gone.
                with suppress(OSError):
                    self._filesystem.unlink(leaf, folder)
                raise

    def settle(self, name: ObjectName) -> None:
        """Make the name of an existing object durable; see `Store.settle`.

        Its bytes were synced before they were linked to the name.
        """
        with self._object(name):
            *folders, _ = name.split("/")
            with translated("sync", name), self._folders.durable(tuple(folders)) as folder:
                self._filesystem.sync(folder)

    # --- reading

    def get(self, name: ObjectName, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of the object's bytes; see `Store.get`."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInput(f"not a range: {offset}, {length}", object=name)
        with self._object(name) as (descriptor, status):
            wanted = status.size - offset if length is None else length
            if offset + max(wanted, 0) > status.size or wanted < 0:
                raise _damaged(name, f"it has {status.size} bytes, {offset + wanted} are needed")
            return self._read_exactly(descriptor, wanted, offset, name)

    def _read_exactly(self, descriptor: int, length: int, offset: int, name: ObjectName) -> bytes:
        first = self._filesystem.read_at(descriptor, length, offset)
        if len(first) == length:
            return first
        parts, done = [first], len(first)
        while done < length:
            part = self._filesystem.read_at(descriptor, length - done, offset + done)
            if not part:
                raise _damaged(name, f"it ends after {offset + done} bytes")
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def get_into(self, name: ObjectName, offset: int, rooms: Sequence[memoryview]) -> None:
        """Fill `rooms` from the object's bytes; see `Store.get_into`."""
        if offset < 0:
            raise InvalidInput(f"not a range: {offset}", object=name)
        end = offset + sum(map(len, rooms))
        with self._object(name) as (descriptor, status):
            if end > status.size:
                raise _damaged(name, f"it has {status.size} bytes, {end} are needed")
            while offset < end:
                done = self._filesystem.read_into(descriptor, rooms[:ROOMS_MAX], offset)
                if not done:
                    raise _damaged(name, f"it ends after {offset} bytes")
                offset += done
                rooms = _unfilled(rooms, done)

    def size(self, name: ObjectName) -> int:
        """Return the object's length in bytes; see `Store.size`."""
        with self._object(name) as (_, status):
            return status.size

    @contextmanager
    def _object(self, name: ObjectName) -> Iterator[tuple[int, FileStatus]]:
        *folders, leaf = check_object_name(name).split("/")
        with translated("read", name):
            try:
                with self._folders.existing(folders) as folder:
                    descriptor = self._filesystem.open_file(leaf, folder)
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise NotFound(f"no such object: {name}", object=name) from exc
            except OSError as exc:
                if exc.errno in (errno.ELOOP, errno.ENXIO):
                    raise _damaged(name, "it is no plain file") from exc
                raise
            try:
                status = self._filesystem.status(descriptor)
                if status.is_directory:
                    raise NotFound(f"no such object: {name}", object=name)
                if not status.is_file:
                    raise _damaged(name, "it is no plain file")
                yield descriptor, status
            finally:
                self._filesystem.close(descriptor)

    def delete(self, name: ObjectName) -> None:
        """Delete the object; absent is fine; see `Store.delete`."""
        *folders, leaf = check_object_name(name).split("/")
        with translated("delete", name):
            try:
                with self._folders.existing(folders) as folder:
                    with suppress(FileNotFoundError):
                        self._filesystem.unlink(leaf, folder)
                    # Also when absent: a crash may have come between an unlink and its sync.
                    self._filesystem.sync(folder)
            except (FileNotFoundError, NotADirectoryError):
                return

    def list(self, prefix: str = "") -> Iterator[ObjectName]:
        """Yield the names below the folder `prefix`; a hint, see `Store.list`."""
        pending = [check_prefix(prefix)]
        while pending:
            folders = pending.pop()
            below = []
            for name, is_directory in self._names(folders):
                if is_directory:
                    below.append((*folders, name))
                else:
                    yield ObjectName("/".join((*folders, name)))
            pending.extend(reversed(below))

    def _names(self, folders: tuple[str, ...]) -> _Names:
        with translated("list", "/".join(folders) or "objects"):
            try:
                with self._folders.existing(folders) as folder:
                    found = self._filesystem.names(folder)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(entry for entry in found if is_component(entry[0]))

    # --- the whole

    def space(self) -> Space:
        """Return how much room there is; see `Store.space`."""
        with translated("look at the room of", "the store"):
            return self._reserve.space()

    def close(self) -> None:
        """Let go of the store and its lock."""
        for descriptor in (self._incoming, self._root, self._lock):
            self._filesystem.close(descriptor)

    def _remove_leftovers(self) -> None:
        with translated("clean up", INCOMING):
            names = [name for name, _ in self._filesystem.names(self._incoming)]
            for name in names:
                self._filesystem.unlink(name, self._incoming)
        if names:
            _log.info("unfinished uploads removed", count=len(names))

    def _probe(self, path: str) -> None:
        try:
            probe_directory(self._filesystem, self._incoming, path, self._new_name)
        except NoSpace:
            # A full store must still start: deleting is how it gets room again.
            _log.warning("the store is too full to be probed", path=path)
            self._remove_leftovers()


def _open_root(disk: FileSystem, path: str) -> int:
    try:
        try:
            return disk.open_root(path)
        except FileNotFoundError:
            disk.make_root(path)
            return disk.open_root(path)
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as exc:
        raise UsageError(
            f"the store's directory cannot be made: {path}",
            hint="make the directory above it, and mount its file system first",
        ) from exc
    except OSError as exc:
        raise store_error(exc, "open", path) from exc


def _incoming_folder(disk: FileSystem, root: int) -> int:
    with suppress(FileExistsError):
        disk.make_directory(INCOMING, root)
    disk.sync(root)
    return disk.open_directory(INCOMING, root)


def _unfilled(rooms: Sequence[memoryview], filled: int) -> Sequence[memoryview]:
    """Return what is left of `rooms` when the first `filled` bytes of them are taken."""
    at = 0
    while at < len(rooms) and filled >= len(rooms[at]):
        filled -= len(rooms[at])
        at += 1
    return [rooms[at][filled:], *rooms[at + 1 :]] if filled else rooms[at:]


def _damaged(name: ObjectName, what: str) -> Damaged:
    return Damaged(f"object {name} is damaged: {what}", object=name)
