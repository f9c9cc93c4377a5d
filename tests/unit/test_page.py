from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_agent.tree.entry import HOLE_CHUNK, SELF_CHUNK, Content, EntryType, Extent
from holdfast_agent.tree.page import (
    Page,
    cut_pages,
    decode_page,
    encode_page,
    encode_pages,
    encode_stat_part,
    list_page,
    page_ids,
    page_stat_part,
    page_stats,
)
from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from tests.support.samples import KEYS, OWN_CHUNK, flips, noise, sample_entries, stat

OFFSET = 5000
STATS, CONTENTS = sample_entries()
PAGE = encode_page(encode_stat_part(STATS), CONTENTS)


def decode(data: bytes, offset: int = OFFSET) -> Page:
    return decode_page(memoryview(data), OWN_CHUNK, offset)


def resolved(content: Content) -> Content:
    def own(extents: tuple[Extent, ...]) -> tuple[Extent, ...]:
        return tuple(
            Extent(OWN_CHUNK if e.chunk == SELF_CHUNK else e.chunk, e.offset, e.length)
            for e in extents
        )

    return msgspec.structs.replace(
        content, extents=own(content.extents), xattr_blocks=own(content.xattr_blocks)
    )


def build(
    stats: list[list[Any]],
    rows: list[list[Any]],
    *,
    ids: tuple[bytes, ...] = (),
    owners: tuple[object, ...] = ((0, 0, "", ""),),
    stat_part: bytes | None = None,
    content_part: bytes | None = None,
) -> bytes:
    """Return a page of raw rows, made without the product's encoder."""
    first = msgspec.msgpack.encode(stats) if stat_part is None else stat_part
    last = msgspec.msgpack.encode([owners, rows]) if content_part is None else content_part
    lengths = b"".join(n.to_bytes(4, "little") for n in (len(first), len(ids), len(last)))
    return b"HFPG\x01\0\0\0" + lengths + first + b"".join(ids) + last


def row_of(name: bytes = b"a", kind: int = 1, **changes: Any) -> list[Any]:
    return list(msgspec.structs.astuple(stat(name, EntryType(kind), **changes)))


A, B = noise("a"), noise("b")


def one(
    flat: list[int],
    *,
    kind: int = 1,
    size: int = 0,
    extra: object = None,
    cid: bytes = b"",
    ids: tuple[bytes, ...] = (),
    flags: int = 0,
) -> bytes:
    return build([row_of(kind=kind, size=size, flags=flags)], [[0, cid, flat, extra]], ids=ids)


def test_a_page_with_everything_comes_back() -> None:
    page = decode(PAGE)
    assert list(page.stats) == STATS
    assert list(page.contents) == [resolved(content) for content in CONTENTS]
    assert set(page.ids) == {noise(f"chunk {number}") for number in range(3)}
    assert page.ids == page_ids(PAGE)
    assert page.stats == page_stats(PAGE)
    assert page_stat_part(PAGE) == encode_stat_part(STATS)


def test_a_page_is_laid_out_as_the_format_says() -> None:
    found = msgspec.msgpack.decode(encode_stat_part(STATS[:1]))
    assert found == [[b"a-fifo", 4, 0o644, 0, -5, 1_700_000_000_000_000_001, 1 << 63, 0]]
    start = 20 + len(encode_stat_part(STATS)) + 3 * 32
    owners, rows = msgspec.msgpack.decode(PAGE[start:])
    assert owners == [[1000, 100, "ann", "users"], [0, 0, "", ""]]
    assert rows[0] == [0, b"", [], None]
    assert rows[1] == [1, b"", [], {"device": 0x0103}]
    assert rows[2] == [1, b"", [-2, 3, 40, 0, 0, 9], {"xattrs": [[b"user.a", b""]]}]
    assert rows[6] == [1, b"", [1, 7, 100, -1, 0, 500, 1, 7, 100], None]
    assert rows[9][3] == {"spill": 2, "xattr_blocks": [0, 9, 50]}
    assert PAGE[20 + len(encode_stat_part(STATS)) :][:96] == b"".join(page_ids(PAGE))
    by_hand = build(
        msgspec.msgpack.decode(encode_stat_part(STATS)), rows, ids=page_ids(PAGE), owners=owners
    )
    assert by_hand == PAGE


