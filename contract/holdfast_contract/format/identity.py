"""The identity record: which keys a client signs with, since when and why."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import msgspec
from blake3 import blake3

from holdfast_contract.errors import TooLarge
from holdfast_contract.format.layout import (
    Buffer,
    Bytes16,
    Bytes32,
    Count,
    StrictDecoder,
    encode_record,
    mac_input,
    require,
    split_record,
)
from holdfast_contract.ids import ClientName
from holdfast_contract.limits import IDENTITY_BYTES_MAX

MAGIC: Final = b"HFID"
MAC_BYTES: Final = 32
_WHAT: Final = "identity record"

Reason = Literal["enrolled", "key lost", "key corrected", "history accepted"]


class IdentityBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an identity record says; the meaning of each key stands in docs/format.md."""

    domain: Bytes16
    client: str
    lineage: Bytes16
    heads: tuple[Bytes32, ...]
    sign_key: Bytes32
    box_key: Bytes32
    previous: Bytes32
    reason: Reason
    time_ns: Count


class IdentityParts(NamedTuple):
    """An identity record cut at its fixed places; nothing of the body is believed yet."""

    body: Buffer
    mac: Buffer
    signed_by_mac: Buffer


_DECODER = StrictDecoder(IdentityBody, _WHAT)
_ENCODER = msgspec.msgpack.Encoder()


def encode_identity_body(body: IdentityBody) -> bytes:
    """Return the body's bytes, as the MAC will cover them.

    Raises:
        InvalidInput: no reader would accept this body.
    """
    data = _ENCODER.encode(body)
    decode_identity_body(data)
    return data


def identity_mac_input(body: Buffer) -> bytes:
    """Return what the MAC covers."""
    return mac_input("holdfast/1/identity", body)


def encode_identity(body: Buffer, mac: Buffer) -> bytes:
    """Return the stored record.

    Raises:
        TooLarge: it is longer than any may be.
    """
    assert len(mac) == MAC_BYTES
    data = encode_record(MAGIC, bytes(body), bytes(mac))
    if len(data) > IDENTITY_BYTES_MAX:
        raise TooLarge(f"{_WHAT}: {len(data)} bytes, at most {IDENTITY_BYTES_MAX}")
    return data


def split_identity(data: Buffer) -> IdentityParts:
    """Cut a stored identity record.

    Raises:
        TooLarge, InvalidInput, UnsupportedVersion: it is not laid out as one.
    """
    body, mac = split_record(
        data, magic=MAGIC, tail_bytes=MAC_BYTES, bytes_max=IDENTITY_BYTES_MAX, what=_WHAT
    )
    return IdentityParts(body, mac, identity_mac_input(body))


def decode_identity_body(body: Buffer) -> IdentityBody:
    """Return what a body says; a reader with the key checks its MAC first.

    Raises:
        InvalidInput: not a body, or its fields contradict each other.
    """
    found: IdentityBody = _DECODER.decode(body)
    ClientName.parse(found.client)
    require(len(found.heads) in (0, 2), f"{_WHAT}: neither no heads nor two")
    require(
        bool(found.heads) == (found.reason == "history accepted"),
        f"{_WHAT}: heads and reason disagree",
    )
    return found


def identity_hash(data: Buffer) -> bytes:
    """Return the 32 bytes by which manifests and later records name the whole stored record."""
    return blake3(data).digest()
