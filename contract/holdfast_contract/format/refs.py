"""Refs: the distinct chunk ids of one snapshot, ascending; a full list or a difference to another.

Lists have up to millions of ids, so they are streamed: ids flow through iterators, and at most
about a megabyte of them is in memory at a time.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Final

from blake3 import blake3

from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.layout import (
    COUNT_MAX,
    VERSION,
    Buffer,
    ReadAt,
    check_version,
    require,
)
from holdfast_contract.ids import ZERO_HASH, DomainId, is_ulid
from holdfast_contract.limits import REFS_BYTES_MAX

Write = Callable[[bytes], object]
"""Takes the next bytes of an object that is being written."""

ID_BYTES: Final = 32
HASH_BYTES: Final = 32
_HEADER = struct.Struct("<4sBBH16s32sQ26s6s32sQQ")
HEADER_BYTES: Final = _HEADER.size
_BATCH: Final = 8192
"""Ids that are read, hashed or written at once: 256 KiB."""
_NO_ULID: Final = bytes(26)


class RefsKind(IntEnum):
    """How a refs object tells its ids."""

    FULL = 1
    DIFFERENCE = 2


@dataclass(frozen=True, slots=True)
class RefsHeader:
    """The first 144 bytes of a refs object."""

    kind: int
    domain_id: DomainId
    refs_set: bytes
    """BLAKE3 over the whole list (not over the difference)."""
    count: int
    """Ids of the whole list."""
    base: str
    """ULID of the base's refs object; empty in a full list."""
    base_set: bytes
    """refs_set of the base; zero in a full list."""
    added: int
    removed: int

    @property
    def object_bytes(self) -> int:
        """Length of the object that this header begins."""
        return HEADER_BYTES + (self.added + self.removed) * ID_BYTES + HASH_BYTES

    def encode(self) -> bytes:
        """Return the 144 bytes."""
        return _HEADER.pack(
            b"HFRF",
            VERSION,
            self.kind,
            0,
            self.domain_id,
            self.refs_set,
            self.count,
            self.base.encode() or _NO_ULID,
            bytes(6),
            self.base_set,
            self.added,
            self.removed,
        )


class RefsSet:
    """Hashes ids that come in ascending order, and refuses any other order.

    Cost: about 0.1 microseconds an id.
    """

    def __init__(self) -> None:
        self._hasher = blake3()
        self._last = b""
        self.count = 0

    def update(self, ids: Iterable[bytes]) -> None:
        """Take the next ids, each greater than all before.

        Raises:
            InvalidInput: an id is not 32 bytes long, stands twice or out of order.
        """
        for batch in _batches(ids):
            self._update(batch)

    def _update(self, batch: list[bytes]) -> None:
        joined = b"".join(batch)
        require(
            len(joined) == len(batch) * ID_BYTES and min(map(len, batch)) == ID_BYTES,
            "refs: an id is not 32 bytes long",
        )
        require(
            self._last < batch[0] and all(map(operator.lt, batch, islice(batch, 1, None))),
            "refs: ids are not ascending and distinct",
        )
        self._hasher.update(joined)
        self._last = batch[-1]
        self.count += len(batch)

    def digest(self) -> bytes:
        """Return refs_set of what was taken so far."""
        return self._hasher.digest()


def refs_set_of(ids: Iterable[bytes]) -> bytes:
    """Return refs_set of ids that are distinct and ascending."""
    whole = RefsSet()
    whole.update(ids)
    return whole.digest()


