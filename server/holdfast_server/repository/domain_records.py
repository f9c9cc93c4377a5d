"""Domains: their records as objects of the store, and which of them counts."""

from __future__ import annotations

from holdfast_contract.errors import Conflict, Damaged, InvalidInput
from holdfast_contract.format.domain import (
    DomainBody,
    decode_domain_body,
    domain_hash,
    split_domain,
)
from holdfast_contract.ids import DomainId
from holdfast_server.catalog import domains, outbox, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.domains import DomainRecord, StoredDomain
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.journal_records import DomainStored, encode_record
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts


class DomainRecords:
    """Keeps domain records; the server reads them and cannot check their MAC."""

    def __init__(self, parts: Parts, deposits: Deposits) -> None:
        self._parts = parts
        self._deposits = deposits

    def create(self, name: str, record: bytes) -> DomainRecord:
        """Make a domain known by its first record; the same call again changes nothing.

        Raises:
            InvalidInput, TooLarge, UnsupportedVersion: not a first record of a domain `name`.
            Conflict: a domain of that name or id exists.
        """
        self._parts.require_writable()
        body = decode_domain_body(split_domain(record).body)
        if body.name != name or body.revision != 1:
            raise InvalidInput("domain record: not the first record of a domain of that name")
        with self._parts.catalog.read() as tx:
            known = domains.pending(tx, name, DomainId(body.domain))
        if known is None:
            self._store(record, body, known)
        elif known.object_hash != domain_hash(record):
            raise Conflict(f"a domain of this name or id exists: {name}")
        return self._durable(name, DomainId(body.domain))

    def put(self, name: str, record: bytes) -> DomainRecord:
        """Make the next revision of a domain's record count; the same again changes nothing.

        Raises:
            NotFound: no such domain.
            InvalidInput, TooLarge, UnsupportedVersion: not a record of this domain.
            Conflict: not the revision that is next.
        """
        self._parts.require_writable()
        known = domains.get(self._parts.catalog, name)
        body = decode_domain_body(split_domain(record).body)
        if body.name != name or body.domain != known.domain:
            raise InvalidInput("domain record: of another domain")
        if known.object_hash != domain_hash(record):
            if body.revision != known.revision + 1:
                raise Conflict(
                    f"revision {known.revision} of the domain's record counts",
                    hint="read it and try again",
                )
            self._store(record, body, known)
        return self._durable(name, known.domain)

    def _store(self, record: bytes, body: DomainBody, known: DomainRecord | None) -> None:
        key = None if known is None else known.key
        ulid = self._deposits.register(ObjectKind.DOMAIN, key)

        def count(tx: Tx, row: ObjectRow) -> None:
            now = state.receive_time(tx, self._parts.clock)
            said = DomainStored(
                time_ns=now,
                domain=body.domain,
                name=body.name,
                object=ulid,
                revision=body.revision,
            )
            number = outbox.append(tx, encode_record(said))
            count_domain(tx, body, stored_domain(ulid, record, body), number)

        domain = DomainId(body.domain)
        self._deposits.put(ObjectKind.DOMAIN, domain, ulid, record, count)

    def _durable(self, name: str, domain: DomainId) -> DomainRecord:
        with self._parts.catalog.read() as tx:
            known = domains.pending(tx, name, domain)
        assert known is not None
        self._parts.journal.flush(known.record)
        return known

    def read(self, name: str) -> bytes:
        """Return the domain record that counts, as it was stored.

        Raises:
            NotFound: no such domain.
            Damaged: its object is not what was stored.
        """
        known = domains.get(self._parts.catalog, name)
        place = object_name(ObjectKind.DOMAIN, known.domain, known.object)
        data = self._parts.store.get(place)
        if domain_hash(data) != known.object_hash:
            raise Damaged(f"the record of domain {name} is damaged", object=place)
        return data


def stored_domain(ulid: str, record: bytes, body: DomainBody) -> StoredDomain:
    """Return what the catalog takes from a domain record."""
    return StoredDomain(
        ulid,
        domain_hash(record),
        [wrap.recipient for wrap in body.wraps],
        [check.epoch for check in body.epoch_checks],
        body.share_references,
    )


def count_domain(tx: Tx, body: DomainBody, stored: StoredDomain, number: int) -> None:
    """Make a domain record count, by the journal record of this number."""
    domain = DomainId(body.domain)
    if body.revision == 1:
        domains.add(tx, body.name, domain, stored, created_ns=body.created_ns, record=number)
        return
    known = domains.pending(tx, body.name, domain)
    if known is None or known.domain != domain or known.name != body.name:
        raise Conflict(f"no domain {body.name} of this id")
    domains.set_record(tx, known.key, stored, revision=body.revision, record=number)