def test_equal_entries_make_equal_stat_parts() -> None:
    again, _ = sample_entries()
    assert encode_stat_part(again) == encode_stat_part(STATS)
    again[3] = msgspec.structs.replace(again[3], mtime_ns=again[3].mtime_ns + 1)
    assert encode_stat_part(again) != encode_stat_part(STATS)


def test_a_flipped_bit_in_a_page_never_fails_in_another_way() -> None:
    """Pages lie in sealed chunks: a flip may make another page, but no foreign error."""
    refused = 0
    for _, data in flips(PAGE):
        try:
            decode(data)
            page_ids(data)
        except (InvalidInput, UnsupportedVersion):
            refused += 1
    assert refused > 2 * len(PAGE)


def test_a_page_cut_off_or_prolonged_is_refused() -> None:
    for length in range(len(PAGE)):
        with pytest.raises(InvalidInput):
            decode(PAGE[:length])
        with pytest.raises(InvalidInput):
            page_ids(PAGE[:length])
    with pytest.raises(InvalidInput):
        decode(PAGE + b"\0")
    with pytest.raises(InvalidInput):
        decode(PAGE + bytes(1 << 20))


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"HFBK", InvalidInput),
        (4, b"\x00", UnsupportedVersion),
        (4, b"\x02", UnsupportedVersion),
        (5, b"\x01", InvalidInput),
        (12, b"\xff\xff\xff\xff", InvalidInput),
    ],
)
def test_a_head_that_is_no_pages_is_refused(at: int, value: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(PAGE[:at] + value + PAGE[at + len(value) :])


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"\0", b"x" * 256, "text"]
)
def test_names_that_cannot_be_are_refused(name: Any) -> None:
    row = row_of()
    row[0] = name
    with pytest.raises(InvalidInput):
        decode(build([row], [[0, b"", [], None]]))


@pytest.mark.parametrize("name", [b"...", b".a", b"\xff\xfe", b"a\nb", b" ", b"x" * 255])
def test_names_that_linux_allows_are_taken(name: bytes) -> None:
    assert decode(build([row_of(name)], [[0, b"", [], None]])).stats[0].name == name


@pytest.mark.parametrize("names", [[b"b", b"a"], [b"a", b"a"], [b"a", b"B"], [b"a", b"b", b"ab"]])
def test_names_out_of_order_or_doubled_are_refused(names: list[bytes]) -> None:
    stats = [row_of(name) for name in names]
    with pytest.raises(InvalidInput, match="sorted"):
        decode(build(stats, [[0, b"", [], None] for _ in names]))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (1, 0),
        (1, 8),
        (2, -1),
        (2, 0o10000),
        (3, -1),
        (3, 1 << 63),
        (4, 1 << 63),
        (6, -1),
        (7, 8),
        (7, -1),
        (3, 1.0),
        (2, True),
        (2, "420"),
    ],
)
def test_stat_fields_out_of_bounds_are_refused(at: int, value: object) -> None:
    row = row_of()
    row[at] = value
    with pytest.raises(InvalidInput):
        decode(build([row], [[0, b"", [], None]]))


def test_the_stat_part_has_exactly_eight_fields() -> None:
    for row in (row_of()[:7], [*row_of(), 0], {"name": b"a"}):
        with pytest.raises(InvalidInput):
            decode(build([row], [[0, b"", [], None]]))  # type: ignore[list-item]


def test_the_widest_values_are_taken() -> None:
    row = row_of(mtime_ns=-(1 << 63), ctime_ns=(1 << 63) - 1, inode=(1 << 64) - 1, mode=0o7777)
    owner = ((1 << 32) - 1, (1 << 32) - 1, "ü", "")
    page = decode(build([row], [[0, b"", [], None]], owners=(owner,)))
    assert page.stats[0].inode == (1 << 64) - 1
    assert page.contents[0] == Content(uid=owner[0], gid=owner[1], user="ü")


