"""A clock of files and sleeps that a test owns."""

from __future__ import annotations


class HandClock:
    """A FileClock that stands still until it is told otherwise."""

    def __init__(self, stamp_ns: int, monotonic: float = 100.0) -> None:
        self.stamp = stamp_ns
        self.seconds = monotonic
        self.slept: list[float] = []

    def now_ns(self) -> int:
        return self.stamp

    def stamp_ns(self) -> int:
        return self.stamp

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