def checked_ids(ids: Iterable[bytes], refs_set: bytes, count: int) -> Iterator[bytes]:
    """Yield `ids` unchanged; the iterator only ends well if they are the list that is meant.

    Raises:
        InvalidInput: order, number or refs_set is wrong, at the latest after the last id.
    """
    whole = RefsSet()
    for batch in _batches(ids):
        whole.update(batch)
        require(whole.count <= count, "refs: more ids than said")
        yield from batch
    require(whole.count == count, "refs: fewer ids than said")
    require(whole.digest() == refs_set, "refs: not the set that is meant")


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def encode_full(
    domain_id: DomainId, ids: Iterable[bytes], count: int, refs_set: bytes, write: Write
) -> None:
    """Write a full list of `count` ascending ids whose hash the caller has taken before.

    Raises:
        InvalidInput: `ids` are not that list; what was written is then good for nothing.
        TooLarge: the object would be longer than any may be.
    """
    header = RefsHeader(RefsKind.FULL, domain_id, refs_set, count, "", ZERO_HASH, count, 0)
    _encode(header, (checked_ids(ids, refs_set, count),), write)


def encode_difference(
    domain_id: DomainId,
    whole: tuple[bytes, int],
    base: tuple[str, bytes],
    added: tuple[Iterable[bytes], int],
    removed: tuple[Iterable[bytes], int],
    write: Write,
) -> None:
    """Write what turns the base's list into the whole one.

    `whole` is (refs_set, number of ids) of the whole list, `base` (ULID of its refs object, its
    refs_set); `added` and `removed` are (ids ascending, their number).

    Raises:
        InvalidInput: an order or a number is wrong.
        TooLarge: the object would be longer than any may be.
    """
    sections = (_counted(*added), _counted(*removed))
    kind = RefsKind.DIFFERENCE
    header = RefsHeader(kind, domain_id, *whole, *base, added[1], removed[1])
    _encode(header, sections, write)


def _counted(ids: Iterable[bytes], count: int) -> Iterator[bytes]:
    order = RefsSet()
    for batch in _batches(ids):
        order.update(batch)
        yield from batch
    require(order.count == count, "refs: another number of ids than said")


def _encode(header: RefsHeader, sections: Iterable[Iterable[bytes]], write: Write) -> None:
    _check_size(header)
    head = header.encode()
    _check_header(_parse(head))
    hasher = blake3(head)
    write(head)
    for section in sections:
        for batch in _batches(section):
            blob = b"".join(batch)
            hasher.update(blob)
            write(blob)
    write(hasher.digest())


def read_header(data: Buffer) -> RefsHeader:
    """Return the header that `data` (at least 144 bytes) begins with.

    Raises:
        InvalidInput: too short, wrong magic, or fields that contradict each other.
        UnsupportedVersion: the version or kind is unknown.
        TooLarge: the object would be longer than any may be.
    """
    require(len(data) >= HEADER_BYTES, "refs: too short")
    header = _parse(data)
    _check_header(header)
    _check_size(header)
    return header


def _parse(data: Buffer) -> RefsHeader:
    fields = _HEADER.unpack_from(data)
    magic, version, kind, reserved, domain, refs_set, count, base, zeros, base_set = fields[:10]
    require(magic == b"HFRF", "refs: wrong magic")
    check_version(version, "refs")
    require(reserved == 0 and zeros == bytes(6), "refs: reserved bytes are not zero")
    try:
        ulid = "" if base == _NO_ULID else base.decode("ascii")
    except UnicodeDecodeError as exc:
        raise InvalidInput("refs: the base is not a ULID") from exc
    return RefsHeader(kind, domain, refs_set, count, ulid, base_set, *fields[10:])


def _check_header(header: RefsHeader) -> None:
    require(header.count <= COUNT_MAX, "refs: too many ids")
    if header.kind == RefsKind.FULL:
        require(header.base == "" and header.base_set == ZERO_HASH, "refs: a full list has a base")
        require(header.added == header.count and header.removed == 0, "refs: counts of a full list")
    elif header.kind == RefsKind.DIFFERENCE:
        require(is_ulid(header.base), "refs: the base is not a ULID")
        require(header.added <= header.count, "refs: more ids added than there are")
    else:
        raise UnsupportedVersion(f"refs: kind {header.kind} is unknown")


def _check_size(header: RefsHeader) -> None:
    if header.object_bytes > REFS_BYTES_MAX:
        raise TooLarge(f"refs: {header.object_bytes} bytes, at most {REFS_BYTES_MAX}")


