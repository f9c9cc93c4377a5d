"""What has no content of its own: symlinks, hard links, FIFOs, sockets, devices.

Each is made under a temporary name and asked through an O_PATH handle whether it is really the
thing just made, before anything is given to it: in a directory that a hostile process can write to,
the name may have become something else (as a hard link to a file that is not ours to give away).
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from holdfast_agent.restore.directory import TargetDirectory
from holdfast_agent.restore.failures import KERNEL_ERRORS, EntryFailed
from holdfast_agent.restore.metadata import Loss, Policy, What, apply
from holdfast_agent.sources.directory import Identity, by_descriptor, open_handle
from holdfast_agent.sources.findings import Reason
from holdfast_agent.tree.entry import Content, EntryType, Stat

_FORMATS: Final = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHAR_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}
_DEVICES: Final = (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)


class Made(NamedTuple):
    """A node that is in its place."""

    identity: Identity
    """For `make_link`, where it has other names."""
    losses: list[Loss]
    """What could not be given."""


def make_node(directory: TargetDirectory, entry: Stat, content: Content, policy: Policy) -> Made:
    """Make a symlink, FIFO, socket or device with its metadata, in place of what is no directory.

    A socket is only its name again: nobody listens there.

    Raises:
        InTheWay: a directory has that name.
        EntryFailed: a device without --special or the privilege, or the kernel refuses.
        NoSpace, Refused: the target is full or read-only.
    """
    kind = EntryType(entry.type)
    if kind in _DEVICES and not policy.special:
        raise EntryFailed(What.DEVICE, "a device of another client's snapshot: left out")
    if kind is EntryType.SYMLINK and (not content.target or b"\0" in content.target):
        raise EntryFailed(Reason.UNREADABLE, "the symlink has no target that could be made")
    directory.guard(entry.name)
    temporary = directory.temporary_name()
    with KERNEL_ERRORS:
        if kind is EntryType.SYMLINK:
            os.symlink(content.target, temporary, dir_fd=directory.descriptor)
        else:
            # mknod makes sockets too, without the length limit that bind has for paths.
            device = content.device if kind in _DEVICES else 0
            os.mknod(temporary, _FORMATS[kind] | 0o600, device, dir_fd=directory.descriptor)
    try:
        made = _completed(directory, temporary, entry, content, policy)
        directory.rename(temporary, entry.name)
    except BaseException:
        directory.discard(temporary)
        raise
    return made


def _completed(
    directory: TargetDirectory, temporary: bytes, entry: Stat, content: Content, policy: Policy
) -> Made:
    with KERNEL_ERRORS:
        handle = open_handle(directory.descriptor, temporary)
        try:
            identity = _check_is_new(handle, entry, content)
            return Made(identity, apply(handle, entry, content, policy, is_handle=True))
        finally:
            os.close(handle)


def _check_is_new(handle: int, entry: Stat, content: Content) -> Identity:
    info = os.fstat(handle)
    kind = EntryType(entry.type)
    is_new = (
        stat.S_IFMT(info.st_mode) == _FORMATS[kind]
        and info.st_nlink == 1
        and info.st_uid == os.geteuid()
        and (kind not in _DEVICES or info.st_rdev == content.device)
    )
    if not is_new:
        raise EntryFailed(Reason.REPLACED, "replaced by something else while it was made")
    return info.st_dev, info.st_ino


def make_link(
    directory: TargetDirectory,
    name: bytes,
    source: TargetDirectory,
    source_name: bytes,
    identity: Identity,
    kind: EntryType = EntryType.FILE,
) -> None:
    """Make `name` another name of `source_name`, if that is still what `identity` and `kind` say.

    The link is made from the descriptor, so no other file can get a second name this way.

    Raises:
        InTheWay: a directory has that name.
        EntryFailed: the file was replaced, or cannot have another name here (another file system,
            too many links): then it has to be written a second time.
    """
    directory.guard(name)
    temporary = directory.temporary_name()
    with KERNEL_ERRORS:
        handle = open_handle(source.descriptor, source_name)
        try:
            info = os.fstat(handle)
            is_same = (info.st_dev, info.st_ino) == identity
            if not is_same or stat.S_IFMT(info.st_mode) != _FORMATS[kind]:
                raise EntryFailed(Reason.REPLACED, "the file to link to was replaced")
            os.link(
                by_descriptor(handle),
                temporary,
                dst_dir_fd=directory.descriptor,
                follow_symlinks=True,
            )
        finally:
            os.close(handle)
    try:
        directory.rename(temporary, name)
    finally:
        # Renaming one name of a file over another does nothing and leaves both (rename(2)).
        directory.discard(temporary)
