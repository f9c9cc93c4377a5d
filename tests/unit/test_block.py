from __future__ import annotations

import pytest

from holdfast_agent.tree.block import (
    BLOCK_EXTENTS_MAX,
    INLINE_EXTENTS_MAX,
    attributes_fit_page,
    attributes_of,
    block_ids,
    decode_attributes_block,
    decode_extents_block,
    encode_attributes_block,
    encode_extents_block,
    extents_of,
    split_attributes,
    split_extents,
)
from holdfast_agent.tree.entry import HOLE_CHUNK, SELF_CHUNK, Content, EntryType, Extent
from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.ids import ChunkId
from tests.support.samples import OWN_CHUNK, flips, noise, stat

OWN = OWN_CHUNK
EXTENTS = [
    Extent(noise("a"), 0, 1),
    Extent(HOLE_CHUNK, 0, 1 << 40),
    Extent(noise("b"), 5, (4 << 20) - 5),
    Extent(SELF_CHUNK, 20, 30),
    Extent(noise("a"), 7, 1),
]
ATTRIBUTES = ((b"security.x", b"\0\xff"), (b"user.a", b""), (b"user.b", b"v" * 70_000))
BLOCK = encode_extents_block(EXTENTS)
ATTRIBUTES_BLOCK = encode_attributes_block(ATTRIBUTES)


