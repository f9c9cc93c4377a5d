"""Owners, attributes, modes and times: set by descriptor, read back, and each loss told.

The order matters: a change of owner clears setuid bits and capabilities, an ACL rewrites the
group's bits, every write moves the times. So: owner, attributes, mode, times.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from holdfast_agent.restore.failures import message_of
from holdfast_agent.sources.attributes import (
    ACL_ATTRIBUTES,
    CAPABILITY_ATTRIBUTE,
    is_kept,
    read_xattrs,
)
from holdfast_agent.sources.directory import by_descriptor
from holdfast_agent.tree.entry import Content, EntryType, Stat

SETID_BITS: Final = stat.S_ISUID | stat.S_ISGID
_ID_MAX: Final = 0xFFFFFFFE
"""Largest uid and gid: the next one means «leave as it is» to chown."""


class What(StrEnum):
    """In what a restored entry differs from the snapshot's."""

    OWNER = "owner"
    MODE = "mode"
    TIMES = "times"
    XATTR = "xattr"
    ACL = "acl"
    CAPABILITY = "capability"
    DEVICE = "device"
    LINK = "link"
    """A name of its own instead of a hard link."""


class NotExact(NamedTuple):
    """One row of a restore's `not_exact` list."""

    path: bytes
    what: str
    message: str


