"""The sealed chunk as everybody sees it who has no key: header, lengths, storage hash."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from blake3 import blake3

from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion
from holdfast_contract.format.layout import VERSION, Buffer, check_version, require
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, SEALED_BYTES_MAX

MAGIC: Final = b"HFCK"
SUITE: Final = 1
"""HMAC-SHA-512 derives key and commitment, AES-256-GCM seals."""
FLAG_ZSTD: Final = 1
"""The payload is one zstd frame."""

_HEADER = struct.Struct("<4sBBBBI16s32s")
HEADER_BYTES: Final = _HEADER.size
TAG_BYTES: Final = 16
SEALED_OVERHEAD: Final = HEADER_BYTES + TAG_BYTES
"""Bytes of a sealed chunk around its padded inside."""
INSIDE_HEAD_BYTES: Final = 8
"""plain_len u32 and payload_len u32, before the payload."""


class ChunkType(IntEnum):
    """What a chunk's plaintext is; part of its id and of what its AEAD binds."""

    CONTENT = 1
    TREE = 2
    REPORT = 3


_TYPES = frozenset(ChunkType)


class ChunkHeader(NamedTuple):
    """The clear first 60 bytes of a sealed chunk."""

    type: int
    flags: int
    epoch: int
    salt: bytes
    com: bytes
    version: int = VERSION
    suite: int = SUITE

    def encode(self) -> bytes:
        """Return the 60 bytes."""
        return _HEADER.pack(
            MAGIC,
            self.version,
            self.suite,
            self.type,
            self.flags,
            self.epoch,
            self.salt,
            self.com,
        )


def padme(length: int) -> int:
    """Return `length` rounded up as Padme does: at most 12 % more, few distinct sizes.

    Source: Nikitin et al., Reducing Metadata Leakage from Encrypted Files (PETS 2019).
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << max(low_bits, 0)) - 1
    return length + mask & ~mask


SEALED_BYTES_MIN: Final = SEALED_OVERHEAD + padme(INSIDE_HEAD_BYTES + 1)


def sealed_bytes_of(payload_bytes: int) -> int:
    """Return the length of the sealed chunk that carries a payload (raw or zstd) of that length."""
    return SEALED_OVERHEAD + padme(INSIDE_HEAD_BYTES + payload_bytes)


assert sealed_bytes_of(CHUNK_PLAIN_BYTES_MAX) <= SEALED_BYTES_MAX


def storage_hash(sealed: Buffer) -> bytes:
    """Return BLAKE3 of a sealed chunk: what the keyless server checks. Releases the GIL."""
    return blake3(sealed).digest()


def parse_chunk_header(sealed: Buffer) -> ChunkHeader:
    """Return the header of a whole sealed chunk, after every check that needs no key.

    Raises:
        TooLarge: the sealed chunk is longer than any may be.
        InvalidInput: too short, a length that no padding makes, wrong magic, epoch 0.
        UnsupportedVersion: version, suite, type or flag is unknown.
    """
    size = len(sealed)
    if size > SEALED_BYTES_MAX:
        raise TooLarge(f"sealed chunk: {size} bytes, at most {SEALED_BYTES_MAX}")
    require(size >= SEALED_BYTES_MIN, "sealed chunk: too short")
    magic, version, suite, kind, flags, epoch, salt, com = _HEADER.unpack_from(sealed)
    require(magic == MAGIC, "sealed chunk: wrong magic")
    check_version(version, "sealed chunk")
    if suite != SUITE:
        raise UnsupportedVersion(f"sealed chunk: suite {suite} is unknown")
    if kind not in _TYPES:
        raise UnsupportedVersion(f"sealed chunk: type {kind} is unknown")
    if flags & ~FLAG_ZSTD:
        raise UnsupportedVersion(f"sealed chunk: flags {flags:#x} are unknown")
    if epoch == 0:
        raise InvalidInput("sealed chunk: epoch 0")
    require(padme(size - SEALED_OVERHEAD) == size - SEALED_OVERHEAD, "sealed chunk: not padded")
    return ChunkHeader(kind, flags, epoch, salt, com)
