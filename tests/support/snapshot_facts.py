"""Facts about what a snapshot holds, in the comparator's form: nothing is restored for it."""

from __future__ import annotations

import hashlib
import os

from holdfast_agent.crypto.keys import ContentHasher
from holdfast_agent.snapshots.snapshot import Found, Snapshot
from holdfast_agent.tree.entry import HOLE_CHUNK, EntryFlag, EntryType, Extent
from holdfast_contract.format.chunk import ChunkType
from tests.support.samples import KEYS
from tests.support.trees import BLOCK_BYTES, Facts, Range, Tree

TYPES = {
    EntryType.FILE: "file",
    EntryType.DIRECTORY: "directory",
    EntryType.SYMLINK: "symlink",
    EntryType.FIFO: "fifo",
    EntryType.SOCKET: "socket",
    EntryType.CHAR_DEVICE: "char device",
    EntryType.BLOCK_DEVICE: "block device",
}


def snapshot_facts(snapshot: Snapshot, top: bytes) -> Tree:
    """Return the facts of the directory `top` of a snapshot and of everything below it."""
    tree: Tree = {}
    chunks: dict[bytes, bytes] = {}
    for found in snapshot.walk(snapshot.find(top)):
        assert not found.is_implied
        assert not found.entry.stat.flags & EntryFlag.SKIPPED
        path = found.path[len(top) :].lstrip(b"/") or b"."
        tree[path] = _facts(snapshot, found, chunks)
    return tree


def _facts(snapshot: Snapshot, found: Found, chunks: dict[bytes, bytes]) -> Facts:
    stat, content = found.entry.stat, found.entry.content
    kind = TYPES[EntryType(stat.type)]
    digest = ""
    data: tuple[Range, ...] = ()
    if kind == "file":
        digest, data = _content(snapshot, found, chunks)
    attributes = snapshot.attributes(found.entry)
    return Facts(
        type=kind,
        mode=0 if kind == "symlink" else stat.mode,
        owner=(content.uid, content.gid),
        mtime_ns=stat.mtime_ns,
        xattrs=tuple(sorted((os.fsdecode(name), value) for name, value in attributes)),
        size=stat.size,
        digest=digest,
        data=data,
        target=content.target,
        device=(os.major(content.device), os.minor(content.device)),
        inode=(0, int.from_bytes(content.link_group, "big")) if content.link_group else None,
    )


def _content(
    snapshot: Snapshot, found: Found, chunks: dict[bytes, bytes]
) -> tuple[str, tuple[Range, ...]]:
    """Return the comparator's digest and the data ranges; check the content id on the way."""
    stat, content = found.entry.stat, found.entry.content
    blocks: dict[int, bytearray] = {}
    data: list[Range] = []
    hasher = ContentHasher(KEYS)
    position = 0
    for extent in snapshot.extents(found.entry):
        if extent.chunk == HOLE_CHUNK:
            if content.content_id:
                hasher.hole(extent.length)
        else:
            part = _part(snapshot, extent, chunks)
            hasher.update(part)
            data.append((position, position + extent.length))
            _fill(blocks, position, part)
        position += extent.length
    assert position == stat.size
    if content.content_id:
        assert hasher.digest() == content.content_id
    digest = hashlib.sha256()
    for number in sorted(blocks):
        if blocks[number].strip(b"\0"):
            digest.update(number.to_bytes(8, "little") + bytes(blocks[number]))
    return digest.hexdigest(), tuple(data)


def _part(snapshot: Snapshot, extent: Extent, chunks: dict[bytes, bytes]) -> bytes:
    if extent.chunk not in chunks:
        chunks[extent.chunk] = snapshot.chunks.read_one(ChunkType.CONTENT, extent.chunk)
    part = chunks[extent.chunk][extent.offset : extent.offset + extent.length]
    assert len(part) == extent.length
    return part


def _fill(blocks: dict[int, bytearray], position: int, part: bytes) -> None:
    done = 0
    while done < len(part):
        number, at = divmod(position + done, BLOCK_BYTES)
        step = min(BLOCK_BYTES - at, len(part) - done)
        block = blocks.setdefault(number, bytearray(BLOCK_BYTES))
        block[at : at + step] = part[done : done + step]
        done += step