class Tree:
    """Blocks in one tree chunk."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, block: bytes) -> Extent:
        self.data += block
        return Extent(OWN_CHUNK, len(self.data) - len(block), len(block))

    def fetch(self, extent: Extent) -> tuple[memoryview, ChunkId, int]:
        assert extent.chunk == OWN_CHUNK
        view = memoryview(self.data)[extent.offset : extent.offset + extent.length]
        return view, OWN, extent.offset


def test_extents_come_back_with_the_own_chunk_in_place_of_its_mark() -> None:
    found = decode_extents_block(memoryview(BLOCK), OWN, 50)
    assert found == [*EXTENTS[:3], Extent(OWN_CHUNK, 20, 30), EXTENTS[4]]
    assert block_ids(BLOCK) == [noise("a"), noise("b")]
    assert len(BLOCK) == 12 + 5 * 44
    assert BLOCK[:12] == b"HFBK\x01\x01\0\0" + (5 * 44).to_bytes(4, "little")


def test_attributes_come_back() -> None:
    assert decode_attributes_block(ATTRIBUTES_BLOCK) == ATTRIBUTES
    assert block_ids(ATTRIBUTES_BLOCK) == []
    assert ATTRIBUTES_BLOCK[:8] == b"HFBK\x01\x02\0\0"


@pytest.mark.parametrize("data", [BLOCK, encode_attributes_block(ATTRIBUTES[:2])])
def test_a_flipped_bit_in_a_block_never_fails_in_another_way(data: bytes) -> None:
    refused = 0
    for _, changed in flips(data):
        for read in (
            lambda block: decode_extents_block(block, OWN, 50),
            decode_attributes_block,
            block_ids,
        ):
            try:
                read(changed)
            except (InvalidInput, UnsupportedVersion):
                refused += 1
    assert refused > len(data) * 8


@pytest.mark.parametrize("data", [BLOCK, ATTRIBUTES_BLOCK[:200]])
def test_a_block_cut_off_or_prolonged_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        for read in (lambda d: decode_extents_block(d, OWN, 50), decode_attributes_block):
            with pytest.raises(InvalidInput):
                read(data[:length])
    with pytest.raises(InvalidInput):
        block_ids(data + b"\0")


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"HFPG", InvalidInput),
        (4, b"\x02", UnsupportedVersion),
        (5, b"\x00", UnsupportedVersion),
        (5, b"\x03", UnsupportedVersion),
        (6, b"\x01", InvalidInput),
        (5, b"\x02", InvalidInput),
    ],
)
def test_a_head_that_is_no_extent_blocks_is_refused(
    at: int, value: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        decode_extents_block(BLOCK[:at] + value + BLOCK[at + len(value) :], OWN, 50)


@pytest.mark.parametrize(
    "extent",
    [
        Extent(noise("a"), 0, 0),
        Extent(noise("a"), 4 << 20, 1),
        Extent(noise("a"), 0, (4 << 20) + 1),
        Extent(noise("a"), (1 << 32) - 1, (1 << 64) - 1),
        Extent(HOLE_CHUNK, 1, 1),
        Extent(HOLE_CHUNK, 0, 0),
        Extent(HOLE_CHUNK, 0, 1 << 63),
        Extent(SELF_CHUNK, 20, 31),
        Extent(SELF_CHUNK, 20, 0),
    ],
)
def test_extents_that_cannot_be_are_refused(extent: Extent) -> None:
    with pytest.raises(InvalidInput):
        decode_extents_block(encode_extents_block([extent]), OWN, 50)


def test_empty_blocks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        decode_extents_block(b"HFBK\x01\x01\0\0\0\0\0\0", OWN, 50)
    with pytest.raises(InvalidInput, match="empty"):
        decode_attributes_block(b"HFBK\x01\x02\0\0\x01\0\0\0\x90")


def test_attributes_out_of_order_or_doubled_are_refused() -> None:
    for rows in (ATTRIBUTES[::-1], ATTRIBUTES[:1] * 2):
        with pytest.raises(InvalidInput, match="sorted"):
            decode_attributes_block(encode_attributes_block(rows))


def test_a_block_holds_at_most_23831_extents() -> None:
    extents = [Extent(noise("a"), 0, 1)] * (2 * BLOCK_EXTENTS_MAX + 1)
    assert BLOCK_EXTENTS_MAX == 23_831
    assert [len(part) for part in split_extents(extents)] == [23_831, 23_831, 1]
    assert len(encode_extents_block(extents[:BLOCK_EXTENTS_MAX])) <= 1 << 20
    with pytest.raises(TooLarge):
        encode_extents_block(extents[: BLOCK_EXTENTS_MAX + 1])


def test_inline_extents_are_at_most_64_kib_of_records() -> None:
    assert INLINE_EXTENTS_MAX * 44 <= 64 << 10 < (INLINE_EXTENTS_MAX + 1) * 44


def test_attributes_are_split_into_blocks_that_fit() -> None:
    rows = [(b"user.%03d" % number, b"v" * 65_000) for number in range(40)]
    parts = list(split_attributes(rows))
    assert [row for part in parts for row in part] == rows
    assert len(parts) == 3
    assert all(len(encode_attributes_block(part)) <= 1 << 20 for part in parts)
    with pytest.raises(TooLarge):
        list(split_attributes([(b"user.a", b"v" * (1 << 20))]))
    assert list(split_attributes([])) == []


def test_attributes_that_fit_stay_in_the_page() -> None:
    assert attributes_fit_page([(b"user.a", b"v" * 65_000)])
    assert not attributes_fit_page([(b"user.a", b"v" * 65_536)])
    assert not attributes_fit_page([(b"user.%05d" % n, b"") for n in range(4000)])


def many(count: int) -> list[Extent]:
    return [Extent(noise(f"{number % 7}"), number, 3) for number in range(count)]


@pytest.mark.parametrize("spill", [0, 1, 2])
def test_an_entrys_extents_are_found_wherever_they_stand(spill: int) -> None:
    tree = Tree()
    extents = level = many(50)
    for depth in range(spill):
        level = [
            tree.add(
                encode_extents_block(
                    [
                        Extent(SELF_CHUNK, e.offset, e.length) if depth else e
                        for e in level[at : at + 20]
                    ]
                )
            )
            for at in range(0, len(level), 20)
        ]
    content = Content(extents=tuple(level), spill=spill)
    assert list(extents_of(stat(b"f", size=150), content, tree.fetch)) == extents


@pytest.mark.parametrize("size", [149, 151])
def test_spilled_extents_must_add_up_to_the_size(size: int) -> None:
    tree = Tree()
    content = Content(extents=(tree.add(encode_extents_block(many(50))),), spill=1)
    with pytest.raises(InvalidInput, match="than it is"):
        list(extents_of(stat(b"f", size=size), content, tree.fetch))


def test_a_file_that_spills_for_ever_ends_at_its_size() -> None:
    """A forged block that is named again and again would never end."""
    tree = Tree()
    block = tree.add(encode_extents_block(many(1000)))
    again = tree.add(encode_extents_block([Extent(SELF_CHUNK, 0, block.length)] * 20_000))
    content = Content(extents=(again,) * 1000, spill=2)
    with pytest.raises(InvalidInput, match="longer"):
        list(extents_of(stat(b"f", size=5000), content, tree.fetch))


def test_a_block_in_a_hole_is_refused() -> None:
    tree = Tree()
    hole = tree.add(encode_extents_block([Extent(HOLE_CHUNK, 0, 12)]))
    with pytest.raises(InvalidInput, match="hole"):
        list(extents_of(stat(b"f", size=1), Content(extents=(hole,), spill=2), tree.fetch))


def test_directories_and_skipped_files_have_no_total() -> None:
    tree = Tree()
    content = Content(extents=tuple(many(2)))
    directory = stat(b"d", EntryType.DIRECTORY)
    assert list(extents_of(directory, content, tree.fetch)) == many(2)
    assert list(extents_of(stat(b"s", size=9, flags=4), Content(), tree.fetch)) == []


def test_an_entrys_attributes_are_found_wherever_they_stand() -> None:
    tree = Tree()
    blocks = tuple(tree.add(encode_attributes_block([row])) for row in ATTRIBUTES)
    assert tuple(attributes_of(Content(xattrs=ATTRIBUTES), tree.fetch)) == ATTRIBUTES
    assert tuple(attributes_of(Content(xattr_blocks=blocks), tree.fetch)) == ATTRIBUTES
    with pytest.raises(InvalidInput, match="sorted"):
        list(attributes_of(Content(xattr_blocks=blocks[::-1]), tree.fetch))
