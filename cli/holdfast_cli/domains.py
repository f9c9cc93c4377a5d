"""`holdfast domain create|list|show`."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial, format_key_file, new_key_material
from holdfast_agent.crypto.records import seal_domain
from holdfast_agent.crypto.wraps import (
    format_recovery_file,
    new_recovery,
    parse_recipient_file,
    wrap_keys,
)
from holdfast_cli.api import read_small_file
from holdfast_cli.command import Commands, Session, command
from holdfast_cli.output import facts, moment, print_json, say, table
from holdfast_cli.secrets import SecretFile
from holdfast_contract.clock import SystemClock
from holdfast_contract.errors import HoldfastError, UsageError
from holdfast_contract.format.domain import (
    CHUNKER_DEFAULT,
    SMALL_FILE_BYTES_DEFAULT,
    DomainBody,
    EpochCheck,
    Wrap,
)
from holdfast_contract.ids import check_domain_name
from holdfast_contract.protocol.http import DomainCreate, DomainRow


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    domain = Commands("domain", help="Domains: one master key and one scope of dedup each.")
    group.add_command(domain)
    _add_create(domain)

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


def _add_create(domain: click.Group) -> None:
    @command(
        domain,
        "create",
        example="holdfast domain create shop --key-out shop.key --recovery-out shop.recovery",
    )
    @click.argument("name")
    @click.option("--key-out", type=click.Path(path_type=Path), required=True)
    @click.option("--recovery-out", type=click.Path(path_type=Path), help="recovery file to write")
    @click.option("--recipient", "recipients", type=click.Path(path_type=Path), multiple=True)
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

        Keep the key file for the agents, and the recovery file offline.
        """
        check_domain_name(name)
        if not (recovery_out or recipients or no_recovery):
            raise UsageError(
                "how is the key to be recovered when its file is lost?",
                hint="--recovery-out FILE, --recipient FILE, or --no-recovery",
            )
        material = new_key_material()
        wraps = [
            wrap_keys(material, parse_recipient_file(read_small_file(path, "the recipient file")))
            for path in recipients
        ]
        recovery, recovery_wrap = new_recovery(name, material)
        if recovery_out:
            wraps.append(recovery_wrap)
        # Files first: a domain whose key is nowhere would be of no use.
        with SecretFile(key_out) as key_file, SecretFile(recovery_out) as recovery_file:
            key_file.write(format_key_file(material))
            recovery_file.write(format_recovery_file(recovery))
        row = _created(session, name, material, wraps, [key_out, recovery_out])
        _print(session, row)
        if not session.as_json and not session.quiet:
            _say_next(name, key_out, recovery_out)
        return 0


def _created(
    session: Session,
    name: str,
    material: KeyMaterial,
    wraps: list[Wrap],
    files: list[Path | None],
) -> DomainRow:
    try:
        record = seal_domain(first_record(name, material, wraps), DomainKeys(material))
        request = DomainCreate(name=name, record=record)
        return session.api.send("POST", "/v1/domains", DomainRow, request)
    except HoldfastError as error:
        if error.code != "unreachable":
            # Refused for sure: keys of a domain that does not exist would only confuse.
            for path in filter(None, files):
                path.unlink(missing_ok=True)
        raise


def first_record(name: str, material: KeyMaterial, wraps: list[Wrap]) -> DomainBody:
    """Return the first record of a new domain."""
    keys = DomainKeys(material)
    return DomainBody(
        domain=material.domain_id,
        name=name,
        revision=1,
        created_ns=SystemClock().now_ns(),
        chunker=CHUNKER_DEFAULT,
        small_file_bytes_max=SMALL_FILE_BYTES_DEFAULT,
        share_references=True,
        key_check=keys.key_check,
        epoch_checks=tuple(EpochCheck(e, check) for e, check in sorted(keys.epoch_checks.items())),
        wraps=tuple(wraps),
    )


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
        ]
    )
