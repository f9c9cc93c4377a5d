"""`holdfast key check|recover`, `key recipients list|add|remove`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial, format_key_file, parse_key_file
from holdfast_agent.crypto.records import open_domain, open_signed_manifest, seal_domain
from holdfast_agent.crypto.wraps import (
    parse_recipient_file,
    parse_recovery_file,
    recover,
    wrap_keys,
)
from holdfast_cli.api import Api, read_small_file
from holdfast_cli.command import Commands, Session, command
from holdfast_cli.output import print_json, say
from holdfast_cli.secrets import SecretFile
from holdfast_contract.errors import Conflict, NotFound, Unreachable, WrongKey
from holdfast_contract.format.domain import DomainBody, Wrap, decode_domain_body, split_domain
from holdfast_contract.format.manifest import decode_manifest_body, split_manifest
from holdfast_contract.ids import check_domain_name
from holdfast_contract.protocol.http import DomainRecordPut, DomainRow, SnapshotRow


def register(group: click.Group) -> None:
    """Add the commands of this module."""
    key = Commands("key", help="Key files, and what brings a lost one back.")
    group.add_command(key)
    _add_check(key)
    _add_recover(key)
    recipients = Commands("recipients", help="Who can recover a domain's key.")
    key.add_command(recipients)
    _add_recipients(recipients)


def _add_check(key: click.Group) -> None:
    @command(key, "check", example="holdfast key check shop.key")
    @click.argument("file", type=click.Path(path_type=Path))
    def check(session: Session, file: Path) -> int:
        """Tell whose key a file holds and whether the server's domain is its own."""
        material = parse_key_file(read_small_file(file, "the key file"))
        keys = DomainKeys(material)
        row = _domain_of(session.api, material)
        open_domain(session.api.raw(f"/v1/domains/{row.name}/record"), keys)
        if session.as_json:
            print_json({"domain": row.name, "id": row.domain, "epochs": sorted(keys.data)})
        else:
            say(f"the key of domain {row.name} ({row.domain}), epochs up to {keys.newest_epoch}")
        return 0


def _domain_of(api: Api, material: KeyMaterial) -> DomainRow:
    for row in api.rows("/v1/domains", DomainRow):
        if row.domain == material.domain_id.hex():
            return row
    raise WrongKey(
        f"the key is of domain {material.domain_id.hex()}, which this server does not have"
    )


def _add_recover(key: click.Group) -> None:
    @command(
        key,
        "recover",
        example="holdfast key recover --domain shop --recovery shop.recovery --key-out new.key",
    )
    @click.option("--domain", required=True, help="the domain's name")
    @click.option("--recovery", type=click.Path(path_type=Path), required=True)
    @click.option("--key-out", type=click.Path(path_type=Path), required=True)
    def recover_key(session: Session, domain: str, recovery: Path, key_out: Path) -> int:
        """Bring a lost key file back from the recovery file.

        Believes the recovery file alone; newer epochs come from the server where it has them. A
        server that is away does not matter. Opens one manifest to prove the key.
        """
        text = read_small_file(recovery, "the recovery file")
        named = parse_recovery_file(text).name
        if named != check_domain_name(domain):
            raise WrongKey(f"the recovery file is of domain {named}, not {domain}")
        reachable, wraps = _wraps_of(session, domain)
        material = recover(text, wraps)
        proof = _prove(session.api, domain, DomainKeys(material)) if reachable else ""
        with SecretFile(key_out) as file:
            file.write(format_key_file(material))
        if session.as_json:
            print_json({"domain": domain, "key_file": str(key_out), "proved_by": proof or None})
        else:
            told = f"it opens snapshot {proof[:12]}" if proof else "no snapshot to prove it with"
            say(f"key of domain {domain} written to {key_out}; {told}")
        return 0


def _wraps_of(session: Session, domain: str) -> tuple[bool, tuple[Wrap, ...]]:
    """Return whether the server answers, and the wraps that it offers (believed by nobody yet)."""
    try:
        record = session.api.raw(f"/v1/domains/{domain}/record")
        return True, decode_domain_body(split_domain(record).body).wraps
    except (Unreachable, NotFound):
        return False, ()


def _prove(api: Api, domain: str, keys: DomainKeys) -> str:
    """Open one existing manifest; return its snapshot's id, empty when there is none.

    Raises:
        WrongKey, Damaged: it does not open.
    """
    for row in api.rows("/v1/snapshots", SnapshotRow, latest=1000):
        if row.domain == domain:
            data = api.raw(f"/v1/snapshots/{row.id}/manifest")
            identity = decode_manifest_body(split_manifest(data).body).identity
            open_signed_manifest(data, api.raw(f"/v1/identities/{identity.hex()}"), keys)
            return row.id
    return ""


def _add_recipients(group: click.Group) -> None:
    @command(group, "list", example="holdfast key recipients list --domain shop")
    @click.option("--domain", required=True)
    def list_(session: Session, domain: str) -> int:
        """List who can recover the key."""
        row = session.api.get(f"/v1/domains/{check_domain_name(domain)}", DomainRow)
        if session.as_json:
            print_json(row.recipients)
        else:
            for recipient in row.recipients or ["nobody: a lost key file loses all data"]:
                say(recipient)
        return 0

    @command(group, "add", example="holdfast key recipients add --key-file shop.key ops.recipient")
    @click.argument("file", type=click.Path(path_type=Path))
    def add(session: Session, file: Path) -> int:
        """Let the owner of a recipient file recover the key; needs the key file."""
        recipient = parse_recipient_file(read_small_file(file, "the recipient file"))
        material, body = _opened(session)
        if any(wrap.recipient == recipient for wrap in body.wraps):
            raise Conflict("this recipient can recover the key already")
        return _put(session, material, body, (*body.wraps, wrap_keys(material, recipient)))

    @command(
        group, "remove", example="holdfast key recipients remove --key-file shop.key 3fa1c2..."
    )
    @click.argument("recipient", metavar="HEX")
    def remove(session: Session, recipient: str) -> int:
        """Drop a wrap from the newest record; old records and copies stay readable to its owner."""
        material, body = _opened(session)
        left = [wrap for wrap in body.wraps if not wrap.recipient.hex().startswith(recipient)]
        if len(recipient) < 6 or len(left) != len(body.wraps) - 1:
            raise NotFound("not one recipient begins so", hint="holdfast key recipients list")
        return _put(session, material, body, tuple(left))


def _opened(session: Session) -> tuple[KeyMaterial, DomainBody]:
    text = session.key_text()
    if text is None:
        raise WrongKey("this needs the domain's key file", hint="--key-file FILE")
    material = parse_key_file(text)
    row = _domain_of(session.api, material)
    record = session.api.raw(f"/v1/domains/{row.name}/record")
    return material, open_domain(record, DomainKeys(material))


def _put(session: Session, material: KeyMaterial, body: DomainBody, wraps: tuple[Wrap, ...]) -> int:
    newer = msgspec.structs.replace(body, revision=body.revision + 1, wraps=wraps)
    record = seal_domain(newer, DomainKeys(material))
    path = f"/v1/domains/{body.name}/record"
    row = session.api.send("PUT", path, DomainRow, DomainRecordPut(record=record))
    if session.as_json:
        print_json(row)
    else:
        say(f"domain {row.name}: {len(row.recipients)} recipients, revision {row.revision}")
    return 0
