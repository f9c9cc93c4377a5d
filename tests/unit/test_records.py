from __future__ import annotations

import hmac
from collections.abc import Callable

import pytest

from holdfast_agent.crypto.keys import DomainKeys, KeyMaterial
from holdfast_agent.crypto.records import (
    open_domain,
    open_identity,
    open_manifest,
    open_signed_manifest,
    seal_domain,
    seal_identity,
    sign_manifest,
)
from holdfast_contract.errors import Damaged, HoldfastError, InvalidInput, WrongKey
from holdfast_contract.format.identity import identity_hash
from holdfast_contract.format.manifest import (
    encode_manifest,
    encode_manifest_body,
    manifest_mac_input,
    manifest_signature_input,
    split_manifest,
)
from tests.support.samples import (
    DOMAIN,
    DOMAIN_RECORD,
    IDENTITY,
    IDENTITY_RECORD,
    KEYS,
    MANIFEST,
    MATERIAL,
    OTHER_DOMAIN,
    OTHER_KEYS,
    SIBLING,
    domain_body,
    flips,
    identity_body,
    manifest_body,
    noise,
)

SIGN_PUBLIC = IDENTITY.sign_public


def manifest(data: bytes) -> object:
    return open_manifest(data, KEYS, SIGN_PUBLIC)


def identity(data: bytes) -> object:
    return open_identity(data, KEYS)


def domain(data: bytes) -> object:
    return open_domain(data, KEYS)


RECORDS: list[tuple[bytes, Callable[[bytes], object], object]] = [
    (MANIFEST, manifest, manifest_body()),
    (IDENTITY_RECORD, identity, identity_body()),
    (DOMAIN_RECORD, domain, domain_body()),
]
NAMES = ["manifest", "identity", "domain"]


@pytest.mark.parametrize(("data", "read", "body"), RECORDS, ids=NAMES)
def test_a_record_says_what_was_sealed(
    data: bytes, read: Callable[[bytes], object], body: object
) -> None:
    assert read(data) == body


@pytest.mark.parametrize(("data", "read", "body"), RECORDS, ids=NAMES)
def test_every_flipped_bit_of_a_record_is_refused(
    data: bytes, read: Callable[[bytes], object], body: object
) -> None:
    for bit, changed in flips(data):
        with pytest.raises((Damaged, WrongKey)):
            read(changed)
            pytest.fail(f"bit {bit % 8} of byte {bit // 8}: {body}")


@pytest.mark.parametrize(("data", "read", "body"), RECORDS, ids=NAMES)
def test_a_record_cut_off_or_prolonged_anywhere_is_damage(
    data: bytes, read: Callable[[bytes], object], body: object
) -> None:
    for length in range(len(data)):
        with pytest.raises(Damaged):
            read(data[:length])
            pytest.fail(f"{length} bytes: {body}")
    with pytest.raises(Damaged):
        read(data + b"\0")


def test_only_a_flip_in_the_domain_id_may_look_like_a_wrong_key() -> None:
    at = MANIFEST.index(DOMAIN)
    for bit, changed in flips(MANIFEST):
        expected = WrongKey if at <= bit // 8 < at + 16 else Damaged
        with pytest.raises(expected):
            manifest(changed)


@pytest.mark.parametrize(("data", "read", "body"), RECORDS, ids=NAMES)
def test_the_keys_of_another_domain_are_told_to_be_wrong(
    data: bytes, read: Callable[[bytes], object], body: object
) -> None:
    assert read(data) == body
    with pytest.raises(WrongKey):
        open_manifest(MANIFEST, OTHER_KEYS, SIGN_PUBLIC)
    with pytest.raises(WrongKey):
        open_identity(IDENTITY_RECORD, OTHER_KEYS)
    with pytest.raises(WrongKey):
        open_domain(DOMAIN_RECORD, OTHER_KEYS)


def test_records_do_not_stand_for_each_other() -> None:
    for data, _, _ in RECORDS:
        for other, read, _ in RECORDS:
            if data is not other:
                with pytest.raises(Damaged):
                    read(data)
                with pytest.raises(Damaged):
                    read(other[:8] + data[8:])


def test_a_sibling_with_the_domains_key_cannot_sign_for_another_client() -> None:
    forged = sign_manifest(manifest_body(), KEYS, SIBLING)
    with pytest.raises(Damaged) as caught:
        manifest(forged)
    assert caught.value.details["reason"] == "signature"


def test_a_server_with_an_identity_key_of_its_own_lacks_the_mac() -> None:
    """The server could enrol a key; without the domain's key no MAC fits."""
    body = encode_manifest_body(manifest_body())
    mac = noise("guessed mac")
    forged = encode_manifest(body, mac, SIBLING.sign(manifest_signature_input(body, mac)))
    with pytest.raises(Damaged) as caught:
        open_manifest(forged, KEYS, SIBLING.sign_public)
    assert caught.value.details["reason"] == "mac"


