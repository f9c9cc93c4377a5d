from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from holdfast_agent.crypto.identity_keys import verify_signature
from holdfast_contract.errors import HoldfastError, InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.manifest import (
    ManifestBody,
    RootExtent,
    check_absolute_path,
    dataset_id,
    decode_manifest_body,
    encode_manifest,
    encode_manifest_body,
    manifest_mac_input,
    manifest_signature_input,
    snapshot_id,
    split_manifest,
)
from holdfast_contract.ids import ZERO_HASH
from tests.support.samples import IDENTITY, MANIFEST, manifest_body, noise

BODY = encode_manifest_body(manifest_body())


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the sample body with `change` made to its map, encoded without any check."""
    found = msgspec.msgpack.decode(BODY)
    change(found)
    return msgspec.msgpack.encode(found)


def test_a_body_comes_back_and_holds_exactly_the_named_keys() -> None:
    assert decode_manifest_body(BODY) == manifest_body()
    assert list(msgspec.msgpack.decode(BODY)) == list(ManifestBody.__struct_fields__)


def test_a_manifest_is_cut_where_it_was_joined() -> None:
    data = encode_manifest(BODY, b"m" * 32, b"s" * 64)
    parts = split_manifest(data)
    assert (parts.body, parts.mac, parts.signature) == (BODY, b"m" * 32, b"s" * 64)
    length = len(BODY).to_bytes(4, "little")
    assert parts.signed_by_mac == b"holdfast/1/manifest" + length + BODY
    assert parts.signed_by_key == (b"holdfast/1/manifest-signature" + length + BODY + b"m" * 32)
    assert parts.signed_by_mac == manifest_mac_input(BODY)
    assert parts.signed_by_key == manifest_signature_input(BODY, b"m" * 32)
    assert data == b"HFMF\x01\0\0\0" + length + BODY + b"m" * 32 + b"s" * 64


def test_a_keyless_reader_can_check_the_signature() -> None:
    parts = split_manifest(MANIFEST)
    assert verify_signature(IDENTITY.sign_public, parts.signed_by_key, parts.signature)


def test_the_snapshot_id_covers_body_mac_and_signature() -> None:
    assert snapshot_id(MANIFEST) == blake3(MANIFEST).digest()


@pytest.mark.parametrize("cut", [0, 4, 12, 107, 108, len(MANIFEST) - 1])
def test_a_manifest_of_another_length_is_refused(cut: int) -> None:
    with pytest.raises(InvalidInput):
        split_manifest(MANIFEST[:cut])
    with pytest.raises(InvalidInput):
        split_manifest(MANIFEST + bytes(1 + cut))


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (0, b"HFID", InvalidInput),
        (4, b"\x00", UnsupportedVersion),
        (4, b"\x02", UnsupportedVersion),
        (5, b"\x01", InvalidInput),
        (7, b"\x80", InvalidInput),
        (8, b"\xff\xff\xff\xff", InvalidInput),
    ],
)
def test_a_head_that_is_no_manifests_is_refused(
    at: int, value: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        split_manifest(MANIFEST[:at] + value + MANIFEST[at + len(value) :])


def test_a_manifest_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(TooLarge):
        split_manifest(bytes((4 << 20) + 1))
    with pytest.raises(TooLarge):
        encode_manifest(bytes(4 << 20), bytes(32), bytes(64))


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "key missing": lambda m: m.pop("agent_version"),
    "key unknown": lambda m: m.update(extra=1),
    "text where bytes belong": lambda m: m.update(domain="d" * 16),
    "bytes where text belongs": lambda m: m.update(client=b"shop/db-0"),
    "short domain": lambda m: m.update(domain=b"d" * 15),
    "long hash": lambda m: m.update(prev=b"p" * 33),
    "no client name": lambda m: m.update(client="shop"),
    "client of upper case": lambda m: m.update(client="shop/DB"),
    "seq 0": lambda m: m.update(seq=0, prev=ZERO_HASH),
    "first, with a predecessor": lambda m: m.update(seq=1),
    "second, without": lambda m: m.update(prev=ZERO_HASH),
    "known seq without its hash": lambda m: m.update(known_hash=ZERO_HASH),
    "known hash without its seq": lambda m: m.update(known_seq=0),
    "negative time": lambda m: m.update(started_ns=-1),
    "size beyond 63 bits": lambda m: m.update(bytes=1 << 63),
    "negative count": lambda m: m.update(files=-1),
    "float": lambda m: m.update(files=1.0),
    "bool for a number": lambda m: m.update(files=True),
    "relative path": lambda m: m.update(paths=[b"data"]),
    "no path": lambda m: m.update(paths=[]),
    "too many paths": lambda m: m.update(paths=[b"/a%d" % n for n in range(1025)]),
    "too many excludes": lambda m: m.update(excludes=["x"] * 1025),
    "too many tags": lambda m: m.update(tags=["x"] * 65),
    "empty tag": lambda m: m.update(tags=[""]),
    "long tag": lambda m: m.update(tags=["ß" * 65]),
    "too many report chunks": lambda m: m.update(report=[noise(f"{n}") for n in range(17)]),
    "short report id": lambda m: m.update(report=[b"r" * 31]),
    "epoch 0": lambda m: m.update(epoch_min=0),
    "epochs out of order": lambda m: m.update(epoch_min=3),
    "epoch beyond 32 bits": lambda m: m.update(epoch_new=1 << 32),
    "unknown result": lambda m: m.update(result="fine"),
    "unknown consistency": lambda m: m.update(consistency="snapshot"),
    "empty page": lambda m: m.update(tree=[[noise("t"), 0, 0]]),
    "page beyond its chunk": lambda m: m.update(tree=[[noise("t"), 1 << 20, 1]]),
    "page with a fourth field": lambda m: m.update(tree=[[noise("t"), 0, 1, 0]]),
    "page as a map": lambda m: m.update(tree=[{"chunk": noise("t"), "offset": 0, "length": 1}]),
    "fewer refs than named": lambda m: m.update(refs_count=1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_body_that_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        decode_manifest_body(edited(WRONG[name]))


def test_a_key_that_stands_twice_is_refused() -> None:
    first_key_end = BODY.index(b"\xa6client")
    doubled = b"\xde\0\x1d" + BODY[3:first_key_end] + BODY[3:]
    assert BODY[:3] == b"\xde\0\x1c"
    with pytest.raises(InvalidInput, match="twice"):
        decode_manifest_body(doubled)


def test_an_error_quotes_a_hostile_key_in_one_short_printable_line() -> None:
    key = "\x1b[2J\n\u202e" + "k" * 100_000
    with pytest.raises(InvalidInput) as caught:
        decode_manifest_body(edited(lambda body: body.update({key: 1})))
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def test_bytes_behind_the_body_are_refused() -> None:
    with pytest.raises(InvalidInput):
        decode_manifest_body(BODY + b"\xc0")


def test_a_body_cut_off_anywhere_is_refused() -> None:
    for length in range(len(BODY)):
        with pytest.raises(InvalidInput):
            decode_manifest_body(BODY[:length])


def test_the_first_snapshot_of_a_client_and_an_empty_one_are_bodies() -> None:
    body = manifest_body(
        seq=1,
        prev=ZERO_HASH,
        parent=ZERO_HASH,
        known_seq=0,
        known_hash=ZERO_HASH,
        tree=(),
        report=(),
        refs_count=0,
        paths=(b"/",),
    )
    assert decode_manifest_body(encode_manifest_body(body)) == body


def test_no_body_is_written_that_no_reader_would_take() -> None:
    for changes in ({"paths": (b"relative",)}, {"seq": 1}, {"bytes": -1}):
        with pytest.raises(HoldfastError):
            encode_manifest_body(manifest_body(**changes))


@pytest.mark.parametrize(
    "path", [b"/", b"/a", b"/a/b.c/...", b"/\xff", b"/a b\n", b"/" + b"x" * 255]
)
def test_paths_in_plain_form_are_taken(path: bytes) -> None:
    check_absolute_path(path)


@pytest.mark.parametrize(
    "path",
    [b"", b"a", b"//", b"/a/", b"/a//b", b"/.", b"/..", b"/a/../b", b"/a\0", b"/" + b"x" * 256],
)
def test_other_paths_are_refused(path: bytes) -> None:
    with pytest.raises(InvalidInput):
        check_absolute_path(path)


def test_the_dataset_depends_on_every_path_and_exclude_and_on_where_one_ends() -> None:
    base = dataset_id([b"/ab", b"/c"], ["x"])
    expected = blake3(b"\3\0\0\0/ab" + b"\2\0\0\0/c" + b"\1\0\0\0x").digest()[:16]
    assert base == expected
    others = [
        dataset_id([b"/c", b"/ab"], ["x"]),
        dataset_id([b"/a", b"/bc"], ["x"]),
        dataset_id([b"/ab", b"/c"], []),
        dataset_id([b"/ab/c"], ["x"]),
        dataset_id([b"/ab"], ["/c", "x"][:1]),
    ]
    assert base not in others


def test_a_page_extent_is_written_as_an_array() -> None:
    assert msgspec.msgpack.decode(BODY)["tree"] == [[noise("tree"), 100, 200]]
    assert manifest_body().tree == (RootExtent(noise("tree"), 100, 200),)
