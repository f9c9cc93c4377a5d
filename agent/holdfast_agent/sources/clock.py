"""The clock that a walk needs: also what a file system would stamp a change with right now."""

from __future__ import annotations

import time
from typing import Final, Protocol

from holdfast_contract.clock import Clock, SystemClock

_CLOCK_REALTIME_COARSE: Final = 5
"""linux/time.h; Python's `time` does not name it."""


class FileClock(Clock, Protocol):
    """A contract clock that also knows the clock of file timestamps."""

    def stamp_ns(self) -> int:
        """Return the wall-clock nanoseconds that a file changed now gets as its ctime, or less."""


class SystemFileClock(SystemClock):
    """The machine's clock.

    Linux stamps files with CLOCK_REALTIME_COARSE, which lags behind by up to a tick: a moment
    taken from the precise clock would call files settled that can still change unseen.
    """

    def stamp_ns(self) -> int:
        """Return CLOCK_REALTIME_COARSE in nanoseconds since 1970."""
        return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
