"""A repository in memory that does what the server does: admits packs, checks commits.

Shares only the contract's codecs with the product: it has no key and opens nothing.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from holdfast_agent.ports import ChunkStatus, Committed, FetchedChunk, Missing
from holdfast_contract.errors import Conflict, HistoryRegressed, NotFound
from holdfast_contract.format.identity import decode_identity_body, identity_hash, split_identity
from holdfast_contract.format.layout import Room
from holdfast_contract.format.manifest import (
    ManifestBody,
    decode_manifest_body,
    snapshot_id,
    split_manifest,
)
from holdfast_contract.format.pack import verify_pack
from holdfast_contract.format.refs import (
    RefsKind,
    apply_difference,
    checked_ids,
    decode_difference,
    decode_full,
    read_header,
)
from holdfast_contract.ids import ZERO_HASH, DomainId, new_ulid


@dataclass(frozen=True)
class StoredChunk:
    """One copy."""

    object: str
    offset: int
    sealed: bytes
    type: int
    epoch: int


@dataclass(frozen=True)
class StandingSnapshot:
    """A committed snapshot."""

    manifest: bytes
    body: ManifestBody
    refs_object: str
    ids: tuple[bytes, ...]


@dataclass
class MemoryRepository:
    """Everything that one domain has stored."""

    domain_id: DomainId
    live: dict[bytes, StoredChunk] = field(default_factory=dict)
    damaged: set[bytes] = field(default_factory=set)
    packs: dict[str, bytes] = field(default_factory=dict)
    refs_objects: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    snapshots: dict[bytes, StandingSnapshot] = field(default_factory=dict)
    identities: dict[bytes, bytes] = field(default_factory=dict)
    heads: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    reports: list[tuple[bytes, str, int, str]] = field(default_factory=list)
    sessions: dict[str, MemoryUploads] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add_identity(self, record: bytes) -> bytes:
        """Keep an identity record; return its hash."""
        found = identity_hash(record)
        self.identities[found] = record
        return found

    def uploads(self, job: str) -> MemoryUploads:
        """Return the job's upload session: the same for the same job, like the server's."""
        return self.sessions.setdefault(job, MemoryUploads(self))

    def chunks(self) -> MemoryChunks:
        """Return a source that grants everything."""
        return MemoryChunks(self)

    def head(self, client: str) -> tuple[int, bytes]:
        """Return (seq, snapshot) of the client's newest snapshot."""
        return self.heads.get(client, (0, ZERO_HASH))

    def refs(self, snapshot: bytes) -> list[bytes]:
        """Return the ids that a snapshot's refs name."""
        return list(self.snapshots[snapshot].ids)

    def damage(self, chunk: bytes) -> None:
        """Mark every copy of a chunk as damaged, as a scrub does."""
        self.damaged.add(chunk)

    def forget(self, chunk: bytes) -> None:
        """Lose a chunk, as a collector with a defect would."""
        del self.live[chunk]

    def is_live(self, chunk: bytes, epoch_min: int) -> bool:
        """Tell what `have` tells."""
        found = self.live.get(chunk)
        return found is not None and chunk not in self.damaged and found.epoch >= epoch_min


