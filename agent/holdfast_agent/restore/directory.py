"""A directory that a restore writes to, and the temporary names it uses there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final

from holdfast_agent.restore.failures import KERNEL_ERRORS, EntryFailed, failure_from
from holdfast_agent.restore.metadata import Loss, Policy, apply
from holdfast_agent.restore.writer import ExistingFile, Writer, open_existing
from holdfast_agent.sources.findings import Reason
from holdfast_agent.sources.roots import OwnFiles
from holdfast_agent.sources.syscalls import is_mount_root
from holdfast_agent.tree.entry import Content, Stat
from holdfast_contract.errors import InvalidInput, Refused

TEMPORARY_PREFIX: Final = b".holdfast-"
SCRIBE_MARK: Final = b"s"
"""Of names that the second process of a restore draws: no hexadecimal digit, as the others are."""
_SLASH: Final = ord("/")
_NO_NAMES: Final = frozenset({b"", b".", b".."})
_DRAWN: Final = 256
"""Temporary names drawn at once."""


def is_plain_name(name: bytes) -> bool:
    """Tell whether it is one name: not empty, not `.` or `..`, no slash or NUL in it."""
    # Numbers: looking for a byte by `b"/" in name` costs four times as much.
    return not (_SLASH in name or 0 in name or name in _NO_NAMES)


def check_plain(name: bytes) -> None:
    """Refuse what is not one name: pages are checked when decoded, this is the last line.

    Raises:
        InvalidInput: it is empty, `.`, `..`, or has a slash or NUL in it.
    """
    if not is_plain_name(name):
        raise InvalidInput("not the name of an entry")


class TemporaryNames:
    """Names of files that are not complete yet: of one run, which can clean up after itself."""

    def __init__(self, run: str, random: Callable[[int], bytes], mark: bytes = b"") -> None:
        assert run and run.isalnum() and len(run) <= 32, "up to 32 letters and digits"
        self._of_run = TEMPORARY_PREFIX + run.encode() + b"-"
        self._prefix = self._of_run + mark
        self._random = random
        self._drawn: list[bytes] = []

    def fresh(self) -> bytes:
        """Return a new one: not to be guessed by a process that wants to be there first."""
        if not self._drawn:
            # Many at once: asking the system for 8 bytes costs as much as asking it for 2 KiB.
            digits = self._random(8 * _DRAWN).hex().encode()
            self._drawn = [self._prefix + digits[at : at + 16] for at in range(0, len(digits), 16)]
        return self._drawn.pop()

    def is_of_this_run(self, name: bytes, mark: bytes = b"") -> bool:
        """Return whether it was made by this run, before or after a restart, with this mark."""
        return name.startswith(self._of_run + mark)


class TargetDirectory:
    """An open directory of the target. `Target.directory` makes and closes them."""

    def __init__(
        self, descriptor: int, names: TemporaryNames, own: OwnFiles, *, created: bool
    ) -> None:
        self.descriptor = descriptor
        self.created = created
        """Whether this run made it."""
        self.holders = 0
        """Writers that still need it: it is not closed before they end."""
        self._names = names
        self._own = own

    def status(self, name: bytes) -> os.stat_result | None:
        """Return the status of `name` itself, None when there is none.

        Raises:
            EntryFailed: the kernel refuses.
        """
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise failure_from(exc) from exc

    def names(self) -> list[bytes]:
        """Return all names, sorted.

        Raises:
            EntryFailed: it cannot be read.
        """
        with KERNEL_ERRORS:
            return sorted(os.fsencode(name) for name in os.listdir(self.descriptor))

    def create_file(self, name: bytes) -> Writer:
        """Return a writer for `name`, under a temporary name of mode 0600 until it is committed.

        Raises:
            EntryFailed: it cannot be made.
            NoSpace, Refused: the target is full or read-only.
            InvalidInput: it is not one name.
        """
        check_plain(name)
        return Writer(self, name)

    def open_existing(self, name: bytes) -> ExistingFile | None:
        """Return the regular file `name` for reading; None when there is none that can be read."""
        return open_existing(self.descriptor, name)

    def rename(self, temporary: bytes, name: bytes) -> None:
        """Give the finished `temporary` its name, in place of what is no directory.

        Raises:
            InTheWay: a directory has that name.
            EntryFailed: the kernel refuses, or it is one of the agent's own files.
        """
        self.guard(name)
        try:
            os.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError as exc:
            raise failure_from(exc) from exc

    def unlink(self, name: bytes) -> None:
        """Remove what is no directory; one that is gone already is no error.

        Raises:
            EntryFailed: the kernel refuses.
        """
        with KERNEL_ERRORS:
            try:
                os.unlink(name, dir_fd=self.descriptor)
            except FileNotFoundError:
                return

    def discard(self, temporary: bytes) -> None:
        """Remove a temporary name where that can be done.

        Who shares the volume may have put a directory of his own there: that one is his, and no
        reason to end anything.
        """
        with contextlib.suppress(EntryFailed, Refused):
            self.unlink(temporary)

    def apply(self, entry: Stat, content: Content, policy: Policy) -> list[Loss]:
        """Give the directory its metadata: last, when all that lies in it is done (bottom-up).

        Raises:
            EntryFailed: it cannot be asked for its status.
        """
        with KERNEL_ERRORS:
            return apply(self.descriptor, entry, content, policy)

    def allow_writing(self) -> bool:
        """Let the owner write here for the time of the restore; return whether that changed it.

        Without privilege a directory of mode 0555 takes no file. The caller gives it its own mode
        (or the former one) afterwards.
        """
        info = os.fstat(self.descriptor)
        if info.st_uid != os.geteuid() or info.st_mode & 0o300 == 0o300:
            return False
        with KERNEL_ERRORS:
            os.fchmod(self.descriptor, stat.S_IMODE(info.st_mode) | 0o700)
        return True

    def temporary_name(self) -> bytes:
        """Return a name of this run that nothing else uses."""
        return self._names.fresh()

    def remove_leftovers(self, mark: bytes = b"") -> int:
        """Remove what an earlier attempt of the same run left here, and return how many.

        To be called before anything is created here. `mark`: only names that have it.
        """
        left = [name for name in self.names() if self._names.is_of_this_run(name, mark)]
        for name in left:
            self.discard(name)
        return len(left)

    def guard(self, name: bytes) -> None:
        """Refuse to touch one of the agent's own files, or what is no name.

        Raises:
            EntryFailed: `name` is one of them.
            InvalidInput: it is not one name.
        """
        check_plain(name)
        # In a directory that this run has made there is none: they are older than it.
        info = None if self.created or self._own.is_empty else self.status(name)
        if info is not None and self._own.is_own((info.st_dev, info.st_ino)):
            raise EntryFailed(Reason.OWN_FILE, "the agent's own state or key is left alone")

    @property
    def device(self) -> int:
        """Which file system it is on."""
        return os.fstat(self.descriptor).st_dev

    @property
    def is_mount(self) -> bool:
        """Whether a file system, or a part of one, is mounted here."""
        return is_mount_root(self.descriptor)

    @property
    def own(self) -> OwnFiles:
        """The agent's files, which are never touched."""
        return self._own

    def close(self) -> None:
        """Give the descriptor back; doing so twice is harmless."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
