"""A repository over a store in memory, and pods that upload into it as agents do, without keys."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial
from holdfast_agent.crypto.records import seal_domain, seal_identity, sign_manifest
from holdfast_contract.format.chunk import SEALED_OVERHEAD, ChunkHeader, ChunkType, padme
from holdfast_contract.format.domain import DomainBody, EpochCheck
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.format.manifest import ManifestBody
from holdfast_contract.format.pack import PackWriter
from holdfast_contract.format.refs import encode_difference, encode_full, refs_set_of
from holdfast_contract.ids import ZERO_HASH, ChunkId, ClientName, DomainId, ObjectName, SnapshotId
from holdfast_server.catalog.connection import Catalog, open_catalog
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository import Repository
from holdfast_server.repository.commit import Committed
from holdfast_server.repository.names import object_name
from holdfast_server.repository.sessions import Session
from holdfast_server.stores.port import Store
from tests.support.samples import domain_body, identity_body, manifest_body, noise
from tests.support.stores import MemoryStore

START_NS = 1_800_000_000_000_000_000


class TickingClock:
    """Goes on by a millisecond whenever it is asked; the wall's side can be set to jump."""

    def __init__(self) -> None:
        self.now = START_NS
        self.jumped_ns = 0
        """How far the wall clock has been set forward (or back) of what has passed."""

    def now_ns(self) -> int:
        self.now += 1_000_000
        return self.now + self.jumped_ns

    def jump(self, years: float) -> None:
        """Set the wall clock forward or back; nothing passes by that."""
        self.jumped_ns += round(years * 365 * 86_400) * 10**9

    def monotonic(self) -> float:
        return self.now / 1e9


@cache
def _empty_catalog() -> bytes:
    """Return a catalog that was just made: its migrations are tested elsewhere, and take time."""
    with tempfile.TemporaryDirectory() as folder:
        open_catalog("sqlite:", Path(folder), TickingClock()).close()
        return (Path(folder) / "catalog.sqlite").read_bytes()


def hurry(catalog: Catalog) -> None:
    """Let the catalog not wait for the disk: no test pulls the plug of this machine."""
    connection = catalog._writer.raw_connection()
    assert connection.driver_connection is not None
    connection.driver_connection.execute("PRAGMA synchronous = OFF").close()
    connection.close()


class Served:
    """A repository that can be stopped at any moment and started again."""

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.folder = folder
        self.memory = MemoryStore()
        self.store: Store = store or self.memory
        self.clock = TickingClock()
        self._random = 0
        self.start()

    def start(self) -> None:
        place = self.folder / "catalog.sqlite"
        if not place.exists():
            place.write_bytes(_empty_catalog())
        self.catalog: Catalog = open_catalog("sqlite:", self.folder, self.clock)
        hurry(self.catalog)
        self.attach()
        self.repository = Repository(self.catalog, self.store, self.clock, self.random)
        self.repository.start()

    def attach(self) -> None:
        """Come between the repository and what it works with: for those who inherit."""

    def stop(self) -> None:
        self.catalog.close()

    def restart(self) -> None:
        self.stop()
        self.memory.crash()
        self.start()

    def random(self, count: int) -> bytes:
        self._random += 1
        return noise(f"random {self._random}", count)

    def domain(self, name: str = "shop") -> DomainId:
        """Create a domain of that name."""
        self.repository.create_domain(name, domain_record(name))
        return domain_keys(name).domain_id

    def pod(self, name: str = "shop/db-0") -> Pod:
        """Enrol a client."""
        return Pod(self, ClientName.parse(name))

    def pod_of(self, name: ClientName, identity: bytes) -> Pod:
        """Return a client that is enrolled already."""
        return Pod(self, name, identity)


def domain_keys(name: str) -> DomainKeys:
    """Return the keys of a domain of that name: always the same."""
    domain = DomainId(noise(f"domain {name}", 16))
    epochs = ((1, noise(f"{name} 1")), (2, noise(f"{name} 2")))
    return DomainKeys(KeyMaterial(domain, noise(f"base {name}"), epochs))


def domain_record(name: str, /, **changes: object) -> bytes:
    """Return a domain record of that name, with `changes` of its body."""
    keys = domain_keys(name)
    checks = tuple(EpochCheck(number, check) for number, check in keys.epoch_checks.items())
    body: DomainBody = domain_body(
        domain=keys.domain_id, name=name, key_check=keys.key_check, epoch_checks=checks
    )
    return seal_domain(msgspec.structs.replace(body, **changes), keys)


def sealed(
    chunk_id: bytes,
    *,
    epoch: int = 1,
    salt: str = "",
    size: int = 200,
    kind: ChunkType = ChunkType.CONTENT,
) -> bytes:
    """Return bytes that look sealed to who has no key; another salt makes another copy."""
    inside = padme(size)
    salt_bytes = noise(f"salt {salt}" + chunk_id.hex(), 16)
    header = ChunkHeader(kind, 0, epoch, salt_bytes, noise("com"))
    body = noise(f"body {salt}" + chunk_id.hex(), inside + SEALED_OVERHEAD - 60)
    return header.encode() + body


def pack_of(domain: DomainId, ids: Sequence[bytes], **how: Any) -> bytes:
    """Return a pack with a copy of each of `ids`, made as `sealed` is told to."""
    writer = PackWriter(domain)
    for chunk_id in ids:
        writer.add(ChunkId(chunk_id), sealed(chunk_id, **how))
    return b"".join(writer.finish())


