"""The keys of one domain: the material as kept in a key file, and everything derived from it."""

from __future__ import annotations

import base64
import hmac
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast_agent.crypto.armor import decode_base64, parse_domain_id
from holdfast_contract.errors import InvalidInput, UnsupportedVersion
from holdfast_contract.format.chunk import ChunkType
from holdfast_contract.format.domain import DomainBody
from holdfast_contract.format.layout import Buffer
from holdfast_contract.ids import ChunkId, DomainId
from holdfast_contract.limits import EPOCHS_MAX

SECRET_BYTES: Final = 32
_CHECK_BYTES: Final = 8
_EPOCH = struct.Struct("<I32s")
_EPOCH_MAX: Final = (1 << 32) - 1
_ZEROS: Final = bytes(64 << 10)

KEY_FILE_MODE: Final = 0o600
_WORD: Final = "holdfast-key-1"
_HINT: Final = "a key file is one line: holdfast-key-1 DOMAIN_ID BASE64"


@dataclass(frozen=True, slots=True)
class KeyMaterial:
    """A domain's secrets; their only other form is a key file or a wrap."""

    domain_id: DomainId
    base_secret: bytes = field(repr=False)
    """32 random bytes."""
    epochs: tuple[tuple[int, bytes], ...] = field(repr=False)
    """(number from 1, 32 random bytes), ascending, 1 to 1,024 of them."""

    def __post_init__(self) -> None:
        """Hold the shape that the format demands.

        Raises:
            InvalidInput: a length, number or order is wrong.
        """
        numbers = [number for number, _ in self.epochs]
        secrets = (self.base_secret, *(secret for _, secret in self.epochs))
        if (
            len(self.domain_id) != 16
            or any(len(secret) != SECRET_BYTES for secret in secrets)
            or not 1 <= len(numbers) <= EPOCHS_MAX
            or numbers != sorted(set(numbers))
            or not 1 <= numbers[0] <= numbers[-1] <= _EPOCH_MAX
        ):
            raise InvalidInput("not the key material of a domain")

    @property
    def newest_epoch(self) -> int:
        """Number of the epoch that new chunks are sealed with."""
        return self.epochs[-1][0]


def new_key_material(random: Callable[[int], bytes] = os.urandom) -> KeyMaterial:
    """Return the material of a new domain, with epoch 1."""
    domain_id = DomainId(random(16))
    return KeyMaterial(domain_id, random(SECRET_BYTES), ((1, random(SECRET_BYTES)),))


def encode_key_material(material: KeyMaterial) -> bytes:
    """Return the key material bytes: secret, with a check against typing errors."""
    rows = (_EPOCH.pack(number, secret) for number, secret in material.epochs)
    count = struct.pack("<H", len(material.epochs))
    data = b"".join((material.base_secret, count, *rows))
    return data + _typing_check(material.domain_id, data)


def decode_key_material(domain_id: DomainId, data: bytes) -> KeyMaterial:
    """Return the material of `domain_id` that `data` holds.

    Raises:
        InvalidInput: torn, mistyped, or of another domain.
    """
    rows, check = data[SECRET_BYTES + 2 : -_CHECK_BYTES], data[-_CHECK_BYTES:]
    count = int.from_bytes(data[SECRET_BYTES : SECRET_BYTES + 2], "little")
    sound = (
        len(data) >= SECRET_BYTES + 2 + _EPOCH.size + _CHECK_BYTES
        and len(rows) == count * _EPOCH.size
        and hmac.compare_digest(check, _typing_check(domain_id, data[:-_CHECK_BYTES]))
    )
    if not sound:
        raise InvalidInput(
            "the key does not have its own check value",
            hint="it was torn or mistyped, or belongs to another domain",
        )
    return KeyMaterial(domain_id, data[:SECRET_BYTES], tuple(_EPOCH.iter_unpack(rows)))


def _typing_check(domain_id: DomainId, data: bytes) -> bytes:
    hasher = blake3(b"holdfast/1/key-material")
    return hasher.update(domain_id).update(data).digest(length=_CHECK_BYTES)


def format_key_file(material: KeyMaterial) -> str:
    """Return the key file's text, with its line end. It is a secret."""
    text = base64.b64encode(encode_key_material(material)).decode()
    return f"{_WORD} {material.domain_id.hex()} {text}\n"


def parse_key_file(text: str) -> KeyMaterial:
    """Return the key material that a key file's text holds.

    Raises:
        InvalidInput: not a key file, or mistyped. The message shows nothing of the key.
        UnsupportedVersion: a key file of another version.
    """
    words = text.strip("\n").split(" ")
    if words[0] != _WORD and words[0].startswith("holdfast-key-"):
        raise UnsupportedVersion("this version of key files is unknown")
    if len(words) != 3 or words[0] != _WORD or "\n" in text.strip("\n"):
        raise InvalidInput("not a key file", hint=_HINT)
    return decode_key_material(parse_domain_id(words[1]), decode_base64(words[2], "the key"))


