"""The byte layouts of docs/format.md, written from that page alone.

No line is shared with the product or with docs/format_reader.py, which is tested against this.
"""

from __future__ import annotations

import base64
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CONTENT, TREE, REPORT = 1, 2, 3
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK = 1, 2, 3, 4, 5, 6, 7
ZERO = bytes(32)


def padme(length: int) -> int:
    """Return the padded length of `length` bytes."""
    exponent = length.bit_length() - 1
    step = 1 << (exponent - (exponent.bit_length() - 1 + 1))
    return (length + step - 1) // step * step


@dataclass
class Keyring:
    """A domain's key material."""

    domain: bytes
    base: bytes
    epochs: dict[int, bytes]

    @classmethod
    def of(cls, seed: bytes, *epochs: int) -> Keyring:
        """Return key material that follows from a seed."""

        def take(use: bytes, size: int) -> bytes:
            return blake3(seed + use).digest(size)

        secrets = {number: take(b"epoch%d" % number, 32) for number in epochs or (1,)}
        return cls(take(b"domain", 16), take(b"base", 32), secrets)

    def hkdf(self, secret: bytes, info: bytes) -> bytes:
        """Return HKDF(secret, info) as on the format page."""
        hkdf = HKDF(algorithm=SHA256(), length=32, salt=self.domain, info=b"holdfast/1/" + info)
        return hkdf.derive(secret)

    def use(self, name: str) -> bytes:
        """Return one of the keys that follow from the base secret."""
        return self.hkdf(self.base, name.encode())

    def line(self) -> str:
        """Return the text of the key file."""
        material = self.base + struct.pack("<H", len(self.epochs))
        for number, secret in sorted(self.epochs.items()):
            material += struct.pack("<I", number) + secret
        material += blake3(b"holdfast/1/key-material" + self.domain + material).digest()[:8]
        return f"holdfast-key-1 {self.domain.hex()} {base64.b64encode(material).decode()}\n"


def seal(
    keys: Keyring,
    kind: int,
    plaintext: bytes,
    salt: bytes,
    *,
    epoch: int = 1,
    chunk_id: bytes | None = None,
    packed: bool = True,
    inside: bytes | None = None,
    payload: bytes | None = None,
    head: bytes | None = None,
    com: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Return (chunk id, sealed chunk); the later parameters forge one that must not open."""
    real_id = blake3(bytes([kind]) + plaintext, key=keys.use("chunk-id")).digest()
    chunk_id = chunk_id or real_id
    if payload is None:
        payload = zstandard.ZstdCompressor(level=1).compress(plaintext) if packed else plaintext
    if inside is None:
        inside = struct.pack("<II", len(plaintext), len(payload)) + payload
        inside = inside.ljust(padme(len(inside)), b"\0")
    secret = keys.hkdf(keys.epochs[epoch], b"data" + struct.pack("<I", epoch))
    context = b"holdfast/1/chunk" + struct.pack("<I", epoch) + chunk_id + salt
    derived = hmac.digest(secret, context, "sha512")
    header = head or b"HFCK" + bytes([1, 1, kind, int(packed)])
    header += struct.pack("<I", epoch) + salt + (com or derived[32:])
    associated = header + keys.domain + chunk_id
    return chunk_id, header + AESGCM(derived[:32]).encrypt(bytes(12), inside, associated)


def pack_of(keys: Keyring, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a pack of (chunk id, sealed chunk)."""
    header = b"HFPK\x01\x00\x00\x00" + keys.domain
    body, entries, count = header, b"", 0
    for chunk_id, sealed in chunks:
        frame = b"HFFR" + struct.pack("<I", len(sealed)) + chunk_id
        body += frame + blake3(frame).digest()[:8]
        entries += chunk_id + blake3(sealed).digest()
        entries += (
            struct.pack("<II", len(body), len(sealed)) + sealed[8:12] + sealed[6:7] + b"\0\0\0"
        )
        body += sealed
        count += 1
    footer = b"HFFT" + struct.pack("<I", count) + entries
    return (
        body + footer + blake3(header + footer).digest() + struct.pack("<I", len(footer)) + b"HFPE"
    )


def refs_of(keys: Keyring, ids: set[bytes], base: tuple[str, set[bytes]] | None = None) -> bytes:
    """Return a refs object: a full list, or a difference to `base` (its ULID and its list)."""
    before = base[1] if base else set()
    added, removed = sorted(ids - before), sorted(before - ids)
    data = b"HFRF\x01" + bytes([2 if base else 1, 0, 0]) + keys.domain + set_hash(ids)
    data += struct.pack("<Q", len(ids)) + (base[0].encode() if base else bytes(26)) + bytes(6)
    data += (set_hash(before) if base else ZERO) + struct.pack("<QQ", len(added), len(removed))
    data += b"".join(added) + b"".join(removed)
    return data + blake3(data).digest()


def set_hash(ids: set[bytes]) -> bytes:
    """Return refs_set of a list of ids."""
    return blake3(b"".join(sorted(ids))).digest()


def page_of(stats: list[Any], ids: list[bytes], owners: list[Any], contents: list[Any]) -> bytes:
    """Return a page of already encoded entries."""
    stat_part = msgspec.msgpack.encode(stats)
    content_part = msgspec.msgpack.encode([owners, contents])
    lengths = struct.pack("<III", len(stat_part), len(ids), len(content_part))
    return b"HFPG\x01\0\0\0" + lengths + stat_part + b"".join(ids) + content_part


def block_of(kind: int, body: bytes) -> bytes:
    """Return a block."""
    return b"HFBK" + bytes([1, kind, 0, 0]) + struct.pack("<I", len(body)) + body
