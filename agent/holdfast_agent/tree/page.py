"""Pages of a directory: how they are cut, encoded and decoded.

What a decoder refuses with InvalidInput came out of an authenticated chunk: to its caller it is
damage. Cost, per entry: encoding or decoding about 1 microsecond.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from holdfast_agent.tree.entry import (
    HOLE_CHUNK,
    SELF_CHUNK,
    Content,
    EntryFlag,
    EntryType,
    Stat,
)
from holdfast_agent.tree.rows import (
    NIL,
    ContentReader,
    Owner,
    PageRows,
    Row,
    RowRun,
    encode_rows,
)
from holdfast_contract.errors import TooLarge
from holdfast_contract.format.layout import (
    VERSION,
    Buffer,
    StrictDecoder,
    check_version,
    require,
)
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import PAGE_BYTES_MAX

PAGE_ENTRIES_MAX: Final = 4096
"""A writer ends a page before it has more entries."""
_MAGIC: Final = b"HFPG"
_HEADER = struct.Struct("<4sB3sIII")
_ID_BYTES: Final = 32
# Plain integers: comparing with members of an enum costs more than all other checks together.
_FILE: Final = int(EntryType.FILE)
_DIRECTORY: Final = int(EntryType.DIRECTORY)
_SKIPPED: Final = int(EntryFlag.SKIPPED)

_WHAT: Final = "page"
_STATS = StrictDecoder(tuple[Stat, ...], _WHAT)
_CONTENTS = StrictDecoder(tuple[tuple[Owner, ...], tuple[Row, ...]], _WHAT)
_ENCODER = msgspec.msgpack.Encoder()


class Page(NamedTuple):
    """A page taken apart; `stats[i]` and `contents[i]` are one entry."""

    stats: tuple[Stat, ...]
    contents: tuple[Content, ...]
    ids: tuple[bytes, ...]
    """Distinct ids that the content part names, other than the page's own chunk."""


def cut_pages(names: Sequence[bytes], key: bytes) -> list[int]:
    """Return the end index of every page of a directory with these sorted names; `key` is K_name.

    Shape:  strictly increasing, the last is `len(names)`; no names -> [].
    Bounds: at most 4,096 names a page. What is longer than 1 MiB, `encode_pages` divides.
    Cost:   half a microsecond a name.
    """
    ends: list[int] = []
    start = 0
    for end, name in enumerate(names, 1):
        # A u32, little-endian, is divisible by 256 where its first byte is zero.
        cut = blake3(name, key=key).digest(length=1) == b"\0"
        if cut or end - start == PAGE_ENTRIES_MAX or end == len(names):
            ends.append(end)
            start = end
    return ends


def encode_stat_part(stats: Sequence[Stat]) -> bytes:
    """Return the stat part of a page; equal bytes mean that nothing has changed."""
    return _ENCODER.encode(stats)


def encode_page(stat_part: bytes, contents: Sequence[Content | RowRun]) -> bytes:
    """Return the page of entries with this stat part and these contents, in its order.

    Runs, all of them of one page, are taken over from there.

    Raises:
        TooLarge: longer than 1 MiB.
    """
    encoded = encode_rows(contents)
    content_part = _ENCODER.encode((encoded.owners, encoded.rows))
    table = b"".join(encoded.ids)
    count = len(encoded.ids)
    header = _HEADER.pack(_MAGIC, VERSION, bytes(3), len(stat_part), count, len(content_part))
    page = b"".join((header, stat_part, table, content_part))
    if len(page) > PAGE_BYTES_MAX:
        raise TooLarge(f"page: {len(page)} bytes, at most {PAGE_BYTES_MAX}")
    return page


def encode_pages(stats: Sequence[Stat], contents: Sequence[Content]) -> Iterator[tuple[int, bytes]]:
    """Yield (number of entries, page) for entries between two cuts: one page, or more of 1 MiB.

    Raises:
        TooLarge: one entry alone does not fit (its extents or attributes belong in blocks).
    """
    try:
        yield len(stats), encode_page(encode_stat_part(stats), contents)
    except TooLarge:
        if len(stats) == 1:
            raise
        half = len(stats) // 2
        yield from encode_pages(stats[:half], contents[:half])
        yield from encode_pages(stats[half:], contents[half:])


def _split(data: Buffer) -> tuple[memoryview, memoryview, memoryview]:
    view = memoryview(data)
    require(_HEADER.size <= len(view) <= PAGE_BYTES_MAX, "page: too short or too long")
    magic, version, reserved, stat_bytes, count, content_bytes = _HEADER.unpack_from(view)
    require(magic == _MAGIC, "page: wrong magic")
    check_version(version, _WHAT)
    require(reserved == bytes(3), "page: reserved bytes are not zero")
    ids_start = _HEADER.size + stat_bytes
    ids_end = ids_start + count * _ID_BYTES
    require(len(view) == ids_end + content_bytes, "page: the lengths do not add up")
    return view[_HEADER.size : ids_start], view[ids_start:ids_end], view[ids_end:]


def page_stat_part(data: Buffer) -> memoryview:
    """Return the stat part's bytes, undecoded.

    Raises:
        InvalidInput, UnsupportedVersion: not a page.
    """
    return _split(data)[0]


