"""Events, as a list that can be followed."""

from __future__ import annotations

from holdfast_contract.protocol.http import Listing
from holdfast_server.api.calls import Call
from holdfast_server.api.rows import event_row
from holdfast_server.catalog import events
from holdfast_server.catalog.events import EventRecord
from holdfast_server.control.notices import EVENTS, wait_at_most

WAIT_SECONDS_MAX = 60
LOOK_AGAIN_SECONDS = 5.0


def events_listing(found: list[EventRecord], limit: int) -> Listing:
    """Return one page; `next` is told when there is more."""
    more = str(found[-1].id) if len(found) >= limit else ""
    return Listing(items=[event_row(record) for record in found], next=more)


async def list_events(call: Call) -> Listing:
    """Return events, oldest first; with `wait`, as soon as there is one beyond `after`."""
    services = call.services
    page, after = call.page(), call.number_after()
    seconds = call.number("wait", 0, most=WAIT_SECONDS_MAX)
    until = services.clock.monotonic() + seconds
    while True:
        with services.notices.listen(EVENTS) as changed:
            found = await call.run(
                events.listed,
                services.catalog,
                client=call.text("client"),
                after=after,
                limit=page.limit,
                scope=call.scope,
            )
            left = until - services.clock.monotonic()
            if found or left <= 0 or services.notices.is_closed:
                return events_listing(found, page.limit)
            # Some events are written with what they tell of, without a word here: look again.
            await wait_at_most(changed, min(left, LOOK_AGAIN_SECONDS))
