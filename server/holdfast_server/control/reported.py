"""The names that an agent tells at the end of a job: decoded in bounded memory, kept as decoded."""

from __future__ import annotations

from threading import Lock

import msgspec
from msgspec import Struct, field

from holdfast_contract.errors import TooLarge
from holdfast_contract.limits import NOT_EXACT_BYTES_MAX, REPORTED_NAMES_MAX
from holdfast_contract.protocol.http import decode_json

ROWS_MAX = 4 * REPORTED_NAMES_MAX
"""Most rows of all lists together."""


class _Room:
    """Rows that one decoding may still make: 64 MiB of `{}` would be 1.7 GiB of objects."""

    def __init__(self) -> None:
        self.lock = Lock()
        """One result is decoded at a time."""
        self.left = 0

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"at most {REPORTED_NAMES_MAX} names of a kind")


_room = _Room()


class ReportedRow(Struct, omit_defaults=True):
    """What of a row of any list is relayed; whatever else an agent sends is dropped."""

    path: str
    path_b64: str | None = None
    reason: str | None = None
    message: str | None = None
    action: str | None = None
    type: str | None = None
    bytes: int | None = None
    object: str | None = None
    chunk: str | None = None

    def __post_init__(self) -> None:
        _room.take()


class ReportedResult(Struct, omit_defaults=True):
    """A JobResult whose rows have only fields that are known."""

    skipped: list[ReportedRow] = field(default_factory=list)
    not_exact: list[ReportedRow] = field(default_factory=list)
    plan: list[ReportedRow] = field(default_factory=list)
    damaged: list[ReportedRow] = field(default_factory=list)
    not_exact_sealed: bytes | None = None


def decode_result(body: bytes) -> ReportedResult:
    """Return what a result says.

    Cost: memory of 400,000 rows at most, whatever the body holds; one at a time.

    Raises:
        InvalidInput: not a result, or more rows than any may have.
    """
    with _room.lock:
        _room.left = ROWS_MAX
        return decode_json(ReportedResult, body)


def checked_result(body: bytes) -> tuple[bytes, bytes | None]:
    """Return a result as it is kept, and its sealed list.

    Raises:
        InvalidInput, TooLarge: it is not one that can be shown later.
    """
    result = decode_result(body)
    for rows in (result.skipped, result.not_exact, result.plan, result.damaged):
        if len(rows) > REPORTED_NAMES_MAX:
            raise TooLarge(f"at most {REPORTED_NAMES_MAX} names of a kind")
    sealed = result.not_exact_sealed
    if sealed is not None and len(sealed) > NOT_EXACT_BYTES_MAX:
        raise TooLarge(f"a sealed list of at most {NOT_EXACT_BYTES_MAX} bytes")
    return msgspec.json.encode(result), sealed
