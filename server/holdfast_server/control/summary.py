"""The `result` of a job: its summary, with names from memory while they are there."""

from __future__ import annotations

from typing import Any

from holdfast_contract.protocol.control import JobState
from holdfast_server.control.reported import ReportedResult, ReportedRow

_COUNTS = {
    "backup": (
        "files",
        "dirs",
        "bytes",
        "files_new",
        "files_changed",
        "files_unmodified",
        "bytes_new",
        "bytes_sent",
    ),
    "restore": (
        "files",
        "dirs",
        "bytes",
        "created",
        "overwritten",
        "deleted",
        "unchanged",
    ),
    "verify": ("files", "dirs", "bytes", "chunks"),
}


_LISTS = frozenset({"skipped", "not_exact", "plan", "damaged"})


def summary_of(  # noqa: PLR0913  # one argument for each thing that a summary is made of
    *,
    kind: str,
    job: str,
    client: str,
    state: JobState,
    snapshot: str | None,
    told: dict[str, Any],
    seconds: float,
    skipped_count: int,
    not_exact_count: int,
    is_dry_run: bool,
    names: ReportedResult | None,
) -> dict[str, Any]:
    """Return the summary of a job that is over.

    Args:
        told: numbers as the agent told them; numbers that it left out are 0.
        names: what it relayed, None once that is forgotten: lists that are not known to be empty
            are null then, and the counts remain.
    """
    summary: dict[str, Any] = {
        "type": "summary",
        "kind": kind,
        "job": job,
        "client": client,
        "state": state.value,
        "snapshot": snapshot,
    }
    known = frozenset(summary) | _LISTS
    if kind == "backup":
        summary["parent"] = None
    summary |= dict.fromkeys(_COUNTS[kind], 0)
    summary |= {name: value for name, value in told.items() if name not in known}
    summary["skipped"] = _rows(names.skipped if names else None, skipped_count)
    if kind == "restore":
        summary["not_exact"] = _rows(names.not_exact if names else None, not_exact_count)
        summary["not_exact_count"] = not_exact_count
    if is_dry_run:
        summary["plan"] = names.plan if names else None
    summary["damaged"] = names.damaged if names else None
    summary["skipped_count"] = skipped_count
    summary["seconds"] = round(seconds, 3)
    return summary


def _rows(rows: list[ReportedRow] | None, count: int) -> list[ReportedRow] | None:
    if rows is None and not count:
        return []
    return rows
