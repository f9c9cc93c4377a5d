"""Ed25519: does a signature over exactly these bytes stem from the holder of a key?"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from holdfast_contract.errors import InvalidInput

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_FIELD = (1 << 255) - 19
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER_Y = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y, _FIELD, _FIELD + 1})
"""y of the points of order 1, 2, 4 and 8, also written without reduction (RFC 7748, section 7)."""


def check_public_key(public_key: bytes) -> bytes:
    """Return `public_key` if it can be one: 32 bytes, and no point of low order.

    Under a key of low order one signature fits many messages, so it would prove nothing.

    Raises:
        InvalidInput: it can not.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise InvalidInput(f"a public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    if y in _LOW_ORDER_Y:
        raise InvalidInput("the public key is a point of low order")
    return public_key


def verify_signature(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether `signature` (64 bytes) over `message` is that of `public_key` (32 bytes).

    Raises:
        InvalidInput: `public_key` can be nobody's key; see `check_public_key`.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(check_public_key(public_key))
    except ValueError as exc:
        raise InvalidInput("not a public key") from exc
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
