"""What an agent's word about the end of a job comes to: Completed only if it is true. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_contract.errors import Cancelled, HoldfastError, InternalError, error_from
from holdfast_contract.protocol.control import Counts, Failure, Finished, JobState
from holdfast_contract.protocol.http import ErrorRow


@dataclass(frozen=True)
class Ending:
    """The last state of a job and what the catalog keeps of it."""

    state: JobState
    counts: Counts
    error: ErrorRow | None = None
    snapshot: bytes | None = None
    summary: dict[str, int | float | str | None] = field(default_factory=dict)
    skipped_count: int = 0
    not_exact_count: int = 0


def error_row(error: HoldfastError) -> ErrorRow:
    """Return `error` as a job row tells it."""
    return ErrorRow(
        code=error.code,
        message=error.message,
        hint=error.hint,
        exit=error.exit_code,
        details=error.details,
    )


def _told(failure: Failure) -> ErrorRow:
    details = dict(failure.details)
    error = error_from(failure.code, failure.message, hint=failure.hint, details=details)
    return error_row(error)


def ending_of(
    finished: Finished, *, kind: str, is_dry_run: bool, snapshot_state: str | None
) -> Ending:
    """Return how a job ended.

    Args:
        finished: the agent's word.
        kind: backup, restore or verify.
        is_dry_run: nothing was to be written.
        snapshot_state: state of the snapshot that the agent names, None when the catalog has none
            such of this client.
    """
    state, error = finished.state, None if finished.error is None else _told(finished.error)
    snapshot = finished.snapshot if finished.snapshot and snapshot_state else None
    is_good = state in (JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS)
    if is_good and kind == "backup" and not is_dry_run and snapshot is None:
        state, error = JobState.FAILED, error_row(InternalError("the backup left no snapshot"))
    elif not state.is_final:
        state, error = JobState.FAILED, error_row(InternalError("the agent told no end"))
    elif state is JobState.COMPLETED and _is_partial(finished, snapshot_state):
        state = JobState.COMPLETED_WITH_SKIPS
    if state is JobState.FAILED and error is None:
        error = error_row(InternalError("the agent told no reason"))
    if state is JobState.CANCELLED and error is None:
        error = error_row(Cancelled("cancelled"))
    if state in (JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS):
        error = None
    return Ending(
        state=state,
        counts=finished.counts,
        error=error,
        snapshot=snapshot,
        summary=dict(finished.summary),
        skipped_count=finished.skipped_count,
        not_exact_count=finished.not_exact_count,
    )


def _is_partial(finished: Finished, snapshot_state: str | None) -> bool:
    is_listed = finished.skipped_count > 0 or finished.not_exact_count > 0
    return is_listed or snapshot_state in ("skips", "incomplete")


def ending_by(error: HoldfastError, counts: Counts) -> Ending:
    """Return the end of a job that the server itself ends."""
    state = JobState.CANCELLED if isinstance(error, Cancelled) else JobState.FAILED
    return Ending(state=state, counts=counts, error=error_row(error))