CID = b"c" * 32
NO_PAGES: dict[str, bytes] = {
    "no entries": build([], []),
    "fewer contents than stats": build([row_of()], []),
    "more contents than stats": build([row_of()], [[0, b"", [], None]] * 2),
    "owner out of range": build([row_of()], [[1, b"", [], None]]),
    "negative owner": build([row_of()], [[-1, b"", [], None]]),
    "owner of 33 bits": build([row_of()], [[0, b"", [], None]], owners=((1 << 32, 0, "", ""),)),
    "three fields in a row": build([row_of()], [[0, b"", []]]),
    "five fields in a row": build([row_of()], [[0, b"", [], None, None]]),
    "bytes behind the content part": build(
        [row_of()],
        [],
        content_part=msgspec.msgpack.encode([[[0, 0, "", ""]], [[0, b"", [], None]]]) + b"\xc0",
    ),
    "deep nesting": build([row_of()], [], content_part=b"\x91" * 100_000),
    "an id twice": one([0, 0, 1, 1, 0, 1], size=2, ids=(A, A)),
    "an id that is not used": one([0, 0, 1], size=1, ids=(A, B)),
    "an id out of range": one([1, 0, 1], size=1, ids=(A,)),
    "an unknown mark": one([-3, 0, 1], size=1),
    "the hole as an id": one([0, 0, 1], size=1, ids=(HOLE_CHUNK,)),
    "the self mark as an id": one([0, 0, 1], kind=2, ids=(SELF_CHUNK,)),
    "the own chunk by id": one([0, 0, 1], kind=2, ids=(OWN_CHUNK,)),
    "a torn extent": one([0, 0], size=1, ids=(A,)),
    "four numbers": one([0, 0, 1, 0], size=1, ids=(A,)),
    "an empty extent": one([0, 0, 0], ids=(A,)),
    "a negative length": one([0, 0, -1, 0, 0, 2], size=1, ids=(A,)),
    "a negative offset": one([0, -1, 1], size=1, ids=(A,)),
    "an extent beyond a chunk": one([0, 4 << 20, 1], size=1, ids=(A,)),
    "a page beyond a tree chunk": one([0, 1 << 20, 1], kind=2, ids=(A,)),
    "a hole with an offset": one([-1, 1, 1], size=1),
    "a hole in a directory": one([-1, 0, 1], kind=2),
    "content in the own tree chunk": one([-2, 0, 1], size=1),
    "extents shorter than the file": one([0, 0, 1], size=2, ids=(A,)),
    "extents longer than the file": one([0, 0, 1, -1, 0, 1], size=1, ids=(A,)),
    "a file of some size without extents": one([], size=1),
    "a small file's id out of range": one([1, 0, 1], size=1, cid=CID, ids=(A,)),
    "a small file's unknown mark": one([-3, 0, 1], size=1, cid=CID),
    "a small file in its own tree chunk": one([-2, 0, 1], size=1, cid=CID),
    "a small file's empty extent": one([0, 0, 0], cid=CID, ids=(A,)),
    "a small file's negative length": one([0, 2, -1], cid=CID, ids=(A,)),
    "a small file's negative offset": one([0, -1, 1], size=1, cid=CID, ids=(A,)),
    "a small file beyond a chunk": one([0, 4 << 20, 1], size=1, cid=CID, ids=(A,)),
    "a small file shorter than its extent": one([0, 0, 2], size=1, cid=CID, ids=(A,)),
    "a small file longer than its extent": one([0, 0, 1], size=2, cid=CID, ids=(A,)),
    "content id and extent of a symlink": one([0, 0, 1], kind=3, size=1, cid=CID, ids=(A,)),
    "content id of 31 bytes": one([0, 0, 1], size=1, cid=b"c" * 31, ids=(A,)),
    "content id of 33 bytes": one([0, 0, 1], size=1, cid=b"c" * 33, ids=(A,)),
    "content id of an empty file": one([], cid=b"c" * 32),
    "content id of a directory": one([], kind=2, cid=b"c" * 32),
    "size of a directory": one([], kind=2, size=1),
    "extents of a symlink": one([0, 0, 1], kind=3, ids=(A,)),
    "extents of a fifo": one([-1, 0, 1], kind=4),
    "an unknown key": one([], extra={"acl": 1}),
    "extra as an array": one([], extra=[]),
    "target of a file": one([], extra={"target": b"x"}),
    "empty target": one([], kind=3, extra={"target": b""}),
    "device of a file": one([], extra={"device": 5}),
    "negative device": one([], kind=6, extra={"device": -1}),
    "link to a directory": one([], kind=2, extra={"link": b"l" * 16}),
    "link of 15 bytes": one([], extra={"link": b"l" * 15}),
    "spill to nothing": one([], extra={"spill": 1}),
    "spill 3": one([0, 0, 12], extra={"spill": 3}, ids=(A,)),
    "spill 0": one([], extra={"spill": 0}),
    "spill of a symlink": one([0, 0, 12], kind=3, extra={"spill": 1}, ids=(A,)),
    "spill into a hole": one([-1, 0, 12], extra={"spill": 1}),
    "attributes out of order": one([], extra={"xattrs": [[b"b", b""], [b"a", b""]]}),
    "an attribute twice": one([], extra={"xattrs": [[b"a", b""], [b"a", b""]]}),
    "an attribute without a name": one([], extra={"xattrs": [[b"", b""]]}),
    "attributes here and in blocks": one(
        [], extra={"xattrs": [[b"a", b""]], "xattr_blocks": [0, 0, 12]}, ids=(A,)
    ),
    "attribute blocks in a hole": one([], extra={"xattr_blocks": [-1, 0, 12]}),
}


