"""Rows of `ls`, `find`, `browse`, `diff` and reports, one JSON line each."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from holdfast_agent.restore.tally import TYPE_NAMES
from holdfast_agent.snapshots.snapshot import Found, Run
from holdfast_agent.sources.live import LiveRow
from holdfast_contract.clock import rfc3339
from holdfast_contract.protocol.http import path_fields

END = {"type": "end"}
_YEAR_1_NS = -62_135_596_800_000_000_000
_YEAR_9999_NS = 253_402_300_799_999_999_999
"""What RFC 3339 can say; file systems can hold more."""
_NO_TARGET = {"target": ""}
_encoder = msgspec.json.Encoder()


def line(row: dict[str, Any]) -> bytes:
    """Return one line of an answer."""
    return _encoder.encode(row) + b"\n"


class _EntryRow(msgspec.Struct):
    """A row of `ls`: the fields of `entry_row`, in their order."""

    path: str
    path_b64: str | msgspec.UnsetType
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: str
    target: str
    target_b64: str | msgspec.UnsetType


def entry_lines(run: Run) -> bytes:
    """Return the lines of some entries of one directory: a third of the cost of a line each."""
    prefix, stats, contents = run
    unset, names, rows = msgspec.UNSET, TYPE_NAMES, []
    for stat, content in zip(stats, contents, strict=True):
        path = path_fields(prefix + stat.name)
        target = _target_fields(content.target) if content.target else _NO_TARGET
        rows.append(
            _EntryRow(
                path["path"],
                path.get("path_b64", unset),
                names[stat.type],
                stat.mode,
                content.uid,
                content.gid,
                stat.size,
                time_text(stat.mtime_ns),
                target["target"],
                target.get("target_b64", unset),
            )
        )
    return _encoder.encode_lines(rows)


def entry_row(found: Found) -> dict[str, Any]:
    """Return the row of a snapshot's entry."""
    stat, content = found.entry.stat, found.entry.content
    return {
        **path_fields(found.path),
        "type": TYPE_NAMES[stat.type],
        "mode": stat.mode,
        "uid": content.uid,
        "gid": content.gid,
        "size": stat.size,
        "mtime": time_text(stat.mtime_ns),
        **_target_fields(content.target),
    }


def live_row(row: LiveRow) -> dict[str, Any]:
    """Return the row of a live entry."""
    return {
        **path_fields(row.path),
        "type": TYPE_NAMES[row.type],
        "mode": row.mode,
        "uid": row.uid,
        "gid": row.gid,
        "size": row.size,
        "mtime": time_text(row.mtime_ns),
        **_target_fields(row.target),
    }


def finding_row(path: bytes, reason: str, message: str) -> dict[str, Any]:
    """Return the row of a report."""
    return {**path_fields(path), "reason": reason, "message": message}


def time_text(time_ns: int) -> str:
    """Return a file's time in RFC 3339; beyond what that can say, the nearest."""
    if not _YEAR_1_NS <= time_ns <= _YEAR_9999_NS:
        time_ns = min(max(time_ns, _YEAR_1_NS), _YEAR_9999_NS)
    return rfc3339(time_ns)


def _target_fields(target: bytes) -> dict[str, str]:
    try:
        return {"target": target.decode()}
    except UnicodeDecodeError:
        shown = target.decode("utf-8", "backslashreplace")
        return {"target": shown, "target_b64": base64.b64encode(target).decode()}
