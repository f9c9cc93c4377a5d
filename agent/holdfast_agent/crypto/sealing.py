"""Sealing and opening of chunks: the only place where backed-up data is encrypted or decrypted."""

from __future__ import annotations

import hmac
import os
import struct
import threading
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from holdfast_agent.crypto.keys import DomainKeys, chunk_id
from holdfast_agent.crypto.zstd import Compressor, Decompressor, ZstdFailed
from holdfast_contract.errors import (
    Damaged,
    HoldfastError,
    InvalidInput,
    TooLarge,
)
from holdfast_contract.format.chunk import (
    FLAG_ZSTD,
    HEADER_BYTES,
    INSIDE_HEAD_BYTES,
    SEALED_OVERHEAD,
    TAG_BYTES,
    ChunkHeader,
    ChunkType,
    padme,
    parse_chunk_header,
    sealed_bytes_of,
    storage_hash,
)
from holdfast_contract.format.layout import Buffer, Room
from holdfast_contract.ids import ChunkId
from holdfast_contract.limits import CHUNK_PLAIN_BYTES_MAX, PAGE_BYTES_MAX

_CONTEXT: Final = b"holdfast/1/chunk"
_SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)
"""Constant: every sealing has a key of its own, made from a fresh random salt."""
_INSIDE_HEAD = struct.Struct("<II")
_INSIDE_BYTES_MAX: Final = padme(INSIDE_HEAD_BYTES + CHUNK_PLAIN_BYTES_MAX)
PLAIN_BYTES_MAX: Final = {
    ChunkType.CONTENT: CHUNK_PLAIN_BYTES_MAX,
    ChunkType.TREE: PAGE_BYTES_MAX,
    ChunkType.REPORT: CHUNK_PLAIN_BYTES_MAX,
}
"""Longest plaintext of each type."""


class SealedChunk(NamedTuple):
    """A chunk ready for a pack."""

    chunk_id: ChunkId
    sealed: Buffer
    storage_hash: bytes
    epoch: int
    type: ChunkType
    plain_bytes: int


class _Scratch(threading.local):
    """Buffers of one thread: fresh megabytes for each chunk cost ten times as much ."""

    def __init__(self) -> None:
        self._inside = bytearray()
        self.compressors: dict[int, Compressor] = {}
        self.decompressor = Decompressor()

    def inside(self, length: int) -> memoryview:
        """Return `length` bytes that this thread may overwrite until it asks again."""
        if len(self._inside) < length:
            self._inside = bytearray(max(length, min(2 * length, _INSIDE_BYTES_MAX)))
        return memoryview(self._inside)[:length]

    def compressor(self, level: int) -> Compressor:
        """Return this thread's compressor of that level."""
        if level not in self.compressors:
            self.compressors[level] = Compressor(level)
        return self.compressors[level]


def _derive(data_key: bytes, epoch: int, of_chunk: ChunkId, salt: bytes) -> tuple[bytes, bytes]:
    """Return the key of one sealing and the commitment to it."""
    message = b"".join((_CONTEXT, struct.pack("<I", epoch), of_chunk, salt))
    both = hmac.digest(data_key, message, "sha512")
    return both[:32], both[32:]


class Sealer:
    """Compresses and encrypts chunks with a domain's newest epoch. Threads may share it."""

    def __init__(self, keys: DomainKeys, *, level: int = 1) -> None:
        self._keys = keys
        self._epoch = keys.newest_epoch
        self._data_key = keys.data[self._epoch]
        self._level = level
        self._scratch = _Scratch()

    @property
    def epoch(self) -> int:
        """Number of the epoch that this sealer uses."""
        return self._epoch

    def seal(
        self,
        kind: ChunkType,
        plaintext: Buffer,
        of_chunk: ChunkId | None = None,
        *,
        level: int | None = None,
        room: Room = bytearray,
    ) -> SealedChunk:
        """Return the sealed form of 1 byte to 4 MiB (tree: 1 MiB); `of_chunk` is its id if known.

        It lies in what `room` returns when it is asked, once, for so many bytes.

        What zstd does not make smaller is stored raw. The salt comes from the system and not
        from a parameter: a repeated salt with another level would repeat key and nonce.
        Cost: about 3 GB/s a core for incompressible data; the long steps release the GIL.

        Raises:
            InvalidInput: nothing to seal.
            TooLarge: longer than a chunk of this type may be.
        """
        plain_bytes = len(plaintext)
        if plain_bytes == 0:
            raise InvalidInput("chunk: empty")
        if plain_bytes > PLAIN_BYTES_MAX[kind]:
            raise TooLarge(f"chunk: {plain_bytes} bytes, at most {PLAIN_BYTES_MAX[kind]}")
        if of_chunk is None:
            of_chunk = chunk_id(self._keys, kind, plaintext)
        inside = self._scratch.inside(padme(INSIDE_HEAD_BYTES + plain_bytes))
        payload = inside[INSIDE_HEAD_BYTES : INSIDE_HEAD_BYTES + plain_bytes]
        compressor = self._scratch.compressor(self._level if level is None else level)
        # A frame as long as the plaintext gains nothing.
        payload_bytes = compressor.compress_into(plaintext, payload[:-1])
        flags = FLAG_ZSTD
        if not payload_bytes:
            flags, payload_bytes = 0, plain_bytes
            payload[:] = plaintext
        _INSIDE_HEAD.pack_into(inside, 0, plain_bytes, payload_bytes)
        sealed = room(sealed_bytes_of(payload_bytes))
        self._encrypt(kind, flags, of_chunk, inside, sealed, INSIDE_HEAD_BYTES + payload_bytes)
        return SealedChunk(of_chunk, sealed, storage_hash(sealed), self._epoch, kind, plain_bytes)

    def _encrypt(
        self,
        kind: ChunkType,
        flags: int,
        of_chunk: ChunkId,
        inside: memoryview,
        sealed: bytearray | memoryview,
        end: int,
    ) -> None:
        """Pad what stands in `inside` up to `end`, and seal it into `sealed`."""
        salt = os.urandom(_SALT_BYTES)
        key, com = _derive(self._data_key, self._epoch, of_chunk, salt)
        header = ChunkHeader(kind, flags, self._epoch, salt, com).encode()
        sealed[:HEADER_BYTES] = header
        inside = inside[: len(sealed) - SEALED_OVERHEAD]
        inside[end:] = bytes(len(inside) - end)
        bound = b"".join((header, self._keys.domain_id, of_chunk))
        AESGCM(key).encrypt_into(_NONCE, inside, bound, memoryview(sealed)[HEADER_BYTES:])


