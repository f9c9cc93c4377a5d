"""How jobs ended: the exit code, the summary for scripts, and what a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast_cli.command import Session
from holdfast_cli.forgotten import with_names
from holdfast_cli.output import print_error, print_json, say, shown_path, size, warn
from holdfast_contract.errors import error_classes
from holdfast_contract.protocol.control import JobState
from holdfast_contract.protocol.http import ErrorRow, JobRow
from holdfast_contract.text import printable

NAMES_SHOWN_MAX = 20
_WORST = (
    JobState.COMPLETED,
    JobState.COMPLETED_WITH_SKIPS,
    JobState.CANCELLED,
    JobState.FAILED,
)
_LISTS = (("skipped", "skipped"), ("not_exact", "not exact"), ("damaged", "damaged"))


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


def finish(session: Session, ended: Sequence[JobRow]) -> int:
    """Print what jobs came to; return the worst exit code."""
    named = [with_names(session, row) for row in ended]
    if session.as_json:
        _print_summaries(named)
    else:
        for row in named:
            print_end(session, row)
    return exit_code(_worst(named))


def _worst(rows: Sequence[JobRow]) -> JobRow:
    return max(rows, key=lambda row: _WORST.index(row.state))


def _print_summaries(ended: Sequence[JobRow]) -> None:
    for row in ended:
        if row.error is not None and row.state is JobState.FAILED:
            told = row.error
            print_error(
                told.code, told.message, told.hint, exit_code(row), job=row.id, details=told.details
            )
    summaries = [summary_of(row) for row in ended]
    if len(summaries) == 1:
        print_json(summaries[0])
        return
    for summary in summaries:
        print_json(summary | {"type": "result"})
    state = _worst(ended).state.value
    print_json({"type": "summary", "state": state, "jobs": summaries})


def summary_of(row: JobRow) -> dict[str, Any]:
    """Return the summary of a finished job; `job` is null where no agent did it."""
    summary: dict[str, Any] = {"type": "summary", "kind": row.kind, "job": row.id or None}
    summary |= {"client": row.client, "state": row.state.value, "snapshot": row.snapshot}
    return summary | {k: v for k, v in (row.result or {}).items() if k not in summary}


# --- for people
def print_end(session: Session, row: JobRow) -> None:
    """Tell a person how a job ended."""
    summary = row.result or {}
    say(_headline(row, summary))
    if not session.quiet and _has_counts(row, summary):
        _say_counts(row.kind, summary)
    if row.kind == "backup" and row.snapshot:
        say(f"  snapshot {row.snapshot}")
    for planned in summary.get("plan") or []:
        say(f"  {planned.get('action', ''):9} {shown_path(planned)}")
    for name, text in _LISTS:
        _say_names(summary.get(name), text, int(summary.get(f"{name}_count") or 0))
    if row.error is not None:
        _warn(row.error)


def _headline(row: JobRow, summary: dict[str, Any]) -> str:
    head = " of ".join(filter(None, (row.kind, row.client)))
    head += f"{' (dry run)' if 'plan' in summary else ''}: {row.state.value}"
    if not _has_counts(row, summary):
        return head
    counts = f"{summary['files']:,} files, {size(int(summary.get('bytes') or 0))}"
    return f"{head}, {counts} in {float(summary.get('seconds') or 0):.1f} s"


def _has_counts(row: JobRow, summary: dict[str, Any]) -> bool:
    """Tell whether numbers say anything: not where nothing was done."""
    is_done = row.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS)
    return summary.get("files") is not None and (is_done or bool(summary["files"]))


def _say_counts(kind: str, summary: dict[str, Any]) -> None:
    def count(name: str) -> str:
        return f"{summary.get(name) or 0:,}"

    if kind == "backup":
        sent = size(int(summary.get("bytes_sent") or 0))
        say(
            f"  new {count('files_new')}, changed {count('files_changed')},"
            f" unmodified {count('files_unmodified')}; sent {sent}"
        )
    elif kind == "restore":
        names = ("created", "overwritten", "unchanged", "deleted")
        say("  " + ", ".join(f"{name} {count(name)}" for name in names))


def _say_names(rows: list[dict[str, Any]] | None, text: str, count: int) -> None:
    if rows is None:
        if count:
            say(f"  {text}: {count:,} (their names open with --key-file or a connected agent)")
        return
    for row in rows[:NAMES_SHOWN_MAX]:
        why = row.get("message") or row.get("reason") or row.get("object") or ""
        say(f"  {text}: {shown_path(row)}: {printable(str(why))}")
    more = max(count, len(rows)) - min(len(rows), NAMES_SHOWN_MAX)
    if more > 0:
        told = " (--json shows all)" if len(rows) > NAMES_SHOWN_MAX else ""
        say(f"  ... and {more:,} more {text}{told}")


def _warn(error: ErrorRow) -> None:
    warn(f"holdfast: {printable(error.message)}")
    if error.hint:
        warn(f"  {printable(error.hint)}")
