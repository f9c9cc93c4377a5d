"""What of an entry is not in its stat part: owners, extended attributes, ACLs, targets, devices.

Everything is asked of a descriptor: a file's own one, or an O_PATH handle of the entry itself, so
that no FIFO, socket or device is ever opened and no symlink followed. POSIX ACLs are the
attributes `system.posix_acl_access` and `_default`.

Which extended attributes are kept (restic keeps all it can read):
 - `user.*`, `trusted.*` (the kernel shows them to CAP_SYS_ADMIN only), `system.posix_acl_*`;
 - of `security.*` all but labels and measurements of the host's security modules: those belong to
   the place, not to the file (the MCS label of a pod's volume, an EVM key of one machine);
 - other `system.*` are views that a file system computes (`system.nfs4_acl`): left out.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from holdfast_agent.sources.directory import Directory, by_descriptor, open_handle
from holdfast_agent.sources.findings import Finding, Reason, finding_from
from holdfast_agent.tree.entry import Content

Attribute = tuple[bytes, bytes]

ACL_ATTRIBUTES: Final = frozenset({"system.posix_acl_access", "system.posix_acl_default"})
CAPABILITY_ATTRIBUTE: Final = "security.capability"
_LABELS: Final = ("security.selinux", "security.ima", "security.evm", "security.SMACK64")
_NO_ATTRIBUTES: Final = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_ATTRIBUTES_BYTES_MAX: Final = 4 << 20
"""Most bytes of one entry's attributes: XFS would take 600 MB, which no agent may hold."""
_NAMES_MAX: Final = 4096
"""Most owner names remembered of each kind: a tree of many users must not grow the process."""


class Attributes(NamedTuple):
    """What was found beside the stat part."""

    info: os.stat_result
    """Of the same descriptor: `st_nlink`, `st_dev` and `st_ino` decide about hard links."""
    content: Content
    """Owners, attributes, target, device; what only the engine knows is empty."""
    findings: tuple[Finding, ...]
    """Attributes that could not be read; the path is empty (the entry itself)."""


class OwnerNames:
    """Names of users and groups by number, looked up once each."""

    def __init__(
        self,
        user_of: Callable[[int], str] = lambda uid: pwd.getpwuid(uid).pw_name,
        group_of: Callable[[int], str] = lambda gid: grp.getgrgid(gid).gr_name,
    ) -> None:
        self._user_of, self._group_of = user_of, group_of
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        self._plain: dict[tuple[int, int], Content] = {}

    def user(self, uid: int) -> str:
        """Return the user's name, empty where the system knows none."""
        return _remembered(self._users, self._user_of, uid)

    def group(self, gid: int) -> str:
        """Return the group's name, empty where the system knows none."""
        return _remembered(self._groups, self._group_of, gid)

    def owned(self, uid: int, gid: int) -> Content:
        """Return the content part that says the owners and nothing else; most files share it."""
        found = self._plain.get((uid, gid))
        if found is None:
            if len(self._plain) >= _NAMES_MAX:
                self._plain.clear()
            found = Content(uid=uid, gid=gid, user=self.user(uid), group=self.group(gid))
            self._plain[uid, gid] = found
        return found


def _remembered(names: dict[int, str], name_of: Callable[[int], str], number: int) -> str:
    known = names.get(number)
    if known is None:
        try:
            # A database in another encoding than UTF-8 gives surrogates, which no page can hold.
            known = name_of(number).encode("utf-8", "replace").decode()
        except (KeyError, OSError):
            known = ""
        if len(names) >= _NAMES_MAX:
            names.clear()
        names[number] = known
    return known


def attributes_of(descriptor: int, info: os.stat_result, names: OwnerNames) -> Attributes:
    """Return the attributes of an open file or directory; `info` was asked of the descriptor."""
    xattrs, findings = read_xattrs(descriptor)
    content = names.owned(info.st_uid, info.st_gid)
    if xattrs:
        content = msgspec.structs.replace(content, xattrs=xattrs)
    return Attributes(info, content, findings)


def attributes_at(directory: Directory, name: bytes, names: OwnerNames) -> Attributes | Finding:
    """Return the attributes of any kind of entry without opening it.

    Cost: a few microseconds more than `attributes_of`; also for files that may not be read.
    """
    try:
        handle = open_handle(directory.descriptor, name)
    except OSError as exc:
        return finding_from(name, exc)
    try:
        info = os.fstat(handle)
        target = os.readlink(b"", dir_fd=handle) if stat.S_ISLNK(info.st_mode) else b""
        xattrs, findings = read_xattrs(by_descriptor(handle))
    except OSError as exc:
        return finding_from(name, exc)
    finally:
        os.close(handle)
    mode = info.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    content = Content(
        uid=info.st_uid,
        gid=info.st_gid,
        user=names.user(info.st_uid),
        group=names.group(info.st_gid),
        xattrs=xattrs,
        target=target,
        device=info.st_rdev if is_device else 0,
    )
    return Attributes(info, content, findings)


def is_kept(attribute: str) -> bool:
    """Return whether a backup keeps the extended attribute of this name."""
    if attribute.startswith("system."):
        return attribute in ACL_ATTRIBUTES
    return not attribute.startswith(_LABELS)


def read_xattrs(place: int | str) -> tuple[tuple[Attribute, ...], tuple[Finding, ...]]:
    """Return the kept attributes, sorted by name, of a descriptor or its `by_descriptor` path.

    A file system without attributes has none; what cannot be read is a finding each.
    """
    try:
        found = os.listxattr(place)
    except OSError as exc:
        if exc.errno in _NO_ATTRIBUTES:
            return (), ()
        return (), (_unread("its attributes", exc),)
    if not found:
        return (), ()
    xattrs: list[Attribute] = []
    findings: list[Finding] = []
    room = _ATTRIBUTES_BYTES_MAX
    for attribute in filter(is_kept, found):
        try:
            value = os.getxattr(place, attribute)
            room -= len(attribute) + len(value)
            if room < 0:
                findings.append(Finding(b"", Reason.ATTRIBUTES, "more than 4 MiB of attributes"))
                break
            xattrs.append((os.fsencode(attribute), value))
        except OSError as exc:
            if exc.errno != errno.ENODATA:  # ENODATA: removed since it was listed
                findings.append(_unread(attribute, exc))
    return tuple(sorted(xattrs)), tuple(findings)


def _unread(what: str, exc: OSError) -> Finding:
    named = what.encode("utf-8", "backslashreplace").decode()
    return Finding(b"", Reason.ATTRIBUTES, f"{named}: {os.strerror(exc.errno or errno.EIO)}")
