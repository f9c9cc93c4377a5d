"""A domain's record: read, made anew with the key at hand, and put in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast_cli.api import Api
from holdfast_cli.command import Session
from holdfast_contract.errors import UsageError, WrongKey
from holdfast_contract.protocol.http import DomainRecordPut, DomainRow

if TYPE_CHECKING:
    from holdfast_cli.domain_keys import OpenedKey


def opened_key(session: Session) -> tuple[OpenedKey, str]:
    """Return the key at hand and the name of its domain.

    Raises:
        UsageError: no key file was named.
        WrongKey: its domain is none of this server.
    """
    from holdfast_cli.domain_keys import OpenedKey

    text = session.key_text()
    if text is None:
        raise UsageError("this needs the domain's key file", hint="--key-file FILE")
    opened = OpenedKey.of_file(text)
    return opened, domain_of(session.api, opened.domain).name


def domain_of(api: Api, domain: str) -> DomainRow:
    """Return the server's domain with that id (hex).

    Raises:
        WrongKey: it has none.
    """
    for row in api.rows("/v1/domains", DomainRow):
        if row.domain == domain:
            return row
    raise WrongKey(f"the key is of domain {domain}, which this server does not have")


def stored_record(api: Api, name: str) -> bytes:
    """Return the domain record that counts."""
    return api.raw(f"/v1/domains/{name}/record")


def put_record(session: Session, name: str, record: bytes) -> DomainRow:
    """Make the next revision count; return the domain."""
    path = f"/v1/domains/{name}/record"
    return session.api.send("PUT", path, DomainRow, DomainRecordPut(record=record))
