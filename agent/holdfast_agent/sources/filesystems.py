"""What kind of file system a descriptor lies on: how far its times and events can be trusted."""

from __future__ import annotations

from enum import Enum
from typing import Final

_REMEMBERED_MAX: Final = 4096


class FilesystemKind(Enum):
    """How the walk treats a file system."""

    LOCAL = "local"
    """Stamped by this kernel's coarse clock, with fractions of a second."""
    DISTANT = "distant"
    """Another clock or a coarser one stamps: network, FUSE, FAT, and all that is not known."""
    PSEUDO = "pseudo"
    """Shows the kernel's state, not data: left out with a note."""


# linux/magic.h
_LOCAL_TYPES = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs: stamps by its upper layer, on the same machine
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
        0x73717368,  # squashfs
        0xE0F5E1E2,  # erofs
        0x52654973,  # reiserfs
        0x3153464A,  # jfs
    }
)
_TELLING_TYPES = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # f2fs
    }
)
"""Every change goes through this machine's kernel, which tells it. Not ZFS: a rollback of a mounted
file system changes files without an event. Not network and FUSE: others write there."""
_PSEUDO_TYPES = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x73636673,  # securityfs
        0xF97CFF8C,  # selinuxfs
        0x1CD1,  # devpts
        0xCAFE4A11,  # bpf
        0x6165676C,  # pstore
        0x62656570,  # configfs
        0x42494E4D,  # binfmt_misc
        0x19800202,  # mqueue
        0x65735543,  # fusectl
        0x6E736673,  # nsfs
        0xDE5E81E4,  # efivarfs
    }
)


def kind_of_type(number: int) -> FilesystemKind:
    """Return how a file system of f_type `number` is treated."""
    if number in _LOCAL_TYPES:
        return FilesystemKind.LOCAL
    return FilesystemKind.PSEUDO if number in _PSEUDO_TYPES else FilesystemKind.DISTANT


class Filesystems:
    """Kinds by device number, asked once each."""

    def __init__(self) -> None:
        self._kinds: dict[int, FilesystemKind] = {}
        self._telling: set[int] = set()

    def kind(self, descriptor: int, device: int) -> FilesystemKind:
        """Return the kind under `descriptor`, whose st_dev is `device`; DISTANT when unknown."""
        known = self._kinds.get(device)
        if known is not None:
            return known
        # Imported here: an agent that idles does without ctypes.
        from holdfast_agent.sources.syscalls import filesystem_type

        try:
            number = filesystem_type(descriptor)
        except OSError:
            number = 0
        found = kind_of_type(number)
        if len(self._kinds) >= _REMEMBERED_MAX:
            self._kinds.clear()
            self._telling.clear()
        self._kinds[device] = found
        if number in _TELLING_TYPES:
            self._telling.add(device)
        return found

    def tells_changes(self, device: int) -> bool:
        """Return whether every change on `device` is told by inotify; it was asked for before."""
        return device in self._telling
