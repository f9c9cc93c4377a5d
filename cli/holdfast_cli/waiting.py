"""Waiting for jobs: progress on a terminal, JSON lines for scripts, one exit code at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from holdfast_cli.command import Session
from holdfast_cli.output import print_json, say, shown_path, size, warn
from holdfast_contract.errors import Unreachable, error_classes
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import JobRow
from holdfast_contract.text import printable

WAIT_SECONDS = 2
UNREACHABLE_SECONDS = 120
"""How long a server that went away is waited for; the job goes on meanwhile."""
NAMES_SHOWN_MAX = 20
_WORST = (
    JobState.COMPLETED,
    JobState.COMPLETED_WITH_SKIPS,
    JobState.CANCELLED,
    JobState.FAILED,
)


class Meter(Protocol):
    """Draws how far a job is."""

    def update(self, row: JobRow) -> None:
        """Draw the row's progress."""


class NoMeter:
    """Draws nothing."""

    def update(self, row: JobRow) -> None:
        """Do nothing."""


def exit_code(row: JobRow) -> int:
    """Return the exit code by which a finished job ends the command."""
    if row.state is JobState.FAILED:
        known = error_classes().get(row.error.code) if row.error else None
        return known.exit_code if known else (row.error.exit if row.error else 1)
    return {
        JobState.COMPLETED: 0,
        JobState.COMPLETED_WITH_SKIPS: 3,
        JobState.CANCELLED: 130,
    }.get(row.state, 1)


def detached(session: Session, rows: Sequence[JobRow]) -> int:
    """Print the ids of jobs that nobody waits for."""
    for row in rows:
        if session.as_json:
            print_json({"type": "detached", "job": row.id, "client": row.client})
        else:
            say(row.id)
    return 0


def wait_all(session: Session, rows: Sequence[JobRow]) -> int:
    """Wait for all jobs, print what they came to, return the worst exit code."""
    try:
        ended = [_wait(session, row) for row in rows]
    except KeyboardInterrupt:
        if sys.stdin.isatty() or sys.stderr.isatty():
            for row in rows:
                session.api.send("POST", f"/v1/jobs/{row.id}/cancel", JobRow)
            warn("cancelled")
        return 130
    summaries = [summary_of(row) for row in ended]
    if session.as_json:
        _print_summaries(ended, summaries)
    else:
        for row, summary in zip(ended, summaries, strict=True):
            print_end(session, row, summary)
    worst = max(ended, key=lambda row: _WORST.index(row.state))
    return exit_code(worst)


def _print_summaries(ended: Sequence[JobRow], summaries: Sequence[dict[str, Any]]) -> None:
    for row in ended:
        if row.error is not None and row.state is JobState.FAILED:
            error = {"type": "error", "code": row.error.code, "message": row.error.message}
            print_json(error | {"hint": row.error.hint, "exit": exit_code(row)}, sys.stderr)
    if len(summaries) == 1:
        print_json(summaries[0])
        return
    for summary in summaries:
        print_json(summary | {"type": "result"})
    worst = max(ended, key=lambda row: _WORST.index(row.state))
    print_json({"type": "summary", "state": worst.state.value, "jobs": summaries})


def summary_of(row: JobRow) -> dict[str, Any]:
    """Return the summary of a finished job, whole even where the job never began."""
    summary: dict[str, Any] = {"type": "summary", "job": row.id, "client": row.client}
    summary |= {"state": row.state.value, "snapshot": row.snapshot}
    return summary | {k: v for k, v in (row.result or {}).items() if k not in summary}


def _wait(session: Session, row: JobRow) -> JobRow:
    with _meter(session, row) as meter:
        last: object = None
        while not row.state.is_final:
            row = poll(session, row.id)
            meter.update(row)
            if session.as_json and not session.quiet and row.progress != last:
                print_json({"type": "progress", "job": row.id, "state": row.state.value,
                            "progress": row.progress})  # fmt: skip
            last = row.progress
        return row


def poll(session: Session, job: str) -> JobRow:
    """Return the job when it moved; a server that is away is waited for."""
    until = time.monotonic() + UNREACHABLE_SECONDS
    while True:
        try:
            return session.api.get(f"/v1/jobs/{job}", JobRow, wait=WAIT_SECONDS)
        except Unreachable as error:
            if time.monotonic() > until:
                raise Unreachable(
                    error.message, hint=f"the job goes on: holdfast job wait {job}"
                ) from error
            time.sleep(0.5)


def _meter(session: Session, row: JobRow) -> AbstractContextManager[Meter]:
    if not session.shows_progress:
        return nullcontext(NoMeter())
    from holdfast_cli.meter import TerminalMeter  # rich costs a tenth of a second

    return TerminalMeter(row)


def print_end(session: Session, row: JobRow, summary: dict[str, Any]) -> None:
    """Tell a person how a job ended."""
    head = f"{row.kind} of {row.client}: {row.state.value}"
    if summary.get("files") is not None and row.result:
        head += f", {summary['files']:,} files, {size(int(summary.get('bytes') or 0))}"
        head += f" in {float(summary.get('seconds') or 0):.1f} s"
    say(head)
    if row.kind == "backup" and row.result and not session.quiet:
        say(
            f"  new {summary.get('files_new', 0):,}, changed {summary.get('files_changed', 0):,},"
            f" unmodified {summary.get('files_unmodified', 0):,};"
            f" sent {size(int(summary.get('bytes_sent') or 0))}"
        )
    if row.kind == "restore" and row.result and not session.quiet:
        counts = ("created", "overwritten", "unchanged", "deleted")
        say("  " + ", ".join(f"{name} {summary.get(name) or 0:,}" for name in counts))
    if row.snapshot:
        say(f"  snapshot {row.snapshot}")
    _print_plan(summary)
    for name, text in (("skipped", "skipped"), ("not_exact", "not exact"), ("damaged", "damaged")):
        _print_names(summary.get(name), text)
    if row.error is not None:
        warn(f"holdfast: {row.error.message}")
        if row.error.hint:
            warn(f"  {row.error.hint}")


def _print_plan(summary: dict[str, Any]) -> None:
    for row in summary.get("plan") or []:
        say(f"  {row.get('action', ''):9} {shown_path(row)}")


def _print_names(rows: list[dict[str, Any]] | None, text: str) -> None:
    for row in (rows or [])[:NAMES_SHOWN_MAX]:
        why = row.get("message") or row.get("reason") or row.get("object") or ""
        say(f"  {text}: {shown_path(row)}: {printable(str(why))}")
    if rows and len(rows) > NAMES_SHOWN_MAX:
        say(f"  ... and {len(rows) - NAMES_SHOWN_MAX} more (--json shows all)")
