"""Ed25519 in the server: exact bytes, exact key, and no key under which everything is signed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from holdfast_contract.errors import InvalidInput
from holdfast_server.auth.signatures import check_public_key, verify_signature

# RFC 8032, 7.1, test 2
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
MESSAGE = b"\x72"
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
IDENTITY = bytes([1]) + bytes(31)


def test_the_published_vector_is_right() -> None:
    assert verify_signature(PUBLIC, SIGNATURE, MESSAGE)


@pytest.mark.parametrize("bit", range(0, 512, 7))
def test_every_bit_of_the_signature_counts(bit: int) -> None:
    bad = bytearray(SIGNATURE)
    bad[bit // 8] ^= 1 << bit % 8
    assert not verify_signature(PUBLIC, bytes(bad), MESSAGE)


def test_another_message_or_key_is_not_signed() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    assert not verify_signature(PUBLIC, SIGNATURE, MESSAGE + b"\0")
    assert not verify_signature(PUBLIC, SIGNATURE, b"")
    assert not verify_signature(other, SIGNATURE, MESSAGE)


@pytest.mark.parametrize("signature", [b"", SIGNATURE[:-1], SIGNATURE + b"\0", bytes(64)])
def test_a_signature_of_another_form_is_simply_wrong(signature: bytes) -> None:
    assert not verify_signature(PUBLIC, signature, MESSAGE)


@pytest.mark.parametrize("key", [b"", PUBLIC[:-1], PUBLIC + b"\0", PUBLIC.hex().encode()])
def test_a_key_of_another_length_is_invalid_input(key: bytes) -> None:
    with pytest.raises(InvalidInput):
        verify_signature(key, SIGNATURE, MESSAGE)


def test_a_key_of_low_order_signs_everything_and_is_refused() -> None:
    forged = IDENTITY + bytes(32)
    for message in (b"one", b"two"):
        Ed25519PublicKey.from_public_bytes(IDENTITY).verify(forged, message)  # the danger
        with pytest.raises(InvalidInput):
            verify_signature(IDENTITY, forged, message)


def test_all_points_of_low_order_are_refused_in_every_spelling() -> None:
    found = set()
    for point in low_order_points():
        for y in {point[1], point[1] + FIELD}:
            for sign in (0, 1):
                if y < 1 << 255:
                    found.add((y | sign << 255).to_bytes(32, "little"))
    assert len({key[:31] for key in found}) >= 5
    for key in found:
        with pytest.raises(InvalidInput):
            check_public_key(key)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=50))
def test_what_a_key_signs_is_verified(seed: bytes, message: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    assert verify_signature(public, key.sign(message), message)


@given(st.binary(min_size=32, max_size=32))
def test_no_32_bytes_make_it_fail_otherwise(key: bytes) -> None:
    try:
        assert not verify_signature(key, SIGNATURE, b"x")
    except InvalidInput:
        assert key != PUBLIC


# --- the curve, written out: an independent source for the points of low order

FIELD = 2**255 - 19
CURVE_D = -121665 * pow(121666, -1, FIELD) % FIELD
Point = tuple[int, int]


def add(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = CURVE_D * x1 * x2 * y1 * y2 % FIELD
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, FIELD) % FIELD
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, FIELD) % FIELD
    return x, y


def times(factor: int, point: Point) -> Point:
    result = (0, 1)
    while factor:
        if factor & 1:
            result = add(result, point)
        point, factor = add(point, point), factor >> 1
    return result


def point_at(y: int) -> Point | None:
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if x * x % FIELD != square:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    return (x, y) if x * x % FIELD == square else None


def low_order_points() -> set[Point]:
    order = 2**252 + 27742317777372353535851937790883648493
    found: set[Point] = set()
    for y in range(2, 60):
        point = point_at(y)
        if point is not None:
            found.add(times(order, point))
    assert len(found) <= 8
    return found | {(0, 1)}
