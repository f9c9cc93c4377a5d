"""How people name a snapshot: id prefix, `CLIENT@latest`, `CLIENT@TIME`, `latest`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import Ambiguous, InvalidInput, NotFound
from holdfast_contract.ids import ClientName
from holdfast_contract.limits import COUNT_MAX
from holdfast_server.catalog import snapshots
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.scopes import EVERYWHERE, Scope
from holdfast_server.catalog.snapshots import SnapshotRecord

_PREFIX: Final = re.compile(r"[0-9a-f]{6,64}")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_FRACTION: Final = re.compile(r"[.,](\d+)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
CANDIDATES_MAX: Final = 20
"""Names shown where a reference fits more than one snapshot or none."""


def resolve(tx: Tx, reference: str, scope: Scope = EVERYWHERE) -> SnapshotRecord:
    """Return the snapshot within `scope` that `reference` names.

    Raises:
        InvalidInput: not a reference.
        NotFound, Ambiguous: `details["candidates"]` has what might be meant.
    """
    name, at, moment = reference.partition("@")
    if at:
        return _of_client(tx, ClientName.parse(name), moment, scope)
    if reference == "latest":
        return _latest(tx, scope)
    if _PREFIX.fullmatch(reference.lower()):
        return _by_prefix(tx, reference.lower(), scope)
    raise InvalidInput(
        f"not a reference of a snapshot: {reference[:120]!r}",
        hint="6 or more digits of its id, CLIENT@latest, CLIENT@TIME or latest",
    )


def _of_client(tx: Tx, client: ClientName, moment: str, scope: Scope) -> SnapshotRecord:
    at_ns = None if moment == "latest" else parse_moment(moment).last_ns
    found = snapshots.newest(tx, client, at_ns=at_ns, scope=scope)
    if found is not None:
        return found
    wanted = snapshots.Filter(client=client, scope=scope)
    others = snapshots.listed(tx, wanted, limit=CANDIDATES_MAX)
    raise NotFound(
        f"no such snapshot: {client}@{moment[:60]}",
        hint="holdfast snapshots lists what there is",
        candidates=[_shown(other) for other in others],
    )


def _latest(tx: Tx, scope: Scope) -> SnapshotRecord:
    names = snapshots.clients_with_snapshots(tx, CANDIDATES_MAX, scope)
    if not names:
        raise NotFound("there are no snapshots yet", candidates=[])
    if len(names) > 1:
        raise Ambiguous(
            "latest of which client?",
            hint="CLIENT@latest",
            candidates=[f"{name}@latest" for name in names],
        )
    found = snapshots.newest(tx, names[0], scope=scope)
    assert found is not None
    return found


def _by_prefix(tx: Tx, prefix: str, scope: Scope) -> SnapshotRecord:
    first, last = (bytes.fromhex(prefix.ljust(64, digit)) for digit in "0f")
    found = snapshots.with_prefix(tx, first, last, CANDIDATES_MAX, scope)
    if not found:
        raise NotFound(f"no such snapshot: {prefix}", candidates=[])
    if len(found) > 1:
        raise Ambiguous(
            f"{prefix} begins the ids of several snapshots",
            hint="give more digits",
            candidates=[_shown(each) for each in found],
        )
    return found[0]


def _shown(snapshot: SnapshotRecord) -> str:
    return f"{snapshot.id.hex()} {snapshot.client} {rfc3339(snapshot.time_ns)}"


class Moment(NamedTuple):
    """What a text means as a time: as long as its last digit, or a day."""

    first_ns: int
    last_ns: int


def parse_moment(text: str) -> Moment:
    """Return the moment that `text` names: RFC 3339 with a zone, or a date (of UTC).

    Raises:
        InvalidInput: it names none.
    """
    is_date = _DATE.fullmatch(text) is not None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise _no_moment(text) from exc
    if found.tzinfo is None and not is_date:
        raise _no_moment(text)
    whole = found.replace(microsecond=0, tzinfo=found.tzinfo or UTC) - _EPOCH
    fraction = _FRACTION.search(text)
    digits = "" if fraction is None else fraction[1][:9]
    first = (whole.days * 86_400 + whole.seconds) * 10**9 + int(digits.ljust(9, "0"))
    length = 86_400 * 10**9 if is_date else 10 ** (9 - len(digits))
    return Moment(_within(first), _within(first + length - 1))


def _within(time_ns: int) -> int:
    """Return `time_ns`, or the end of time as the catalog keeps it (the years 1677 and 2262)."""
    return max(-COUNT_MAX, min(time_ns, COUNT_MAX))


def _no_moment(text: str) -> InvalidInput:
    return InvalidInput(
        f"not a time: {text[:60]!r}", hint="RFC 3339 with a zone (2026-01-31T12:00:00Z), or a date"
    )
