"""The bytes of a journal object: every record comes back, every flipped bit is found."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.ids import ZERO_HASH
from holdfast_contract.limits import JOURNAL_OBJECT_BYTES_MAX, JOURNAL_RECORDS_MAX
from holdfast_server.repository import journal_records as said
from holdfast_server.repository.journal_object import (
    JournalObject,
    decode_journal,
    encode_journal,
    journal_hash,
)
from holdfast_server.repository.journal_records import JournalRecord, decode_record, encode_record
from tests.support.samples import flips, noise

STORE = noise("store", 16)
DOMAIN = noise("domain", 16)
ULID = "01JD0000000000000000000000"
OF_SNAPSHOT: dict[str, Any] = {"time_ns": 7, "domain": DOMAIN, "snapshot": noise("s")}
RECORDS: list[JournalRecord] = [
    said.StoreMade(time_ns=1, store_id=STORE),
    said.DomainStored(time_ns=2, domain=DOMAIN, name="shop", object=ULID, revision=1),
    said.IdentityStored(
        time_ns=3, domain=DOMAIN, client="shop/db-0", object=ULID, identity=noise("i")
    ),
    said.Commit(
        time_ns=4,
        domain=DOMAIN,
        client="shop/db-0",
        snapshot=noise("s"),
        seq=1,
        manifest=ULID,
        refs=ULID,
    ),
    said.Forget(**OF_SNAPSHOT),
    said.Undelete(**OF_SNAPSHOT),
    said.Purge(**OF_SNAPSHOT),
    said.Pin(**OF_SNAPSHOT),
    said.Unpin(**OF_SNAPSHOT),
    said.Tag(**OF_SNAPSHOT, tags=("a", "größer")),
    said.Damaged(time_ns=8, domain=DOMAIN, chunk=noise("c"), object=ULID, offset=1 << 30),
    said.Quarantine(time_ns=9, domain=DOMAIN, client="shop/db-0", since_ns=8),
    said.Deletion(time_ns=10, objects=(f"packs/{DOMAIN.hex()}/{ULID}",)),
]
FIRST = JournalObject(STORE, 1, 1, ZERO_HASH, [encode_record(record) for record in RECORDS])
SECOND = JournalObject(STORE, 2, len(RECORDS) + 1, noise("h"), [encode_record(RECORDS[3])])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_and_is_a_named_map_in_a_pair(record: JournalRecord) -> None:
    data = encode_record(record)
    assert decode_record(data) == record
    name, body = msgspec.msgpack.decode(data)
    assert isinstance(name, str)
    assert set(body) == set(type(record).__struct_fields__)


def test_every_type_of_the_format_is_known() -> None:
    names = {msgspec.msgpack.decode(encode_record(record))[0] for record in RECORDS}
    assert names == {
        *("store", "domain", "identity", "commit", "forget", "undelete", "purge"),
        *("pin", "unpin", "tag", "damaged", "quarantine", "deletion"),
    }


@pytest.mark.parametrize("journal", [FIRST, SECOND], ids=["first", "second"])
def test_an_object_comes_back(journal: JournalObject) -> None:
    data = encode_journal(journal)
    assert decode_journal(data) == journal
    assert journal_hash(data) == blake3(data).digest()


def test_the_bytes_are_those_of_the_format() -> None:
    data = encode_journal(SECOND)
    head = struct.unpack("<4sB3s16sQQI32sI", data[:80])
    assert head == (b"HFJN", 1, bytes(3), STORE, 2, 14, 1, noise("h"), len(data) - 80 - 32)
    assert msgspec.msgpack.decode(data[80:-32])[0][0] == "commit"
    assert data[-32:] == blake3(data[:-32]).digest()


@pytest.mark.parametrize("journal", [FIRST, SECOND], ids=["first", "second"])
def test_every_flipped_bit_is_found(journal: JournalObject) -> None:
    for bit, changed in flips(encode_journal(journal)):
        with pytest.raises(HoldfastError):
            decode_journal(changed)
            pytest.fail(f"bit {bit}")


def test_every_truncation_is_found() -> None:
    data = encode_journal(SECOND)
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            decode_journal(data[:length])
            pytest.fail(f"{length} bytes")


def forged(**changes: Any) -> bytes:
    """Return the second object with other fields and a hash that fits."""
    records: list[bytes] = changes.pop("raw", SECOND.records)
    body = msgspec.msgpack.encode([msgspec.Raw(record) for record in records])
    fields = {
        "magic": b"HFJN",
        "version": 1,
        "reserved": bytes(3),
        "store": STORE,
        "number": 2,
        "first": 14,
        "count": len(records),
        "previous": noise("h"),
        "length": len(body),
    }
    head = struct.pack("<4sB3s16sQQI32sI", *(fields | changes).values())
    return head + body + blake3(head + body).digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"magic": b"HFXX"},
        {"reserved": b"\0\0\1"},
        {"number": 0},
        {"number": 1},
        {"first": 0},
        {"first": 1},
        {"count": 0},
        {"count": 2},
        {"count": JOURNAL_RECORDS_MAX + 1},
        {"previous": ZERO_HASH},
        {"length": 1},
        {"raw": []},
        {"raw": [encode_record(RECORDS[0])]},
        {"raw": [b"\xc0"]},
        {"raw": [msgspec.msgpack.encode(("commit", {}))]},
        {"raw": [msgspec.msgpack.encode(("pin", OF_SNAPSHOT | {"more": 1}))]},
        {"raw": [msgspec.msgpack.encode(("pin", OF_SNAPSHOT | {"domain": b"short"}))]},
        {"raw": [msgspec.msgpack.encode(("pin", OF_SNAPSHOT, 1))]},
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_although_its_hash_fits(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(InvalidInput):
        decode_journal(forged(**changes))


def test_a_forged_object_without_a_change_is_accepted() -> None:
    assert decode_journal(forged()) == SECOND


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"raw": [msgspec.msgpack.encode(("later", {"time_ns": 1}))]}],
    ids=["version", "type"],
)
def test_what_a_newer_version_wrote_is_called_so(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedVersion):
        decode_journal(forged(**changes))


def test_the_first_object_begins_with_the_store() -> None:
    for records in (FIRST.records[1:], [*FIRST.records, FIRST.records[0]]):
        with pytest.raises(InvalidInput):
            encode_journal(FIRST._replace(records=records))
    with pytest.raises(InvalidInput):
        encode_journal(FIRST._replace(store_id=noise("another", 16)))


def test_an_object_beyond_the_limit_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(TooLarge):
        decode_journal(bytes(JOURNAL_OBJECT_BYTES_MAX + 1))
