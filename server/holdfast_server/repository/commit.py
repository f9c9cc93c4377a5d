"""The one atomic point at which an upload becomes a snapshot.

    checks outside, in batches  ->  one transaction: snapshot, log entry, journal record
                                ->  journal object durable  ->  acknowledgement

Repeating a commit gives the same answer, whatever was lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast_contract.errors import (
    Conflict,
    Damaged,
    HistoryRegressed,
    HoldfastError,
    InvalidInput,
    MissingChunks,
    NotFound,
    Refused,
    TooMany,
)
from holdfast_contract.format.manifest import (
    ManifestBody,
    decode_manifest_body,
    split_manifest,
)
from holdfast_contract.ids import ZERO_HASH, ClientName, SnapshotId
from holdfast_server.catalog import (
    clients,
    domains,
    identities,
    liveness,
    objects,
    outbox,
    references,
    sessions,
    snapshots,
    state,
)
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.connection import Tx
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.objects import ObjectRow
from holdfast_server.catalog.schema import ObjectKind, ObjectState, SnapshotState
from holdfast_server.catalog.sessions import SessionRow
from holdfast_server.catalog.snapshots import SnapshotRecord
from holdfast_server.repository.commit_check import Checker, Missing, Need
from holdfast_server.repository.journal_records import Commit, encode_record
from holdfast_server.repository.names import object_name
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.references import NewRefs, References
from holdfast_server.repository.snapshot_rows import SnapshotRows

VerifySignature = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, message) -> whether the signature is right."""
ROUNDS_MAX: Final = 100
"""How often a commit is checked anew because something moved meanwhile, before it has to wait."""
LEFT_MAX: Final = 65_536
"""Entries of the leave-live log looked at in one round."""


class Committed(NamedTuple):
    """A snapshot that stands; `time_ns`: when the server received it."""

    snapshot: SnapshotId
    time_ns: int


@dataclass(frozen=True)
class Candidate:
    """A manifest that wants to become a snapshot, its signature checked."""

    client: ClientRecord
    session: SessionRow
    domain: DomainRecord
    manifest: ObjectRow
    refs_object: ObjectRow
    snapshot: SnapshotId
    body: ManifestBody
    refs: NewRefs

    @property
    def need(self) -> Need:
        """What has to be there."""
        return Need.of(self.domain.key, self.refs, self.body)

    @property
    def rows(self) -> SnapshotRows:
        """What the catalog will say of it."""
        return SnapshotRows(
            self.snapshot,
            self.domain.key,
            self.client.key,
            self.manifest.key,
            self.refs_object.key,
            self.body,
            self.refs,
        )


class _Moved(Exception):
    """Something changed between the checks and the transaction; nothing was written."""


class _ParentGone(_Moved):
    pass


