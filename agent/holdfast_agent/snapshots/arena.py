"""Memory for one batch of chunks after another: fresh megabytes for each cost more than opening it.

It is mapped once, and its pages are there from the first batch on that fills them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from threading import Lock


class Arena:
    """Memory of a fixed length, given out in parts until it is cleared. Thread-safe."""

    def __init__(self, length: int, *, is_shared: bool = False) -> None:
        """Map it; `is_shared`: by a descriptor, with which another process may do so, too.

        Raises:
            OSError: the kernel has no such memory to give.
        """
        self.descriptor = -1
        """By which another process maps it; -1: none can."""
        if is_shared:
            self.descriptor = os.memfd_create("chunks", os.MFD_CLOEXEC)
            os.ftruncate(self.descriptor, length)
        # Not a bytearray: that writes zeros, and a restore of one small file would fill all of it.
        self._map = mmap.mmap(self.descriptor, length)
        self._view = memoryview(self._map)
        self._used = 0
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the length of it."""
        return len(self._view)

    def take(self, size: int) -> memoryview:
        """Return `size` bytes to be overwritten; what finds no room has memory of its own."""
        with self._lock:
            start, end = self._used, self._used + size
            if end <= len(self._view):
                self._used = end
                return self._view[start:end]
        return memoryview(bytearray(size))

    def clear(self) -> None:
        """Give all of it out anew: whatever was taken is needed no more."""
        with self._lock:
            self._used = 0

    def offset_of(self, part: memoryview) -> int | None:
        """Return where `part` begins; None where it is empty, or no part of this memory."""
        if part.obj is not self._map or not part:
            return None
        return _address_of(part) - _address_of(self._view)

    def close(self) -> None:
        """Give the descriptor back; the memory stays as long as anything of it is used."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _address_of(part: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(part))
