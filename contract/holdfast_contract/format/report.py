"""Reports: what a backup skipped, or what a restore could not make exact. Stored sealed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Final

import msgspec

from holdfast_contract.errors import UnsupportedVersion
from holdfast_contract.format.layout import Buffer, Count, StrictDecoder, require
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX

_WHAT: Final = "report"


class ReportKind(IntEnum):
    """What the rows of a report are about."""

    SKIPPED = 1
    NOT_EXACT = 2


class ReportRow(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One finding."""

    path: Annotated[bytes, msgspec.Meta(min_length=1)]
    reason: Annotated[str, msgspec.Meta(min_length=1)]
    """A word for programs: `vanished`, `denied`, ..."""
    message: str
    """One line for people."""


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One report chunk's plaintext."""

    kind: int
    rows: tuple[ReportRow, ...]
    more: Count
    """Number of rows that were left out."""


_DECODER = StrictDecoder(Report, _WHAT)
_ENCODER = msgspec.msgpack.Encoder()


def encode_report(kind: ReportKind, rows: Iterable[ReportRow], more: int = 0) -> bytes:
    """Return the plaintext of one report chunk (the caller keeps it within a chunk's size).

    Raises:
        InvalidInput: it is longer than a chunk may be, or a row is empty.
    """
    data = _ENCODER.encode(Report(kind=int(kind), rows=tuple(rows), more=more))
    decode_report(data)
    return data


def decode_report(data: Buffer) -> Report:
    """Return what a report chunk's plaintext says.

    Raises:
        InvalidInput: it is not a report.
        UnsupportedVersion: its kind is unknown.
    """
    require(len(data) <= CHUNK_PLAIN_BYTES_MAX, f"{_WHAT}: too long")
    found: Report = _DECODER.decode(data)
    if found.kind not in frozenset(ReportKind):
        raise UnsupportedVersion(f"{_WHAT}: kind {found.kind} is unknown")
    return found