class DomainKeys:
    """All keys that follow from a domain's material. Neither text nor pickle shows them."""

    __slots__ = (
        "cdc",
        "content",
        "data",
        "domain_id",
        "epoch_checks",
        "id",
        "key_check",
        "manifest",
        "name",
    )

    def __init__(self, material: KeyMaterial) -> None:
        self.domain_id: Final = material.domain_id

        def derive(secret: bytes, use: str, epoch: int | None = None) -> bytes:
            info = f"holdfast/1/{use}".encode()
            info += b"" if epoch is None else struct.pack("<I", epoch)
            hkdf = HKDF(SHA256(), SECRET_BYTES, salt=material.domain_id, info=info)
            return hkdf.derive(secret)

        base = material.base_secret
        self.id: Final = derive(base, "chunk-id")
        """Keys the ids of chunks."""
        self.content: Final = derive(base, "content-id")
        """Keys the content ids of small files."""
        self.cdc: Final = derive(base, "chunker")
        """Its first 8 bytes seed the chunker."""
        self.name: Final = derive(base, "name")
        """Keys hashes of names, paths and inodes."""
        self.manifest: Final = derive(base, "manifest")
        """Keys the MACs of manifests, identity and domain records."""
        self.key_check: Final = derive(base, "key-check")
        """Public: tells whether a base secret is the domain's."""
        self.data: Final[Mapping[int, bytes]] = MappingProxyType(
            {number: derive(secret, "data", number) for number, secret in material.epochs}
        )
        """Epoch -> key from which each sealing's own key is made."""
        self.epoch_checks: Final[Mapping[int, bytes]] = MappingProxyType(
            {number: derive(secret, "epoch-check", number) for number, secret in material.epochs}
        )
        """Public: epoch -> what tells whether a secret is that epoch's."""

    def __repr__(self) -> str:
        return f"DomainKeys({self.domain_id.hex()}, epochs up to {self.newest_epoch})"

    def __reduce__(self) -> str:
        raise TypeError("keys are not to be copied out of the process")

    @property
    def newest_epoch(self) -> int:
        """Number of the epoch that new chunks are sealed with."""
        return max(self.data)

    @property
    def chunker_seed(self) -> int:
        """Seed of chunker version 1: the first 8 bytes of `cdc` as u64, its highest bit cleared.

        pyfastcdc takes no more than 63 bits: it shifts the seed by one in a Python number.
        """
        return int.from_bytes(self.cdc[:8], "little") & (1 << 63) - 1

    def matches(self, record: DomainBody) -> bool:
        """Tell whether base secret and every shared epoch are those of the record's domain."""
        checks = {row.epoch: row.check for row in record.epoch_checks}
        return (
            record.domain == self.domain_id
            and hmac.compare_digest(record.key_check, self.key_check)
            and all(
                hmac.compare_digest(checks.get(epoch, check), check)
                for epoch, check in self.epoch_checks.items()
            )
        )


def chunk_id(keys: DomainKeys, kind: ChunkType, plaintext: Buffer) -> ChunkId:
    """Return the id of a chunk. Releases the GIL; 4.7 to 6 GB/s."""
    return ChunkId(blake3(bytes((kind,)), key=keys.id).update(plaintext).digest())


class ChunkHasher:
    """Makes the id of one chunk from its plaintext in pieces. `update` releases the GIL."""

    def __init__(self, keys: DomainKeys, kind: ChunkType) -> None:
        self._hasher = blake3(bytes((kind,)), key=keys.id)

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._hasher.update(data)

    def digest(self) -> ChunkId:
        """Return the id."""
        return ChunkId(self._hasher.digest())


class ContentHasher:
    """Makes the content id of one file from its logical bytes, in order."""

    def __init__(self, keys: DomainKeys) -> None:
        self._hasher = blake3(key=keys.content)

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        self._hasher.update(data)

    def hole(self, length: int) -> None:
        """Take the next `length` bytes, which are zeros."""
        for start in range(0, length, len(_ZEROS)):
            self._hasher.update(memoryview(_ZEROS)[: length - start])

    def digest(self) -> bytes:
        """Return the 32 bytes of the content id."""
        return self._hasher.digest()


class ContentKey:
    """The key of content ids alone: what a process gets that has nothing else to do with keys."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content: Final = content


def content_id(keys: DomainKeys | ContentKey, data: Buffer) -> bytes:
    """Return the content id of a file that is `data`."""
    return blake3(data, key=keys.content).digest()


def link_group(keys: DomainKeys, mount_point: bytes, inode: int) -> bytes:
    """Return the 16 bytes that all names of one file share: it is `inode` below `mount_point`."""
    hasher = blake3(struct.pack("<I", len(mount_point)), key=keys.name)
    return hasher.update(mount_point).update(struct.pack("<Q", inode)).digest(length=16)


def name_hash(keys: DomainKeys, data: Buffer) -> bytes:
    """Return 32 bytes that only the domain's keys make of a name or path: order without meaning."""
    return blake3(data, key=keys.name).digest()
