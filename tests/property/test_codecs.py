"""Whatever is encoded comes back; whatever is not ours is refused in our own words."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast_agent.crypto.keys import KeyMaterial, format_key_file, parse_key_file
from holdfast_agent.crypto.records import open_domain, open_identity, open_manifest
from holdfast_agent.crypto.sealing import Opener, Sealer
from holdfast_agent.tree.block import (
    block_ids,
    decode_attributes_block,
    decode_extents_block,
    encode_extents_block,
)
from holdfast_agent.tree.entry import HOLE_CHUNK, SELF_CHUNK, Content, EntryType, Extent, Stat
from holdfast_agent.tree.page import (
    decode_page,
    encode_page,
    encode_pages,
    encode_stat_part,
    page_ids,
)
from holdfast_contract.errors import Damaged, HoldfastError
from holdfast_contract.format.chunk import ChunkType, sealed_bytes_of
from holdfast_contract.format.domain import decode_domain_body
from holdfast_contract.format.identity import decode_identity_body
from holdfast_contract.format.manifest import decode_manifest_body
from holdfast_contract.format.pack import PackWriter, read_footer, scan_frames, verify_pack
from holdfast_contract.format.refs import (
    apply_difference,
    checked_ids,
    decode_difference,
    decode_full,
    encode_difference,
    encode_full,
    read_header,
    refs_set_of,
)
from holdfast_contract.format.report import decode_report
from holdfast_contract.ids import DomainId
from tests.support.samples import (
    DOMAIN,
    DOMAIN_RECORD,
    IDENTITY,
    IDENTITY_RECORD,
    KEYS,
    MANIFEST,
    OWN_CHUNK,
    sample_entries,
    small_pack,
)

OWN_OFFSET = 1 << 19
SEALER, OPENER = Sealer(KEYS), Opener(KEYS)
chunk_ids = st.binary(min_size=32, max_size=32).filter(
    lambda found: found not in (HOLE_CHUNK, SELF_CHUNK, OWN_CHUNK)
)
id_sets = st.lists(chunk_ids, unique=True, max_size=40).map(sorted)
names = (
    st.binary(min_size=1, max_size=255)
    .map(lambda found: found.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda found: found not in (b".", b".."))
)
signed = st.integers(-(1 << 63), (1 << 63) - 1)
attributes = st.dictionaries(st.binary(min_size=1, max_size=20), st.binary(max_size=50), max_size=3)


# --- strategies of the tree
def in_chunk(limit: int) -> st.SearchStrategy[Extent]:
    return st.builds(
        lambda chunk, offset, length: Extent(chunk, offset, min(length, limit - offset)),
        chunk_ids,
        st.integers(0, limit - 1),
        st.integers(1, limit),
    )


holes = st.builds(Extent, st.just(HOLE_CHUNK), st.just(0), st.integers(1, 1 << 40))
own = st.builds(
    lambda offset, length: Extent(SELF_CHUNK, offset, min(length, OWN_OFFSET - offset)),
    st.integers(0, OWN_OFFSET - 1),
    st.integers(1, OWN_OFFSET),
)
file_extents = st.lists(in_chunk(4 << 20) | holes, max_size=4).map(tuple)
tree_extents = st.lists(in_chunk(1 << 20) | own, max_size=3).map(tuple)


@st.composite
def entries(draw: st.DrawFn, name: bytes) -> tuple[Stat, Content]:
    kind = draw(st.sampled_from(EntryType))
    flags = draw(st.integers(0, 3))
    spill = 0
    extents: tuple[Extent, ...] = ()
    if kind == EntryType.FILE:
        extents = draw(file_extents)
    elif kind == EntryType.DIRECTORY:
        extents = draw(tree_extents)
    size = sum(e.length for e in extents) if kind == EntryType.FILE else 0
    if kind == EntryType.FILE and draw(st.booleans()):
        blocks = draw(tree_extents)
        if blocks:
            extents, spill = blocks, draw(st.integers(1, 2))
    stats = Stat(
        name,
        int(kind),
        draw(st.integers(0, 0o7777)),
        size,
        draw(signed),
        draw(signed),
        draw(st.integers(0, (1 << 64) - 1)),
        flags,
    )
    pairs = tuple(sorted(draw(attributes).items()))
    devices = kind in (EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE)
    content = Content(
        uid=draw(st.integers(0, (1 << 32) - 1)),
        gid=draw(st.sampled_from([0, 100])),
        user=draw(st.text(max_size=5)),
        group=draw(st.sampled_from(["", "users"])),
        xattrs=pairs,
        xattr_blocks=() if pairs else draw(tree_extents),
        link_group=b"" if kind == EntryType.DIRECTORY else draw(st.sampled_from([b"", b"l" * 16])),
        target=draw(st.binary(min_size=1, max_size=30)) if kind == EntryType.SYMLINK else b"",
        device=draw(st.integers(0, (1 << 64) - 1)) if devices else 0,
        content_id=draw(st.sampled_from([b"", b"c" * 32])) if 0 < size <= 4 << 20 else b"",
        extents=extents,
        spill=spill,
    )
    return stats, content


@st.composite
def directories(draw: st.DrawFn) -> tuple[list[Stat], list[Content]]:
    found = sorted(draw(st.sets(names, min_size=1, max_size=8)))
    rows = [draw(entries(name)) for name in found]
    return [row[0] for row in rows], [row[1] for row in rows]


def resolved(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
    return tuple(
        Extent(OWN_CHUNK if e.chunk == SELF_CHUNK else e.chunk, e.offset, e.length) for e in extents
    )


@given(directories())
def test_pages_come_back(directory: tuple[list[Stat], list[Content]]) -> None:
    stats, contents = directory
    page = encode_page(encode_stat_part(stats), contents)
    found = decode_page(page, OWN_CHUNK, OWN_OFFSET)
    assert list(found.stats) == stats
    expected = [
        msgspec.structs.replace(
            c, extents=resolved(c.extents), xattr_blocks=resolved(c.xattr_blocks)
        )
        for c in contents
    ]
    assert list(found.contents) == expected
    used = {e.chunk for c in contents for e in (*c.extents, *c.xattr_blocks)}
    assert set(page_ids(page)) == used - {HOLE_CHUNK, SELF_CHUNK}
    assert list(encode_pages(stats, contents)) == [(len(stats), page)]


@given(st.lists(in_chunk(4 << 20) | own | holes, min_size=1, max_size=20))
def test_blocks_of_extents_come_back(extents: list[Extent]) -> None:
    block = encode_extents_block(extents)
    assert decode_extents_block(block, OWN_CHUNK, OWN_OFFSET) == list(resolved(tuple(extents)))
    assert set(block_ids(block)) == {e.chunk for e in extents} - {HOLE_CHUNK, SELF_CHUNK}


@given(st.sampled_from(ChunkType), st.binary(min_size=1, max_size=3000), st.integers(1, 40))
def test_chunks_come_back(kind: ChunkType, data: bytes, repeat: int) -> None:
    data *= repeat
    chunk = SEALER.seal(kind, data)
    assert OPENER.open(kind, chunk.chunk_id, chunk.sealed) == data
    assert len(chunk.sealed) <= sealed_bytes_of(len(data))


@given(
    st.binary(min_size=1, max_size=300),
    st.data(),
)
def test_a_changed_chunk_is_damage_whatever_was_changed(plain: bytes, data: st.DataObject) -> None:
    chunk = SEALER.seal(ChunkType.CONTENT, plain)
    sealed = bytearray(chunk.sealed)
    at = data.draw(st.integers(0, len(sealed) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=20))
    sealed[at : at + data.draw(st.integers(0, 30))] = patch
    if sealed == chunk.sealed:
        return
    with pytest.raises(Damaged):
        OPENER.open(ChunkType.CONTENT, chunk.chunk_id, sealed)


@given(st.lists(st.binary(min_size=1, max_size=500), min_size=1, max_size=8, unique=True))
def test_packs_come_back(plains: list[bytes]) -> None:
    writer = PackWriter(DOMAIN)
    for plain in plains:
        chunk = SEALER.seal(ChunkType.CONTENT, plain)
        writer.add(chunk.chunk_id, chunk.sealed)
    pack = b"".join(writer.finish())
    entries = verify_pack(pack, DOMAIN)
    opened = [
        OPENER.open(ChunkType.CONTENT, e.chunk_id, pack[e.offset : e.offset + e.length])
        for e in entries
    ]
    assert opened == plains
    assert list(scan_frames(lambda at, n: pack[at : at + n], len(pack))) == entries


@given(id_sets, id_sets)
def test_refs_come_back_in_full_and_as_a_difference(one: list[bytes], two: list[bytes]) -> None:
    full = io.BytesIO()
    encode_full(DOMAIN, one, len(one), refs_set_of(one), full.write)
    full.seek(0)
    added, removed = sorted(set(two) - set(one)), sorted(set(one) - set(two))
    out = io.BytesIO()
    encode_difference(
        DOMAIN,
        (refs_set_of(two), len(two)),
        ("01JQ0000000000000000000000", refs_set_of(one)),
        (added, len(added)),
        (removed, len(removed)),
        out.write,
    )
    data = out.getvalue()
    found = decode_difference(lambda at, n: data[at : at + n], len(data))
    merged = apply_difference(decode_full(full.read), found.added(), found.removed())
    assert list(checked_ids(merged, found.header.refs_set, found.header.count)) == two


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.dictionaries(st.integers(1, (1 << 32) - 1), chunk_ids, min_size=1, max_size=5),
)
def test_key_files_come_back(domain: bytes, base: bytes, epochs: dict[int, bytes]) -> None:
    material = KeyMaterial(DomainId(domain), base, tuple(sorted(epochs.items())))
    assert parse_key_file(format_key_file(material)) == material


# --- whatever arrives
def sample_page() -> bytes:
    stats, contents = sample_entries()
    return encode_page(encode_stat_part(stats), contents)


READERS: dict[str, Callable[[bytes], object]] = {
    "chunk": lambda data: OPENER.open(ChunkType.TREE, OWN_CHUNK, data),
    "pack": lambda data: verify_pack(data, DOMAIN),
    "footer": lambda data: read_footer(lambda at, n: data[at : at + n], len(data), DOMAIN),
    "refs header": read_header,
    "refs": lambda data: list(decode_full(io.BytesIO(data).read)),
    "difference": lambda data: decode_difference(lambda at, n: data[at : at + n], len(data)),
    "manifest": lambda data: open_manifest(data, KEYS, IDENTITY.sign_public),
    "manifest body": decode_manifest_body,
    "identity": lambda data: open_identity(data, KEYS),
    "identity body": decode_identity_body,
    "domain": lambda data: open_domain(data, KEYS),
    "domain body": decode_domain_body,
    "page": lambda data: decode_page(data, OWN_CHUNK, OWN_OFFSET),
    "extents block": lambda data: decode_extents_block(data, OWN_CHUNK, OWN_OFFSET),
    "attributes block": decode_attributes_block,
    "report": decode_report,
    "key file": lambda data: parse_key_file(data.decode("latin-1")),
}
AUTHENTIC = {"chunk", "pack", "refs", "difference", "manifest", "identity", "domain", "key file"}
"""Readers that check a hash or MAC over every byte; the others see to the form only."""
SEEDS = [MANIFEST, MANIFEST[12:-96], IDENTITY_RECORD, DOMAIN_RECORD, small_pack(2), sample_page()]


@st.composite
def damaged_objects(draw: st.DrawFn) -> bytes:
    """A sound object with bytes put in, taken out or changed."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(max_size=400) | damaged_objects())
@example(data=b"")
@example(data=b"\x91" * 2000)
@example(data=b"\xdf\xff\xff\xff\xff")
@example(data=b"\xdd\xff\xff\xff\xff")
@example(data=b"\xc6\xff\xff\xff\xff")
def test_whatever_arrives_is_refused_in_our_own_words(name: str, data: bytes) -> None:
    try:
        READERS[name](data)
    except HoldfastError as exc:
        assert exc.message
        assert "\n" not in exc.message
    else:
        assert name not in AUTHENTIC or data in SEEDS


@given(st.binary(max_size=300) | damaged_objects())
def test_a_scan_for_frames_ends_and_fails_on_nothing(data: bytes) -> None:
    for entry in scan_frames(lambda at, n: data[at : at + n], len(data)):
        assert entry.offset + entry.length <= len(data)
