"""A rate limit that can change while bytes flow."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from holdfast_agent.ports import Cancel
from holdfast_contract.clock import Clock

_SLICE_SECONDS = 0.1
"""A limited sender sends what this time allows, so that changes and cancels act at once."""
_WAIT_SECONDS_MAX = 1.0
_SLICE_BYTES_MIN = 4 << 10
_SLICE_BYTES_MAX = 1 << 20


class RateLimit:
    """Bytes a second over all threads that share it; 0 means no limit. Thread-safe."""

    def __init__(self, clock: Clock, bytes_per_second: int = 0) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = bytes_per_second
        self._next = 0.0

    @property
    def bytes_per_second(self) -> int:
        """The limit of the moment."""
        return self._rate

    def set(self, bytes_per_second: int) -> None:
        """Use another limit from the next slice on."""
        with self._lock:
            self._rate = bytes_per_second
            self._next = 0.0

    def take(self, size: int, cancel: Cancel) -> None:
        """Return when `size` more bytes may flow.

        Raises:
            Cancelled: the job was cancelled meanwhile.
        """
        cancel.check()
        with self._lock:
            if not self._rate:
                return
            rate = self._rate
            now = self._clock.monotonic()
            begin = max(self._next, now)
            end = self._next = begin + size / rate
        while now < end and self._rate == rate:
            # In short waits: another limit acts at once, also on who waits under an absurd one.
            cancel.wait(min(end - now, _WAIT_SECONDS_MAX))
            cancel.check()
            now = self._clock.monotonic()

    def slices(
        self, parts: Iterable[bytes | bytearray | memoryview], cancel: Cancel
    ) -> Iterator[memoryview]:
        """Yield the bytes of `parts` in slices, each when it may flow."""
        for part in parts:
            view = memoryview(part)
            start = 0
            while start < len(view):
                size = self.slice_bytes()
                piece = view[start : start + size]
                self.take(len(piece), cancel)
                yield piece
                start += len(piece)

    def slice_bytes(self) -> int:
        """Return how many bytes to move in one go."""
        if not self._rate:
            return _SLICE_BYTES_MAX
        return min(max(int(self._rate * _SLICE_SECONDS), _SLICE_BYTES_MIN), _SLICE_BYTES_MAX)