class _HeadPending(_Moved):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Commits:
    """Commits uploads."""

    def __init__(
        self, parts: Parts, references_: References, verify_signature: VerifySignature
    ) -> None:
        self._parts = parts
        self._references = references_
        self._verify_signature = verify_signature
        self._checker = Checker(parts.catalog, references_)

    def commit(
        self, client: ClientName, session: str, *, manifest: str, refs: str, seq: int
    ) -> Committed:
        """Make the uploaded manifest and refs (ULIDs) a snapshot, durable in every place.

        Raises:
            NotFound, Refused: no such session or objects of this client, or another signed.
            InvalidInput: manifest and refs contradict each other or the catalog.
            Conflict, HistoryRegressed: prev or seq is not that of the head.
            MissingChunks: details as MissingAnswer; the objects are of no use any more. No ids at
                all: the list that the refs are a difference to is damaged, a full one is needed.
        """
        self._parts.require_writable()
        data, known = self._uploaded(client, session, manifest)
        if known is None:
            try:
                candidate = self._candidate(client, session, data, (manifest, refs))
                if candidate.body.seq != seq:
                    raise InvalidInput("commit: seq is not that of the manifest")
                known = self._decide_or_mend(candidate)
            except Conflict:
                # Asked twice at once, the same commit may stand by now.
                _, known = self._uploaded(client, session, manifest)
                if known is None:
                    raise
        self._parts.journal.flush(known.number)
        return Committed(known.id, known.time_ns)

    def _uploaded(
        self, client: ClientName, session: str, manifest: str
    ) -> tuple[bytes, SnapshotRecord | None]:
        """Return the manifest's bytes, and its snapshot where it was committed before."""
        with self._parts.catalog.read() as tx:
            found = clients.require(tx, client)
            row = sessions.require(tx, session, found.key)
            stored = _stored(tx, row, manifest, ObjectKind.MANIFEST)
            domain = domains.by_key(tx, row.domain_key)
            assert stored.digest is not None
            known = snapshots.committed(tx, stored.digest)
        name = object_name(ObjectKind.MANIFEST, domain.domain, manifest)
        data = b"" if known else self._parts.store.get(name)
        if known is None and blake3(data).digest() != stored.digest:
            raise Damaged(f"object {name} is damaged", object=name)
        assert known is None or known.client == client
        return data, known

    def _candidate(
        self, client: ClientName, session: str, data: bytes, names: tuple[str, str]
    ) -> Candidate:
        with self._parts.catalog.read() as tx:
            found = clients.require(tx, client)
            row = sessions.require(tx, session, found.key)
            if row.closed_ns is not None:
                raise NotFound(f"no such session: {session[:40]}")
            domain = domains.by_key(tx, row.domain_key)
            manifest = _stored(tx, row, names[0], ObjectKind.MANIFEST)
            refs_object = _stored(tx, row, names[1], ObjectKind.REFS)
            body = self._signed_body(tx, found, domain, data)
            refs = self._references.opened(tx, domain.domain, names[1], found.key)
        if (refs.header.refs_set, refs.header.count) != (body.refs_set, body.refs_count):
            raise InvalidInput("commit: the refs are not those that the manifest signs")
        assert manifest.digest is not None
        snapshot = SnapshotId(manifest.digest)
        return Candidate(found, row, domain, manifest, refs_object, snapshot, body, refs)

    def _signed_body(
        self, tx: Tx, client: ClientRecord, domain: DomainRecord, data: bytes
    ) -> ManifestBody:
        identity = identities.find(tx, domain.key, client.identity)
        assert identity is not None, "a client has an identity record"
        parts = split_manifest(data)
        if not self._verify_signature(
            identity.sign_key, bytes(parts.signature), bytes(parts.signed_by_key)
        ):
            raise Refused("the manifest is not signed by the client's identity key")
        body = decode_manifest_body(parts.body)
        if (body.domain, body.client) != (domain.domain, client.name):
            raise InvalidInput("manifest: of another client or domain")
        if (body.identity, body.lineage) != (identity.identity, identity.lineage):
            raise Refused("the manifest names another identity record than the one that counts")
        if body.epoch_new not in domain.epochs:
            raise InvalidInput("manifest: the domain does not have the newest epoch it names")
        return body

    def _decide_or_mend(self, candidate: Candidate) -> SnapshotRecord:
        try:
            return self._decide(candidate)
        except Damaged as damage:
            raise _without_base(candidate, damage) from damage

    def _decide(self, candidate: Candidate) -> SnapshotRecord:
        """Check outside and write inside, again until nothing moves in between."""
        uses_parent = True
        for _ in range(ROUNDS_MAX):
            _check_head(candidate.client, candidate.body)
            with self._parts.catalog.read() as tx:
                left = domains.leave_last(tx, candidate.domain.key)
                parent = _usable_parent(tx, candidate) if uses_parent else None
            if not self._checker.is_complete(candidate.need, parent):
                self._refuse(candidate)
                continue
            try:
                return self._written(candidate, parent, left)
            except _ParentGone:
                uses_parent = False
            except _Moved:
                continue
        raise TooMany("the catalog moves too fast for this commit", hint="try again")

    def _refuse(self, candidate: Candidate) -> None:
        """Raise MissingChunks, unless what was missing has come in the meantime."""
        page = self._checker.page(candidate.need)
        if not page.missing and (candidate.need.accepts_damage or not page.damaged):
            return

        def work(tx: Tx) -> None:
            sessions.set_refused(
                tx,
                candidate.session.key,
                refs=candidate.refs_object.ulid,
                manifest=candidate.manifest.ulid,
            )

        self._parts.catalog.write(work)
        raise MissingChunks(
            f"the snapshot needs chunks that are not there: {len(page.missing)} missing, "
            f"{len(page.damaged)} damaged{' and more' if page.next else ''}",
            missing=[chunk_id.hex() for chunk_id in page.missing],
            damaged=[chunk_id.hex() for chunk_id in page.damaged],
            next=page.next.hex(),
        )

    def missing_page(self, client: ClientName, session: str, after: bytes) -> Missing:
        """Return ids behind `after` that the last refused commit of a session could not have.

        Raises:
            NotFound: no commit was refused in such a session of this client.
        """
        with self._parts.catalog.read() as tx:
            found = clients.require(tx, client)
            row = sessions.require(tx, session, found.key)
            domain = domains.by_key(tx, row.domain_key)
            if row.refused_refs is None or row.refused_manifest is None:
                raise NotFound("no commit of this session was refused")
            refs = self._references.opened(tx, domain.domain, row.refused_refs, found.key)
        name = object_name(ObjectKind.MANIFEST, domain.domain, row.refused_manifest)
        body = decode_manifest_body(split_manifest(self._parts.store.get(name)).body)
        return self._checker.page(Need.of(domain.key, refs, body), after)

    # --- the transaction

    def _written(
        self, candidate: Candidate, parent: SnapshotRecord | None, left: int
    ) -> SnapshotRecord:
        for _ in range(ROUNDS_MAX):
            try:
                found, entries = self._attempt(candidate, parent, left)
            except _HeadPending as pending:
                self._parts.journal.flush(pending.number)
                continue
            if found is not None:
                return found
            if not self._checker.still_complete(candidate.need, entries):
                raise _Moved
            left += len(entries)
        raise _Moved

    def _attempt(
        self, candidate: Candidate, parent: SnapshotRecord | None, left: int
    ) -> tuple[SnapshotRecord | None, list[bytes]]:
        """Write the snapshot, or return which ids stopped being live since they were checked."""

        def work(tx: Tx) -> tuple[SnapshotRecord | None, list[bytes]]:
            entries = liveness.left_since(tx, candidate.domain.key, left, limit=LEFT_MAX)
            return (None if entries else self._insert(tx, candidate, parent)), entries

        return self._parts.catalog.write(work)

    def _insert(
        self, tx: Tx, candidate: Candidate, parent: SnapshotRecord | None
    ) -> SnapshotRecord:
        known = snapshots.committed(tx, candidate.snapshot)
        if known is not None:
            return known
        client = clients.require(tx, candidate.client.name)
        _check_still(tx, candidate, client)
        if parent is not None and not _stands(tx, parent.id):
            raise _ParentGone
        number = self._record(tx, candidate, client)
        found = snapshots.committed(tx, candidate.snapshot)
        assert found is not None and found.number == number
        return found

    def _record(self, tx: Tx, candidate: Candidate, client: ClientRecord) -> int:
        """Write all rows of a snapshot and return the number of its journal record."""
        now = state.receive_time(tx, self._parts.clock)
        said = Commit(
            time_ns=now,
            domain=candidate.domain.domain,
            client=str(client.name),
            snapshot=candidate.snapshot,
            seq=candidate.body.seq,
            manifest=candidate.manifest.ulid,
            refs=candidate.refs_object.ulid,
        )
        number = outbox.append(tx, encode_record(said))
        candidate.rows.write(tx, now_ns=now, number=number)
        return number


