"""Cancel and progress of one job: written by its threads, read by the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

from holdfast_contract.errors import Cancelled
from holdfast_contract.protocol.control import Counts


class JobCancel:
    """Set once; wakes whoever waits and breaks requests under way. Fits ports.Cancel."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._breakers: list[Callable[[], None]] = []

    def set(self) -> None:
        """Ask for the end of the job."""
        with self._lock:
            self._event.set()
            breakers = list(self._breakers)
        for breaker in breakers:
            breaker()

    def breaks(self, breaker: Callable[[], None]) -> None:
        """Have `breaker` called on cancel (at once if it has happened already)."""
        with self._lock:
            self._breakers.append(breaker)
            late = self._event.is_set()
        if late:
            breaker()

    def check(self) -> None:
        """Return, or raise Cancelled when the job was cancelled."""
        if self._event.is_set():
            raise Cancelled("the job was cancelled")

    def is_set(self) -> bool:
        """Tell whether the job was cancelled."""
        return self._event.is_set()

    def wait(self, timeout_seconds: float) -> bool:
        """Block until cancelled or for `timeout_seconds`; tell whether cancelled."""
        return self._event.wait(timeout_seconds)


class JobProgress:
    """How far a job is. Fits ports.Progress; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files = self._bytes = self._moved = 0
        self._files_total = self._bytes_total = 0
        self._current = b""
        self._phase = "running"

    def add(self, *, files: int = 0, bytes: int = 0, moved: int = 0) -> None:  # noqa: A002
        """Count what was done."""
        with self._lock:
            self._files += files
            self._bytes += bytes
            self._moved += moved + files + bytes

    def current(self, path: bytes) -> None:
        """Say which path is worked on."""
        self._current = path

    def totals(self, files: int, bytes: int) -> None:  # noqa: A002
        """Say how much there is in all."""
        with self._lock:
            self._files_total, self._bytes_total = files, bytes

    def phase(self, name: str) -> None:
        """Say `running` or `finalizing`."""
        self._phase = name

    def counts(self, bytes_sent: int) -> Counts:
        """Return the counts of the moment."""
        with self._lock:
            return Counts(
                files=self._files,
                bytes=self._bytes,
                bytes_sent=bytes_sent,
                files_total=self._files_total,
                bytes_total=self._bytes_total,
            )

    @property
    def moved(self) -> int:
        """Grows whenever anything was done."""
        return self._moved

    @property
    def path(self) -> bytes:
        """The path worked on."""
        return self._current

    @property
    def phase_name(self) -> str:
        """`running` or `finalizing`."""
        return self._phase
