"""Fixed keys and whole sample objects: the same in every run, so that failures repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial
from holdfast_agent.crypto.records import seal_domain, seal_identity, sign_manifest
from holdfast_agent.crypto.sealing import Sealer
from holdfast_agent.tree.entry import Content, EntryType, Extent, Stat
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import CHUNKER_DEFAULT, DomainBody, EpochCheck, Wrap
from holdfast_contract.format.identity import IdentityBody, identity_hash
from holdfast_contract.format.manifest import ManifestBody, RootExtent, dataset_id
from holdfast_contract.format.pack import PackWriter
from holdfast_contract.ids import ZERO_HASH, ChunkId, DomainId


def noise(seed: str, length: int = 32) -> bytes:
    """Return `length` bytes that look random and follow from `seed` alone."""
    return hashlib.shake_256(seed.encode()).digest(length)


DOMAIN = DomainId(noise("domain", 16))
OTHER_DOMAIN = DomainId(noise("other domain", 16))
MATERIAL = KeyMaterial(DOMAIN, noise("base"), ((1, noise("epoch 1")), (2, noise("epoch 2"))))
KEYS = DomainKeys(MATERIAL)
OTHER_KEYS = DomainKeys(
    KeyMaterial(OTHER_DOMAIN, noise("other base"), ((1, noise("o1")), (2, noise("o2"))))
)
IDENTITY = IdentityKey(noise("sign"), noise("box"))
SIBLING = IdentityKey(noise("sibling sign"), noise("sibling box"))


def ids(count: int, seed: str = "id") -> list[bytes]:
    """Return `count` distinct ids, ascending."""
    return sorted(noise(f"{seed} {number}") for number in range(count))


def identity_body(**changes: object) -> IdentityBody:
    """Return a sound identity record's body, with `changes`."""
    body = IdentityBody(
        domain=DOMAIN,
        client="shop/db-0",
        lineage=noise("lineage", 16),
        heads=(),
        sign_key=IDENTITY.sign_public,
        box_key=IDENTITY.box_public,
        previous=ZERO_HASH,
        reason="enrolled",
        time_ns=1_700_000_000_000_000_000,
    )
    return msgspec.structs.replace(body, **changes)


IDENTITY_RECORD = seal_identity(identity_body(), KEYS)


def manifest_body(**changes: object) -> ManifestBody:
    """Return a sound manifest's body, with `changes`."""
    paths, excludes = (b"/data", b"/srv/\xff name"), ("*.tmp",)
    body = ManifestBody(
        domain=DOMAIN,
        client="shop/db-0",
        lineage=noise("lineage", 16),
        identity=identity_hash(IDENTITY_RECORD),
        seq=7,
        prev=noise("prev"),
        parent=noise("parent"),
        dataset=dataset_id(paths, excludes),
        known_seq=6,
        known_hash=noise("prev"),
        started_ns=1_700_000_000_000_000_000,
        agent_time_ns=1_700_000_001_000_000_000,
        paths=paths,
        excludes=excludes,
        tags=("nightly", "größer"),
        tree=(RootExtent(noise("tree"), 100, 200),),
        refs_set=noise("refs"),
        refs_count=12,
        epoch_min=1,
        epoch_new=2,
        files=3,
        dirs=2,
        bytes=1 << 40,
        bytes_new=17,
        result="skips",
        consistency="crash",
        report=(noise("report"),),
        agent_version="0.1.0",
    )
    return msgspec.structs.replace(body, **changes)


def domain_body(**changes: object) -> DomainBody:
    """Return a sound domain record's body, with `changes`."""
    checks = tuple(EpochCheck(number, check) for number, check in KEYS.epoch_checks.items())
    body = DomainBody(
        domain=DOMAIN,
        name="shop",
        revision=1,
        created_ns=1_700_000_000_000_000_000,
        chunker=CHUNKER_DEFAULT,
        small_file_bytes_max=512 << 10,
        share_references=True,
        key_check=KEYS.key_check,
        epoch_checks=checks,
        wraps=(Wrap(recipient=noise("recipient"), suite=1, epoch=2, sealed=noise("sealed", 162)),),
    )
    return msgspec.structs.replace(body, **changes)


MANIFEST = sign_manifest(manifest_body(), KEYS, IDENTITY)
DOMAIN_RECORD = seal_domain(domain_body(), KEYS)


def small_pack(chunks: int = 3) -> bytes:
    """Return a pack of `chunks` small chunks of every type in turn."""
    writer = PackWriter(DOMAIN)
    sealer = Sealer(KEYS)
    for number in range(chunks):
        kind = list(ChunkType)[number % len(ChunkType)]
        chunk = sealer.seal(kind, noise(f"plain {number}", 5 + number))
        writer.add(chunk.chunk_id, chunk.sealed, chunk.storage_hash)
    return b"".join(writer.finish())


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (bit, `data` with that one bit flipped) for every bit."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)


def stat(name: bytes, kind: EntryType = EntryType.FILE, **changes: object) -> Stat:
    """Return the stat part of an empty entry, with `changes`."""
    found = Stat(name, int(kind), 0o644, 0, -5, 1_700_000_000_000_000_001, 1 << 63, 0)
    return msgspec.structs.replace(found, **changes)


OWN_CHUNK = ChunkId(noise("own chunk"))


def sample_entries() -> tuple[list[Stat], list[Content]]:
    """Return entries of every type that use everything a page can say."""
    first, second, third = (noise(f"chunk {number}") for number in range(3))
    hole, own = bytes(32), b"\xff" * 32
    owner = {"uid": 1000, "gid": 100, "user": "ann", "group": "users"}
    rows: list[tuple[Stat, Content]] = [
        (stat(b"a-fifo", EntryType.FIFO), Content(**owner)),  # type: ignore[arg-type]
        (stat(b"b-device", EntryType.CHAR_DEVICE), Content(device=0x0103)),
        (
            stat(b"c-dir", EntryType.DIRECTORY, mode=0o1777),
            Content(extents=(Extent(own, 3, 40), Extent(first, 0, 9)), xattrs=((b"user.a", b""),)),
        ),
        (stat(b"d-empty"), Content(link_group=noise("link", 16))),
        (stat(b"e-implied", EntryType.DIRECTORY, flags=2), Content()),
        (stat(b"f-link", EntryType.SYMLINK), Content(target=b"../\xff")),
        (
            stat(b"g-sparse", size=700, flags=1),
            Content(extents=(Extent(second, 7, 100), Extent(hole, 0, 500), Extent(second, 7, 100))),
        ),
        (
            stat(b"h-small", size=10),
            Content(content_id=noise("content"), extents=(Extent(third, 1, 10),)),
        ),
        (stat(b"i-skipped", size=99, flags=4), Content()),
        (
            stat(b"j-spilled", size=1 << 41),
            Content(spill=2, extents=(Extent(own, 0, 60),), xattr_blocks=(Extent(first, 9, 50),)),
        ),
        (stat(b"k-socket", EntryType.SOCKET), Content()),
        (stat(b"l-\xff\n", EntryType.BLOCK_DEVICE), Content(device=(1 << 64) - 1)),
    ]
    return [row[0] for row in rows], [row[1] for row in rows]
