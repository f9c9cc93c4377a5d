"""Targets of the format: bytes at rest."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import msgspec
from blake3 import blake3

from holdfast_agent.crypto.keys import chunk_id, decode_key_material, encode_key_material
from holdfast_agent.crypto.records import open_domain, open_identity, open_manifest
from holdfast_agent.crypto.sealing import PLAIN_BYTES_MAX, Opener
from holdfast_agent.crypto.wraps import public_key_of, unwrap_keys
from holdfast_agent.tree.block import (
    block_ids,
    decode_attributes_block,
    decode_extents_block,
    encode_attributes_block,
    encode_extents_block,
)
from holdfast_agent.tree.entry import SELF_CHUNK, Extent
from holdfast_agent.tree.page import decode_page, encode_page, encode_stat_part, list_page, page_ids
from holdfast_contract.errors import Damaged
from holdfast_contract.format.chunk import (
    HEADER_BYTES,
    ChunkType,
    parse_chunk_header,
)
from holdfast_contract.format.domain import (
    Wrap,
    decode_domain_body,
    encode_domain_body,
    split_domain,
)
from holdfast_contract.format.identity import (
    decode_identity_body,
    encode_identity_body,
    split_identity,
)
from holdfast_contract.format.manifest import (
    decode_manifest_body,
    encode_manifest_body,
    split_manifest,
)
from holdfast_contract.format.pack import PackWriter, read_footer, scan_frames, verify_pack
from holdfast_contract.format.refs import (
    apply_difference,
    decode_difference,
    decode_full,
    encode_full,
    read_header,
)
from holdfast_contract.format.report import ReportKind, decode_report, encode_report
from holdfast_server.repository.journal_object import decode_journal, encode_journal
from holdfast_server.repository.journal_records import decode_record, encode_record
from tests.support.lying_sealer import seal_saying
from tests.support.samples import DOMAIN, IDENTITY, KEYS, MATERIAL, OWN_CHUNK, noise

_OPENER = Opener(KEYS)
PLAINTEXT = b"a directory, or what looks like one" * 20
_CHUNK = chunk_id(KEYS, ChunkType.TREE, PLAINTEXT)
_OWN_OFFSET = 1 << 19
_TRAILER = struct.Struct("<32sI4s")


def again(data: bytes, decode: Callable[[bytes], object], encode: Callable[..., bytes]) -> None:
    """Decode; what comes out is encoded and decoded again, and must be the same."""
    found = decode(data)
    assert decode(encode(found)) == found


def chunk_header(data: bytes) -> None:
    header = parse_chunk_header(data)
    assert header.encode() == data[:HEADER_BYTES]


def sealed_chunk(data: bytes) -> None:
    assert _OPENER.open(ChunkType.TREE, _CHUNK, data) == PLAINTEXT


def inside_chunk(data: bytes) -> None:
    """What a holder of the key may have put inside: authentic, and as wrong as it likes."""
    kind = ChunkType(data[0] % 3 + 1) if data else ChunkType.TREE
    flags, said, payload = data[1:2], data[2:6], data[6:]
    plain_bytes = int.from_bytes(said, "little")
    of_chunk = chunk_id(KEYS, kind, payload)
    is_zstd = flags[:1] == b"\1"
    sealed = seal_saying(KEYS, kind, of_chunk, payload, plain_bytes=plain_bytes, is_zstd=is_zstd)
    try:
        found = _OPENER.open(kind, of_chunk, sealed)
    except Damaged:
        return
    assert found == payload
    assert len(found) <= PLAIN_BYTES_MAX[kind]


def pack(data: bytes) -> None:
    entries = verify_pack(data, DOMAIN)
    writer = PackWriter(DOMAIN)
    for entry in entries:
        writer.add(entry.chunk_id, data[entry.offset : entry.offset + entry.length])
    assert b"".join(writer.finish()) == data


def footer(data: bytes) -> None:
    for entry in read_footer(lambda at, n: data[at : at + n], len(data), DOMAIN):
        assert entry.offset + entry.length <= len(data)


def frames(data: bytes) -> None:
    last = 0
    for entry in scan_frames(lambda at, n: data[at : at + n], len(data)):
        assert last <= entry.offset
        last = entry.offset + entry.length
        assert last <= len(data)


def refs_header(data: bytes) -> None:
    header = read_header(data)
    assert header.encode() == data[: len(header.encode())]


def refs_full(data: bytes) -> None:
    ids = list(decode_full(io.BytesIO(data).read))
    header = read_header(data)
    out = io.BytesIO()
    encode_full(header.domain_id, ids, len(ids), header.refs_set, out.write)
    assert out.getvalue() == data


def refs_difference(data: bytes) -> None:
    found = decode_difference(lambda at, n: data[at : at + n], len(data))
    added, removed = list(found.added()), list(found.removed())
    assert (len(added), len(removed)) == (found.header.added, found.header.removed)
    base = sorted({*removed, noise("one"), noise("two")} - set(added))
    merged = list(apply_difference(base, added, removed))
    assert merged == sorted((set(base) | set(added)) - set(removed))


def manifest(data: bytes) -> None:
    open_manifest(data, KEYS, IDENTITY.sign_public)


def manifest_body(data: bytes) -> None:
    again(data, decode_manifest_body, encode_manifest_body)


def manifest_parts(data: bytes) -> None:
    parts = split_manifest(data)
    assert len(parts.body) + len(parts.mac) + len(parts.signature) <= len(data)


def identity(data: bytes) -> None:
    open_identity(data, KEYS)


def identity_body(data: bytes) -> None:
    again(data, decode_identity_body, encode_identity_body)


def identity_parts(data: bytes) -> None:
    split_identity(data)


def domain(data: bytes) -> None:
    open_domain(data, KEYS)


def domain_body(data: bytes) -> None:
    again(data, decode_domain_body, encode_domain_body)


def domain_parts(data: bytes) -> None:
    split_domain(data)


def wrap(data: bytes) -> None:
    recipient = public_key_of(noise("private"))
    sealed = Wrap(recipient=recipient, suite=1, epoch=KEYS.newest_epoch, sealed=data)
    assert unwrap_keys(DOMAIN, sealed, noise("private")) == MATERIAL


def key_material(data: bytes) -> None:
    found = decode_key_material(DOMAIN, data)
    assert encode_key_material(found) == data


def report(data: bytes) -> None:
    found = decode_report(data)
    assert decode_report(encode_report(ReportKind(found.kind), found.rows, found.more)) == found


def journal(data: bytes) -> None:
    again(data, decode_journal, encode_journal)


def journal_record(data: bytes) -> None:
    again(data, decode_record, encode_record)


def _unresolved(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
    return tuple(
        msgspec.structs.replace(e, chunk=SELF_CHUNK) if e.chunk == OWN_CHUNK else e for e in extents
    )


def page(data: bytes) -> None:
    found = decode_page(data, OWN_CHUNK, _OWN_OFFSET)
    page_ids(data)
    assert list_page(data, OWN_CHUNK, _OWN_OFFSET).stats == found.stats
    contents = [
        msgspec.structs.replace(
            content,
            extents=_unresolved(content.extents),
            xattr_blocks=_unresolved(content.xattr_blocks),
        )
        for content in found.contents
    ]
    made = encode_page(encode_stat_part(found.stats), contents)
    twin = decode_page(made, OWN_CHUNK, _OWN_OFFSET)
    assert (twin.stats, twin.contents) == (found.stats, found.contents)


def page_id_table(data: bytes) -> None:
    assert all(len(found) == 32 for found in page_ids(data))


def extents_block(data: bytes) -> None:
    block_ids(data)
    found = decode_extents_block(data, OWN_CHUNK, _OWN_OFFSET)
    made = encode_extents_block(_unresolved(tuple(found)))
    assert decode_extents_block(made, OWN_CHUNK, _OWN_OFFSET) == found


def attributes_block(data: bytes) -> None:
    again(data, decode_attributes_block, encode_attributes_block)


# --- hashes made right again, so that a mutation gets past them
def hashed(data: bytes) -> bytes:
    """Return an object whose last 32 bytes are the BLAKE3 of what is before them."""
    return data[:-32] + blake3(data[:-32]).digest() if len(data) >= 32 else data


def pack_hashed(data: bytes) -> bytes:
    """Return a pack whose trailer tells the hash and length of the footer that stands there."""
    if len(data) < _TRAILER.size + 24:
        return data
    body = data[: -_TRAILER.size]
    start = body.rfind(b"HFFT")
    footer = body[start:] if start >= 0 else b""
    digest = blake3(body[:24]).update(footer).digest()
    return body + _TRAILER.pack(digest, len(footer), b"HFPE")
