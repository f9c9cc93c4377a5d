"""Where a restore writes: directories reached one name at a time, never through a symlink.

A hostile process may share the volume. Every directory is opened relative to its parent's
descriptor with O_NOFOLLOW; files come to be under a temporary name and get theirs by a rename
within the directory, when they are complete.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from holdfast_agent.restore.directory import TargetDirectory, TemporaryNames, check_plain
from holdfast_agent.restore.failures import (
    KERNEL_ERRORS,
    EntryFailed,
    InTheWay,
    Vanished,
    failure_from,
)
from holdfast_agent.sources.descent import components
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles, Roots, is_within, normal_path
from holdfast_agent.sources.syscalls import sync_filesystem
from holdfast_contract.errors import NotFound, Refused, StoreFailed

OPEN_MAX: Final = 256
"""Most directories kept open: well below the usual limit of 1,024 descriptors."""
_DEVICES_MAX: Final = 64
IMPLIED_MODE: Final = 0o755
"""Of directories that a restore makes and the snapshot says nothing of."""

_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSED: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Place = tuple[bytes, ...]
"""Names of a directory below the target; empty: the target itself."""


class Target:
    """A directory to restore into, and the directories below it, opened when asked for."""

    def __init__(self, top: TargetDirectory, names: TemporaryNames, own: OwnFiles) -> None:
        self._top = top
        self._names = names
        self._own = own
        self._open: dict[Place, TargetDirectory] = {}
        """By time of use. No OrderedDict: that one hashes all keys anew again and again, and in a
        tree of 4,000 levels each has 4,000 names (a restore of 2,000 levels: 22 s of 26)."""
        self._devices: dict[int, int] = {}
        """A descriptor on each file system written to, for `sync`."""
        self._note_device(top)

    @classmethod
    def open(
        cls,
        path: bytes,
        *,
        run: str,
        create: bool = True,
        limits: Roots | None = None,
        own: OwnFiles | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> Self:
        """Return the target at `path`, whose missing directories are made with mode 0755.

        `run` stands for the job in temporary names: the same after a restart. `limits` are the
        restore roots: nothing is made outside them; a root's own last name may be. Without limits
        (a command line's own directory) symlinks in `path` are resolved once, here.

        Raises:
            OutsideRoots: `path` is not within the limits.
            NotFound: it does not exist and may not be made.
            Refused: it cannot be opened or made, or a symlink is in the way.
            NoSpace: the file system is full.
            InvalidInput: the path is not absolute and plain.
        """
        own = own or OwnFiles(())
        wanted = normal_path(path)
        real = limits.real(wanted) if limits else os.path.realpath(wanted)
        descriptor, made = _descend(real, limits, create=create)
        names = TemporaryNames(run, random)
        top = TargetDirectory(descriptor, names, own, created=made > 0)
        target = cls(top, names, own)
        target.directories_made = made
        return target

    directories_made: int = 0
    """How many directories were made on the way to the target, itself included."""

    def directory(
        self, place: Place, *, create: bool = False, mode: int = IMPLIED_MODE
    ) -> TargetDirectory:
        """Return the directory at `place`; with `create` missing ones are made.

        A made one gets `mode` (0o700 where its own metadata is applied later), those above it
        IMPLIED_MODE. It stays open while a writer holds it, otherwise until OPEN_MAX others are.

        Raises:
            Vanished: a directory is missing and `create` is not set.
            InTheWay: something that is no directory has the name of one (a symlink too).
            EntryFailed: the kernel refuses, or it is the agent's own.
            NoSpace, Refused: the target is full or read-only.
        """
        known = self._open.pop(place, None)
        if known is not None:
            self._open[place] = known
            return known
        depth = len(place)
        while depth > 0 and place[:depth] not in self._open:
            depth -= 1
        current = self._open[place[:depth]] if depth else self._top
        for index in range(depth, len(place)):
            wanted_mode = mode if index == len(place) - 1 else IMPLIED_MODE
            current = self._child(current, place[: index + 1], create=create, mode=wanted_mode)
        return current

    def _child(
        self, parent: TargetDirectory, place: Place, *, create: bool, mode: int
    ) -> TargetDirectory:
        name = place[-1]
        check_plain(name)
        made = False
        try:
            descriptor = _open_directory(parent.descriptor, name)
        except FileNotFoundError as exc:
            if not create:
                raise Vanished from exc
            descriptor, made = _made_directory(parent.descriptor, name, mode)
        except OSError as exc:
            raise _obstacle(parent, name, exc) from exc
        child = TargetDirectory(descriptor, self._names, self._own, created=made)
        info = os.fstat(descriptor)
        if self._own.is_own((info.st_dev, info.st_ino)):
            child.close()
            raise EntryFailed(Reason.OWN_FILE, "the agent's own state is left alone")
        self._note_device(child, info.st_dev)
        self._open[place] = child
        self._evict()
        return child

    def _evict(self) -> None:
        """Close the directories that were not used for longest, down to OPEN_MAX."""
        if len(self._open) <= OPEN_MAX:
            return
        newest = next(reversed(self._open))
        for place in list(self._open):
            if len(self._open) <= OPEN_MAX:
                return
            if place != newest and self._open[place].holders == 0:
                self._open.pop(place).close()

    def forget(self, place: Place) -> None:
        """Close the directory at `place` and those below: it is about to be removed."""
        for known in [known for known in self._open if known[: len(place)] == place]:
            directory = self._open.pop(known)
            assert directory.holders == 0, "a writer is at work in it"
            directory.close()

    def _note_device(self, directory: TargetDirectory, device: int = -1) -> None:
        if device < 0:
            device = os.fstat(directory.descriptor).st_dev
        if device not in self._devices and len(self._devices) < _DEVICES_MAX:
            self._devices[device] = os.dup(directory.descriptor)

    def sync(self) -> None:
        """Wait until all that was written is durable: one syncfs for each file system.

        Raises:
            NoSpace: what was written does not fit after all.
            StoreFailed: the disk reports an error; what was restored may be incomplete.
        """
        for descriptor in self._devices.values():
            try:
                sync_filesystem(descriptor)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise failure_from(exc) from exc
                raise StoreFailed(f"the restore target cannot be synced: {exc.strerror}") from exc
        if len(self._devices) == _DEVICES_MAX:
            os.sync()

    def close(self) -> None:
        """Give every descriptor back."""
        for directory in self._open.values():
            directory.close()
        for descriptor in self._devices.values():
            os.close(descriptor)
        self._open.clear()
        self._devices.clear()
        self._top.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_directory(parent: int, name: bytes) -> int:
    return os.open(name, _LISTED, dir_fd=parent)


def _made_directory(parent: int, name: bytes, mode: int) -> tuple[int, bool]:
    """Make and open the directory `name`; return its descriptor, and whether it was made here.

    The mode is set by descriptor, whatever the umask.
    """
    with KERNEL_ERRORS:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            # Somebody was faster: what is there is opened like any other.
            return _open_directory(parent, name), False
        descriptor = _open_directory(parent, name)
        if mode != 0o700:
            os.fchmod(descriptor, mode)
        return descriptor, True


def _obstacle(parent: TargetDirectory, name: bytes, exc: OSError) -> Exception:
    if exc.errno in (errno.ENOTDIR, errno.ELOOP):
        found = parent.status(name)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            return InTheWay("something else than a directory is in the way")
    return failure_from(exc)


def _descend(path: bytes, limits: Roots | None, *, create: bool) -> tuple[int, int]:
    """Return (descriptor, directories made) of `path`, opened name by name from `/`."""
    names = components(path)
    made = 0
    descriptor = os.open(b"/", _PASSED if names else _LISTED)
    for index, name in enumerate(names):
        is_last = index == len(names) - 1
        try:
            below = os.open(name, _LISTED if is_last else _PASSED, dir_fd=descriptor)
        except FileNotFoundError as exc:
            here = b"/" + b"/".join(names[: index + 1])
            try:
                _check_may_make(here, limits, create=create, cause=exc)
                below, is_made = _made_top(descriptor, name)
            finally:
                os.close(descriptor)
            made += is_made
        except OSError as exc:
            os.close(descriptor)
            raise _refused(exc) from exc
        else:
            os.close(descriptor)
        descriptor = below
    return descriptor, made


def _check_may_make(path: bytes, limits: Roots | None, *, create: bool, cause: OSError) -> None:
    if not create:
        raise NotFound("the restore target does not exist") from cause
    if limits and not any(is_within(path, root.real) for root in limits.roots):
        raise NotFound(
            "the restore root's parent directory does not exist",
            hint="A restore makes a root's last directory, not those above it.",
        ) from cause


def _made_top(parent: int, name: bytes) -> tuple[int, bool]:
    try:
        return _made_directory(parent, name, IMPLIED_MODE)
    except EntryFailed as exc:
        raise Refused(f"the restore target cannot be made: {exc.message}") from exc


def _refused(exc: OSError) -> Exception:
    found = failure_from(exc)
    if isinstance(found, EntryFailed):
        return Refused(
            f"the restore target cannot be opened: {found.message}",
            hint="Every part of the path must be a directory, none a symlink.",
        )
    return found
