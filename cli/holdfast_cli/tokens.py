"""`holdfast enrol-token create|list|revoke`, `token create|list|revoke`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from holdfast_cli.command import Session, command, noun
from holdfast_cli.output import moment, print_json, say, table
from holdfast_cli.secrets import SecretFile
from holdfast_contract.protocol.http import ROLES, EnrolTokenCreate, TokenCreate, TokenRow
from holdfast_contract.settings.kinds import parse_duration


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    enrol = noun(
        group,
        "enrol-token",
        text="One-time tokens with which agents become known.",
        example="holdfast enrol-token list",
    )
    _add_enrol_create(enrol)
    _add_list_and_revoke(enrol, "/v1/enrol-tokens")
    token = noun(
        group,
        "token",
        text="Tokens for people and programs.",
        example="holdfast token list",
    )
    _add_token_create(token)
    _add_list_and_revoke(token, "/v1/tokens")


def _add_enrol_create(group: click.Group) -> None:
    @command(
        group, "create", example="holdfast enrol-token create shop --client web-0 --out web-0.token"
    )
    @click.argument("domain")
    @click.option("--client", help="only for this client (NAME or DOMAIN/NAME)")
    @click.option("--ttl", default="1h", show_default=True, help="how long it works")
    @click.option("--out", type=click.Path(path_type=Path), help="file to write (mode 0600)")
    def create(
        session: Session, domain: str, client: str | None, ttl: str, out: Path | None
    ) -> int:
        """Make a one-time token; printed only where no file is named."""
        name = f"{domain}/{client}" if client and "/" not in client else client
        request = EnrolTokenCreate(domain=domain, client=name, ttl_seconds=parse_duration(ttl))
        _create(session, "/v1/enrol-tokens", request, out)
        return 0


def _add_token_create(group: click.Group) -> None:
    @command(
        group,
        "create",
        example="holdfast token create --role operator --domain shop --ttl 90d --out ci.token",
    )
    @click.option(
        "--role",
        type=click.Choice(ROLES),
        required=True,
        help="viewer: read; operator: also jobs and restores; admin: all",
    )
    @click.option(
        "--domain", "domains", multiple=True, help="only in this domain (may be repeated)"
    )
    @click.option("--ttl", help="how long it works (default: until revoked)")
    @click.option(
        "--out", type=click.Path(path_type=Path), required=True, help="file to write (mode 0600)"
    )
    def create(
        session: Session, role: str, domains: tuple[str, ...], ttl: str | None, out: Path
    ) -> int:
        """Make a token for a person or program."""
        seconds = parse_duration(ttl) if ttl else None
        request = TokenCreate(role=role, domains=list(domains), ttl_seconds=seconds)
        _create(session, "/v1/tokens", request, out)
        return 0


def _create(session: Session, path: str, request: object, out: Path | None) -> None:
    # The file first: a token that exists on the server and nowhere else is of no use.
    with SecretFile(out) as secret:
        row = session.api.send("POST", path, TokenRow, request)
        assert row.token is not None
        secret.write(row.token + "\n")
    if out is not None:
        row.token = None  # it is in the file, and nowhere else
    if session.as_json:
        print_json(row)
    elif out is None:
        say(row.token or "")
    else:
        until = moment(row.expires) if row.expires else "it is revoked"
        say(f"token {row.id} written to {out}, works until {until}")


def _add_list_and_revoke(group: click.Group, path: str) -> None:
    name = group.name or ""

    @command(group, "list", example=f"holdfast {name} list")
    def list_(session: Session) -> int:
        """List tokens; the secrets are not kept."""
        rows = list(session.api.rows(path, TokenRow))
        if session.as_json:
            print_json(rows)
        elif rows:
            head = ("ID", "FOR", "CREATED", "EXPIRES", "USED", "REVOKED")
            table(head, [_cells(row) for row in rows])
        else:
            say("no tokens")
        return 0

    @command(group, "revoke", example=f"holdfast {name} revoke 01K8Z3...")
    @click.argument("token_id", metavar="ID")
    def revoke(session: Session, token_id: str) -> int:
        """Revoke a token: it works no more, at once."""
        session.api.delete(f"{path}/{quote(token_id, safe='')}")
        if session.as_json:
            print_json({"id": token_id, "revoked": True})
        else:
            say(f"{token_id} is revoked")
        return 0


def _cells(row: TokenRow) -> tuple[str, ...]:
    whom = row.client or row.domain
    if row.role:
        whom = f"{row.role} in {whom}" if whom else row.role
    times = (row.created, row.expires, row.used, row.revoked)
    return (row.id, whom, *map(moment, times))
