"""What can go wrong while files are written: for one entry, or for the whole target."""

from __future__ import annotations

import errno
import os
from types import TracebackType

from holdfast_agent.sources.findings import Reason, finding_from
from holdfast_contract.errors import HoldfastError, NoSpace, Refused


class EntryFailed(Exception):
    """One entry could not be restored; the caller lists it and goes on with the next."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """A word of `Reason` or `What`."""
        self.message = message
        """One line without names."""


class InTheWay(EntryFailed):
    """A directory stands where something else is to go, or the other way round.

    The caller decides: remove it and try again, or list the entry.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Reason.REPLACED, message)


class Vanished(EntryFailed):
    """A directory of the target is not there (any more)."""

    def __init__(self) -> None:
        super().__init__(Reason.VANISHED, "its directory has vanished")


def failure_from(exc: OSError) -> HoldfastError | EntryFailed:
    """Return what an error of the kernel means: a full or read-only target ends the job."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("the restore target is full", hint="Free some space and restore again.")
    if exc.errno == errno.EROFS:
        return Refused("the restore target is mounted read-only")
    if exc.errno == errno.EISDIR:
        return InTheWay("a directory is in the way")
    finding = finding_from(b"", exc)
    return EntryFailed(finding.reason, finding.message)


class KernelErrors:
    """A context that turns OSError into what `failure_from` says."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise failure_from(error) from error


KERNEL_ERRORS = KernelErrors()


def message_of(exc: OSError) -> str:
    """Return the kernel's words, without a path."""
    return os.strerror(exc.errno) if exc.errno else "input/output failed"
