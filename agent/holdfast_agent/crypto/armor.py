"""Hex and base64 as people copy them: one canonical form, and errors that show nothing of it."""

from __future__ import annotations

import base64
import binascii

from holdfast_contract.errors import InvalidInput
from holdfast_contract.ids import DomainId


def parse_domain_id(text: str) -> DomainId:
    """Return the domain id of 32 lower-case hex digits.

    Raises:
        InvalidInput: it is none.
    """
    return DomainId(decode_hex(text, 16, "the domain id"))


def decode_hex(text: str, length: int, what: str) -> bytes:
    """Return `length` bytes from lower-case hex digits.

    Raises:
        InvalidInput: `what` is not that; the text, which may be secret, is not shown.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError as exc:
        raise InvalidInput(f"{what} is not hexadecimal") from exc
    if data.hex() != text or len(data) != length:
        raise InvalidInput(f"{what} is not {2 * length} lower-case hex digits")
    return data


def decode_base64(text: str, what: str) -> bytes:
    """Return the bytes of standard base64 with padding, in its one canonical form.

    Raises:
        InvalidInput: `what` is not that; the text, which may be secret, is not shown.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidInput(f"{what} is not base64") from exc
    if base64.b64encode(data).decode() != text:
        raise InvalidInput(f"{what} is not base64 in canonical form")
    return data
