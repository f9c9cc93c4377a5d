"""`holdfast events`."""

from __future__ import annotations

import click

from holdfast_cli.api import check_client_known, row_of
from holdfast_cli.command import Session, command
from holdfast_cli.output import moment, print_json, say
from holdfast_contract.protocol.http import EventRow, Listing
from holdfast_contract.text import printable

_WAIT_SECONDS = 30


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "events", example="holdfast events --client shop/web-0 --follow")
    @click.option("--client", help="only events of this client")
    @click.option("--follow", is_flag=True, help="go on with new ones until Ctrl-C")
    def events(session: Session, client: str | None, follow: bool) -> int:
        """Show what happened, oldest first."""
        rows = list(session.api.rows("/v1/events", EventRow, client=client))
        if not rows:
            check_client_known(session.api, client)
        if not follow:
            _print(session, rows)
            return 0
        last = rows[-1].id if rows else 0
        _print_lines(session, rows)
        while True:
            page = session.api.get(
                "/v1/events", Listing, client=client, after=last, wait=_WAIT_SECONDS
            )
            fresh = [row_of(item, EventRow) for item in page.items]
            _print_lines(session, fresh)
            last = fresh[-1].id if fresh else last


def _print(session: Session, rows: list[EventRow]) -> None:
    if session.as_json:
        print_json(rows)
    elif rows:
        _print_lines(session, rows)
    else:
        say("no events")


def _print_lines(session: Session, rows: list[EventRow]) -> None:
    for row in rows:
        if session.as_json:
            print_json(row)
        else:
            say(f"{moment(row.time)}  {row.kind}  {printable(_text(row))}")


def _text(row: EventRow) -> str:
    """Return what happened to whom and, of an act, who did it."""
    whom = f"{row.client}: " if row.client else ""
    by = row.details.get("name") or row.details.get("by")
    code, route = row.details.get("code"), row.details.get("route")
    reason = f" ({code}: {route})" if code and route else ""
    return f"{whom}{row.message}{reason}{f', by {by}' if by else ''}"