class Opener:
    """Opens chunks of one domain, of every epoch whose key is held. Threads may share it."""

    def __init__(self, keys: DomainKeys) -> None:
        self._keys = keys
        self._scratch = _Scratch()

    def open(self, kind: ChunkType, of_chunk: ChunkId, sealed: Buffer) -> bytes:
        """Return the plaintext of the chunk `of_chunk`, wholly verified; see `open_into`."""
        return bytes(self.open_into(kind, of_chunk, sealed, bytearray))

    def open_into(
        self, kind: ChunkType, of_chunk: ChunkId, sealed: Buffer, room: Room
    ) -> memoryview:
        """Return the plaintext of the chunk `of_chunk`, wholly verified.

        It lies in what `room` returns when it is asked, once, for as many bytes or a few more.
        Where this raises nothing that stands there is the chunk's.

        Raises:
            Damaged: anything else than that chunk; `details["object"]` is the id in hex,
                `details["reason"]` one word for what was wrong. An unknown version or epoch is
                damage too: no flipped bit may look like another kind of trouble.
        """
        try:
            return self._open(kind, of_chunk, sealed, room)
        except Damaged:
            raise
        except HoldfastError as exc:
            raise _damaged(of_chunk, "layout", exc.message) from exc

    def _open(self, kind: ChunkType, of_chunk: ChunkId, sealed: Buffer, room: Room) -> memoryview:
        header = parse_chunk_header(sealed)
        if header.type != kind:
            raise _damaged(of_chunk, "type", f"type {header.type} instead of {int(kind)}")
        is_raw = not header.flags & FLAG_ZSTD
        inside = self._decrypt(header, of_chunk, sealed, room if is_raw else self._scratch.inside)
        plain_bytes, payload_bytes = _INSIDE_HEAD.unpack_from(inside)
        end = INSIDE_HEAD_BYTES + payload_bytes
        if (
            end > len(inside)
            or padme(end) != len(inside)
            or bytes(inside[end:]) != bytes(len(inside) - end)
        ):
            raise _damaged(of_chunk, "padding", "the padding is wrong")
        if not 1 <= plain_bytes <= PLAIN_BYTES_MAX[kind]:
            raise _damaged(of_chunk, "length", f"{plain_bytes} bytes of plaintext")
        plaintext = inside[INSIDE_HEAD_BYTES:end]
        if not is_raw:
            plaintext = self._unpack(of_chunk, plaintext, plain_bytes, room)
        elif payload_bytes != plain_bytes:
            raise _damaged(of_chunk, "length", "raw payload of another length")
        if not hmac.compare_digest(chunk_id(self._keys, kind, plaintext), of_chunk):
            raise _damaged(of_chunk, "id", "the plaintext has another id")
        return plaintext

    def _decrypt(
        self, header: ChunkHeader, of_chunk: ChunkId, sealed: Buffer, room: Room
    ) -> memoryview:
        data_key = self._keys.data.get(header.epoch)
        if data_key is None:
            raise _damaged(of_chunk, "epoch", f"no key of epoch {header.epoch} is held")
        key, com = _derive(data_key, header.epoch, of_chunk, header.salt)
        if not hmac.compare_digest(com, header.com):
            raise _damaged(of_chunk, "commitment", "sealed with another key or for another id")
        view = memoryview(sealed)
        inside = memoryview(room(len(view) - SEALED_OVERHEAD))
        bound = b"".join((view[:HEADER_BYTES], self._keys.domain_id, of_chunk))
        try:
            AESGCM(key).decrypt_into(_NONCE, view[HEADER_BYTES:], bound, inside)
        except InvalidTag as exc:
            raise _damaged(of_chunk, "tag", "the authentication tag does not fit") from exc
        return inside

    def _unpack(
        self, of_chunk: ChunkId, payload: memoryview, plain_bytes: int, room: Room
    ) -> memoryview:
        plaintext = memoryview(room(plain_bytes))
        try:
            self._scratch.decompressor.decompress_into(payload, plaintext)
        except ZstdFailed as exc:
            raise _damaged(of_chunk, "zstd", str(exc)) from exc
        return plaintext


def _damaged(of_chunk: ChunkId, reason: str, message: str) -> Damaged:
    name = of_chunk.hex()
    return Damaged(f"chunk {name}: {message}", object=name, reason=reason)


assert HEADER_BYTES + TAG_BYTES == SEALED_OVERHEAD
