"""`holdfast key check|recover`, `key recipients create|list|add|remove`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast_cli.api import Api, read_small_file
from holdfast_cli.command import Session, command, noun
from holdfast_cli.domain_records import domain_of, opened_key, put_record, stored_record
from holdfast_cli.output import print_json, say
from holdfast_cli.secrets import SecretFile
from holdfast_contract.errors import NotFound, Unreachable, UsageError
from holdfast_contract.ids import check_domain_name
from holdfast_contract.protocol.http import DomainRow, SnapshotRow

if TYPE_CHECKING:
    from holdfast_cli.domain_keys import OpenedKey

_PATH = click.Path(path_type=Path)


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    key = noun(
        group,
        "key",
        text="Key files, and what brings a lost one back.",
        example="holdfast key check shop.key",
    )
    _add_check(key)
    _add_recover(key)
    recipients = noun(
        key,
        "recipients",
        text="Who can recover a domain's key.",
        example="holdfast key recipients list --domain shop",
    )
    _add_recipients_create(recipients)
    _add_recipients(recipients)


def _add_check(key: click.Group) -> None:
    @command(key, "check", example="holdfast key check shop.key")
    @click.argument("file", type=_PATH)
    def check(session: Session, file: Path) -> int:
        """Tell whose key a file holds.

        Exits 12 when it is not the key of a domain of this server.
        """
        from holdfast_cli.domain_keys import OpenedKey

        opened = OpenedKey.of_file(read_small_file(file, "the key file"))
        row = domain_of(session.api, opened.domain)
        opened.check_record(stored_record(session.api, row.name))
        if session.as_json:
            told = {"domain": row.name, "id": row.domain, "key_check": opened.key_check}
            print_json(told | {"epochs": opened.epochs})
        else:
            say(f"the key of domain {row.name} ({row.domain}), epochs up to {opened.epochs[-1]}")
            say(f"key check {opened.key_check}")
        return 0


def _add_recover(key: click.Group) -> None:
    @command(
        key,
        "recover",
        example="holdfast key recover --domain shop --recovery shop.recovery --key-out new.key",
    )
    @click.option("--domain", required=True, help="the domain's name")
    @click.option(
        "--recovery",
        type=_PATH,
        required=True,
        help="the recovery file, or a recipient's private file",
    )
    @click.option("--key-out", type=_PATH, required=True, help="key file to write (mode 0600)")
    def recover_key(session: Session, domain: str, recovery: Path, key_out: Path) -> int:
        """Bring a lost key file back.

        A recovery file is believed alone, and the server may be away; where it is there, it may
        add newer epochs. A recipient's private file takes the wrapped key from the server:
        compare the key check with the one that `key check` told before. Opens one snapshot's
        manifest to prove the key.
        """
        from holdfast_cli.domain_keys import recovered

        text = read_small_file(recovery, "the recovery file")
        check_domain_name(domain)
        with SecretFile(key_out) as file:
            record = _record_if_there(session, domain)
            opened = recovered(text, domain, record)
            proof = _prove(session.api, domain, opened) if record is not None else ""
            file.write(opened.key_file)
        if session.as_json:
            told = {"domain": domain, "key_file": str(key_out), "key_check": opened.key_check}
            print_json(told | {"proved_by": proof or None})
        else:
            told_proof = f"it opens snapshot {proof[:12]}" if proof else "no snapshot to prove it"
            say(f"key of domain {domain} written to {key_out}; {told_proof}")
            say(f"key check {opened.key_check}")
        return 0


def _record_if_there(session: Session, domain: str) -> bytes | None:
    """Return the server's domain record (believed by nobody yet), None when it has or says none."""
    try:
        return stored_record(session.api, domain)
    except (Unreachable, NotFound, UsageError) as error:
        session.note(f"without the server: {error.message}")
        return None


def _prove(api: Api, domain: str, opened: OpenedKey) -> str:
    """Open one existing manifest; return its snapshot's id, empty when there is none.

    Raises:
        WrongKey, Damaged: it does not open.
    """
    from holdfast_cli.domain_keys import identity_of

    for row in api.rows("/v1/snapshots", SnapshotRow):
        if row.domain == domain:
            manifest = api.raw(f"/v1/snapshots/{row.id}/manifest")
            opened.prove(manifest, api.raw(f"/v1/identities/{identity_of(manifest)}"))
            return row.id
    return ""


def _add_recipients_create(group: click.Group) -> None:
    @command(
        group,
        "create",
        example=(
            "holdfast key recipients create --private-out ops.private --out ops.recipient\n"
            "holdfast domain create shop --key-out shop.key --recipient ops.recipient\n"
            "holdfast key recover --domain shop --recovery ops.private --key-out new.key"
        ),
    )
    @click.option(
        "--private-out", type=_PATH, required=True, help="private file to write (mode 0600)"
    )
    @click.option("--out", type=_PATH, required=True, help="recipient file to write; no secret")
    def create(session: Session, private_out: Path, out: Path) -> int:
        """Make a pair of files to recover keys with.

        One pair serves any number of domains, also later ones. Keep the private file offline; give
        the recipient file to whoever makes domains.
        """
        from holdfast_cli.domain_keys import new_recipient

        private_text, recipient_text = new_recipient()
        with SecretFile(private_out) as private_file, SecretFile(out) as file:
            private_file.write(private_text)
            file.write(recipient_text)
        if session.as_json:
            print_json({"private_file": str(private_out), "recipient_file": str(out),
                        "recipient": recipient_text.split()[1]})  # fmt: skip
        else:
            say(f"keep offline: {private_out}; give away: {out}")
        return 0


def _add_recipients(group: click.Group) -> None:
    @command(group, "list", example="holdfast key recipients list --domain shop")
    @click.option("--domain", required=True, help="the domain's name")
    def list_(session: Session, domain: str) -> int:
        """List who can recover the key.

        They are public keys, as recipient files hold them.
        """
        row = session.api.get(f"/v1/domains/{check_domain_name(domain)}", DomainRow)
        if session.as_json:
            print_json(row.recipients)
        else:
            for recipient in row.recipients or ["nobody: a lost key file loses all data"]:
                say(recipient)
        return 0

    @command(
        group,
        "add",
        example="holdfast key recipients add --key-file shop.key ops.recipient",
        shown=("key_file",),
    )
    @click.argument("file", type=_PATH)
    def add(session: Session, file: Path) -> int:
        """Let one more recipient recover the key.

        Needs the domain's key file.
        """
        recipient = read_small_file(file, "the recipient file")
        opened, name = opened_key(session)
        return _put(
            session, name, opened.with_recipient(stored_record(session.api, name), recipient)
        )

    @command(
        group,
        "remove",
        example="holdfast key recipients remove --key-file shop.key 3fa1c2...",
        shown=("key_file",),
    )
    @click.argument("recipient", metavar="HEX")
    def remove(session: Session, recipient: str) -> int:
        """Drop a recipient from the newest record.

        Old records and copies stay readable to its owner.
        """
        opened, name = opened_key(session)
        return _put(
            session, name, opened.without_recipient(stored_record(session.api, name), recipient)
        )


def _put(session: Session, name: str, record: bytes) -> int:
    row = put_record(session, name, record)
    if session.as_json:
        print_json(row)
    else:
        say(f"domain {row.name}: {len(row.recipients)} recipients, revision {row.revision}")
    return 0
