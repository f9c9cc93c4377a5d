"""`holdfast clients`, `client show|set|revoke|forget|accept`."""

from __future__ import annotations

import click

from holdfast_cli.api import client_path
from holdfast_cli.backup import rate
from holdfast_cli.command import Session, command, noun
from holdfast_cli.output import facts, moment, print_json, say, short, size, table
from holdfast_contract.errors import UsageError
from holdfast_contract.protocol.http import ClientAccept, ClientRow, ClientSet


def register(group: click.Group) -> None:
    """Add the commands of this module."""

    @command(group, "clients", example="holdfast clients")
    def clients(session: Session) -> int:
        """List the clients and whether they are connected."""
        rows = list(session.api.rows("/v1/clients", ClientRow))
        if session.as_json:
            print_json(rows)
        elif rows:
            _print_rows(rows)
        else:
            say("no clients yet: holdfast enrol-token create DOMAIN --out FILE")
        return 0

    client = noun(group, "client", text="One client.", example="holdfast client show shop/web-0")
    _add_looks(client)
    _add_ends(client)


def _add_looks(client: click.Group) -> None:
    @command(client, "show", example="holdfast client show shop/web-0")
    @click.argument("name")
    def show(session: Session, name: str) -> int:
        """Show one client."""
        _print(session, session.api.get(client_path(name), ClientRow))
        return 0

    @command(client, "set", example="holdfast client set shop/web-0 --limit-upload 20M")
    @click.argument("name")
    @click.option("--limit-upload", metavar="RATE", help="bytes per second; 0 for no limit")
    @click.option("--limit-download", metavar="RATE", help="bytes per second; 0 for no limit")
    def set_(
        session: Session, name: str, limit_upload: str | None, limit_download: str | None
    ) -> int:
        """Change settings of a client, also while a job runs."""
        if limit_upload is None and limit_download is None:
            raise UsageError("nothing to set", hint="--limit-upload RATE, --limit-download RATE")
        request = ClientSet(
            limit_upload=None if limit_upload is None else rate(limit_upload),
            limit_download=None if limit_download is None else rate(limit_download),
        )
        _print(session, session.api.send("PATCH", client_path(name), ClientRow, request))
        return 0


def _add_ends(client: click.Group) -> None:
    @command(client, "revoke", example="holdfast client revoke shop/web-0")
    @click.argument("name")
    def revoke(session: Session, name: str) -> int:
        """End a client's access at once; its snapshots stay."""
        row = session.api.send("POST", f"{client_path(name)}/revoke", ClientRow)
        _print(session, row)
        return 0

    @command(client, "forget", example="holdfast client forget shop/web-0")
    @click.argument("name")
    def forget(session: Session, name: str) -> int:
        """Forget a client that has no snapshots."""
        session.api.delete(client_path(name))
        if session.as_json:
            print_json({"name": name, "forgotten": True})
        else:
            say(f"{name} is forgotten")
        return 0

    @command(client, "accept", example="holdfast client accept shop/web-0")
    @click.argument("name")
    def accept(session: Session, name: str) -> int:
        """Accept the server's older history.

        For a client whose agent remembers a newer one than the server has. The client starts a
        new lineage that names both; it is recorded.
        """
        path = f"{client_path(name)}/accept"
        _print(session, session.api.send("POST", path, ClientRow, ClientAccept()))
        return 0


def _print(session: Session, row: ClientRow) -> None:
    if session.as_json:
        print_json(row)
    else:
        facts(_facts(row))


def _print_rows(rows: list[ClientRow]) -> None:
    head = ("CLIENT", "STATE", "LAST SEEN", "VERSION", "LAST SNAPSHOT", "ROOTS")
    lines = [
        (r.name, r.state, moment(r.last_seen), r.version, short(r.last_snapshot), " ".join(r.roots))
        for r in rows
    ]
    table(head, lines)


def _facts(row: ClientRow) -> list[tuple[str, str]]:
    def limit(count: int) -> str:
        return f"{size(count)}/s" if count else "none"

    return [
        ("client", row.name),
        ("state", row.state),
        ("last seen", moment(row.last_seen)),
        ("version", row.version),
        ("roots", " ".join(row.roots)),
        ("restore", f"{row.restore} {' '.join(row.restore_roots)}"),
        ("browse", row.browse),
        ("last snapshot", row.last_snapshot or "-"),
        ("limit upload", limit(row.limit_upload)),
        ("limit download", limit(row.limit_download)),
        ("identity", row.identity or "-"),
        ("enrolled", moment(row.enrolled)),
    ]
