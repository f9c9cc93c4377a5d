"""`holdfast restore --local`: the agent's restore, run here with the key alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec

from holdfast_agent.jobs.outcome import Outcome, failed
from holdfast_agent.jobs.restore import run_restore
from holdfast_agent.jobs.tracking import JobProgress
from holdfast_agent.restore.destination import local_scope
from holdfast_cli.backup import rate
from holdfast_cli.command import Session
from holdfast_cli.opening import Interrupt, read_keys, source_of
from holdfast_cli.output import warn
from holdfast_cli.references import Part
from holdfast_cli.waiting import meter_of
from holdfast_contract.clock import Clock, SystemClock, rfc3339
from holdfast_contract.errors import Cancelled, HoldfastError, error_classes
from holdfast_contract.ids import new_ulid
from holdfast_contract.limits import MIB
from holdfast_contract.protocol.control import JobState, Overwrite, Restore
from holdfast_contract.protocol.http import ErrorRow, JobRow, ProgressRow

_LOOK_SECONDS = 0.2
_MEMORY_MAX = 512 * MIB
"""A person's machine has more to spare than a pod's sidecar."""
_WORKERS_MAX = 8


def restore_here(
    session: Session, parts: list[Part], given: dict[str, Any], key_text: str
) -> JobRow:
    """Restore `parts` below the directory `given["local"]`; return how it ended, as a job's row.

    Raises:
        WrongKey, NotFound, Damaged, InvalidInput, NoSpace, Refused: nothing, or not all, was
            written; what was finished stays.
    """
    clock = SystemClock()
    row = _first_row(parts, clock)
    keys = read_keys(key_text)
    order = restore_order(parts, given)
    cancel = Interrupt()
    progress = JobProgress()

    def work() -> Outcome:
        snapshots = list(dict.fromkeys(part.snapshot.id for part in parts))
        return run_restore(
            order,
            keys=keys,
            source=source_of(session.api, snapshots, cancel, order.limit_download),
            own_client=parts[0].snapshot.client,
            scope=local_scope(),
            cancel=cancel,
            progress=progress,
            clock=clock,
            workers=min(os.cpu_count() or 1, _WORKERS_MAX),
            memory_max=_MEMORY_MAX,
        )

    with (
        meter_of(session, [row]) as meter,
        _interrupts(session, cancel),
        ThreadPoolExecutor(1, "restore") as pool,
    ):
        running = pool.submit(work)
        while not wait([running], _LOOK_SECONDS).done:
            meter.update(_row_now(row, progress))
    outcome = _ended(running, order.job, was_interrupted=cancel.is_set())
    return _last_row(row, order, outcome, clock)


def _ended(running: Future[Outcome], job: str, *, was_interrupted: bool) -> Outcome:
    try:
        return running.result()
    except HoldfastError:
        if was_interrupted:
            # A request that was broken off looks like a server that went away.
            return failed(job, Cancelled("interrupted"))
        raise


@contextmanager
def _interrupts(session: Session, cancel: Interrupt) -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP end the work in order: no half-written file is left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt  # asked twice: at once, then
        cancel.set()
        session.api.http.abort()
        warn("interrupted: what is restored already stays")

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def restore_order(parts: list[Part], given: dict[str, Any]) -> Restore:
    """Return the order that an agent would get for the same options.

    Raises:
        InvalidInput: a rate that is none.
    """
    return Restore(
        job=new_ulid(),
        items=[part.item() for part in parts],
        # A person's own directory: links on the way to it are theirs.
        target=os.fsencode(given["local"].resolve()),
        include=list(given["include"]),
        exclude=list(given["exclude"]),
        strip=given["strip"],
        overwrite=Overwrite(given["overwrite"]),
        delete=given["delete"],
        special=given["special"],
        dry_run=given["dry_run"],
        verify=given["verify"],
        limit_download=rate(given["limit_download"]),
    )


# --- as a row of jobs, so that all restores are told alike
def _first_row(parts: list[Part], clock: Clock) -> JobRow:
    clients = {part.snapshot.client for part in parts}
    now = rfc3339(clock.now_ns())
    return JobRow(
        id="",
        kind="restore",
        client=clients.pop() if len(clients) == 1 else "",
        state=JobState.RUNNING,
        created=now,
        started=now,
        finished=None,
        progress=ProgressRow(),
        error=None,
    )


def _row_now(row: JobRow, progress: JobProgress) -> JobRow:
    counts = progress.counts(0)
    shown = ProgressRow(
        files=counts.files,
        bytes=counts.bytes,
        files_total=counts.files_total or None,
        bytes_total=counts.bytes_total or None,
    )
    current = os.fsdecode(progress.path)
    return msgspec.structs.replace(row, progress=shown, current=current)


def _last_row(row: JobRow, order: Restore, outcome: Outcome, clock: Clock) -> JobRow:
    ended, names = outcome.finished, outcome.result
    result: dict[str, Any] = {**ended.summary, "not_exact": names.not_exact}
    result["not_exact_count"] = ended.not_exact_count
    result["damaged"] = names.damaged
    if order.dry_run:
        result["plan"] = names.plan
    return msgspec.structs.replace(
        row,
        state=ended.state,
        finished=rfc3339(clock.now_ns()),
        error=_error_row(outcome),
        snapshot=ended.snapshot.hex() if ended.snapshot else None,
        result=result,
    )


def _error_row(outcome: Outcome) -> ErrorRow | None:
    failure = outcome.finished.error
    if failure is None:
        return None
    known = error_classes().get(failure.code)
    exit_code = known.exit_code if known else 1
    return ErrorRow(
        code=failure.code, message=failure.message, hint=failure.hint, exit=exit_code,
        details=dict(failure.details),
    )  # fmt: skip
