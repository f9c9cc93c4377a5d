"""Jumps of the server's clock, kept among the events.

What is removed by age has to ask here first: a clock that jumped by years makes everything old.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import func, select

from holdfast_contract.clock import rfc3339
from holdfast_server.catalog import events, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.packing import unpack
from holdfast_server.catalog.schema import events as events_table

KIND: Final = "clock-jumped"
SECOND_NS: Final = 1_000_000_000
_DAY_SECONDS: Final = 86_400


class Jump(NamedTuple):
    """The clock showed `time_ns`, `seconds` more than it should have; negative: it went back."""

    time_ns: int
    seconds: int

    @property
    def text(self) -> str:
        """Return how far and which way, for people."""
        way = "forward" if self.seconds > 0 else "back"
        days, rest = divmod(abs(self.seconds), _DAY_SECONDS)
        return f"{way} by {days} days" if days else f"{way} by {rest} seconds"


def record(tx: Tx, jump: Jump, message: str) -> None:
    """Keep a jump."""
    details = {
        "seconds": jump.seconds,
        "from": rfc3339(jump.time_ns - jump.seconds * SECOND_NS),
        "to": rfc3339(jump.time_ns),
    }
    events.record(tx, jump.time_ns, KIND, message, details=details)


def newest(tx: Tx) -> Jump | None:
    """Return the last jump that was noticed."""
    query = select(events_table.c.time_ns, events_table.c.details).where(
        events_table.c.kind == KIND
    )
    row = tx.execute(query.order_by(events_table.c.key.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    return Jump(row.time_ns, int(unpack(dict[str, object], row.details)["seconds"]))  # type: ignore[call-overload]


def last_moment(tx: Tx) -> int | None:
    """Return the time of the last thing that the catalog knows to have happened, None: nothing."""
    last = tx.execute(select(func.max(events_table.c.key))).scalar_one()
    if last is None:
        return state.load(tx).clock_high_ns or None
    query = select(events_table.c.time_ns).where(events_table.c.key == last)
    return int(tx.execute(query).scalar_one())