@pytest.mark.parametrize("name", NO_PAGES)
def test_what_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        decode(NO_PAGES[name])


def test_a_key_of_extra_that_stands_twice_is_refused() -> None:
    sound = one([], kind=3, extra={"target": b"x"})
    key = b"\xa6target\xc4\x01x"
    at = sound.index(b"\x81" + key)
    doubled = sound[:at] + b"\x82" + key + key + sound[at + 1 + len(key) :]
    length = int.from_bytes(sound[16:20], "little") + len(key)
    with pytest.raises(InvalidInput, match="twice"):
        decode(doubled[:16] + length.to_bytes(4, "little") + doubled[20:])


def test_an_extent_of_the_own_chunk_ends_at_or_before_the_page() -> None:
    page = one([-2, 10, 90], kind=2)
    assert decode(page, 100).contents[0].extents == (Extent(OWN_CHUNK, 10, 90),)
    with pytest.raises(InvalidInput, match="behind"):
        decode(page, 99)
    blocks = one([], extra={"xattr_blocks": [-2, 10, 90]})
    assert decode(blocks, 100).contents[0].xattr_blocks == (Extent(OWN_CHUNK, 10, 90),)
    with pytest.raises(InvalidInput, match="behind"):
        decode(blocks, 99)


def test_a_skipped_file_has_a_size_and_no_content() -> None:
    assert decode(one([], size=99, flags=4)).contents[0].extents == ()


def test_a_device_numbered_zero_is_a_device() -> None:
    assert decode(one([], kind=6)).contents[0].device == 0
    assert decode(one([], kind=6, extra={"device": 0})).contents[0].device == 0


def test_ids_are_named_once_and_in_order_of_use() -> None:
    extents = (Extent(B, 0, 1), Extent(A, 0, 1), Extent(B, 5, 1))
    page = encode_page(encode_stat_part([stat(b"a", size=3)]), [Content(extents=extents)])
    assert page_ids(page) == (B, A)
    assert decode(page).contents[0].extents == extents


# --- cutting
def naive_cuts(names: list[bytes]) -> list[int]:
    ends = []
    count = 0
    for index, name in enumerate(names):
        count += 1
        number = int.from_bytes(blake3(name, key=KEYS.name).digest()[:4], "little")
        if number % 256 == 0 or count == 4096 or index == len(names) - 1:
            ends.append(index + 1)
            count = 0
    return ends


