"""The manifest: the signed record of one snapshot.

The order of trust is fixed: `split_manifest` cuts the received bytes, the caller checks MAC or
signature over exactly these bytes, and only then `decode_manifest_body` is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from holdfast_contract.errors import InvalidInput, TooLarge
from holdfast_contract.format.layout import (
    Buffer,
    Bytes16,
    Bytes32,
    Count,
    Epoch,
    Number,
    StrictDecoder,
    encode_record,
    mac_input,
    require,
    split_record,
)
from holdfast_contract.ids import ZERO_HASH, ClientName, SnapshotId
from holdfast_contract.limits import (
    EXCLUDES_MAX,
    MANIFEST_BYTES_MAX,
    NAME_BYTES_MAX,
    PAGE_BYTES_MAX,
    PATHS_MAX,
    REPORT_CHUNKS_MAX,
    TAG_BYTES_MAX,
    TAGS_MAX,
)

MAGIC: Final = b"HFMF"
MAC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_TAIL_BYTES: Final = MAC_BYTES + SIGNATURE_BYTES
_WHAT: Final = "manifest"

Result = Literal["complete", "skips", "incomplete"]
PathBytes: TypeAlias = bytes
"""A path as the system has it; the body's own key `bytes` hides the type's name."""


class RootExtent(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where one page of the directory `/` lies: a part of a tree chunk's plaintext."""

    chunk: Bytes32
    offset: Annotated[int, msgspec.Meta(ge=0, le=PAGE_BYTES_MAX)]
    length: Annotated[int, msgspec.Meta(ge=1, le=PAGE_BYTES_MAX)]


class ManifestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a manifest says; the meaning of each key stands in docs/format.md."""

    domain: Bytes16
    client: str
    lineage: Bytes16
    identity: Bytes32
    seq: Number
    prev: Bytes32
    parent: Bytes32
    dataset: Bytes16
    known_seq: Count
    known_hash: Bytes32
    started_ns: Count
    agent_time_ns: Count
    paths: tuple[PathBytes, ...]
    excludes: tuple[str, ...]
    tags: tuple[str, ...]
    tree: tuple[RootExtent, ...]
    refs_set: Bytes32
    refs_count: Count
    epoch_min: Epoch
    epoch_new: Epoch
    files: Count
    dirs: Count
    bytes: Count
    bytes_new: Count
    result: Result
    consistency: Literal["crash"]
    report: tuple[Bytes32, ...]
    agent_version: str


class ManifestParts(NamedTuple):
    """A manifest cut at its fixed places; nothing of the body is believed yet."""

    body: Buffer
    mac: Buffer
    signature: Buffer
    signed_by_mac: Buffer
    """What the MAC covers."""
    signed_by_key: Buffer
    """What the signature covers."""


_DECODER = StrictDecoder(ManifestBody, _WHAT)
_ENCODER = msgspec.msgpack.Encoder()


def encode_manifest_body(body: ManifestBody) -> bytes:
    """Return the body's bytes, as MAC and signature will cover them.

    Raises:
        InvalidInput, TooLarge: no reader would accept this body.
    """
    data = _ENCODER.encode(body)
    decode_manifest_body(data)
    return data


def manifest_mac_input(body: Buffer) -> bytes:
    """Return what the MAC covers."""
    return mac_input("holdfast/1/manifest", body)


def manifest_signature_input(body: Buffer, mac: Buffer) -> bytes:
    """Return what the signature covers."""
    return mac_input("holdfast/1/manifest-signature", body, mac)


def encode_manifest(body: Buffer, mac: Buffer, signature: Buffer) -> bytes:
    """Return the stored manifest.

    Raises:
        TooLarge: it is longer than any may be.
    """
    assert len(mac) == MAC_BYTES
    assert len(signature) == SIGNATURE_BYTES
    data = encode_record(MAGIC, bytes(body), b"".join((mac, signature)))
    if len(data) > MANIFEST_BYTES_MAX:
        raise TooLarge(f"{_WHAT}: {len(data)} bytes, at most {MANIFEST_BYTES_MAX}")
    return data


def split_manifest(data: Buffer) -> ManifestParts:
    """Cut a stored manifest.

    Raises:
        TooLarge, InvalidInput, UnsupportedVersion: it is not laid out as one.
    """
    body, tail = split_record(
        data, magic=MAGIC, tail_bytes=_TAIL_BYTES, bytes_max=MANIFEST_BYTES_MAX, what=_WHAT
    )
    mac, signature = tail[:MAC_BYTES], tail[MAC_BYTES:]
    signed_by_key = manifest_signature_input(body, mac)
    return ManifestParts(body, mac, signature, manifest_mac_input(body), signed_by_key)


def decode_manifest_body(body: Buffer) -> ManifestBody:
    """Return what a body says, once its MAC or signature has been checked.

    Raises:
        InvalidInput: not a body, a limit is passed, or its fields contradict each other.
    """
    found: ManifestBody = _DECODER.decode(body)
    ClientName.parse(found.client)
    _check_selection(found)
    _check_history(found)
    require(len(found.report) <= REPORT_CHUNKS_MAX, f"{_WHAT}: too many report chunks")
    require(found.epoch_min <= found.epoch_new, f"{_WHAT}: epochs out of order")
    for extent in found.tree:
        require(extent.offset + extent.length <= PAGE_BYTES_MAX, f"{_WHAT}: extent of a page")
    reached = {extent.chunk for extent in found.tree}.union(found.report)
    require(len(reached) <= found.refs_count, f"{_WHAT}: fewer refs than it names")
    return found


def _check_selection(body: ManifestBody) -> None:
    require(1 <= len(body.paths) <= PATHS_MAX, f"{_WHAT}: number of paths")
    for path in body.paths:
        check_absolute_path(path)
    require(len(body.excludes) <= EXCLUDES_MAX, f"{_WHAT}: too many excludes")
    require(len(body.tags) <= TAGS_MAX, f"{_WHAT}: too many tags")
    for tag in body.tags:
        require(1 <= len(tag.encode()) <= TAG_BYTES_MAX, f"{_WHAT}: length of a tag")


def _check_history(body: ManifestBody) -> None:
    require((body.seq == 1) == (body.prev == ZERO_HASH), f"{_WHAT}: seq and prev disagree")
    require(
        (body.known_seq == 0) == (body.known_hash == ZERO_HASH),
        f"{_WHAT}: known_seq and known_hash disagree",
    )


def check_absolute_path(path: bytes) -> None:
    """Refuse what is not an absolute path in its plain form: `/`, or `/name/name`.

    Raises:
        InvalidInput: relative, an empty or over-long component, `.`, `..` or a NUL.
    """
    sound = path.startswith(b"/") and b"\0" not in path
    parts = path[1:].split(b"/") if path != b"/" else []
    if not sound or any(p in (b"", b".", b"..") or len(p) > NAME_BYTES_MAX for p in parts):
        raise InvalidInput(f"not an absolute path in plain form: {path[:120]!r}")


def snapshot_id(data: Buffer) -> SnapshotId:
    """Return the id of the snapshot whose whole stored manifest is `data`."""
    return SnapshotId(blake3(data).digest())


def dataset_id(paths: Sequence[bytes], excludes: Iterable[str]) -> bytes:
    """Return 16 bytes that name what is backed up: these paths and exclude patterns, in order."""
    hasher = blake3()
    for item in (*paths, *(pattern.encode() for pattern in excludes)):
        hasher.update(struct.pack("<I", len(item)))
        hasher.update(item)
    return hasher.digest(length=16)
