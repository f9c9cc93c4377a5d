from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.domain import (
    DomainBody,
    decode_domain_body,
    domain_hash,
    encode_domain,
    encode_domain_body,
    split_domain,
)
from tests.support.samples import DOMAIN_RECORD, domain_body, noise

BODY = encode_domain_body(domain_body())


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    found = msgspec.msgpack.decode(BODY)
    change(found)
    return msgspec.msgpack.encode(found)


def test_a_record_is_cut_where_it_was_joined() -> None:
    data = encode_domain(BODY, b"m" * 32)
    length = len(BODY).to_bytes(4, "little")
    assert data == b"HFDM\x01\0\0\0" + length + BODY + b"m" * 32
    parts = split_domain(data)
    assert (parts.body, parts.mac) == (BODY, b"m" * 32)
    assert parts.signed_by_mac == b"holdfast/1/domain" + length + BODY
    assert decode_domain_body(parts.body) == domain_body()
    assert domain_hash(DOMAIN_RECORD) == blake3(DOMAIN_RECORD).digest()


def test_the_body_is_written_as_the_format_names_it() -> None:
    found = msgspec.msgpack.decode(BODY)
    assert list(found) == list(DomainBody.__struct_fields__)
    assert found["chunker"] == {"version": 1, "min": 1 << 18, "avg": 1 << 20, "max": 1 << 22}
    assert [row[0] for row in found["epoch_checks"]] == [1, 2]
    assert list(found["wraps"][0]) == ["recipient", "suite", "epoch", "sealed"]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "key missing": lambda m: m.pop("wraps"),
    "key unknown": lambda m: m.update(more=1),
    "name": lambda m: m.update(name="Shop"),
    "revision 0": lambda m: m.update(revision=0),
    "chunker key missing": lambda m: m["chunker"].pop("avg"),
    "chunker key unknown": lambda m: m["chunker"].update(seed=1),
    "chunker out of order": lambda m: m["chunker"].update(min=1 << 21),
    "chunker beyond a chunk": lambda m: m["chunker"].update(max=(4 << 20) + 1),
    "chunker of another version": lambda m: m["chunker"].update(version=2),
    "small file beyond a chunk": lambda m: m.update(small_file_bytes_max=(4 << 20) + 1),
    "number for a bool": lambda m: m.update(share_references=1),
    "no epoch": lambda m: m.update(epoch_checks=[]),
    "epochs out of order": lambda m: m["epoch_checks"].reverse(),
    "epoch twice": lambda m: m["epoch_checks"].append(m["epoch_checks"][1]),
    "too many epochs": lambda m: m.update(epoch_checks=[[n, noise("e")] for n in range(1, 1026)]),
    "short check": lambda m: m["epoch_checks"][0].__setitem__(1, b"c"),
    "wrap suite": lambda m: m["wraps"][0].update(suite=2),
    "wrap recipient": lambda m: m["wraps"][0].update(recipient=b"r"),
    "wrap key unknown": lambda m: m["wraps"][0].update(more=1),
    "wrap key missing": lambda m: m["wraps"][0].pop("epoch"),
    "wrap epoch 0": lambda m: m["wraps"][0].update(epoch=0),
    "wrap epoch beyond u32": lambda m: m["wraps"][0].update(epoch=1 << 32),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_body_that_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises(HoldfastError) as caught:
        decode_domain_body(edited(WRONG[name]))
    assert isinstance(caught.value, InvalidInput | UnsupportedVersion)


@pytest.mark.parametrize("key", [b"\xa7version", b"\xa9recipient", b"\xa6domain"])
def test_a_key_that_stands_twice_is_refused_in_inner_maps_too(key: bytes) -> None:
    at = BODY.index(key)
    value_end = {b"\xa7version": 9, b"\xa9recipient": 10 + 34, b"\xa6domain": 7 + 18}[key]
    item = BODY[at : at + value_end]
    doubled = BODY[: at - 1] + bytes((BODY[at - 1] + 1,)) + item + BODY[at:]
    with pytest.raises(InvalidInput, match="twice"):
        decode_domain_body(doubled)


def test_a_domain_without_recovery_has_no_wraps() -> None:
    body = domain_body(wraps=())
    assert decode_domain_body(encode_domain_body(body)) == body


def test_a_record_of_another_layout_is_refused() -> None:
    for length in range(len(DOMAIN_RECORD)):
        with pytest.raises(InvalidInput):
            split_domain(DOMAIN_RECORD[:length])
    with pytest.raises(InvalidInput):
        split_domain(DOMAIN_RECORD + b"\0")
    with pytest.raises(InvalidInput):
        split_domain(b"HFID" + DOMAIN_RECORD[4:])
    with pytest.raises(TooLarge):
        split_domain(bytes((1 << 20) + 1))