def test_mac_and_signature_of_another_manifest_do_not_fit() -> None:
    other = sign_manifest(manifest_body(seq=8), KEYS, IDENTITY)
    assert len(other) == len(MANIFEST)
    for mixed in (
        MANIFEST[:-96] + other[-96:],
        MANIFEST[:-64] + other[-64:],
        MANIFEST[:-96] + other[-96:-64] + MANIFEST[-64:],
    ):
        with pytest.raises(Damaged):
            manifest(mixed)


def test_the_body_is_not_believed_before_mac_and_signature() -> None:
    parts = split_manifest(MANIFEST)
    nonsense = b"\xc1" * 50
    forged = encode_manifest(nonsense, parts.mac, parts.signature)
    with pytest.raises(Damaged) as caught:
        manifest(forged)
    assert caught.value.details["reason"] == "mac"


def test_a_body_of_another_domain_under_this_domains_mac_is_damage() -> None:
    """A sibling could write it; the keys of the other domain would not."""
    body = encode_manifest_body(manifest_body(domain=OTHER_DOMAIN))
    honest = sign_manifest(manifest_body(), KEYS, IDENTITY)
    assert manifest(honest)
    forged = _signed_as_is(body)
    with pytest.raises(Damaged) as caught:
        manifest(forged)
    assert caught.value.details["reason"] == "domain"
    with pytest.raises(WrongKey):
        sign_manifest(manifest_body(domain=OTHER_DOMAIN), KEYS, IDENTITY)


def test_a_sound_mac_over_a_body_that_breaks_a_rule_is_damage() -> None:
    for body in (b"", b"\x80", encode_manifest_body(manifest_body()) + b"\0"):
        with pytest.raises(Damaged) as caught:
            manifest(_signed_as_is(body))
        assert caught.value.details["reason"] == "layout"


def _signed_as_is(body: bytes) -> bytes:
    mac = hmac.digest(KEYS.manifest, manifest_mac_input(body), "sha256")
    return encode_manifest(body, mac, IDENTITY.sign(manifest_signature_input(body, mac)))


def test_a_snapshot_newer_than_the_keys_asks_for_the_newest_key_file() -> None:
    old = DomainKeys(KeyMaterial(DOMAIN, MATERIAL.base_secret, MATERIAL.epochs[:1]))
    with pytest.raises(WrongKey, match="epoch 2"):
        open_manifest(MANIFEST, old, SIGN_PUBLIC)
    older = sign_manifest(manifest_body(epoch_new=1), KEYS, IDENTITY)
    assert open_manifest(older, old, SIGN_PUBLIC).epoch_new == 1


def test_a_manifest_and_the_record_it_names_are_believed_together() -> None:
    found = open_signed_manifest(MANIFEST, IDENTITY_RECORD, KEYS)
    assert (found.body, found.identity) == (manifest_body(), identity_body())


@pytest.mark.parametrize(
    "changes",
    [
        {"client": "shop/db-1"},
        {"lineage": noise("another", 16)},
        {"time_ns": 5},
        {"sign_key": SIBLING.sign_public},
    ],
)
def test_a_manifest_under_another_identity_record_is_damage(changes: dict[str, object]) -> None:
    record = seal_identity(identity_body(**changes), KEYS)
    with pytest.raises(Damaged):
        open_signed_manifest(MANIFEST, record, KEYS)


def test_a_siblings_manifest_cannot_name_another_clients_record() -> None:
    """The sibling signs with its own key and names its own record, but another client."""
    record = seal_identity(identity_body(client="shop/db-1", sign_key=SIBLING.sign_public), KEYS)
    body = manifest_body(identity=identity_hash(record), client="shop/db-0")
    with pytest.raises(Damaged) as caught:
        open_signed_manifest(sign_manifest(body, KEYS, SIBLING), record, KEYS)
    assert caught.value.details["reason"] == "identity"


def test_a_domain_record_with_other_check_values_is_not_sealed() -> None:
    with pytest.raises(WrongKey):
        seal_domain(domain_body(key_check=noise("x")), KEYS)
    with pytest.raises(WrongKey):
        seal_identity(identity_body(domain=OTHER_DOMAIN), KEYS)


def test_no_record_is_sealed_that_no_reader_would_take() -> None:
    with pytest.raises(InvalidInput):
        sign_manifest(manifest_body(client="nobody"), KEYS, IDENTITY)
    with pytest.raises(InvalidInput):
        seal_identity(identity_body(client="nobody"), KEYS)
    with pytest.raises(HoldfastError):
        seal_domain(domain_body(name="No"), KEYS)
