"""Takes records of the store's journal over into a catalog that does not have them.

That is a catalog that was lost before its first commit, or one that an older copy replaced. A
record is taken over when everything that it names is at hand; a snapshot whose chunks the catalog
does not know is not: the packs' index would have to be rebuilt first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

from holdfast_contract.errors import HoldfastError
from holdfast_contract.format.domain import decode_domain_body, split_domain
from holdfast_contract.format.identity import decode_identity_body, identity_hash, split_identity
from holdfast_contract.format.layout import require
from holdfast_contract.format.manifest import decode_manifest_body, snapshot_id, split_manifest
from holdfast_contract.ids import ClientName, DomainId, SnapshotId
from holdfast_server.catalog import chunks, clients, domains, liveness, objects, outbox, state
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.schema import CopyState, ObjectKind
from holdfast_server.repository.commit_check import Checker, Need
from holdfast_server.repository.domain_records import count_domain, stored_domain
from holdfast_server.repository.identity_records import count_identity
from holdfast_server.repository.journal import JournalDiverged
from holdfast_server.repository.journal_records import (
    Commit,
    Damaged,
    DomainStored,
    IdentityStored,
    JournalRecord,
    StoreMade,
    decode_record,
)
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.references import References
from holdfast_server.repository.snapshot_rows import SnapshotRows


class Replay:
    """Takes over one record after the other, each in one transaction."""

    def __init__(self, parts: Parts, references: References) -> None:
        self._parts = parts
        self._references = references
        self._checker = Checker(parts.catalog, references)

    def take_over(self, number: int, body: bytes) -> None:
        """Make a record true in the catalog, as if it had given out its number itself.

        The record also goes to the outbox: there it waits until its object is struck off, so that
        a crash in between finds it like any other.

        Raises:
            JournalDiverged: what it names is not at hand.
        """
        try:
            record = decode_record(body)
            effect = self._effect(record)
        except HoldfastError as exc:
            raise JournalDiverged(
                f"record {number} of the store's journal is not known to the catalog and cannot be "
                f"taken over: {exc.message}"
            ) from exc

        def work(tx: Tx) -> None:
            given = outbox.append(tx, body)
            assert given == number, "records are taken over without a gap"
            state.raise_clock(tx, record.time_ns)
            effect(tx, number)

        self._parts.catalog.write(work)

    def _effect(self, record: JournalRecord) -> Callable[[Tx, int], None]:
        """Return what a record does in its transaction, once all it needs has been read."""
        match record:
            case StoreMade():
                return lambda tx, number: state.set_store_id(tx, record.store_id)
            case DomainStored():
                return self._domain(record)
            case IdentityStored():
                return self._identity(record)
            case Commit():
                return self._commit(record)
            case Damaged():
                return lambda tx, number: _damaged(tx, record)
            case _:
                raise JournalDiverged(f"this version does not write {type(record).__name__}")

    def _read(self, kind: ObjectKind, domain: DomainId, ulid: str) -> tuple[bytes, Stored]:
        data = self._parts.store.get(object_name(kind, domain, ulid))
        return data, Stored(kind, ulid, len(data), blake3(data).digest())

    def _domain(self, record: DomainStored) -> Callable[[Tx, int], None]:
        domain = DomainId(record.domain)
        data, stored = self._read(ObjectKind.DOMAIN, domain, record.object)
        body = decode_domain_body(split_domain(data).body)
        said = (record.domain, record.name, record.revision)
        require((body.domain, body.name, body.revision) == said, "another domain record")

        def effect(tx: Tx, number: int) -> None:
            stored.registered(tx, None, record.time_ns)
            count_domain(tx, body, stored_domain(record.object, data, body), number)

        return effect

    def _identity(self, record: IdentityStored) -> Callable[[Tx, int], None]:
        domain = domains.by_id(self._parts.catalog, DomainId(record.domain))
        data, stored = self._read(ObjectKind.IDENTITY, domain.domain, record.object)
        body = decode_identity_body(split_identity(data).body)
        require(identity_hash(data) == record.identity, "the identity record is damaged")
        require(body.client == record.client, "another client's identity record")

        def effect(tx: Tx, number: int) -> None:
            now = record.time_ns
            stored.registered(tx, domain.key, now)
            name = (record.object, record.identity)
            count_identity(tx, domain.key, body, name, now_ns=now, number=number)

        return effect

    def _commit(self, record: Commit) -> Callable[[Tx, int], None]:
        domain = domains.by_id(self._parts.catalog, DomainId(record.domain))
        client = clients.get(self._parts.catalog, ClientName.parse(record.client))
        data, manifest = self._read(ObjectKind.MANIFEST, domain.domain, record.manifest)
        require(snapshot_id(data) == record.snapshot, "the manifest is damaged")
        body = decode_manifest_body(split_manifest(data).body)
        require((body.client, body.seq) == (record.client, record.seq), "another manifest")
        require(body.prev == client.head, "the manifest does not follow on the client's head")
        _, refs_object = self._read(ObjectKind.REFS, domain.domain, record.refs)
        with self._parts.catalog.read() as tx:
            refs = self._references.opened(tx, domain.domain, record.refs, client.key)
        require(refs.header.refs_set == body.refs_set, "other refs than the manifest signs")
        need = Need.of(domain.key, refs, body)
        require(self._checker.is_complete(need, None), "the catalog lacks chunks that it needs")

        def effect(tx: Tx, number: int) -> None:
            rows = SnapshotRows(
                SnapshotId(record.snapshot),
                domain.key,
                client.key,
                manifest.registered(tx, domain.key, record.time_ns),
                refs_object.registered(tx, domain.key, record.time_ns),
                body,
                refs,
            )
            rows.write(tx, now_ns=record.time_ns, number=number)

        return effect


class Stored(NamedTuple):
    """An object that the store has and a record names."""

    kind: ObjectKind
    ulid: str
    length: int
    digest: bytes

    def registered(self, tx: Tx, domain_key: int | None, now_ns: int) -> int:
        """Make the object count and return its key."""
        return objects.replayed(
            tx,
            self.ulid,
            self.kind,
            now_ns=now_ns,
            domain_key=domain_key,
            length=self.length,
            digest=self.digest,
        )


def _damaged(tx: Tx, record: Damaged) -> None:
    domain = domains.of_id(tx, DomainId(record.domain))
    for copy in chunks.copies(tx, domain.key, [record.chunk]).get(record.chunk, []):
        if (copy.ulid, copy.offset) != (record.object, record.offset):
            continue
        changed = chunks.set_state(
            tx, domain.key, copy, before=chunks.READABLE_STATES, after=CopyState.DAMAGED
        )
        if changed and copy.state is CopyState.LIVE:
            liveness.log_left(tx, domain.key, [record.chunk])
