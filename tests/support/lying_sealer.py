"""What somebody with the domain's key may seal: any payload, saying any length."""

from __future__ import annotations

import struct

from holdfast_agent.crypto.keys import DomainKeys
from holdfast_agent.crypto.sealing import Sealer
from holdfast_contract.format.chunk import SEALED_OVERHEAD, ChunkType, padme
from holdfast_contract.ids import ChunkId


def seal_saying(
    keys: DomainKeys,
    kind: ChunkType,
    of_chunk: bytes,
    payload: bytes,
    *,
    plain_bytes: int,
    is_zstd: bool,
) -> bytes:
    """Return `payload` sealed as `of_chunk`, of which it says that it has `plain_bytes`."""
    inside = struct.pack("<II", plain_bytes, len(payload)) + payload
    room = bytearray(padme(len(inside)))
    room[: len(inside)] = inside
    sealed = bytearray(SEALED_OVERHEAD + len(room))
    of, flags = ChunkId(of_chunk), int(is_zstd)
    Sealer(keys)._encrypt(kind, flags, of, memoryview(room), sealed, len(inside))
    return bytes(sealed)
