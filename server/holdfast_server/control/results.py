"""Names that agents told with the end of a job: in memory for a while, nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from holdfast_contract.clock import Clock
from holdfast_contract.errors import TooMany
from holdfast_contract.limits import MIB

KEPT_SECONDS = 600.0
"""How long after a job's end its names can be shown."""
UNFINISHED_SECONDS = 6 * 3600.0
"""How long names wait for the end of their job; an agent sends them again with a later end."""
TOTAL_BYTES_MAX = 256 * MIB
"""Beyond it the oldest are forgotten early: their counts remain."""
ARRIVING_BYTES_MAX = 128 * MIB
"""Results that are arriving at once: two of the largest, or a thousand of the usual."""


@dataclass
class _Kept:
    body: bytes
    sealed: bytes | None
    until: float


class Results:
    """Bodies of `PUT /agent/v1/jobs/{job}/result` by job, as they came."""

    def __init__(self, clock: Clock, *, total_bytes_max: int = TOTAL_BYTES_MAX) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._total_bytes_max = total_bytes_max
        self._arriving = 0

    @contextmanager
    def arrival(self) -> Iterator[Callable[[int], None]]:
        """Count what arrives of one result inside the block.

        Raises:
            TooMany: (what it gives, when told of more bytes) much is arriving at this moment.
        """
        mine = 0

        def arrived(count: int) -> None:
            nonlocal mine
            if self._arriving + count > ARRIVING_BYTES_MAX:
                raise TooMany("many results are arriving at this moment")
            self._arriving += count
            mine += count

        try:
            yield arrived
        finally:
            self._arriving -= mine

    def put(self, job: str, body: bytes, sealed: bytes | None) -> None:
        """Keep the names of a job that is about to end; a later body replaces an earlier one.

        `sealed` is its sealed list, which the job's row takes over at the end.
        """
        self._kept.pop(job, None)
        self._kept[job] = _Kept(body, sealed, self._clock.monotonic() + UNFINISHED_SECONDS)
        self._sweep()

    def sealed(self, job: str) -> bytes | None:
        """Return the sealed list that came with the names of `job`."""
        kept = self._kept.get(job)
        return kept.sealed if kept else None

    def ended(self, job: str) -> None:
        """Begin the ten minutes after the end of a job."""
        if kept := self._kept.get(job):
            kept.until = self._clock.monotonic() + KEPT_SECONDS

    def get(self, job: str) -> bytes | None:
        """Return the body for `job`, None when it never came or is forgotten."""
        self._sweep()
        kept = self._kept.get(job)
        return kept.body if kept else None

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        for job in [job for job, kept in self._kept.items() if kept.until <= now]:
            del self._kept[job]
        total = sum(len(kept.body) for kept in self._kept.values())
        while total > self._total_bytes_max:
            oldest = next(iter(self._kept))
            total -= len(self._kept.pop(oldest).body)