@pytest.mark.parametrize("count", [0, 1, 255, 5000])
def test_pages_end_where_the_format_says(count: int) -> None:
    names = sorted(b"file-%05d" % number for number in range(count))
    assert cut_pages(names, KEYS.name) == naive_cuts(names)


def test_no_page_has_more_than_4096_names() -> None:
    uncut: list[bytes] = []
    number = 0
    while len(uncut) < 9000:
        name = b"%08d" % number
        number += 1
        if blake3(name, key=KEYS.name).digest()[0]:
            uncut.append(name)
    assert cut_pages(uncut, KEYS.name) == [4096, 8192, 9000]


def test_one_new_name_changes_one_page() -> None:
    names = sorted(b"file-%05d" % number for number in range(5000))
    more = sorted([*names, b"file-02500-new"])

    def pages(of: list[bytes]) -> set[tuple[bytes, ...]]:
        ends = cut_pages(of, KEYS.name)
        return {tuple(of[a:b]) for a, b in zip([0, *ends], ends, strict=False)}

    assert 1 <= len(pages(more) - pages(names)) <= 2


def test_entries_longer_than_a_page_are_divided() -> None:
    stats = [stat(b"%04d" % number + b"n" * 250) for number in range(4096)]
    contents = [Content(xattrs=((b"user.x", b"v" * 300),)) for _ in stats]
    with pytest.raises(TooLarge):
        encode_page(encode_stat_part(stats), contents)
    pages = list(encode_pages(stats, contents))
    assert sum(count for count, _ in pages) == 4096
    assert all(len(page) <= 1 << 20 for _, page in pages)
    decoded = [decode(page) for _, page in pages]
    assert [s for page in decoded for s in page.stats] == stats
    assert [c for page in decoded for c in page.contents] == contents


def test_one_entry_longer_than_a_page_is_refused() -> None:
    content = Content(xattrs=((b"user.x", b"v" * (1 << 20)),))
    with pytest.raises(TooLarge):
        list(encode_pages([stat(b"a"), stat(b"b")], [Content(), content]))


def test_entries_that_fit_are_one_page() -> None:
    assert list(encode_pages(STATS, CONTENTS)) == [(len(STATS), PAGE)]


Reader = Callable[[bytes], object]


@pytest.mark.parametrize("read", [page_stat_part, page_ids, page_stats])
def test_partial_readers_refuse_what_is_no_page(read: Reader) -> None:
    for data in (b"", b"HFPG", b"X" * 100, PAGE[:-1], PAGE + b"\0"):
        with pytest.raises(InvalidInput):
            read(data)


# --- what a list shows
def test_a_list_shows_of_every_entry_what_the_page_says() -> None:
    whole, listed = decode(PAGE), list_page(PAGE, OWN_CHUNK, OFFSET)
    assert (listed.stats, listed.ids) == (whole.stats, whole.ids)
    for entry, content, shown in zip(whole.stats, whole.contents, listed.contents, strict=True):
        if entry.type == EntryType.DIRECTORY:
            assert shown == content
        for field in ("uid", "gid", "user", "group", "target"):
            assert getattr(shown, field) == getattr(content, field)


def test_a_list_refuses_a_page_whose_owner_is_not_there() -> None:
    stats = [[b"a", 1, 0o644, 0, 0, 0, 1, 0]]
    with pytest.raises(InvalidInput, match="owner"):
        list_page(build(stats, [[1, b"", [], None]]), OWN_CHUNK, OFFSET)


def test_a_list_refuses_names_that_are_not_sorted() -> None:
    stats = [[b"b", 1, 0o644, 0, 0, 0, 1, 0], [b"a", 1, 0o644, 0, 0, 0, 1, 0]]
    with pytest.raises(InvalidInput, match="sorted"):
        list_page(build(stats, [[0, b"", [], None]] * 2), OWN_CHUNK, OFFSET)
