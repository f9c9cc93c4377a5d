"""Format version 1 as it was written once: what stands in repositories opens for ever."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from holdfast_agent.crypto.identity_keys import IdentityKey
from holdfast_agent.crypto.keys import (
    ContentHasher,
    DomainKeys,
    KeyMaterial,
    chunk_id,
    encode_key_material,
    format_key_file,
    link_group,
    parse_key_file,
)
from holdfast_agent.crypto.records import (
    open_domain,
    open_identity,
    open_manifest,
    open_signed_manifest,
    seal_domain,
    seal_identity,
    sign_manifest,
)
from holdfast_agent.crypto.sealing import Opener
from holdfast_agent.crypto.wraps import (
    format_recovery_file,
    parse_recovery_file,
    recover,
    unwrap_keys,
)
from holdfast_agent.tree.block import (
    decode_attributes_block,
    decode_extents_block,
    encode_attributes_block,
    encode_extents_block,
)
from holdfast_agent.tree.entry import SELF_CHUNK, Content, Extent
from holdfast_agent.tree.page import (
    cut_pages,
    decode_page,
    encode_page,
    encode_stat_part,
    page_stat_part,
)
from holdfast_contract.format.chunk import ChunkType, padme, storage_hash
from holdfast_contract.format.domain import Wrap
from holdfast_contract.format.manifest import dataset_id, snapshot_id
from holdfast_contract.format.pack import scan_frames, verify_pack
from holdfast_contract.format.refs import (
    apply_difference,
    checked_ids,
    decode_difference,
    decode_full,
    encode_difference,
    encode_full,
)
from holdfast_contract.format.report import ReportKind, decode_report, encode_report
from holdfast_contract.ids import ChunkId, DomainId
from tests.support.vectors import FOLDER, jsonable, recorded, stored

SAID = recorded()
MATERIAL = KeyMaterial(
    DomainId(bytes.fromhex(SAID["keys"]["domain"])),
    bytes.fromhex(SAID["keys"]["base_secret"]),
    tuple((number, bytes.fromhex(secret)) for number, secret in SAID["keys"]["epochs"]),
)
KEYS = DomainKeys(MATERIAL)
IDENTITY = IdentityKey(
    bytes.fromhex(SAID["keys"]["sign_private"]), bytes.fromhex(SAID["keys"]["box_private"])
)


def test_every_file_is_used_here_and_none_is_missing() -> None:
    named = {*SAID["chunks"], "pack", "page", "block_extents", "block_attributes"}
    named |= {"refs_full", "refs_difference", "manifest", "identity", "domain"}
    assert {path.stem for path in FOLDER.glob("*.bin")} == named


def test_the_vectors_are_never_written_again() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden.make_vectors"],
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "stays as it is" in done.stderr


def test_key_file_and_derived_keys() -> None:
    said = SAID["keys"]
    assert parse_key_file(said["key_file"]) == MATERIAL
    assert format_key_file(MATERIAL) == said["key_file"]
    assert encode_key_material(MATERIAL).hex() == said["material"]
    for name, value in said["derived"].items():
        found = getattr(KEYS, name)
        assert jsonable(found if isinstance(found, bytes) else dict(found)) == value
    assert IDENTITY.sign_public.hex() == said["sign_public"]
    assert IDENTITY.box_public.hex() == said["box_public"]


def wrap_of(said: dict[str, Any]) -> Wrap:
    recipient, sealed = (bytes.fromhex(said[name]) for name in ("recipient", "sealed"))
    return Wrap(recipient=recipient, suite=said["suite"], epoch=said["epoch"], sealed=sealed)


def test_wraps_and_recovery_file() -> None:
    said = SAID["wraps"]
    private = bytes.fromhex(said["private_key"])
    assert unwrap_keys(MATERIAL.domain_id, wrap_of(said["wrap"]), private) == MATERIAL
    later = unwrap_keys(MATERIAL.domain_id, wrap_of(said["later"]), private)
    assert jsonable(later.epochs) == said["later_epochs"]
    assert recover(said["recovery_file"]) == MATERIAL
    assert format_recovery_file(parse_recovery_file(said["recovery_file"])) == said["recovery_file"]


@pytest.mark.parametrize("name", SAID["chunks"])
def test_sealed_chunks(name: str) -> None:
    said, sealed = SAID["chunks"][name], stored(name)
    kind, of_chunk = ChunkType(said["type"]), ChunkId(bytes.fromhex(said["chunk_id"]))
    plaintext = Opener(KEYS).open(kind, of_chunk, sealed)
    assert plaintext.hex() == said["plaintext"]
    assert chunk_id(KEYS, kind, plaintext) == of_chunk
    assert storage_hash(sealed).hex() == said["storage_hash"]


def test_pack() -> None:
    data = stored("pack")
    entries = verify_pack(data, MATERIAL.domain_id)
    assert jsonable(entries) == SAID["pack"]["entries"]
    assert list(scan_frames(lambda at, n: data[at : at + n], len(data))) == entries
    names = {row["chunk_id"]: name for name, row in SAID["chunks"].items()}
    for entry in entries:
        sealed = data[entry.offset : entry.offset + entry.length]
        assert sealed == stored(names[entry.chunk_id.hex()])


def test_report() -> None:
    data = bytes.fromhex(SAID["report"]["plaintext"])
    report = decode_report(data)
    assert (report.kind, report.more) == (SAID["report"]["kind"], SAID["report"]["more"])
    assert encode_report(ReportKind(report.kind), report.rows, report.more) == data


def test_padme() -> None:
    assert [[length, padme(length)] for length, _ in SAID["padme"]] == SAID["padme"]


def test_page() -> None:
    said, data = SAID["page"], stored("page")
    own = ChunkId(bytes.fromhex(said["own_chunk"]))
    page = decode_page(data, own, said["own_offset"])
    assert jsonable(page.stats) == said["stats"]
    assert jsonable(page.contents) == said["contents"]
    assert jsonable(page.ids) == said["ids"]
    assert encode_stat_part(page.stats) == page_stat_part(data)
    # Written anew, the entries name the own chunk by its mark again.
    relative = [unresolved(content, own) for content in page.contents]
    assert encode_page(encode_stat_part(page.stats), relative) == data


def unresolved(content: Content, own: bytes) -> Content:
    def marked(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
        return tuple(
            Extent(SELF_CHUNK if e.chunk == own else e.chunk, e.offset, e.length) for e in extents
        )

    return msgspec.structs.replace(
        content, extents=marked(content.extents), xattr_blocks=marked(content.xattr_blocks)
    )


def test_blocks() -> None:
    said = SAID["blocks"]
    own = ChunkId(b"o" * 32)
    extents = decode_extents_block(stored("block_extents"), own, 100)
    relative = [
        Extent(SELF_CHUNK if e.chunk == own else e.chunk, e.offset, e.length) for e in extents
    ]
    assert jsonable(relative) == said["extents"]
    assert encode_extents_block(relative) == stored("block_extents")
    attributes = decode_attributes_block(stored("block_attributes"))
    assert jsonable(attributes) == said["attributes"]
    assert encode_attributes_block(attributes) == stored("block_attributes")


def test_cuts_and_hashes() -> None:
    names = sorted(b"name %d" % number for number in range(2000))
    assert cut_pages(names, KEYS.name) == SAID["cuts"]["ends"]
    said = SAID["hashes"]
    for kind in ChunkType:
        assert chunk_id(KEYS, kind, b"abc").hex() == said["chunk_ids"][str(int(kind))]
    hasher = ContentHasher(KEYS)
    hasher.update(b"abc")
    hasher.hole(5000)
    hasher.update(b"def")
    assert hasher.digest().hex() == said["content_id"]
    assert link_group(KEYS, b"/data", 1 << 63).hex() == said["link_group"]
    assert dataset_id([b"/data", b"/srv/\xff"], ["*.tmp", "größe"]).hex() == said["dataset"]


def test_refs() -> None:
    said, domain = SAID["refs"], MATERIAL.domain_id
    base = list(decode_full(io.BytesIO(stored("refs_full")).read))
    assert jsonable(base) == said["base_ids"]
    data = stored("refs_difference")
    found = decode_difference(lambda at, n: data[at : at + n], len(data))
    header = found.header
    merged = apply_difference(base, found.added(), found.removed())
    assert jsonable(list(checked_ids(merged, header.refs_set, header.count))) == said["whole_ids"]
    assert (header.base, header.base_set.hex()) == (said["base"], said["base_set"])
    assert header.refs_set.hex() == said["whole_set"]
    again = io.BytesIO()
    encode_full(domain, base, len(base), bytes.fromhex(said["base_set"]), again.write)
    assert again.getvalue() == stored("refs_full")
    again = io.BytesIO()
    encode_difference(
        domain,
        (header.refs_set, header.count),
        (header.base, header.base_set),
        (found.added(), header.added),
        (found.removed(), header.removed),
        again.write,
    )
    assert again.getvalue() == data


def test_records() -> None:
    said = SAID["records"]
    manifest = open_manifest(stored("manifest"), KEYS, IDENTITY.sign_public)
    assert jsonable(manifest) == said["manifest"]
    assert sign_manifest(manifest, KEYS, IDENTITY) == stored("manifest")
    assert snapshot_id(stored("manifest")).hex() == said["snapshot"]
    identity = open_identity(stored("identity"), KEYS)
    assert jsonable(identity) == said["identity"]
    assert seal_identity(identity, KEYS) == stored("identity")
    assert open_signed_manifest(stored("manifest"), stored("identity"), KEYS).body == manifest
    domain = open_domain(stored("domain"), KEYS)
    assert jsonable(domain) == said["domain"]
    assert seal_domain(domain, KEYS) == stored("domain")
