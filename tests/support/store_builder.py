"""A small writer of stores, made from docs/format.md alone.

It shares no line with the product or with docs/format_reader.py: the stand-alone reader is tested
against it. Everything is derived from a seed, so that a store comes out the same every time.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.store_bytes import (
    CONTENT,
    DIRECTORY,
    FILE,
    REPORT,
    TREE,
    ZERO,
    Keyring,
    block_of,
    pack_of,
    page_of,
    refs_of,
    seal,
    set_hash,
)

SMALL_FILE_BYTES_MAX = 4096
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True)
class Node:
    """One entry of a tree; `content` is pieces of bytes, and an integer for a hole's length."""

    name: bytes
    kind: int = FILE
    mode: int = 0o644
    content: tuple[bytes | int, ...] = ()
    children: tuple[Node, ...] = ()
    target: bytes | None = None
    device: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    xattrs_in_blocks: bool = False
    link: bytes | None = None
    owner: tuple[int, int, str, str] = (0, 0, "root", "root")
    mtime_ns: int = 1_600_000_000_123_456_789
    flags: int = 0
    spill: int = 0
    content_id: bytes | None = None

    @property
    def data(self) -> bytes:
        """The logical bytes, holes as zeros."""
        return b"".join(bytes(part) if isinstance(part, int) else part for part in self.content)


Place = tuple[bytes | None, int, int]
"""Chunk id (None: the tree chunk that is being filled; ZERO: a hole), offset, length."""


@dataclass
class Snapshot:
    """What a built snapshot consists of."""

    id: bytes
    manifest: str
    refs: str
    ids: set[bytes]
    seq: int


