"""Blocks: the extents or attributes of one entry that are too long to stand in its page.

Readers of a whole entry use `extents_of` and `attributes_of`, which follow the blocks. What a
decoder refuses with InvalidInput came out of an authenticated chunk: to its caller it is damage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Final

import msgspec

from holdfast_agent.tree.entry import (
    HOLE_CHUNK,
    SELF_CHUNK,
    Content,
    EntryFlag,
    EntryType,
    Extent,
    Stat,
)
from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.layout import (
    COUNT_MAX,
    VERSION,
    Buffer,
    StrictDecoder,
    check_version,
    require,
)
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, INLINE_BYTES_MAX, PAGE_BYTES_MAX

Attributes = Sequence[tuple[bytes, bytes]]
"""(name, value), sorted by name."""
FetchBlock = Callable[[Extent], tuple[Buffer, ChunkId, int]]
"""Extent of a block -> its bytes, the tree chunk it lies in, its offset there."""

_MAGIC: Final = b"HFBK"
_KIND_EXTENTS: Final = 1
_KIND_ATTRIBUTES: Final = 2
_HEADER = struct.Struct("<4sBB2sI")
_RECORD = struct.Struct("<32sIQ")
BLOCK_EXTENTS_MAX: Final = (PAGE_BYTES_MAX - _HEADER.size) // _RECORD.size
"""Most extents of one block: 23,831."""
INLINE_EXTENTS_MAX: Final = INLINE_BYTES_MAX // _RECORD.size
"""Most extents that stand in a page: 1,489, a file of about 1.5 GiB in chunks of 1 MiB."""

_ATTRIBUTES = StrictDecoder(
    tuple[tuple[Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)], bytes], ...],
    "block of attributes",
)
_ENCODER = msgspec.msgpack.Encoder()


def _encode(kind: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    if size > PAGE_BYTES_MAX:
        raise TooLarge(f"block: {size} bytes, at most {PAGE_BYTES_MAX}")
    return _HEADER.pack(_MAGIC, VERSION, kind, bytes(2), len(body)) + body


def _body(data: Buffer, kind_expected: int) -> memoryview:
    view = memoryview(data)
    kind, body = _split(view)
    require(kind == kind_expected, "block: of the other kind")
    return body


def _split(view: memoryview) -> tuple[int, memoryview]:
    require(_HEADER.size <= len(view) <= PAGE_BYTES_MAX, "block: too short or too long")
    magic, version, kind, reserved, length = _HEADER.unpack_from(view)
    require(magic == _MAGIC, "block: wrong magic")
    check_version(version, "block")
    if kind not in (_KIND_EXTENTS, _KIND_ATTRIBUTES):
        raise UnsupportedVersion(f"block: kind {kind} is unknown")
    require(reserved == bytes(2), "block: reserved bytes are not zero")
    require(len(view) == _HEADER.size + length, "block: the lengths do not add up")
    require(length > 0, "block: empty")
    return kind, view[_HEADER.size :]


def encode_extents_block(extents: Sequence[Extent]) -> bytes:
    """Return the block of 1 to 23,831 extents, of a file's content or of further blocks.

    Raises:
        TooLarge: there are more.
    """
    assert extents
    rows = (_RECORD.pack(extent.chunk, extent.offset, extent.length) for extent in extents)
    return _encode(_KIND_EXTENTS, b"".join(rows))


def decode_extents_block(data: Buffer, own_chunk: ChunkId, own_offset: int) -> list[Extent]:
    """Return the extents of a block that lies at `own_offset` of the tree chunk `own_chunk`.

    Raises:
        InvalidInput, UnsupportedVersion: not such a block, or an extent that cannot be.
    """
    body = _body(data, _KIND_EXTENTS)
    require(len(body) % _RECORD.size == 0, "block: a torn record")
    extents = []
    for chunk, offset, length in _RECORD.iter_unpack(body):
        end = offset + length
        if chunk == HOLE_CHUNK:
            require(offset == 0 and 1 <= length <= COUNT_MAX, "block: a hole that cannot be")
        elif chunk == SELF_CHUNK:
            require(length >= 1 and end <= own_offset, "block: names what lies behind it")
        else:
            require(length >= 1 and end <= CHUNK_PLAIN_BYTES_MAX, "block: an extent out of bounds")
        extents.append(Extent(own_chunk if chunk == SELF_CHUNK else chunk, offset, length))
    return extents


def encode_attributes_block(attributes: Attributes) -> bytes:
    """Return the block of one or more attributes.

    Raises:
        TooLarge: they are longer than 1 MiB.
    """
    assert attributes
    return _encode(_KIND_ATTRIBUTES, _ENCODER.encode(attributes))


def decode_attributes_block(data: Buffer) -> tuple[tuple[bytes, bytes], ...]:
    """Return the attributes of a block, sorted by name.

    Raises:
        InvalidInput, UnsupportedVersion: not such a block.
    """
    found: tuple[tuple[bytes, bytes], ...] = _ATTRIBUTES.decode(_body(data, _KIND_ATTRIBUTES))
    require(bool(found), "block: empty")
    _check_sorted(found)
    return found


def _check_sorted(attributes: Attributes) -> None:
    require(
        all(first[0] < second[0] for first, second in pairwise(attributes)),
        "attributes are not sorted by name",
    )


def block_ids(data: Buffer) -> list[bytes]:
    """Return the distinct ids that a block names, other than its own chunk's.

    Raises:
        InvalidInput, UnsupportedVersion: not a block.
    """
    kind, body = _split(memoryview(data))
    if kind == _KIND_ATTRIBUTES:
        return []
    require(len(body) % _RECORD.size == 0, "block: a torn record")
    ids = dict.fromkeys(row[0] for row in _RECORD.iter_unpack(body))
    return [chunk for chunk in ids if chunk not in (HOLE_CHUNK, SELF_CHUNK)]


def split_extents(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    """Yield the parts of `extents` that go into one block each."""
    for start in range(0, len(extents), BLOCK_EXTENTS_MAX):
        yield extents[start : start + BLOCK_EXTENTS_MAX]


def attributes_fit_page(attributes: Attributes) -> bool:
    """Tell whether the attributes of one entry may stand in its page."""
    return sum(len(name) + len(value) + 8 for name, value in attributes) <= INLINE_BYTES_MAX


def split_attributes(attributes: Attributes) -> Iterator[Attributes]:
    """Yield the parts of `attributes` that go into one block each.

    Raises:
        TooLarge: one attribute alone is longer than a block may be.
    """
    part: list[tuple[bytes, bytes]] = []
    room = PAGE_BYTES_MAX - _HEADER.size - 5
    size = 0
    for name, value in attributes:
        # 1 for the pair, at most 5 in front of each of the two.
        need = len(name) + len(value) + 11
        if need > room:
            raise TooLarge(f"attribute: {len(value)} bytes")
        if size + need > room:
            yield part
            part, size = [], 0
        part.append((name, value))
        size += need
    if part:
        yield part


def extents_of(stat: Stat, content: Content, fetch: FetchBlock) -> Iterator[Extent]:
    """Yield an entry's extents wherever they stand; a file's add up to its size.

    Memory: the extents of at most two blocks.

    Raises:
        InvalidInput, UnsupportedVersion: a block is none, or the lengths do not add up.
    """
    is_file = stat.type == EntryType.FILE and not stat.flags & EntryFlag.SKIPPED
    total = 0
    for extent in _unspilled(content.extents, content.spill, fetch):
        total += extent.length
        require(not is_file or total <= stat.size, "file: its extents are longer than it is")
        yield extent
    if is_file and total != stat.size:
        raise InvalidInput("file: its extents are shorter than it is")


def _unspilled(extents: Sequence[Extent], spill: int, fetch: FetchBlock) -> Iterator[Extent]:
    if spill == 0:
        yield from extents
        return
    for extent in extents:
        require(extent.chunk != HOLE_CHUNK, "block: in a hole")
        yield from _unspilled(decode_extents_block(*fetch(extent)), spill - 1, fetch)


def attributes_of(content: Content, fetch: FetchBlock) -> Iterator[tuple[bytes, bytes]]:
    """Yield an entry's attributes wherever they stand, sorted by name.

    Raises:
        InvalidInput, UnsupportedVersion: a block is none, or the order is wrong.
    """
    yield from content.xattrs
    last = b""
    for extent in content.xattr_blocks:
        found = decode_attributes_block(fetch(extent)[0])
        require(last < found[0][0], "attributes are not sorted by name")
        last = found[-1][0]
        yield from found
