"""Calls of the kernel that Python's `os` does not have."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_LIBC = ctypes.CDLL(None, use_errno=True)
_STATFS_BYTES: Final = 512
"""More than `struct statfs` takes on any architecture; its first word is f_type."""
_SYNC_FILE_RANGE_WRITE: Final = 2
_LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
# linux/stat.h, linux/fcntl.h
_STATX_BYTES: Final = 256
_STATX_ATTRIBUTES_AT: Final = 8
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_AT_EMPTY_PATH: Final = 0x1000


def filesystem_type(descriptor: int) -> int:
    """Return f_type of the file system under `descriptor` (an O_PATH one will do).

    Source: fstatfs(2); `os.fstatvfs` does not tell it.

    Raises:
        OSError: the kernel refuses.
    """
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _LIBC.fstatfs(descriptor, buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def is_mount_root(descriptor: int) -> bool:
    """Return whether a file system, or a part of one (a bind mount), is mounted right here.

    st_dev shows no bind mount within one file system. Source: statx(2), Linux 5.8; an older kernel
    tells of none.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _LIBC.statx(descriptor, b"", _AT_EMPTY_PATH, 0, buffer) != 0:
        return False
    attributes = ctypes.c_uint64.from_buffer(buffer, _STATX_ATTRIBUTES_AT).value
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def sync_filesystem(descriptor: int) -> None:
    """Wait until all that was written to the file system under `descriptor` is durable.

    Source: syncfs(2).

    Raises:
        OSError: the kernel refuses, or the disk has reported an error.
    """
    if _LIBC.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def begin_write_back(descriptor: int) -> None:
    """Have the kernel begin to write what is dirty of a file to the disk, and wait for nothing.

    It promises nothing, nor do its errors: whoever waits for all of it afterwards, and is told what
    fails, waits for less. Source: sync_file_range(2).
    """
    _LIBC.sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
