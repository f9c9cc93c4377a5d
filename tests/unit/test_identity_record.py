from __future__ import annotations

from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.identity import (
    IdentityBody,
    decode_identity_body,
    encode_identity,
    encode_identity_body,
    identity_hash,
    split_identity,
)
from tests.support.samples import IDENTITY_RECORD, identity_body, noise

BODY = encode_identity_body(identity_body())


def test_a_record_is_cut_where_it_was_joined() -> None:
    data = encode_identity(BODY, b"m" * 32)
    length = len(BODY).to_bytes(4, "little")
    assert data == b"HFID\x01\0\0\0" + length + BODY + b"m" * 32
    parts = split_identity(data)
    assert (parts.body, parts.mac) == (BODY, b"m" * 32)
    assert parts.signed_by_mac == b"holdfast/1/identity" + length + BODY
    assert decode_identity_body(parts.body) == identity_body()
    assert list(msgspec.msgpack.decode(BODY)) == list(IdentityBody.__struct_fields__)


def test_a_record_is_named_by_the_hash_of_all_its_bytes() -> None:
    assert identity_hash(IDENTITY_RECORD) == blake3(IDENTITY_RECORD).digest()


def test_an_accepted_history_names_two_heads() -> None:
    heads = (noise("server head"), noise("remembered head"))
    body = identity_body(heads=heads, reason="history accepted", previous=noise("before"))
    assert decode_identity_body(encode_identity_body(body)) == body


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": [noise("a")]},
        {"heads": [noise("a")] * 3},
        {"heads": [noise("a")] * 2},
        {"reason": "history accepted"},
        {"reason": "because"},
        {"sign_key": b"k" * 31},
        {"box_key": "k" * 32},
        {"client": "shop"},
        {"time_ns": -1},
        {"lineage": b""},
        {"unknown": 1},
    ],
)
def test_a_body_that_breaks_a_rule_is_refused(changes: dict[str, Any]) -> None:
    data = msgspec.msgpack.encode(msgspec.msgpack.decode(BODY) | changes)
    with pytest.raises(InvalidInput):
        decode_identity_body(data)


def test_a_key_that_stands_twice_is_refused() -> None:
    assert BODY[0] == 0x89
    at = BODY.index(b"\xa6client")
    with pytest.raises(InvalidInput, match="twice"):
        decode_identity_body(b"\x8a" + BODY[1:at] + BODY[1:])


def test_a_record_of_another_layout_is_refused() -> None:
    for length in range(len(IDENTITY_RECORD)):
        with pytest.raises(InvalidInput):
            split_identity(IDENTITY_RECORD[:length])
    with pytest.raises(InvalidInput):
        split_identity(IDENTITY_RECORD + b"\0")
    with pytest.raises(UnsupportedVersion):
        split_identity(IDENTITY_RECORD[:4] + b"\x02" + IDENTITY_RECORD[5:])
    with pytest.raises(InvalidInput):
        split_identity(b"HFDM" + IDENTITY_RECORD[4:])
    with pytest.raises(TooLarge):
        split_identity(bytes(16385))
