"""Snapshots that no honest agent makes, sealed and signed with the domain's own keys.

A compromised sibling can make them: it holds the key. Pages are raw MessagePack, so that names and
numbers need not be possible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import content_id
from holdfast_agent.crypto.records import seal_identity, sign_manifest
from holdfast_agent.crypto.sealing import Sealer
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.format.manifest import RootExtent, snapshot_id
from tests.support.backup_bench import CLIENT
from tests.support.memory_repository import MemoryRepository, StoredChunk
from tests.support.samples import KEYS, SIBLING, identity_body
from tests.support.store_bytes import page_of

OWNER = [0, 0, "root", "root"]
_SIBLING_CLIENT = "shop/db-1"
_SIBLING_RECORD = seal_identity(
    identity_body(client=_SIBLING_CLIENT, sign_key=SIBLING.sign_public, box_key=SIBLING.box_public),
    KEYS,
)


@dataclass
class Row:
    """One entry as it will stand in a page, sound or not."""

    name: bytes
    kind: int = 1
    mode: int = 0o644
    size: int = 0
    flags: int = 0
    flat: list[int] = field(default_factory=list)
    """Extents: index into the page's ids, offset, length."""
    content_id: bytes = b""
    extra: dict[str, Any] | None = None

    @property
    def stat(self) -> list[Any]:
        return [self.name, self.kind, self.mode, self.size, 10**18, 10**18, 7, self.flags]


@dataclass
class Crafter:
    """Puts chunks and manifests into a repository that already has one honest snapshot."""

    repository: MemoryRepository
    count: int = 0

    def chunk(self, kind: ChunkType, plain: bytes) -> bytes:
        """Seal a chunk and have the repository hold it; return its id."""
        sealed = Sealer(KEYS).seal(kind, plain)
        self.count += 1
        self.repository.live[sealed.chunk_id] = StoredChunk(
            f"packs/crafted/{self.count}", 0, bytes(sealed.sealed), kind, sealed.epoch
        )
        return bytes(sealed.chunk_id)

    def page(self, rows: Sequence[Row], ids: Sequence[bytes] = ()) -> tuple[bytes, int]:
        """Return (tree chunk, length) of a chunk that is one page."""
        contents = [[0, row.content_id, row.flat, row.extra] for row in rows]
        data = page_of([row.stat for row in rows], list(ids), [OWNER], contents)
        return self.chunk(ChunkType.TREE, data), len(data)

    def folder(self, name: bytes, rows: Sequence[Row], *ids: bytes) -> tuple[Row, bytes]:
        """Return a directory's row for a page whose first id is the second of the pair."""
        chunk, length = self.page(rows, ids)
        return Row(name, 2, 0o755, flat=[0, 0, length]), chunk

    def file(self, name: bytes, data: bytes, **changes: Any) -> tuple[Row, bytes]:
        """Return a small file's row and its chunk."""
        chunk = self.chunk(ChunkType.CONTENT, data)
        row = Row(name, 1, 0o644, len(data), flat=[0, 0, len(data)])
        row.content_id = content_id(KEYS, data)
        return dataclasses.replace(row, **changes), chunk

    def snapshot(
        self,
        pages: Sequence[tuple[bytes, int]],
        *,
        client: str = CLIENT,
        identity: IdentityKey | None = None,
        **changes: Any,
    ) -> bytes:
        """Sign a manifest whose root is these pages; return the snapshot."""
        standing = self.repository.snapshots[self.repository.head(CLIENT)[1]]
        body = msgspec.structs.replace(
            standing.body,
            tree=tuple(RootExtent(chunk, 0, length) for chunk, length in pages),
            **{"files": 1000, "dirs": 1000, "bytes": 1 << 62, **changes},
        )
        signer = identity
        if client != CLIENT:
            assert client == _SIBLING_CLIENT
            signer = SIBLING
            self.repository.add_identity(_SIBLING_RECORD)
            body = msgspec.structs.replace(
                body, client=client, identity=identity_hash(_SIBLING_RECORD)
            )
        assert signer is not None
        manifest = sign_manifest(body, KEYS, signer)
        found = snapshot_id(manifest)
        self.repository.snapshots[found] = dataclasses.replace(standing, manifest=manifest)
        return found