def decode_full(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield the ids of a full list, ascending; `read(n)` gives the next at most n bytes.

    Only when the iterator ends by itself is the list sound: hash, order, number and refs_set are
    known at the end.

    Raises:
        InvalidInput, UnsupportedVersion, TooLarge: not a full list, or damaged.
    """
    head = _read_exactly(read, HEADER_BYTES)
    header = read_header(head)
    require(header.kind == RefsKind.FULL, "refs: a difference where a full list is expected")
    hasher = blake3(head)

    def ids() -> Iterator[bytes]:
        left = header.count
        while left:
            blob = _read_exactly(read, min(left, _BATCH) * ID_BYTES)
            hasher.update(blob)
            left -= len(blob) // ID_BYTES
            yield from split_ids(blob)
        require(_read_exactly(read, HASH_BYTES) == hasher.digest(), "refs: damaged")
        require(not read(1), "refs: bytes behind the end")

    return checked_ids(ids(), header.refs_set, header.count)


def split_ids(blob: bytes) -> list[bytes]:
    """Return the 32-byte ids that stand in `blob` one after the other."""
    return [blob[at : at + ID_BYTES] for at in range(0, len(blob), ID_BYTES)]


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes:
    parts = []
    while count:
        part = read(count)
        require(bool(part), "refs: ends too early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Difference:
    """A difference that was checked once as a whole; its ids are read again when needed."""

    def __init__(self, header: RefsHeader, read_at: ReadAt) -> None:
        self.header = header
        self._read_at = read_at

    def added(self) -> Iterator[bytes]:
        """Yield the added ids, ascending."""
        return self._section(HEADER_BYTES, self.header.added)

    def removed(self) -> Iterator[bytes]:
        """Yield the removed ids, ascending."""
        return self._section(HEADER_BYTES + self.header.added * ID_BYTES, self.header.removed)

    def _section(self, start: int, count: int) -> Iterator[bytes]:
        for first in range(0, count, _BATCH):
            length = min(_BATCH, count - first) * ID_BYTES
            blob = self._read_at(start + first * ID_BYTES, length)
            require(len(blob) == length, "refs: ends too early")
            yield from split_ids(blob)


def decode_difference(read_at: ReadAt, size: int) -> Difference:
    """Return a difference of `size` bytes after one pass over it: layout, hash, order, counts.

    Raises:
        InvalidInput, UnsupportedVersion, TooLarge: not a difference, or damaged.
    """
    head = read_at(0, HEADER_BYTES)
    header = read_header(head)
    require(header.kind == RefsKind.DIFFERENCE, "refs: a full list, no difference")
    require(header.object_bytes == size, "refs: the lengths do not add up")
    difference = Difference(header, read_at)
    hasher = blake3(head)
    for section in (difference.added(), difference.removed()):
        order = RefsSet()
        for batch in _batches(section):
            order.update(batch)
            hasher.update(b"".join(batch))
    require(read_at(size - HASH_BYTES, HASH_BYTES) == hasher.digest(), "refs: damaged")
    return difference


def apply_difference(
    base: Iterable[bytes], added: Iterable[bytes], removed: Iterable[bytes]
) -> Iterator[bytes]:
    """Yield the base's ids without `removed` and with `added`; all four are ascending.

    The result is to go through `checked_ids` with the refs_set and count of the difference.

    Raises:
        InvalidInput: an added id is in the base, or a removed one is not.
    """
    more, less = iter(added), iter(removed)
    next_added, next_removed = next(more, None), next(less, None)
    for chunk_id in base:
        while next_added is not None and next_added < chunk_id:
            yield next_added
            next_added = next(more, None)
        require(next_added != chunk_id, "refs: an added id is in the base")
        if next_removed == chunk_id:
            next_removed = next(less, None)
            continue
        require(
            next_removed is None or next_removed > chunk_id, "refs: a removed id is not in the base"
        )
        yield chunk_id
    require(next_removed is None, "refs: a removed id is not in the base")
    if next_added is not None:
        yield next_added
        yield from more
