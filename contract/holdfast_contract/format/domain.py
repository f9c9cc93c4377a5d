"""The domain record: a domain's settings, its key check and its wrapped keys."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

import msgspec
from blake3 import blake3

from holdfast_contract.errors import TooLarge, UnsupportedVersion
from holdfast_contract.format.layout import (
    Buffer,
    Bytes16,
    Bytes32,
    Count,
    Epoch,
    Number,
    StrictDecoder,
    encode_record,
    mac_input,
    require,
    split_record,
)
from holdfast_contract.ids import check_domain_name
from holdfast_contract.limits import (
    CHUNK_PLAIN_BYTES_MAX,
    DOMAIN_BYTES_MAX,
    EPOCHS_MAX,
    KIB,
    MIB,
    SMALL_FILE_BYTES_MAX,
)

MAGIC: Final = b"HFDM"
MAC_BYTES: Final = 32
CHUNKER_VERSION: Final = 1
WRAP_SUITE: Final = 1
_WHAT: Final = "domain record"

PlainBytes = Annotated[int, msgspec.Meta(ge=1, le=CHUNK_PLAIN_BYTES_MAX)]


class ChunkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where content is cut: sizes of a chunk's plaintext in bytes."""

    version: int
    bytes_min: PlainBytes = msgspec.field(name="min")
    bytes_average: PlainBytes = msgspec.field(name="avg")
    bytes_max: PlainBytes = msgspec.field(name="max")


class Wrap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key material sealed to one recipient."""

    recipient: Bytes32
    """X25519 public key."""
    suite: int
    epoch: Epoch
    """The newest epoch of the key material inside; the seal is bound to it."""
    sealed: bytes
    """Encapsulated key and ciphertext."""


class EpochCheck(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a holder of an epoch's secret can compare."""

    epoch: Epoch
    check: Bytes32


class DomainBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a domain record says; the meaning of each key stands in docs/format.md."""

    domain: Bytes16
    name: str
    revision: Number
    created_ns: Count
    chunker: ChunkerSettings
    small_file_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=CHUNK_PLAIN_BYTES_MAX)]
    share_references: bool
    key_check: Bytes32
    epoch_checks: tuple[EpochCheck, ...]
    wraps: tuple[Wrap, ...]


class DomainParts(NamedTuple):
    """A domain record cut at its fixed places; nothing of the body is believed yet."""

    body: Buffer
    mac: Buffer
    signed_by_mac: Buffer


class _RawMaps(msgspec.Struct, frozen=True):
    """The maps inside the body once more, undecoded."""

    chunker: msgspec.Raw
    wraps: tuple[msgspec.Raw, ...]


CHUNKER_DEFAULT: Final = ChunkerSettings(
    version=CHUNKER_VERSION, bytes_min=256 * KIB, bytes_average=MIB, bytes_max=4 * MIB
)
"""Chunks of about 1 MiB: a worker thread never gets less work, and 10 GiB are 10,000 ids."""
SMALL_FILE_BYTES_DEFAULT: Final = SMALL_FILE_BYTES_MAX

_DECODER = StrictDecoder(DomainBody, _WHAT)
_RAW_DECODER = msgspec.msgpack.Decoder(_RawMaps)
_CHUNKER_DECODER = StrictDecoder(ChunkerSettings, _WHAT)
_WRAP_DECODER = StrictDecoder(Wrap, _WHAT)
_ENCODER = msgspec.msgpack.Encoder()


def encode_domain_body(body: DomainBody) -> bytes:
    """Return the body's bytes, as the MAC will cover them.

    Raises:
        InvalidInput, UnsupportedVersion: no reader would accept this body.
    """
    data = _ENCODER.encode(body)
    decode_domain_body(data)
    return data


def domain_mac_input(body: Buffer) -> bytes:
    """Return what the MAC covers."""
    return mac_input("holdfast/1/domain", body)


def encode_domain(body: Buffer, mac: Buffer) -> bytes:
    """Return the stored record.

    Raises:
        TooLarge: it is longer than any may be.
    """
    assert len(mac) == MAC_BYTES
    data = encode_record(MAGIC, bytes(body), bytes(mac))
    if len(data) > DOMAIN_BYTES_MAX:
        raise TooLarge(f"{_WHAT}: {len(data)} bytes, at most {DOMAIN_BYTES_MAX}")
    return data


def split_domain(data: Buffer) -> DomainParts:
    """Cut a stored domain record.

    Raises:
        TooLarge, InvalidInput, UnsupportedVersion: it is not laid out as one.
    """
    body, mac = split_record(
        data, magic=MAGIC, tail_bytes=MAC_BYTES, bytes_max=DOMAIN_BYTES_MAX, what=_WHAT
    )
    return DomainParts(body, mac, domain_mac_input(body))


def decode_domain_body(body: Buffer) -> DomainBody:
    """Return what a body says; a reader with the key checks its MAC first.

    Raises:
        InvalidInput: not a body, or its fields contradict each other.
        UnsupportedVersion: the chunker's version or a wrap's suite is unknown.
    """
    found: DomainBody = _DECODER.decode(body)
    maps = _RAW_DECODER.decode(body)
    _check_chunker(_CHUNKER_DECODER.decode(maps.chunker))
    for raw in maps.wraps:
        wrap = _WRAP_DECODER.decode(raw)
        if wrap.suite != WRAP_SUITE:
            raise UnsupportedVersion(f"{_WHAT}: suite {wrap.suite} of a wrap is unknown")
    check_domain_name(found.name)
    numbers = [check.epoch for check in found.epoch_checks]
    require(1 <= len(numbers) <= EPOCHS_MAX, f"{_WHAT}: number of epochs")
    require(numbers == sorted(set(numbers)), f"{_WHAT}: epochs are not ascending")
    return found


def _check_chunker(settings: ChunkerSettings) -> None:
    if settings.version != CHUNKER_VERSION:
        raise UnsupportedVersion(f"{_WHAT}: chunker version {settings.version} is unknown")
    require(
        settings.bytes_min <= settings.bytes_average <= settings.bytes_max,
        f"{_WHAT}: the chunker's sizes are out of order",
    )


def domain_hash(data: Buffer) -> bytes:
    """Return BLAKE3 of the whole stored record."""
    return blake3(data).digest()