class Loss(NamedTuple):
    """What one entry lost."""

    what: What
    message: str
    """One line for people."""

    def at(self, path: bytes) -> NotExact:
        """Return the row for the entry at `path`."""
        return NotExact(path, self.what, self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a snapshot may bring to this place."""

    special: bool
    """Setuid and setgid bits, capabilities, `security.*`, `trusted.*` and devices: for a client's
    own snapshots, with --local, or when --special asks for them."""


def apply(
    descriptor: int, entry: Stat, content: Content, policy: Policy, *, is_handle: bool = False
) -> list[Loss]:
    """Give the open thing the metadata of a snapshot's entry and return what could not be given.

    `is_handle`: the descriptor is an O_PATH one (of a symlink, FIFO, socket or device). Only the
    thing itself is touched, whatever happens to its name meanwhile. Access times stay.

    Raises:
        OSError: the thing cannot even be asked for its status.
    """
    before = os.fstat(descriptor)
    owner = before.st_uid, before.st_gid
    if not (is_handle or content.xattrs) and apply_plain(
        descriptor, owner, before.st_atime_ns, entry, content
    ):
        return []
    return apply_wholly(descriptor, entry, content, policy, is_handle=is_handle)


def apply_wholly(
    descriptor: int, entry: Stat, content: Content, policy: Policy, *, is_handle: bool = False
) -> list[Loss]:
    """Do what `apply` does, step by step; the way that tells what was lost.

    Raises:
        OSError: as `apply`.
    """
    before = os.fstat(descriptor)
    place: int | str = by_descriptor(descriptor) if is_handle else descriptor
    losses: list[Loss] = []
    is_moved = _set_owner(place, before, content)
    wanted = _wanted_attributes(content, policy, losses)
    refused = _set_attributes(place, wanted)
    now = os.fstat(descriptor) if is_moved else before
    mode = _mode(now, entry, content, policy, losses)
    refused_mode = "" if mode is None else _set_mode(place, mode)
    refused_times = _set_times(place, before, entry.mtime_ns)
    after = os.fstat(descriptor)
    _compare_owner(after, content, losses)
    _compare_attributes(place, wanted, refused, losses)
    if mode is not None and stat.S_IMODE(after.st_mode) != mode:
        losses.append(
            Loss(
                What.MODE, f"{stat.S_IMODE(after.st_mode):o}, not {mode:o} {refused_mode}".rstrip()
            )
        )
    if after.st_mtime_ns != entry.mtime_ns:
        losses.append(Loss(What.TIMES, refused_times or "the file system cannot hold this time"))
    return losses


def apply_plain(
    descriptor: int, owner: tuple[int, int], atime_ns: int, entry: Stat, content: Content
) -> bool:
    """Give owner, mode and time to what needs nothing else; return whether all of it is right then.

    Nearly every file that a restore has just made: it has no attributes and wants none, nor set-id
    bits. `owner` and `atime_ns` are those that it has. Where this returns False `apply_wholly`
    follows.
    """
    mode = entry.mode
    if mode & SETID_BITS:
        return False
    try:
        if owner != (content.uid, content.gid):
            os.chown(descriptor, content.uid, content.gid)
        present = os.listxattr(descriptor)
        if present and any(map(is_kept, present)):
            return False
        os.fchmod(descriptor, mode)
        os.utime(descriptor, ns=(atime_ns, entry.mtime_ns))
    except (OSError, OverflowError):
        return False
    after = os.fstat(descriptor)
    return (
        after.st_mtime_ns == entry.mtime_ns
        and after.st_mode & 0o7777 == mode
        and after.st_uid == content.uid
        and after.st_gid == content.gid
    )


def _set_owner(place: int | str, before: os.stat_result, content: Content) -> bool:
    """Set what may be set; return whether it was another. Reading back tells the rest."""
    if (before.st_uid, before.st_gid) == (content.uid, content.gid):
        return False
    uid = content.uid if content.uid <= _ID_MAX else -1
    gid = content.gid if content.gid <= _ID_MAX else -1
    try:
        os.chown(place, uid, gid)
    except OSError:
        # Without privilege an owner may still give a file to a group that it is in.
        with suppress(OSError):
            os.chown(place, -1, gid)
    return True


def _compare_owner(after: os.stat_result, content: Content, losses: list[Loss]) -> None:
    if (after.st_uid, after.st_gid) != (content.uid, content.gid):
        losses.append(
            Loss(
                What.OWNER,
                f"{after.st_uid}:{after.st_gid}, not {content.uid}:{content.gid}",
            )
        )


def _wanted_attributes(content: Content, policy: Policy, losses: list[Loss]) -> dict[str, bytes]:
    wanted: dict[str, bytes] = {}
    for raw, value in content.xattrs:
        name = os.fsdecode(raw)
        if not policy.special and name.startswith(("security.", "trusted.")):
            losses.append(
                Loss(_kind_of(name), f"{_shown(name)} of another client's snapshot: left out")
            )
        else:
            wanted[name] = value
    return wanted


def _set_attributes(place: int | str, wanted: dict[str, bytes]) -> dict[str, str]:
    """Make the kept attributes those of `wanted`; return what the kernel said of each refusal."""
    refused: dict[str, str] = {}
    present = _present(place)
    for name in present.keys() - wanted.keys():
        # As inherited from a default ACL of the directory.
        try:
            os.removexattr(place, name)
        except OSError as exc:
            refused[name] = message_of(exc)
    for name, value in wanted.items():
        if present.get(name) == value:
            continue
        try:
            os.setxattr(place, name, value)
        except (OSError, ValueError) as exc:
            refused[name] = message_of(exc) if isinstance(exc, OSError) else "not a name"
    return refused


def _compare_attributes(
    place: int | str, wanted: dict[str, bytes], refused: dict[str, str], losses: list[Loss]
) -> None:
    if not wanted and not refused:
        return
    present = _present(place)
    for name in sorted(wanted.keys() | present.keys()):
        if present.get(name) != wanted.get(name):
            why = refused.get(name, "the file system keeps it differently")
            losses.append(Loss(_kind_of(name), f"{_shown(name)}: {why}"))


def _present(place: int | str) -> dict[str, bytes]:
    found, _ = read_xattrs(place)
    return {os.fsdecode(name): value for name, value in found if is_kept(os.fsdecode(name))}


def _mode(
    now: os.stat_result, entry: Stat, content: Content, policy: Policy, losses: list[Loss]
) -> int | None:
    """Return the permission bits to set; None for a symlink, which has none."""
    if entry.type == EntryType.SYMLINK:
        return None
    mode = entry.mode & 0o7777
    if not policy.special and mode & SETID_BITS:
        losses.append(Loss(What.MODE, "setuid and setgid of another client's snapshot: left out"))
        return mode & ~SETID_BITS
    if entry.type == EntryType.DIRECTORY:
        return mode
    # Somebody else's setuid program must not become one of whoever restores it.
    lost = 0
    if now.st_uid != content.uid:
        lost |= mode & stat.S_ISUID
    if now.st_gid != content.gid:
        lost |= mode & stat.S_ISGID
    if lost:
        losses.append(Loss(What.MODE, "setuid or setgid without its owner: left out"))
    return mode & ~lost


def _set_mode(place: int | str, mode: int) -> str:
    """Set the permission bits, always: an ACL or a change of owner may have moved them."""
    try:
        os.chmod(place, mode)
    except OSError as exc:
        return f"({message_of(exc)})"
    return ""


def _set_times(place: int | str, before: os.stat_result, mtime_ns: int) -> str:
    try:
        os.utime(place, ns=(before.st_atime_ns, mtime_ns))
    except OSError as exc:
        return message_of(exc)
    except OverflowError:
        return "the system cannot hold this time"
    return ""


def _kind_of(name: str) -> What:
    if name in ACL_ATTRIBUTES:
        return What.ACL
    return What.CAPABILITY if name == CAPABILITY_ATTRIBUTE else What.XATTR


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
