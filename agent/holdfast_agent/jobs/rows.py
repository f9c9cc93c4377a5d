"""Rows of `ls`, `find`, `browse`, `diff` and reports, one JSON line each."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from holdfast_agent.restore.tally import TYPE_NAMES
from holdfast_agent.snapshots.snapshot import Found
from holdfast_agent.sources.live import LiveRow
from holdfast_contract.clock import rfc3339
from holdfast_contract.protocol.http import path_fields

END = {"type": "end"}
_YEAR_1_NS = -62_135_596_800_000_000_000
_YEAR_9999_NS = 253_402_300_799_999_999_999
"""What RFC 3339 can say; file systems can hold more."""
_encoder = msgspec.json.Encoder()


def line(row: dict[str, Any]) -> bytes:
    """Return one line of an answer."""
    return _encoder.encode(row) + b"\n"


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
    return rfc3339(min(max(time_ns, _YEAR_1_NS), _YEAR_9999_NS))


def _target_fields(target: bytes) -> dict[str, str]:
    try:
        return {"target": target.decode()}
    except UnicodeDecodeError:
        shown = target.decode("utf-8", "backslashreplace")
        return {"target": shown, "target_b64": base64.b64encode(target).decode()}
