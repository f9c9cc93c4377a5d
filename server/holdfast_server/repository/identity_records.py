"""Identity records: how a client becomes known, and by which key it signs."""

from __future__ import annotations

from typing import NamedTuple

from holdfast_contract.errors import Conflict, Damaged, InvalidInput, NotFound
from holdfast_contract.format.identity import (
    IdentityBody,
    decode_identity_body,
    identity_hash,
    split_identity,
)
from holdfast_contract.ids import ZERO_HASH, ClientName
from holdfast_server.auth.signatures import check_public_key
from holdfast_server.catalog import clients, domains, events, identities, outbox, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.identities import IdentityRow
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.catalog.scopes import Scope
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.journal_records import IdentityStored, encode_record
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts


class CurrentIdentity(NamedTuple):
    """The identity record of a client that counts."""

    identity: bytes
    sign_key: bytes
    box_key: bytes
    lineage: bytes
    record: bytes


class IdentityRecords:
    """Keeps identity records; the server cannot check their MAC, agents do."""

    def __init__(self, parts: Parts, deposits: Deposits) -> None:
        self._parts = parts
        self._deposits = deposits

    def enrol(self, client: ClientName, record: bytes, sign_key: bytes) -> bytes:
        """Make an identity record count and return its hash; the same again changes nothing.

        `sign_key`: the public key that proved itself, which the record must name.

        Raises:
            NotFound: no such domain.
            InvalidInput, TooLarge, UnsupportedVersion: not a record of this client and key.
            Conflict: it does not follow on the record that counts.
        """
        self._parts.require_writable()
        check_public_key(sign_key)
        domain = domains.get(self._parts.catalog, client.domain)
        body = decode_identity_body(split_identity(record).body)
        if body.domain != domain.domain or body.client != client or body.sign_key != sign_key:
            raise InvalidInput("identity record: of another domain, client or key")
        identity = identity_hash(record)
        with self._parts.catalog.read() as tx:
            known = identities.find(tx, domain.key, identity)
            found = clients.find(tx, client)
            _check_history(found, body, identity)
        if known is None:
            self._store(domain, client, body, record)
        with self._parts.catalog.read() as tx:
            known = identities.find(tx, domain.key, identity)
        assert known is not None
        self._parts.journal.flush(known.record)
        return identity

    def _store(
        self, domain: DomainRecord, client: ClientName, body: IdentityBody, record: bytes
    ) -> None:
        ulid = self._deposits.register(ObjectKind.IDENTITY, domain.key)
        identity = identity_hash(record)

        def count(tx: Tx, row: ObjectRow) -> None:
            found = clients.find(tx, client)
            _check_history(found, body, identity)
            now = state.receive_time(tx, self._parts.clock)
            said = IdentityStored(
                time_ns=now,
                domain=domain.domain,
                client=str(client),
                object=ulid,
                identity=identity,
            )
            number = outbox.append(tx, encode_record(said))
            count_identity(tx, domain.key, body, (ulid, identity), now_ns=now, number=number)
            if found is not None:
                message = f"{client} has a new identity record: {body.reason}"
                events.record(tx, now, "identity-changed", message, client=client)

        self._deposits.put(ObjectKind.IDENTITY, domain.domain, ulid, record, count)

    def current(self, client: ClientName) -> CurrentIdentity | None:
        """Return the identity record of a client that counts, None where it is not enrolled.

        Raises:
            Damaged: its object is not what was stored.
        """
        with self._parts.catalog.read() as tx:
            found = clients.find(tx, client)
            row = None if found is None else identities.find(tx, found.domain_key, found.identity)
        if row is None:
            return None
        self._parts.journal.flush(row.record)
        record = self._read(client.domain, row)
        return CurrentIdentity(row.identity, row.sign_key, row.box_key, row.lineage, record)

    def read(self, domain_name: str, identity: bytes) -> bytes:
        """Return an identity record of this domain by its hash, as it was stored.

        Raises:
            NotFound: there is none in this domain.
            Damaged: its object is not what was stored.
        """
        domain = domains.get(self._parts.catalog, domain_name)
        with self._parts.catalog.read() as tx:
            row = identities.find(tx, domain.key, identity)
        if row is None:
            raise NotFound("no such identity record")
        return self._read(domain_name, row)

    def read_within(self, scope: Scope, identity: bytes) -> bytes:
        """Return an identity record of any domain within `scope`, as it was stored.

        Raises:
            NotFound: there is none.
            Damaged: its object is not what was stored.
        """
        with self._parts.catalog.read() as tx:
            row = identities.within(tx, scope, identity)
        if row is None:
            raise NotFound("no such identity record")
        return self._read(row.client.domain, row)

    def _read(self, domain_name: str, row: IdentityRow) -> bytes:
        domain = domains.get(self._parts.catalog, domain_name)
        place = object_name(ObjectKind.IDENTITY, domain.domain, row.object)
        data = self._parts.store.get(place)
        if identity_hash(data) != row.identity:
            raise Damaged(f"an identity record of {row.client} is damaged", object=place)
        return data


def _check_history(found: clients.ClientRecord | None, body: IdentityBody, identity: bytes) -> None:
    """Refuse a record that does not follow on the one that counts."""
    current = ZERO_HASH if found is None else found.identity
    if identity == current:
        return
    if body.previous != current:
        raise Conflict(
            "the identity record does not follow on the one that counts",
            hint="the name may be taken: choose another, or forget the client first",
        )
    if body.heads and (found is None or body.heads[0] != found.head):
        raise Conflict("the accepted history is not the one that the server has")


def count_identity(
    tx: Tx,
    domain_key: int,
    body: IdentityBody,
    stored: tuple[str, bytes],
    *,
    now_ns: int,
    number: int,
) -> None:
    """Make an identity record count; `stored` is (ULID, hash), `number` its journal record's."""
    client = ClientName(body.client)
    ulid, identity = stored
    row = IdentityRow(
        identity,
        domain_key,
        client,
        ulid,
        body.lineage,
        body.sign_key,
        body.box_key,
        body.previous,
        body.reason,
        now_ns,
        number,
    )
    identities.add(tx, row)
    clients.set_identity(
        tx,
        client,
        domain_key,
        identity,
        enrolled_ns=now_ns,
        has_accepted=bool(body.heads),
    )