def page_ids(data: Buffer) -> tuple[bytes, ...]:
    """Return the distinct ids that the page names besides its own chunk's; decodes no entry.

    Raises:
        InvalidInput, UnsupportedVersion: not a page.
    """
    return _ids(_split(data)[1])


def _ids(table: memoryview) -> tuple[bytes, ...]:
    blob = bytes(table)
    ids = tuple(blob[at : at + _ID_BYTES] for at in range(0, len(blob), _ID_BYTES))
    distinct = set(ids)
    require(
        len(distinct) == len(ids) and HOLE_CHUNK not in distinct and SELF_CHUNK not in distinct,
        "page: an id stands twice or cannot be",
    )
    return ids


def page_stats(data: Buffer) -> tuple[Stat, ...]:
    """Return the stat part of every entry, sorted by name.

    Raises:
        InvalidInput, UnsupportedVersion: not a page, or a name that cannot be.
    """
    return _decode_stats(page_stat_part(data))


def _decode_stats(stat_part: memoryview) -> tuple[Stat, ...]:
    stats: tuple[Stat, ...] = _STATS.decode(stat_part)
    require(bool(stats), "page: no entries")
    names = [stat.name for stat in stats]
    joined = b"/".join(names)
    require(
        joined.count(b"/") == len(names) - 1 and b"\0" not in joined,
        "page: a slash or NUL in a name",
    )
    require(all(map(operator.lt, names, islice(names, 1, None))), "page: names are not sorted")
    require(not {b".", b".."}.intersection(names), "page: . or .. for a name")
    return stats


def _parts(
    data: Buffer,
) -> tuple[tuple[Stat, ...], tuple[bytes, ...], tuple[Owner, ...], tuple[Row, ...]]:
    """Return stats, ids, owners, and the row of each stat's content."""
    stat_part, table, content_part = _split(data)
    stats = _decode_stats(stat_part)
    ids = _ids(table)
    owners, rows = _CONTENTS.decode(content_part)
    require(len(rows) == len(stats), "page: the two parts have another number of entries")
    return stats, ids, owners, rows


def decode_page(data: Buffer, own_chunk: ChunkId, own_offset: int) -> Page:
    """Return the entries of a page that lies at `own_offset` of the tree chunk `own_chunk`.

    Raises:
        InvalidInput, UnsupportedVersion: not a page, or it says what cannot be.
    """
    page = open_page(data, own_chunk, own_offset)
    return Page(page.stats, page.contents(), page.ids)


def open_page(data: Buffer, own_chunk: ChunkId, own_offset: int) -> PageRows:
    """Return the entries of a page as `decode_page` does, contents not made yet: half of its cost.

    Raises:
        InvalidInput, UnsupportedVersion: not a page; what is wrong in contents is found later.
    """
    stats, ids, owners, rows = _parts(data)
    return PageRows(stats, rows, owners=owners, ids=ids, own_chunk=own_chunk, own_offset=own_offset)


def list_page(data: Buffer, own_chunk: ChunkId, own_offset: int) -> Page:
    """Return what a list shows of a page: a third of the cost of decoding it.

    Contents of plain files are their owners only. What is not returned is not checked: who
    restores an entry decodes the page.

    Raises:
        InvalidInput, UnsupportedVersion: not a page, or it says what cannot be.
    """
    stats, ids, owners, rows = _parts(data)
    reader = ContentReader(owners, ids, own_chunk, own_offset)
    owned = [Content(uid=uid, gid=gid, user=user, group=group) for uid, gid, user, group in owners]
    count = len(owned)
    contents: list[Content] = []
    for stat, row in zip(stats, rows, strict=True):
        if stat.type == _FILE and row.extra == NIL:
            require(row.owner < count, "page: no such owner")
            contents.append(owned[row.owner])
        else:
            contents.append(reader.content(stat, row))
    return Page(stats, tuple(contents), ids)


class Outline(NamedTuple):
    """What of a page shows where to look for contents and for further pages."""

    content_ids: frozenset[bytes]
    directories: tuple[tuple[Stat, Content], ...]
    """Those that were entered."""
    entries: int


def outline_page(data: Buffer, own_chunk: ChunkId, own_offset: int) -> Outline:
    """Return the outline of a page: a fifth of the cost of decoding it.

    What it does not return is not checked: who uses an entry decodes the page.

    Raises:
        InvalidInput, UnsupportedVersion: not a page, or it says what cannot be.
    """
    stat_part, table, content_part = _split(data)
    stats: tuple[Stat, ...] = _STATS.decode(stat_part)
    owners, rows = _CONTENTS.decode(content_part)
    require(len(rows) == len(stats), "page: the two parts have another number of entries")
    reader = ContentReader(owners, _ids(table), own_chunk, own_offset)
    found = frozenset(row.content_id for row in rows) - {b""}
    require(all(len(content_id) == _ID_BYTES for content_id in found), "page: a content id")
    directories = tuple(
        (stat, reader.content(stat, row))
        for stat, row in zip(stats, rows, strict=True)
        if stat.type == _DIRECTORY and not stat.flags & _SKIPPED
    )
    return Outline(found, directories, len(stats))
