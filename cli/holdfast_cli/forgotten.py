"""Names of a job's findings after the server forgot them: opened with a key, or by an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from holdfast_cli.answers import asked_rows, parsed
from holdfast_cli.command import Session
from holdfast_contract.errors import HoldfastError
from holdfast_contract.protocol.http import JobRow, QueryCreate, SnapshotPath

_Rows = list[dict[str, Any]]


def with_names(session: Session, row: JobRow) -> JobRow:
    """Return the job with `skipped` and `not_exact` filled in where they are null and open here.

    Where nobody at hand can open them they stay null: their counts tell how many there are.
    """
    if row.result is None:
        return row
    result = dict(row.result)
    if result.get("skipped", ()) is None and row.kind == "backup" and row.snapshot:
        result["skipped"] = _opened(session, lambda: _skipped(session, str(row.snapshot)))
    if result.get("not_exact", ()) is None and row.not_exact_sealed:
        sealed = row.not_exact_sealed
        result["not_exact"] = _opened(session, lambda: _not_exact(session, row.id, sealed))
    return msgspec.structs.replace(row, result=result)


def _opened(session: Session, rows: Callable[[], _Rows]) -> _Rows | None:
    try:
        # The last row of a list that was cut says how many are left out; the count says it too.
        return [row for row in rows() if row.get("reason") != "more" or row.get("path")]
    except HoldfastError as error:
        session.note(f"names are not shown: {error.message}")
        return None


def _skipped(session: Session, snapshot: str) -> _Rows:
    text = session.key_text()
    if text is None:
        query = QueryCreate(kind="report", items=[SnapshotPath(snapshot=snapshot)])
        return list(asked_rows(session.api, query))
    from holdfast_cli.opening import answer_here
    from holdfast_contract.protocol.control import RestoreItem

    items = [RestoreItem(bytes.fromhex(snapshot), "", b"/")]
    return list(parsed(answer_here(session.api, text, "report", items)))


def _not_exact(session: Session, job: str, sealed: bytes) -> _Rows:
    text = session.key_text()
    if text is None:
        return list(asked_rows(session.api, QueryCreate(kind="report", job=job)))
    from holdfast_cli.opening import answer_here

    return list(parsed(answer_here(session.api, text, "report", [], blob=sealed)))
