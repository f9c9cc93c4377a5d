"""One object of the store's journal: numbered, hash-chained, of at most 4,096 records."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
from blake3 import blake3

from holdfast_contract.errors import InvalidInput, TooLarge
from holdfast_contract.format.layout import VERSION, Buffer, check_version, require
from holdfast_contract.ids import ZERO_HASH
from holdfast_contract.limits import JOURNAL_OBJECT_BYTES_MAX, JOURNAL_RECORDS_MAX
from holdfast_server.repository.journal_records import StoreMade, decode_record

_MAGIC: Final = b"HFJN"
_HEAD: Final = struct.Struct("<4sB3s16sQQI32sI")
HASH_BYTES: Final = 32
OVERHEAD_BYTES: Final = _HEAD.size + 5 + HASH_BYTES
"""Bytes of an object around its records: header, head of the array, hash."""
_BODY: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_ENCODER: Final = msgspec.msgpack.Encoder()


class JournalObject(NamedTuple):
    """A journal object; `records` as they stand in it, the first has number `first`."""

    store_id: bytes
    number: int
    first: int
    previous: bytes
    """BLAKE3 of the whole object before it; zero for the first."""
    records: Sequence[bytes]

    @property
    def last(self) -> int:
        """Number of the last record."""
        return self.first + len(self.records) - 1


def journal_hash(data: Buffer) -> bytes:
    """Return by which hash the next object names this one."""
    return blake3(data).digest()


def encode_journal(journal: JournalObject) -> bytes:
    """Return the stored object.

    Raises:
        TooLarge, InvalidInput: no reader would accept it.
    """
    body = _ENCODER.encode([msgspec.Raw(record) for record in journal.records])
    head = _HEAD.pack(
        _MAGIC,
        VERSION,
        bytes(3),
        journal.store_id,
        journal.number,
        journal.first,
        len(journal.records),
        journal.previous,
        len(body),
    )
    data = head + body
    data += blake3(data).digest()
    assert decode_journal(data) == journal._replace(records=list(journal.records))
    return data


def decode_journal(data: Buffer) -> JournalObject:
    """Return a journal object after every check that it allows by itself.

    Raises:
        TooLarge, InvalidInput, UnsupportedVersion: damaged, or not a journal object.
    """
    if len(data) > JOURNAL_OBJECT_BYTES_MAX:
        raise TooLarge(f"journal: {len(data)} bytes, at most {JOURNAL_OBJECT_BYTES_MAX}")
    require(len(data) >= _HEAD.size + HASH_BYTES, "journal: too short")
    require(blake3(data[:-HASH_BYTES]).digest() == data[-HASH_BYTES:], "journal: damaged")
    magic, version, reserved, store_id, number, first, count, previous, length = _HEAD.unpack_from(
        data
    )
    require(magic == _MAGIC, "journal: wrong magic")
    check_version(version, "journal")
    require(reserved == bytes(3), "journal: reserved bytes are not zero")
    require(len(data) == _HEAD.size + length + HASH_BYTES, "journal: the lengths do not add up")
    require(1 <= count <= JOURNAL_RECORDS_MAX, "journal: too many or no records")
    require(number >= 1 and first >= number, "journal: numbers begin at 1")
    is_first = number == 1
    require(is_first == (previous == ZERO_HASH), "journal: only the first stands alone")
    require(is_first == (first == 1), "journal: only the first begins with record 1")
    records = _split(data[_HEAD.size : -HASH_BYTES])
    require(len(records) == count, "journal: another number of records than said")
    _check_records(records, store_id, is_first=is_first)
    return JournalObject(store_id, number, first, previous, records)


def _split(body: Buffer) -> list[bytes]:
    try:
        return [bytes(raw) for raw in _BODY.decode(body)]
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InvalidInput(f"journal: {exc}") from exc


def _check_records(records: list[bytes], store_id: bytes, *, is_first: bool) -> None:
    for index, data in enumerate(records):
        record = decode_record(data)
        is_store = isinstance(record, StoreMade)
        require(is_store == (is_first and index == 0), "journal: where the store's record stands")
        if isinstance(record, StoreMade):
            require(record.store_id == store_id, "journal: of two stores")
