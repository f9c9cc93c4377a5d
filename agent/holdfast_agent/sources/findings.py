"""What a walk could not read, and why: one row of a job's report each."""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Stable words of a report; the message beside it is for people."""

    DENIED = "denied"
    VANISHED = "vanished"
    REPLACED = "replaced"
    """Another kind of thing, or a symlink, stands where something was expected."""
    CHANGED = "changed"
    """Changed while it was read, also when read again."""
    IO_ERROR = "io-error"
    UNREADABLE = "unreadable"
    """Any other refusal of the kernel."""
    ATTRIBUTES = "attributes"
    """Content is there, but an extended attribute could not be read."""
    PSEUDO = "pseudo-filesystem"
    """A note, not a skip: the kernel's own view (as /proc), left out."""
    OWN_FILE = "own-file"
    """A note, not a skip: the agent's own state or key file, left out."""


_REASONS = {
    errno.EACCES: Reason.DENIED,
    errno.EPERM: Reason.DENIED,
    errno.ENOENT: Reason.VANISHED,
    errno.ESTALE: Reason.VANISHED,
    errno.ELOOP: Reason.REPLACED,
    errno.ENOTDIR: Reason.REPLACED,
    errno.EISDIR: Reason.REPLACED,
    errno.ENXIO: Reason.REPLACED,
    errno.EIO: Reason.IO_ERROR,
}


class Finding(NamedTuple):
    """One name that is missing from a backup, or not whole in it."""

    path: bytes
    """Relative to what the function was given; `within` makes it absolute."""
    reason: Reason
    message: str
    """One line; never names or contents of files."""

    def within(self, parent: bytes) -> Finding:
        """Return the same finding with its path below `parent`."""
        return self._replace(path=joined(parent, self.path))


def joined(parent: bytes, name: bytes) -> bytes:
    """Return `name` below `parent`; an empty `name` is `parent` itself."""
    if not name:
        return parent
    return parent + name if parent.endswith(b"/") or not parent else parent + b"/" + name


def finding_from(path: bytes, exc: OSError) -> Finding:
    """Return what an error of the kernel means for `path`."""
    reason = _REASONS.get(exc.errno or 0, Reason.UNREADABLE)
    return Finding(path, reason, os.strerror(exc.errno) if exc.errno else "input/output failed")
