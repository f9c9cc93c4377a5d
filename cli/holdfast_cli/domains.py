"""`holdfast domain create|list|show|set`."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_cli.api import read_small_file
from holdfast_cli.command import Session, command, noun
from holdfast_cli.domain_records import opened_key, put_record, stored_record
from holdfast_cli.output import facts, moment, print_json, say, table
from holdfast_cli.secrets import SecretFile
from holdfast_contract.clock import SystemClock
from holdfast_contract.errors import Conflict, NotFound, Unreachable, UsageError, WrongKey
from holdfast_contract.ids import check_domain_name
from holdfast_contract.protocol.http import DomainCreate, DomainRow


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    domain = noun(
        group,
        "domain",
        text="Domains: one master key and one scope of dedup each.",
        example="holdfast domain list",
    )
    _add_create(domain)
    _add_set(domain)

    @command(domain, "list", example="holdfast domain list")
    def list_(session: Session) -> int:
        """List the domains."""
        rows = list(session.api.rows("/v1/domains", DomainRow))
        if session.as_json:
            print_json(rows)
        elif rows:
            head = ("NAME", "ID", "CREATED", "CLIENTS", "SNAPSHOTS")
            lines = [
                (r.name, r.domain, moment(r.created), f"{r.clients:,}", f"{r.snapshots:,}")
                for r in rows
            ]
            table(head, lines, right=(3, 4))
        else:
            say("no domains yet: holdfast domain create NAME --key-out FILE --recovery-out FILE")
        return 0

    @command(domain, "show", example="holdfast domain show shop")
    @click.argument("name")
    def show(session: Session, name: str) -> int:
        """Show one domain."""
        _print(session, session.api.get(f"/v1/domains/{check_domain_name(name)}", DomainRow))
        return 0


def _add_set(domain: click.Group) -> None:
    @command(
        domain,
        "set",
        example="holdfast domain set shop --share-references off --key-file shop.key",
        shown=("key_file",),
    )
    @click.argument("name")
    @click.option(
        "--share-references",
        type=click.Choice(("on", "off")),
        required=True,
        help="whether replicas of one workload look for small files in each other's snapshots",
    )
    def set_(session: Session, name: str, share_references: str) -> int:
        """Change a domain's settings.

        They stand in the domain record, which agents believe by its MAC: it needs the key file.
        """
        opened, of_key = opened_key(session)
        if check_domain_name(name) != of_key:
            raise WrongKey(f"the key file is of domain {of_key}, not {name}")
        record = stored_record(session.api, name)
        newer = opened.with_sharing(record, share_references=share_references == "on")
        _print(session, put_record(session, name, newer))
        return 0


def _add_create(domain: click.Group) -> None:
    path = click.Path(path_type=Path)

    @command(
        domain,
        "create",
        example=(
            "holdfast domain create shop --key-out shop.key --recovery-out shop.recovery\n"
            "holdfast domain create shop --key-out shop.key --recipient ops.recipient"
        ),
    )
    @click.argument("name")
    @click.option("--key-out", type=path, required=True, help="key file to write (mode 0600)")
    @click.option("--recovery-out", type=path, help="recovery file to write (mode 0600)")
    @click.option(
        "--recipient",
        "recipients",
        type=path,
        multiple=True,
        help="recipient file of somebody who can recover the key",
    )
    @click.option("--no-recovery", is_flag=True, help="a lost key file loses all data")
    def create(
        session: Session,
        name: str,
        key_out: Path,
        recovery_out: Path | None,
        recipients: tuple[Path, ...],
        no_recovery: bool,
    ) -> int:
        """Make a domain and its key, here; the server never sees the key.

        Keep the key file for the agents, and the recovery file offline. Recipient files come from
        `holdfast key recipients create`.
        """
        check_domain_name(name)
        has_recovery = recovery_out is not None or bool(recipients)
        if has_recovery == no_recovery:
            raise UsageError(
                "--no-recovery goes with neither --recovery-out nor --recipient"
                if no_recovery
                else "how is the key to be recovered when its file is lost?",
                hint="--recovery-out FILE, --recipient FILE, or --no-recovery",
            )
        texts = [read_small_file(path, "the recipient file") for path in recipients]
        row = _create(session, name, key_out, recovery_out, texts)
        _print(session, row)
        if not session.as_json and not session.quiet:
            _say_next(name, key_out, recovery_out)
        return 0


def _create(
    session: Session, name: str, key_out: Path, recovery_out: Path | None, recipients: list[str]
) -> DomainRow:
    from holdfast_cli.domain_keys import new_domain

    _refuse_known(session, name)
    made = new_domain(name, recipients, SystemClock(), with_recovery=recovery_out is not None)
    # Files first: a domain whose key is nowhere would be of no use.
    with SecretFile(key_out) as key_file, SecretFile(recovery_out) as recovery_file:
        key_file.write(made.key_file)
        recovery_file.write(made.recovery_file)
        request = DomainCreate(name=name, record=made.record)
        try:
            return session.api.send("POST", "/v1/domains", DomainRow, request)
        except Unreachable as error:
            # The request may have arrived: then these files are the only keys there are.
            key_file.keep()
            recovery_file.keep()
            raise Unreachable(
                error.message,
                hint=f"{key_out} stays: holdfast domain show {name} tells whether the domain"
                " was made; if not, remove the files and try again",
            ) from error


def _refuse_known(session: Session, name: str) -> None:
    """Tell what can be told before files are made.

    Raises:
        Conflict: the name is taken.
    """
    try:
        session.api.get(f"/v1/domains/{name}", DomainRow)
    except NotFound:
        return
    raise Conflict(f"the domain {name} exists already", hint="name another one")


def _say_next(name: str, key_out: Path, recovery_out: Path | None) -> None:
    say(f"\nkey for the agents: {key_out}")
    if recovery_out:
        say(f"keep offline, it opens everything: {recovery_out}")
    say(f"next: holdfast enrol-token create {name} --client {name}/NAME --out FILE")


def _print(session: Session, row: DomainRow) -> None:
    if session.as_json:
        print_json(row)
        return
    facts(
        [
            ("domain", row.name),
            ("id", row.domain),
            ("created", moment(row.created)),
            ("revision", str(row.revision)),
            ("recipients", " ".join(one[:16] for one in row.recipients) or "none"),
            ("clients", f"{row.clients:,}"),
            ("snapshots", f"{row.snapshots:,}"),
            ("share references", "on" if row.share_references else "off"),
        ]
    )
