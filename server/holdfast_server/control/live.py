"""What is known of active jobs beyond the catalog: progress, and since when nothing moved."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_contract.clock import Clock
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import Counts, JobState, Progress


@dataclass
class LiveJob:
    """Memory of one active job; lost with the process, told again by the agent."""

    job: str
    client: ClientName
    moved_at: float
    """Monotonic seconds of the last sign of progress, or of the agent's last connect."""
    state: JobState = JobState.DISPATCHED
    """The last state that was seen here; the catalog's decides."""
    counts: Counts = field(default_factory=Counts)
    current: bytes = b""
    """Relayed to who asks, never stored or logged."""
    moved: int = 0
    is_cancelling: bool = False
    has_unsaved_counts: bool = False


class LiveJobs:
    """The active jobs, at most one a client."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._jobs: dict[str, LiveJob] = {}

    def add(self, job: str, client: ClientName) -> LiveJob:
        """Return the memory of `job`, made if there is none; its stall time begins anew."""
        live = self._jobs.get(job)
        if live is None:
            live = self._jobs[job] = LiveJob(job, client, self._clock.monotonic())
        live.moved_at = self._clock.monotonic()
        return live

    def get(self, job: str) -> LiveJob | None:
        """Return the memory of `job` while it is active."""
        return self._jobs.get(job)

    def remove(self, job: str) -> None:
        """Forget a job that is over."""
        self._jobs.pop(job, None)

    def all(self) -> list[LiveJob]:
        """Return every active job."""
        return list(self._jobs.values())

    def update(self, progress: Progress) -> bool:
        """Remember how far a job is; True when anybody watching sees something new."""
        live = self._jobs.get(progress.job)
        if live is None:
            return False
        if progress.moved != live.moved:
            live.moved, live.moved_at = progress.moved, self._clock.monotonic()
        is_new = (live.counts, live.current) != (progress.counts, progress.current)
        if progress.counts != live.counts:
            live.counts, live.has_unsaved_counts = progress.counts, True
        live.current = progress.current
        return is_new

    def is_stalled(self, live: LiveJob, stall_seconds: float) -> bool:
        """Tell whether a job of a connected client did not move for so long."""
        return self._clock.monotonic() - live.moved_at >= stall_seconds

    def take_unsaved(self) -> list[tuple[str, Counts]]:
        """Return counts that the catalog does not have yet, and call them saved."""
        changed = [live for live in self._jobs.values() if live.has_unsaved_counts]
        for live in changed:
            live.has_unsaved_counts = False
        return [(live.job, live.counts) for live in changed]
