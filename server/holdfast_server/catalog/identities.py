"""Identity records: which keys a client signs with, and where each record lies."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import RowMapping, insert, select

from holdfast_contract.ids import ClientName
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import identities
from holdfast_server.catalog.scopes import Scope


class IdentityRow(NamedTuple):
    """An identity record; `object` is the ULID under which it lies."""

    identity: bytes
    domain_key: int
    client: ClientName
    object: str
    lineage: bytes
    sign_key: bytes
    box_key: bytes
    previous: bytes
    reason: str
    added_ns: int
    record: int


def _identity(row: RowMapping) -> IdentityRow:
    values = dict(row)
    values["client"] = ClientName(values["client"])
    return IdentityRow(**values)


def find(tx: Tx, domain_key: int, identity: bytes) -> IdentityRow | None:
    """Return an identity record of this domain by its hash, or None."""
    query = select(identities).where(
        identities.c.identity == identity, identities.c.domain_key == domain_key
    )
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else _identity(row)


def within(tx: Tx, scope: Scope, identity: bytes) -> IdentityRow | None:
    """Return an identity record of any domain within `scope` by its hash, or None."""
    query = select(identities).where(
        identities.c.identity == identity, scope.of_clients(identities.c.client)
    )
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else _identity(row)


def add(tx: Tx, row: IdentityRow) -> None:
    """Insert a record that has been stored."""
    tx.execute(insert(identities).values(**row._asdict()))