def full_refs(domain: DomainId, ids: Sequence[bytes]) -> bytes:
    """Return a full list."""
    out = io.BytesIO()
    encode_full(domain, ids, len(ids), refs_set_of(ids), out.write)
    return out.getvalue()


def difference(domain: DomainId, ids: Sequence[bytes], base: tuple[str, Sequence[bytes]]) -> bytes:
    """Return a difference to the list of `base` (ULID, ids)."""
    out = io.BytesIO()
    ulid, before = base
    added, removed = sorted(set(ids) - set(before)), sorted(set(before) - set(ids))
    encode_difference(
        domain,
        (refs_set_of(ids), len(ids)),
        (ulid, refs_set_of(before)),
        (added, len(added)),
        (removed, len(removed)),
        out.write,
    )
    return out.getvalue()


class Pod:
    """A client with an identity; makes jobs, sessions, packs and manifests."""

    def __init__(self, served: Served, name: ClientName, identity: bytes = b"") -> None:
        self.served = served
        self.name = name
        self.keys = domain_keys(name.domain)
        self.domain = self.keys.domain_id
        self.identity_key = IdentityKey(noise(f"sign {name}"), noise(f"box {name}"))
        self.identity = identity or self.enrol()
        self.jobs = 0

    def identity_record(self, **changes: object) -> bytes:
        """Return an identity record of this client, with `changes` of its body."""
        body = identity_body(
            domain=self.domain,
            client=str(self.name),
            sign_key=self.identity_key.sign_public,
            box_key=self.identity_key.box_public,
        )
        return seal_identity(msgspec.structs.replace(body, **changes), self.keys)

    def enrol(self, **changes: object) -> bytes:
        """Make a record count and return its hash."""
        record = self.identity_record(**changes)
        repository = self.served.repository
        key = changes.get("sign_key", self.identity_key.sign_public)
        assert isinstance(key, bytes)
        assert repository.enrol(self.name, record, key) == identity_hash(record)
        return identity_hash(record)

    def open(self, job: str = "") -> Session:
        """Open the session of a job; without one, of a new job."""
        self.jobs += 1
        name = job or f"{self.name}-{self.jobs}"
        return self.served.repository.open_session(self.name, name)

    def put_pack(self, session: Session, ulid: str, data: bytes) -> None:
        """Send a pack in two pieces."""
        upload = self.served.repository.begin_pack(self.name, session.id, ulid, len(data))
        try:
            upload.write(data[:50])
            upload.write(memoryview(data)[50:])
            upload.commit()
        finally:
            upload.abort()

    def send(self, ids: Sequence[bytes], session: Session, **how: Any) -> str:
        """Send a pack with these chunks, made as `sealed` is told to, and return its ULID."""
        repository = self.served.repository
        (ulid,) = repository.more_names(self.name, session.id, "packs", 1)
        self.put_pack(session, ulid, pack_of(self.domain, ids, **how))
        return ulid

    def manifest(self, ids: Sequence[bytes], **changes: object) -> bytes:
        """Return a manifest that follows on the head and needs `ids`, with `changes`."""
        head = self.served.repository.head(self.name)
        body = manifest_body(
            domain=self.domain,
            client=str(self.name),
            identity=self.identity,
            seq=head.seq + 1,
            prev=head.snapshot,
            parent=ZERO_HASH,
            known_seq=head.seq,
            known_hash=head.snapshot,
            tree=(),
            report=(),
            refs_set=refs_set_of(ids),
            refs_count=len(ids),
            result="complete",
        )
        body = msgspec.structs.replace(body, **changes)
        assert isinstance(body, ManifestBody)
        return sign_manifest(body, self.keys, self.identity_key)

    def put_refs(self, session: Session, data: bytes, ulid: str = "") -> None:
        """Send a refs object."""
        name = ulid or session.refs
        body = io.BytesIO(data)
        self.served.repository.put_refs(self.name, session.id, name, body, len(data))

    def put_manifest(self, session: Session, data: bytes, ulid: str = "") -> None:
        """Send a manifest."""
        name = ulid or session.manifest
        self.served.repository.put_manifest(self.name, session.id, name, data)

    def commit(self, session: Session, seq: int) -> Committed:
        """Commit what lies under the session's names."""
        return self.served.repository.commit(
            self.name, session.id, manifest=session.manifest, refs=session.refs, seq=seq
        )

    def finish(
        self, session: Session, ids: Sequence[bytes], refs: bytes = b"", **changes: Any
    ) -> Committed:
        """Send refs and manifest for `ids` and commit them."""
        self.put_refs(session, refs or full_refs(self.domain, ids))
        self.put_manifest(session, self.manifest(ids, **changes))
        return self.commit(session, self.served.repository.head(self.name).seq + 1)

    def backup(
        self, ids: Sequence[bytes], *, kind: ChunkType = ChunkType.CONTENT, **changes: Any
    ) -> SnapshotId:
        """Send what of `ids` is not live yet, and commit a snapshot of them."""
        session = self.open()
        answer = self.served.repository.have(self.name, session.id, b"".join(ids), 1)
        fresh = [one for one, is_live in zip(ids, answer, strict=True) if not is_live]
        if fresh:
            self.send(fresh, session, kind=kind)
        return self.finish(session, ids, **changes).snapshot

    def place(self, kind: ObjectKind, ulid: str) -> ObjectName:
        """Return the name of an object of this client's domain."""
        return object_name(kind, self.domain, ulid)
