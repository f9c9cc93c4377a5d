"""Memory for one batch of chunks after another: fresh megabytes for each cost more than opening it.

It is mapped once, and its pages are there from the first batch on that fills them.
"""

from __future__ import annotations

import mmap
from threading import Lock


class Arena:
    """Memory of a fixed length, given out in parts until it is cleared. Thread-safe."""

    def __init__(self, length: int) -> None:
        # Not a bytearray: that writes zeros, and a restore of one small file would fill all of it.
        self._view = memoryview(mmap.mmap(-1, length))
        self._used = 0
        self._lock = Lock()

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