@dataclass
class StoreBuilder:
    """Writes one store with one domain, object by object."""

    root: Path
    keys: Keyring = field(default_factory=lambda: Keyring.of(b"one"))
    domain_name: str = "shop"
    epoch: int = 1
    page_entries: int = 3
    tree_chunk_bytes: int = 700
    piece_bytes: int = 3000
    _count: int = 0
    _chunks: list[tuple[bytes, bytes]] = field(default_factory=list)
    _tree: bytes = b""
    _ids: set[bytes] = field(default_factory=set)
    _journal: list[bytes] = field(default_factory=list)
    _first: int = 1
    _signers: dict[str, tuple[Ed25519PrivateKey, bytes]] = field(default_factory=dict)
    _heads: dict[str, Snapshot] = field(default_factory=dict)
    _waiting: list[list[Place]] = field(default_factory=list)

    def ulid(self) -> str:
        """Return the next ULID."""
        self._count += 1
        value = 0x018B_0000_0000 << 80 | self._count
        return "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -5, -5))

    def put(self, folder: str, data: bytes) -> str:
        """Store an object of the domain and return its ULID."""
        ulid = self.ulid()
        path = self.root / folder / self.keys.domain.hex() / ulid
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return ulid

    def journal(self, *records: tuple[str, dict[str, Any]]) -> None:
        """Write one journal object with these records."""
        body = msgspec.msgpack.encode([[kind, {"time_ns": 10**18, **r}] for kind, r in records])
        number = len(self._journal) + 1
        before = blake3(self._journal[-1]).digest() if self._journal else ZERO
        data = b"HFJN\x01\0\0\0" + blake3(self.keys.domain).digest(16)
        data += struct.pack("<QQI", number, self._first, len(records)) + before
        data += struct.pack("<I", len(body)) + body
        data += blake3(data).digest()
        (self.root / "journal").mkdir(parents=True, exist_ok=True)
        (self.root / "journal" / f"{number:016d}").write_bytes(data)
        self._journal.append(data)
        self._first += len(records)

    def authentic(self, magic: bytes, use: bytes, body: dict[str, Any]) -> bytes:
        """Return an identity record, domain record or unsigned manifest."""
        raw = msgspec.msgpack.encode(body)
        sized = struct.pack("<I", len(raw)) + raw
        mac = hmac.digest(self.keys.use("manifest"), b"holdfast/1/" + use + sized, "sha256")
        return magic + b"\x01\0\0\0" + sized + mac

    def create(self) -> None:
        """Write the first journal object and the domain record."""
        self.journal(("store", {"store_id": blake3(self.keys.domain).digest(16)}))
        self.add_domain_record(1)

    def add_domain_record(self, revision: int) -> None:
        """Write a revision of the domain record."""
        checks = [
            [e, self.keys.hkdf(secret, b"epoch-check" + struct.pack("<I", e))]
            for e, secret in self.keys.epochs.items()
        ]
        body = {
            "domain": self.keys.domain,
            "name": self.domain_name,
            "revision": revision,
            "created_ns": 10**18,
            "chunker": {"version": 1, "min": 1, "avg": 2, "max": 3},
            "small_file_bytes_max": SMALL_FILE_BYTES_MAX,
            "share_references": True,
            "key_check": self.keys.use("key-check"),
            "epoch_checks": checks,
            "wraps": [{"recipient": bytes(32), "suite": 1, "epoch": 1, "sealed": b"wrap"}],
        }
        ulid = self.put("domains", self.authentic(b"HFDM", b"domain", body))
        record = {"name": self.domain_name, "object": ulid, "revision": revision}
        self.journal(("domain", {"domain": self.keys.domain, **record}))

    def add_client(self, client: str, *, announced: bool = True) -> None:
        """Write an identity record of a client."""
        seed = blake3(self.keys.base + client.encode()).digest()
        signer = Ed25519PrivateKey.from_private_bytes(seed)
        public = signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        body = {
            "domain": self.keys.domain,
            "client": client,
            "lineage": seed[:16],
            "heads": [],
            "sign_key": public,
            "box_key": bytes(32),
            "previous": ZERO,
            "reason": "enrolled",
            "time_ns": 10**18,
        }
        data = self.authentic(b"HFID", b"identity", body)
        ulid, digest = self.put("identities", data), blake3(data).digest()
        self._signers[client] = (signer, digest)
        if announced:
            record = {"client": client, "object": ulid, "identity": digest}
            self.journal(("identity", {"domain": self.keys.domain, **record}))

    def chunk(self, kind: int, plaintext: bytes, **forged: Any) -> bytes:
        """Seal a chunk into the open pack and return its id."""
        self._count += 1
        salt = blake3(self._count.to_bytes(8, "little")).digest(16)
        epoch = forged.pop("epoch", self.epoch)
        chunk_id, sealed = seal(self.keys, kind, plaintext, salt, epoch=epoch, **forged)
        if chunk_id not in self._ids:
            self._chunks.append((chunk_id, sealed))
        self._ids.add(chunk_id)
        return chunk_id

    def flush(self) -> str:
        """Store the open pack and return its ULID."""
        ulid = self.put("packs", pack_of(self.keys, self._chunks))
        self._chunks.clear()
        return ulid

    def _place(self, data: bytes) -> Place:
        offset = len(self._tree)
        self._tree += data
        return None, offset, len(data)

    def _close_tree(self) -> None:
        """Seal the tree chunk, and give its id to every place that waits for it."""
        closed = self.chunk(TREE, self._tree) if self._tree else None
        self._tree = b""
        for places in self._waiting:
            places[:] = [(closed if c is None else c, o, n) for c, o, n in places]

    def _contents(self, nodes: Iterable[Node]) -> dict[int, list[Place]]:
        """Seal all content: small files into one bundle, larger ones in pieces."""
        places: dict[int, list[Place]] = {}
        small: list[tuple[Node, bytes, list[Place]]] = []
        bundle = b""
        for node in nodes:
            mine = places[id(node)] = []
            for part in node.content:
                if isinstance(part, int):
                    mine.append((ZERO, 0, part))
                elif len(node.data) <= SMALL_FILE_BYTES_MAX:
                    small.append((node, part, mine))
                    mine.append((None, len(bundle), len(part)))
                    bundle += part
                else:
                    for at in range(0, len(part), self.piece_bytes):
                        piece = part[at : at + self.piece_bytes]
                        mine.append((self.chunk(CONTENT, piece), 0, len(piece)))
        bundle_id = self.chunk(CONTENT, bundle) if bundle else None
        for mine in places.values():
            mine[:] = [(bundle_id if chunk is None else chunk, o, n) for chunk, o, n in mine]
        return places

    def _directory(self, children: tuple[Node, ...], files: dict[int, list[Place]]) -> list[Place]:
        """Write the pages of a directory, after those below it, and return their places."""
        pages: list[Place] = []
        self._waiting.append(pages)
        folders = [node for node in children if node.kind == DIRECTORY]
        below = {id(node): self._directory(node.children, files) for node in folders}
        for at in range(0, len(children), self.page_entries):
            if len(self._tree) > self.tree_chunk_bytes:
                self._close_tree()
            group = children[at : at + self.page_entries]
            pages.append(self._place(self._page(group, {**files, **below})))
        return pages

    def _page(self, group: tuple[Node, ...], places: dict[int, list[Place]]) -> bytes:
        ids: list[bytes] = []
        owners: list[Any] = []
        stats, contents = [], []

        def flat(extents: list[Place]) -> list[int]:
            numbers: list[int] = []
            for chunk, offset, length in extents:
                if chunk is not None and chunk != ZERO and chunk not in ids:
                    ids.append(chunk)
                index = -1 if chunk == ZERO else -2 if chunk is None else ids.index(chunk)
                numbers += [index, offset, length]
            return numbers

        for node in group:
            extents = places.get(id(node), [])
            extra: dict[str, Any] = {}
            if node.spill:
                extents = self._spill(extents, node.spill)
                extra["spill"] = node.spill
            if node.xattrs_in_blocks:
                blocks = [
                    self._place(block_of(2, msgspec.msgpack.encode([pair]))) for pair in node.xattrs
                ]
                extra["xattr_blocks"] = flat(blocks)
            elif node.xattrs:
                extra["xattrs"] = node.xattrs
            given = {"link": node.link, "target": node.target, "device": node.device}
            extra |= {key: value for key, value in given.items() if value is not None}
            if list(node.owner) not in owners:
                owners.append(list(node.owner))
            size = len(node.data) if node.kind == FILE else 0
            times = [node.mtime_ns, 10**18]
            stats.append([node.name, node.kind, node.mode, size, *times, 77, node.flags])
            content_id = self._content_id(node) if node.content_id is None else node.content_id
            owner = owners.index(list(node.owner))
            contents.append([owner, content_id, flat(extents), extra or None])
        return page_of(stats, ids, owners, contents)

    def _content_id(self, node: Node) -> bytes:
        if node.kind != FILE or not 0 < len(node.data) <= SMALL_FILE_BYTES_MAX:
            return b""
        return blake3(node.data, key=self.keys.use("content-id")).digest()

    def _spill(self, extents: list[Place], levels: int) -> list[Place]:
        """Write blocks of one record each that name `extents`, and return the blocks' places."""
        for _ in range(levels):
            extents = [
                self._place(
                    block_of(1, struct.pack("<32sIQ", chunk or b"\xff" * 32, offset, length))
                )
                for chunk, offset, length in extents
            ]
        return extents

    def snapshot(
        self,
        client: str,
        children: tuple[Node, ...],
        *,
        paths: tuple[bytes, ...] = (b"/data",),
        committed: bool = True,
        base: Snapshot | None = None,
        skipped: tuple[tuple[bytes, str, str], ...] = (),
        signer: str | None = None,
        forged_ids: set[bytes] | None = None,
        **changed: Any,
    ) -> Snapshot:
        """Write packs, refs, manifest and commit record of one snapshot."""
        self._ids = set()
        nodes = list(walk(children))
        files = self._contents(node for node in nodes if node.kind == FILE)
        root = self._directory(children, files)
        self._close_tree()
        self._waiting.clear()
        report = []
        if skipped:
            rows = msgspec.msgpack.encode({"kind": 1, "rows": skipped, "more": 0})
            report.append(self.chunk(REPORT, rows))
        self.flush()
        ids = self._ids if forged_ids is None else forged_ids
        refs = self.put("refs", refs_of(self.keys, ids, (base.refs, base.ids) if base else None))
        head = self._heads.get(client)
        seq = head.seq + 1 if head else 1
        private, identity = self._signers[signer or client]
        groups = {node.link or id(node): len(node.data) for node in nodes if node.kind == FILE}
        body = {
            "domain": self.keys.domain,
            "client": client,
            "lineage": bytes(16),
            "identity": identity,
            "seq": seq,
            "prev": head.id if head else ZERO,
            "parent": ZERO,
            "dataset": bytes(16),
            "known_seq": 0,
            "known_hash": ZERO,
            "started_ns": 10**18,
            "agent_time_ns": 10**18,
            "paths": list(paths),
            "excludes": [],
            "tags": [],
            "tree": root,
            "refs_set": set_hash(ids),
            "refs_count": len(ids),
            "epoch_min": 1,
            "epoch_new": self.epoch,
            "files": sum(node.kind != DIRECTORY for node in nodes),
            "dirs": sum(node.kind == DIRECTORY and not node.flags & 2 for node in nodes),
            "bytes": sum(groups.values()),
            "bytes_new": 0,
            "result": "complete",
            "consistency": "crash",
            "report": report,
            "agent_version": "0.1.0",
        } | changed
        data = self.authentic(b"HFMF", b"manifest", body)
        data += private.sign(b"holdfast/1/manifest-signature" + data[8:])
        snapshot = Snapshot(blake3(data).digest(), self.put("manifests", data), refs, ids, seq)
        if committed:
            self.commit(client, snapshot)
        return snapshot

    def commit(self, client: str, snapshot: Snapshot) -> None:
        """Write the commit record of a snapshot."""
        objects = {"manifest": snapshot.manifest, "refs": snapshot.refs}
        record = {"client": client, "snapshot": snapshot.id, "seq": snapshot.seq, **objects}
        self.journal(("commit", {"domain": self.keys.domain, **record}))
        self._heads[client] = snapshot


def walk(children: Iterable[Node]) -> Iterable[Node]:
    """Yield all nodes of a tree."""
    for node in children:
        yield node
        yield from walk(node.children)


def folder(name: bytes, *children: Node, **changed: Any) -> Node:
    """Return a directory with its children in the order of the format."""
    ordered = tuple(sorted(children, key=lambda node: node.name))
    return replace(Node(name, DIRECTORY, 0o755, children=ordered), **changed)
