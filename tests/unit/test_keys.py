from __future__ import annotations

import copy
import hmac
import pickle
import struct

import pytest
from blake3 import blake3

from holdfast_agent.crypto.keys import (
    ContentHasher,
    DomainKeys,
    KeyMaterial,
    chunk_id,
    content_id,
    decode_key_material,
    encode_key_material,
    format_key_file,
    link_group,
    name_hash,
    new_key_material,
    parse_key_file,
)
from holdfast_contract.errors import HoldfastError, InvalidInput, UnsupportedVersion
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import EpochCheck
from holdfast_contract.ids import DomainId
from tests.support.samples import (
    DOMAIN,
    KEYS,
    MATERIAL,
    OTHER_DOMAIN,
    OTHER_KEYS,
    domain_body,
    flips,
    noise,
)


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block, written out once more."""
    extracted = hmac.digest(DOMAIN, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_every_key_follows_from_the_material_as_the_format_says() -> None:
    base = MATERIAL.base_secret
    assert KEYS.id == hkdf(base, b"holdfast/1/chunk-id")
    assert KEYS.content == hkdf(base, b"holdfast/1/content-id")
    assert KEYS.cdc == hkdf(base, b"holdfast/1/chunker")
    assert KEYS.name == hkdf(base, b"holdfast/1/name")
    assert KEYS.manifest == hkdf(base, b"holdfast/1/manifest")
    assert KEYS.key_check == hkdf(base, b"holdfast/1/key-check")
    for epoch, secret in MATERIAL.epochs:
        number = struct.pack("<I", epoch)
        assert KEYS.data[epoch] == hkdf(secret, b"holdfast/1/data" + number)
        assert KEYS.epoch_checks[epoch] == hkdf(secret, b"holdfast/1/epoch-check" + number)
    assert KEYS.newest_epoch == 2
    assert KEYS.chunker_seed == int.from_bytes(KEYS.cdc[:8], "little") % (1 << 63)


def test_a_new_epoch_keeps_all_keys_but_the_data_key() -> None:
    more = KeyMaterial(DOMAIN, MATERIAL.base_secret, (*MATERIAL.epochs, (3, noise("epoch 3"))))
    keys = DomainKeys(more)
    for name in ("id", "content", "cdc", "name", "manifest", "key_check"):
        assert getattr(keys, name) == getattr(KEYS, name)
    assert keys.newest_epoch == 3
    assert len({*keys.data.values()}) == 3


def test_key_material_comes_back() -> None:
    data = encode_key_material(MATERIAL)
    assert len(data) == 32 + 2 + 2 * 36 + 8
    assert decode_key_material(DOMAIN, data) == MATERIAL


def test_every_flipped_bit_and_every_cut_of_key_material_is_refused() -> None:
    data = encode_key_material(MATERIAL)
    for _, changed in flips(data):
        with pytest.raises(InvalidInput):
            decode_key_material(DOMAIN, changed)
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            decode_key_material(DOMAIN, data[:length])
    with pytest.raises(InvalidInput):
        decode_key_material(DOMAIN, data + b"\0")
    with pytest.raises(InvalidInput):
        decode_key_material(OTHER_DOMAIN, data)


@pytest.mark.parametrize(
    "epochs",
    [
        (),
        ((0, noise("e")),),
        ((1 << 32, noise("e")),),
        ((2, noise("e")), (1, noise("f"))),
        ((1, noise("e")), (1, noise("f"))),
        ((1, b"short"),),
        tuple((n, noise("e")) for n in range(1, 1026)),
    ],
)
def test_material_of_another_shape_is_never_made(epochs: tuple[tuple[int, bytes], ...]) -> None:
    with pytest.raises(InvalidInput):
        KeyMaterial(DOMAIN, noise("base"), epochs)


def test_new_material_is_drawn_from_the_random_source_and_starts_with_epoch_1() -> None:
    drawn = iter([noise("a", 16), noise("b"), noise("c")])
    material = new_key_material(lambda length: next(drawn)[:length])
    assert material == KeyMaterial(DomainId(noise("a", 16)), noise("b"), ((1, noise("c")),))
    assert new_key_material() != new_key_material()


def test_a_key_file_comes_back() -> None:
    text = format_key_file(MATERIAL)
    assert text.startswith(f"holdfast-key-1 {DOMAIN.hex()} ")
    assert text.count("\n") == 1
    assert parse_key_file(text) == parse_key_file(text.rstrip("\n")) == MATERIAL


def test_every_mistyped_character_of_a_key_file_is_refused() -> None:
    text = format_key_file(MATERIAL).rstrip("\n")
    for at, right in enumerate(text):
        for wrong in {"a", "b", "A", "0", " ", "=", "é", ""} - {right}:
            with pytest.raises(HoldfastError) as caught:
                parse_key_file(text[:at] + wrong + text[at + 1 :])
            shown = f"{caught.value.message} {caught.value.hint} {caught.value.details}"
            assert text[-20:] not in shown
            assert MATERIAL.base_secret.hex() not in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "holdfast-key-1",
        "holdfast-key-1 x y z",
        format_key_file(MATERIAL) * 2,
        format_key_file(MATERIAL).upper(),
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_is_no_key_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_key_file(text)


def test_a_key_file_of_a_later_version_is_told_apart() -> None:
    with pytest.raises(UnsupportedVersion):
        parse_key_file(format_key_file(MATERIAL).replace("key-1", "key-2"))


def test_no_secret_is_ever_shown_or_pickled() -> None:
    secrets = [MATERIAL.base_secret, *(secret for _, secret in MATERIAL.epochs)]
    secrets += [KEYS.id, KEYS.content, KEYS.cdc, KEYS.name, KEYS.manifest, *KEYS.data.values()]
    for thing in (MATERIAL, KEYS):
        shown = f"{thing!r} {thing}"
        assert DOMAIN.hex()[:8] in shown or repr(DOMAIN) in shown
        for secret in secrets:
            assert secret.hex() not in shown
            assert repr(secret)[2:-1] not in shown
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copier(KEYS)


def test_keys_match_their_own_domain_record_only() -> None:
    assert KEYS.matches(domain_body())
    assert not OTHER_KEYS.matches(domain_body())
    assert not KEYS.matches(domain_body(domain=OTHER_DOMAIN))
    assert not KEYS.matches(domain_body(key_check=noise("another")))
    wrong = (EpochCheck(1, KEYS.epoch_checks[1]), EpochCheck(2, noise("another")))
    assert not KEYS.matches(domain_body(epoch_checks=wrong))


def test_keys_match_a_record_that_knows_more_or_fewer_epochs() -> None:
    more = (*domain_body().epoch_checks, EpochCheck(3, noise("newer")))
    assert KEYS.matches(domain_body(epoch_checks=more))
    assert KEYS.matches(domain_body(epoch_checks=more[:1]))


def test_ids_are_what_the_format_says() -> None:
    data = noise("data", 3000)
    for kind in ChunkType:
        expected = blake3(bytes([kind]) + data, key=KEYS.id).digest()
        assert chunk_id(KEYS, kind, data) == expected
        assert chunk_id(KEYS, kind, memoryview(bytearray(data))) == expected
    assert content_id(KEYS, data) == blake3(data, key=KEYS.content).digest()
    assert name_hash(KEYS, b"/a") == blake3(b"/a", key=KEYS.name).digest()
    group = struct.pack("<I", 5) + b"/data" + struct.pack("<Q", 77)
    assert link_group(KEYS, b"/data", 77) == blake3(group, key=KEYS.name).digest()[:16]


def test_the_same_bytes_have_another_id_in_another_type_or_domain() -> None:
    found = {chunk_id(keys, kind, b"x") for keys in (KEYS, OTHER_KEYS) for kind in ChunkType}
    assert len(found) == 6


@pytest.mark.parametrize("hole", [0, 1, 65535, 65536, 65537, 300_000])
def test_a_hole_counts_as_zeros_in_a_content_id(hole: int) -> None:
    hasher = ContentHasher(KEYS)
    hasher.update(b"before")
    hasher.hole(hole)
    hasher.update(memoryview(b"after"))
    assert hasher.digest() == content_id(KEYS, b"before" + bytes(hole) + b"after")


def test_material_is_immutable() -> None:
    with pytest.raises(AttributeError):
        MATERIAL.base_secret = b""  # type: ignore[misc]
    with pytest.raises(TypeError):
        KEYS.data[1] = b""  # type: ignore[index]