class MemoryUploads:
    """One upload session. `fault` is called with the step's name before each step and may raise."""

    def __init__(self, repository: MemoryRepository) -> None:
        self._repository = repository
        self._sent = 0
        self._refs = self._manifest = b""
        self._refs_object = ""
        self._answer: Committed | None = None
        self.fault: Callable[[str], None] = lambda step: None
        self.asked: list[list[bytes]] = []
        self.pack_lengths: list[int] = []
        self.refs_lengths: list[int] = []
        self.commits = 0

    @property
    def bytes_sent(self) -> int:
        """Bodies of packs, refs and manifests."""
        return self._sent

    def have(self, ids: Sequence[bytes], epoch_min: int) -> list[bool]:
        """Answer as the server does."""
        self.fault("have")
        with self._repository.lock:
            self.asked.append(list(ids))
            return [self._repository.is_live(chunk, epoch_min) for chunk in ids]

    def put_pack(self, buffers: Sequence[bytes | memoryview], length: int) -> None:
        """Admit and index a pack."""
        self.fault("pack")
        data = b"".join(buffers)
        assert len(data) == length
        repository = self._repository
        entries = verify_pack(data, repository.domain_id)
        name = f"packs/{repository.domain_id.hex()}/{new_ulid()}"
        with repository.lock:
            self._sent += length
            self.pack_lengths.append(length)
            repository.packs[name] = data
            for entry in entries:
                sealed = data[entry.offset : entry.offset + entry.length]
                if entry.chunk_id in repository.live and entry.chunk_id not in repository.damaged:
                    continue
                repository.damaged.discard(entry.chunk_id)
                repository.live[entry.chunk_id] = StoredChunk(
                    name, entry.offset, sealed, entry.type, entry.epoch
                )
        self.fault("pack acknowledged")

    def put_refs(self, body: BinaryIO, length: int) -> None:
        """Keep the refs object."""
        self.fault("refs")
        body.seek(0)
        self._refs = body.read(length)
        assert len(self._refs) == length and not body.read(1)
        self._sent += length
        self.refs_lengths.append(length)

    def put_manifest(self, data: bytes) -> None:
        """Keep the manifest."""
        self.fault("manifest")
        self._manifest = bytes(data)
        self._sent += len(data)

    def commit(self, seq: int) -> Committed | Missing:
        """Check everything that the server checks, then let the snapshot stand."""
        self.fault("commit")
        self.commits += 1
        with self._repository.lock:
            answer = self._answer or self._commit(seq)
        if isinstance(answer, Committed):
            self._answer = answer
        self.fault("commit acknowledged")
        return answer

    def _commit(self, seq: int) -> Committed | Missing:
        repository = self._repository
        parts = split_manifest(self._manifest)
        body = decode_manifest_body(parts.body)
        record = repository.identities[body.identity]
        signer = decode_identity_body(split_identity(record).body)
        Ed25519PublicKey.from_public_bytes(signer.sign_key).verify(
            bytes(parts.signature), bytes(parts.signed_by_key)
        )
        if (seq - 1, body.prev) != repository.head(body.client) or body.seq != seq:
            raise HistoryRegressed("not the next snapshot")
        ids = tuple(checked_ids(self._decoded_refs(), body.refs_set, body.refs_count))
        missing = {chunk for chunk in ids if chunk not in repository.live}
        damaged = {chunk for chunk in ids if chunk in repository.damaged} - missing
        if missing or (damaged and body.result != "incomplete"):
            return Missing(frozenset(missing), frozenset(damaged))
        self._refs_object = new_ulid()
        repository.refs_objects[self._refs_object] = ids
        snapshot = snapshot_id(self._manifest)
        repository.snapshots[snapshot] = StandingSnapshot(
            self._manifest, body, self._refs_object, ids
        )
        repository.heads[body.client] = (seq, snapshot)
        return Committed(snapshot, 1)

    def _decoded_refs(self) -> Iterator[bytes]:
        data = self._refs
        header = read_header(data)
        if header.kind == RefsKind.FULL:
            return decode_full(io.BytesIO(data).read)
        base = self._repository.refs_objects.get(header.base)
        if base is None:
            raise Conflict("the base of the refs is not here")
        difference = decode_difference(lambda at, n: data[at : at + n], len(data))
        return apply_difference(base, difference.added(), difference.removed())


class MemoryChunks:
    """A ChunkSource over the repository. `broken` names chunks whose bytes come out wrong once."""

    def __init__(self, repository: MemoryRepository) -> None:
        self._repository = repository
        self.broken: set[bytes] = set()
        self.fetched: list[bytes] = []

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        """Yield what is stored."""
        for chunk in ids:
            self.fetched.append(chunk)
            found = self._repository.live.get(chunk)
            if found is None:
                yield FetchedChunk(chunk, ChunkStatus.NOT_THERE, "", 0, b"")
            elif chunk in self._repository.damaged:
                yield FetchedChunk(chunk, ChunkStatus.DAMAGED, "", 0, b"")
            else:
                sealed = found.sealed
                if chunk in self.broken:
                    sealed = sealed[:-1] + bytes((sealed[-1] ^ 1,))
                yield FetchedChunk(chunk, ChunkStatus.HERE, found.object, found.offset, sealed)

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        """Note the report; the next fetch brings a whole copy."""
        self._repository.reports.append((chunk, object, offset, reason))
        self.broken.discard(chunk)

    def manifest(self, snapshot: bytes) -> bytes:
        """Return the stored manifest."""
        found = self._repository.snapshots.get(snapshot)
        if found is None:
            raise NotFound("no such snapshot")
        assert blake3(found.manifest).digest() == snapshot
        return found.manifest

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        """Return the stored identity record."""
        return self._repository.identities[hash]

    def damaged(self) -> Iterator[bytes]:
        """Yield damaged ids, ascending."""
        yield from sorted(self._repository.damaged)
