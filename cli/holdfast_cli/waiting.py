"""Waiting for jobs: progress on a terminal, JSON lines for scripts, one exit code at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from holdfast_cli.api import client_path
from holdfast_cli.command import Session
from holdfast_cli.ending import finish
from holdfast_cli.output import print_json, say, warn
from holdfast_contract.errors import Unreachable
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import ClientRow, JobRow

WAIT_SECONDS = 2
UNREACHABLE_SECONDS = 120
"""How long a server that went away is waited for; the job goes on meanwhile."""
REPEAT_SECONDS = 0.5


class Meter(Protocol):
    """Draws how far jobs are."""

    def update(self, row: JobRow) -> None:
        """Draw the row's progress."""


class NoMeter:
    """Draws nothing."""

    def update(self, row: JobRow) -> None:
        """Do nothing."""


def detached(session: Session, rows: Sequence[JobRow]) -> int:
    """Print the ids of jobs that nobody waits for."""
    for row in rows:
        if session.as_json:
            print_json({"type": "detached", "job": row.id, "client": row.client})
        else:
            say(row.id)
    return 0


def wait_all(session: Session, rows: Sequence[JobRow]) -> int:
    """Wait for all jobs, print what they came to, return the worst exit code.

    Ctrl-C on a terminal cancels them; a signal without a terminal leaves them running.
    """
    try:
        ended = follow(session, rows, tells_progress=session.as_json and not session.quiet)
    except KeyboardInterrupt:
        if sys.stdin.isatty() or sys.stderr.isatty():
            for row in rows:
                session.api.send("POST", f"/v1/jobs/{row.id}/cancel", JobRow)
            warn("cancelled")
        return 130
    return finish(session, ended)


def follow(
    session: Session, rows: Sequence[JobRow], *, tells_progress: bool = False
) -> list[JobRow]:
    """Return the rows of jobs when all are over, in the order given."""
    found = {row.id: row for row in rows}
    told: dict[str, object] = {}
    is_first_round = True
    with meter_of(session, rows) as meter:
        while active := [row for row in found.values() if not row.state.is_final]:
            for place, row in enumerate(active):
                # One request waits, the others only look: no job's progress is held up by another.
                fresh = poll(session, row.id, wait_seconds=0 if place else WAIT_SECONDS)
                found[row.id] = fresh
                meter.update(fresh)
                progress = (fresh.state, fresh.progress)
                if tells_progress and not fresh.state.is_final and told.get(row.id) != progress:
                    _print_progress(fresh)
                told[row.id] = progress
            if is_first_round and not (session.as_json or session.quiet):
                _tell_what_waits(session, found.values())
            is_first_round = False
    return list(found.values())


def _tell_what_waits(session: Session, rows: Iterable[JobRow]) -> None:
    """Tell a person why nothing happens: the agent is away."""
    for row in rows:
        if row.state is JobState.QUEUED:
            client = session.api.get(client_path(row.client), ClientRow)
            if client.state != "connected":
                warn(f"holdfast: {row.client} is {client.state}: the job waits for its agent")


def _print_progress(row: JobRow) -> None:
    line: dict[str, Any] = {"type": "progress", "job": row.id, "client": row.client}
    print_json(line | {"state": row.state.value, "progress": row.progress})


def poll(session: Session, job: str, *, wait_seconds: int = WAIT_SECONDS) -> JobRow:
    """Return the job when it moved; a server that is away is waited for.

    Raises:
        Unreachable: it stayed away.
    """
    until = time.monotonic() + UNREACHABLE_SECONDS
    is_told = False
    while True:
        try:
            return session.api.get(f"/v1/jobs/{job}", JobRow, wait=wait_seconds or None)
        except Unreachable as error:
            hint = f"the job goes on: holdfast job wait {job}"
            if time.monotonic() > until:
                raise Unreachable(error.message, hint=hint) from error
            if not is_told and not session.quiet:
                warn(f"holdfast: {error.message}; waiting for it")
                is_told = True
            time.sleep(REPEAT_SECONDS)


def meter_of(session: Session, rows: Sequence[JobRow]) -> AbstractContextManager[Meter]:
    """Return what draws these jobs: on a terminal only."""
    if not session.shows_progress:
        return nullcontext(NoMeter())
    from holdfast_cli.meter import TerminalMeter  # rich costs a tenth of a second

    return TerminalMeter(rows)