def _stored(tx: Tx, session: SessionRow, ulid: str, kind: ObjectKind) -> ObjectRow:
    row = objects.find(tx, ulid)
    if row is None or row.session_key != session.key or row.kind is not kind:
        raise NotFound(f"no such object in this session: {ulid[:40]}")
    if row.state is not ObjectState.STORED:
        raise Conflict(f"nothing counts under the name {ulid}", hint="send the object first")
    return row


def _without_base(candidate: Candidate, damage: Damaged) -> HoldfastError:
    """Return what the agent is told when refs cannot be read because of the object below them.

    It still has every id of the snapshot, so a full list mends what the store has lost. An agent
    that does not know this answer makes one all the same, in another round.
    """
    if candidate.refs.base is None:
        return damage
    return MissingChunks(
        f"the base of the refs cannot be read: {damage.message}",
        hint="send a full list",
        missing=[],
        damaged=[],
        next="",
    )


def _check_head(client: ClientRecord, body: ManifestBody) -> None:
    if (body.seq, body.prev) == (client.head_seq + 1, client.head):
        return
    is_older = body.known_seq > client.head_seq
    is_other = body.known_seq == client.head_seq and body.known_hash != client.head
    details = {"head_seq": client.head_seq, "head": client.head.hex()}
    if is_older or is_other:
        raise HistoryRegressed(
            f"the agent remembers another history of {client.name} than the server has",
            hint="holdfast client accept starts a new lineage from the server's history",
            **details,
        )
    raise Conflict(
        f"the history of {client.name} has moved on to {client.head_seq}",
        hint="start the backup again",
        **details,
    )


def _usable_parent(tx: Tx, candidate: Candidate) -> SnapshotRecord | None:
    if candidate.body.parent == ZERO_HASH:
        return None
    parent = snapshots.shown(tx, candidate.body.parent)
    if parent is None or parent.client_key != candidate.client.key:
        return None
    return parent if candidate.need.covers(parent) else None


def _stands(tx: Tx, snapshot: bytes) -> bool:
    found = snapshots.durable(tx, snapshot)
    return found is not None and found.state is SnapshotState.STANDING


def _check_still(tx: Tx, candidate: Candidate, client: ClientRecord) -> None:
    """Check inside the transaction all that may have changed since it was read."""
    if client.revoked_ns is not None:
        raise Refused(f"{client.name} is revoked")
    if client.key != candidate.client.key or client.identity != candidate.client.identity:
        raise Refused("the client's identity has changed meanwhile")
    session = sessions.require(tx, candidate.session.session, client.key)
    if session.closed_ns is not None:
        raise NotFound("no such session")
    _check_head(client, candidate.body)
    if client.head != ZERO_HASH and snapshots.durable(tx, client.head) is None:
        head = snapshots.committed(tx, client.head)
        assert head is not None
        raise _HeadPending(head.number)
    names = [candidate.manifest.key, candidate.refs_object.key]
    names += [row.object_key for row in _below(tx, candidate.refs)]
    if not all(objects.is_standing(tx, key) for key in names):
        raise Conflict("an object of the snapshot was given up meanwhile")


def _below(tx: Tx, refs: NewRefs) -> list[references.RefsRow]:
    return [] if refs.base is None else references.chain(tx, refs.base.object_key)
