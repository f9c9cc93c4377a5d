"""The repository: accepts packs, commits snapshots, serves chunks. Holds no key and opens nothing.

Every method is synchronous and thread-safe; callers run them off the event loop. What one concept
needs lies in a module of its own; here they are only put together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from holdfast_contract.clock import Clock
from holdfast_contract.errors import TooLarge
from holdfast_contract.ids import ClientName, SnapshotId
from holdfast_contract.limits import HAVE_IDS_MAX, MANIFEST_BYTES_MAX
from holdfast_server.auth.signatures import verify_signature
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.domains import DomainRecord
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.catalog.scopes import EVERYWHERE, Scope
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.repository import doctor, recovery
from holdfast_server.repository.commit import Commits, Committed
from holdfast_server.repository.commit_check import Missing
from holdfast_server.repository.damage import Damage
from holdfast_server.repository.deposits import Deposits
from holdfast_server.repository.doctor import Finding, Statistics
from holdfast_server.repository.domain_records import DomainRecords
from holdfast_server.repository.history import Head, History
from holdfast_server.repository.identity_records import CurrentIdentity, IdentityRecords
from holdfast_server.repository.packs import Packs, PackUpload
from holdfast_server.repository.parts import Parts
from holdfast_server.repository.reading import Grant, Reading
from holdfast_server.repository.references import References
from holdfast_server.repository.replay import Replay
from holdfast_server.repository.sessions import Session, Sessions, require_name
from holdfast_server.stores.port import Store


class Repository:
    """Everything that is stored, behind one door. Life cycle: `start` once, then any call."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        clock: Clock,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._parts = parts = Parts(catalog, store, clock, random)
        self._deposits = Deposits(parts)
        self._domains = DomainRecords(parts, self._deposits)
        self._identities = IdentityRecords(parts, self._deposits)
        self._sessions = Sessions(parts)
        self._packs = Packs(parts, self._sessions, self._deposits)
        self._references = References(parts, self._sessions, self._deposits)
        self._commits = Commits(parts, self._references, verify_signature)
        self._damage = Damage(parts, self._references)
        self._reading = Reading(parts, self._references, self._damage)
        self.history = History(parts)

    def start(self) -> None:
        """Make catalog and store agree; before it nothing can be stored.

        Where they contradict each other, reading works, and every writing call raises
        JournalDiverged.

        Raises:
            NoSpace, StoreFailed: store or catalog do not work at all.
        """
        recovery.recover(self._parts, Replay(self._parts, self._references))

    @property
    def refusal(self) -> str:
        """Why nothing can be stored; empty when it can."""
        return self._parts.refusal

    # --- domains and identities

    def create_domain(self, name: str, record: bytes) -> DomainRecord:
        """Make a domain known by its first record; see `DomainRecords.create`."""
        return self._domains.create(name, record)

    def put_domain_record(self, name: str, record: bytes) -> DomainRecord:
        """Make the next revision of a domain's record count; see `DomainRecords.put`."""
        return self._domains.put(name, record)

    def domain_record(self, name: str) -> bytes:
        """Return the domain record that counts; see `DomainRecords.read`."""
        return self._domains.read(name)

    def enrol(self, client: ClientName, record: bytes, sign_key: bytes) -> bytes:
        """Make an identity record count and return its hash; see `IdentityRecords.enrol`."""
        return self._identities.enrol(client, record, sign_key)

    def identity_record(self, domain_name: str, identity: bytes) -> bytes:
        """Return an identity record of a domain by its hash; see `IdentityRecords.read`."""
        return self._identities.read(domain_name, identity)

    def identity_within(self, scope: Scope, identity: bytes) -> bytes:
        """Return an identity record within a scope; see `IdentityRecords.read_within`."""
        return self._identities.read_within(scope, identity)

    def current_identity(self, client: ClientName) -> CurrentIdentity | None:
        """Return the identity record of a client that counts, None where it is not enrolled."""
        return self._identities.current(client)

    # --- upload

    def open_session(self, client: ClientName, job: str) -> Session:
        """Open the session of a job, or find it again; see `Sessions.open`."""
        return self._sessions.open(client, job)

    def more_names(self, client: ClientName, session: str, kind: str, count: int) -> list[str]:
        """Reserve names for `packs`, `refs` or `manifests`; see `Sessions.more_names`."""
        return self._sessions.more_names(client, session, kind, count)

    def have(self, client: ClientName, session: str, ids: bytes, epoch_min: int) -> bytes:
        """Return one byte an id: 1 live, 0 send it; see `Sessions.have`."""
        return self._sessions.have(client, session, ids, epoch_min)

    def begin_pack(self, client: ClientName, session: str, ulid: str, length: int) -> PackUpload:
        """Begin a pack under a reserved name; see `Packs.begin`."""
        return self._packs.begin(client, session, ulid, length)

    def put_refs(
        self, client: ClientName, session: str, ulid: str, body: BinaryIO, length: int
    ) -> None:
        """Store a refs object under a reserved name; see `References.put`."""
        self._references.put(client, session, ulid, body, length)

    def put_manifest(self, client: ClientName, session: str, ulid: str, data: bytes) -> None:
        """Store a manifest under a reserved name; the same bytes again change nothing.

        What it says is checked at the commit.

        Raises:
            NotFound, Refused: no such open session or name of this client.
            TooLarge: longer than any manifest.
            Conflict: other bytes lie under the name.
        """
        self._parts.require_writable()
        if len(data) > MANIFEST_BYTES_MAX:
            raise TooLarge(f"a manifest of {len(data)} bytes, at most {MANIFEST_BYTES_MAX}")
        with self._parts.catalog.read() as tx:
            uploader = self._sessions.require_open(tx, client, session)
            require_name(tx, uploader, ulid, ObjectKind.MANIFEST)
        domain = uploader.domain.domain
        self._deposits.put(ObjectKind.MANIFEST, domain, ulid, data, lambda tx, row: None)

    def commit(
        self, client: ClientName, session: str, *, manifest: str, refs: str, seq: int
    ) -> Committed:
        """Make an upload a snapshot; see `Commits.commit`."""
        return self._commits.commit(client, session, manifest=manifest, refs=refs, seq=seq)

    def missing_page(self, client: ClientName, session: str, after: bytes = b"") -> Missing:
        """Return ids that the last refused commit could not have; see `Commits.missing_page`."""
        return self._commits.missing_page(client, session, after)

    def close_session(self, job: str) -> None:
        """End the session of a job that is over, if it has one, and free what served its packs."""
        self._sessions.close(job)
        self._packs.drop_spares()

    # --- reading

    def head(self, client: ClientName) -> Head:
        """Return where a client's history stands; see `History.head`."""
        return self.history.head(client)

    def parent_for(self, client: ClientName, dataset: bytes | None = None) -> SnapshotId | None:
        """Return the snapshot that a backup best starts from; see `History.parent_for`."""
        return self.history.parent_for(client, dataset)

    def snapshots(
        self, wanted: Filter, *, tag: str = "", after: int = 0, limit: int = 1000
    ) -> list[SnapshotRecord]:
        """Return snapshots, oldest first; see `History.listed`."""
        return self.history.listed(wanted, tag=tag, after=after, limit=limit)

    def resolve(self, reference: str, scope: Scope = EVERYWHERE) -> SnapshotRecord:
        """Return the snapshot that a person's reference names; see `snapshot_references`."""
        return self.history.resolve(reference, scope)

    def manifest(self, snapshot: bytes, scope: Scope = EVERYWHERE) -> bytes:
        """Return the manifest of a snapshot within `scope`, pruned ones too, as it was stored.

        Raises:
            NotFound: no such snapshot.
            Damaged: the object is not what was stored.
        """
        return self.history.manifest(self.history.get(snapshot, scope))

    def open_grant(
        self,
        domain_name: str,
        snapshots: Sequence[bytes],
        session: str | None = None,
        *,
        is_tree_only: bool = False,
    ) -> Grant:
        """Return the right to read what these snapshots need; see `Reading.open_grant`."""
        return self._reading.open_grant(domain_name, snapshots, session, is_tree_only=is_tree_only)

    # --- damage, numbers, health

    def refs_for_differences(self, snapshot: bytes) -> str:
        """Return the ULID of a snapshot's refs object, empty where it is known to be damaged.

        Raises:
            NotFound: no such snapshot.
        """
        found = self.history.get(snapshot)
        return "" if self._references.is_broken(found.refs_key) else found.refs

    def report_damage(
        self,
        domain_name: str,
        reporter: str,
        *,
        chunk: bytes,
        object_name: str,
        offset: int,
        reason: str,
        is_administrator: bool = False,
    ) -> str:
        """Look again at a copy that could not be opened; see `Damage.report`."""
        return self._damage.report(
            domain_name,
            reporter,
            chunk=chunk,
            object_name=object_name,
            offset=offset,
            reason=reason,
            is_administrator=is_administrator,
        )

    def damaged_of(
        self, snapshots: Sequence[bytes], *, after: bytes = b"", limit: int = HAVE_IDS_MAX
    ) -> list[bytes]:
        """Return damaged ids that these snapshots of one domain need, ascending, behind `after`."""
        granted = self.history.standing(snapshots)
        return list(self._damage.ids(granted, after=after, limit=limit))

    def damaged_count(self, snapshots: Sequence[bytes]) -> int:
        """Return how many damaged ids these snapshots of one domain need."""
        return sum(1 for _ in self._damage.ids(self.history.standing(snapshots)))

    def statistics(self) -> Statistics:
        """Return how much is stored and how much room is left."""
        return doctor.statistics(self._parts)

    def check(self) -> Iterator[Finding]:
        """Yield what a quick look finds, one line a check."""
        return doctor.check(self._parts)
