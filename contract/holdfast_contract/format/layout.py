"""How the signed and authenticated records are laid out: head, body, tail; and strict MessagePack.

Manifest, identity record and domain record share one layout: magic, version, three reserved
bytes, the body's length, the body (one MessagePack map), a tail of fixed length (MAC, signature).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput, TooLarge, UnsupportedVersion

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are only read."""
Room: TypeAlias = Callable[[int], bytearray | memoryview]
"""Returns memory for so many bytes."""
ReadAt: TypeAlias = Callable[[int, int], bytes]
"""(offset, length) -> exactly that many bytes of one object; fewer mean that it ends there."""

VERSION: Final = 1
COUNT_MAX: Final = limits.COUNT_MAX
"""Largest count, size or time: what every database and language keeps exactly."""

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Number = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Epoch = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]

_HEAD = struct.Struct("<4sB3sI")
HEAD_BYTES: Final = _HEAD.size


class Record(NamedTuple):
    """A record taken apart: `body` as received, `tail` the MAC, or MAC and signature."""

    body: bytes
    tail: bytes


def require(fact: bool, what: str) -> None:
    """Raise InvalidInput(`what`) unless `fact`."""
    if not fact:
        raise InvalidInput(what)


def check_version(version: int, what: str) -> None:
    """Refuse every version but the one that this program knows.

    Raises:
        UnsupportedVersion: it is another.
    """
    if version != VERSION:
        raise UnsupportedVersion(
            f"{what}: version {version} is unknown", hint="a newer Holdfast may have written it"
        )


def encode_record(magic: bytes, body: bytes, tail: bytes) -> bytes:
    """Return the stored form of a record."""
    assert len(magic) == 4
    return b"".join((_HEAD.pack(magic, VERSION, bytes(3), len(body)), body, tail))


def split_record(
    data: Buffer, *, magic: bytes, tail_bytes: int, bytes_max: int, what: str
) -> Record:
    """Take a stored record apart without believing anything of its body.

    Raises:
        TooLarge: it is longer than `bytes_max`.
        InvalidInput: the layout is not that of a record with this magic and tail.
        UnsupportedVersion: the version is unknown.
    """
    if len(data) > bytes_max:
        raise TooLarge(f"{what}: {len(data)} bytes, at most {bytes_max}")
    require(len(data) >= HEAD_BYTES + tail_bytes, f"{what}: too short")
    found, version, reserved, length = _HEAD.unpack_from(data)
    require(found == magic, f"{what}: wrong magic")
    check_version(version, what)
    require(reserved == bytes(3), f"{what}: reserved bytes are not zero")
    end = HEAD_BYTES + length
    require(len(data) == end + tail_bytes, f"{what}: the lengths do not add up")
    return Record(bytes(data[HEAD_BYTES:end]), bytes(data[end:]))


def mac_input(context: str, body: Buffer, *more: Buffer) -> bytes:
    """Return `context || length of body u32 || body || more`: what MACs and signatures cover."""
    return b"".join((context.encode(), struct.pack("<I", len(body)), body, *more))


class StrictDecoder:
    """MessagePack to one type: every failure is InvalidInput, a doubled key of a map included.

    A map's fields have no defaults but msgspec.UNSET, for a key that may be absent. Only the
    outermost map is checked for doubled keys: inner ones go through a decoder of their own.
    """

    def __init__(self, shape: Any, what: str) -> None:
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(shape)
        is_map = isinstance(shape, type) and issubclass(shape, msgspec.Struct)
        is_map = is_map and not shape.__struct_config__.array_like
        self._fields = shape.__struct_fields__ if is_map else None
        self._what = what
        if is_map:
            assert all(default is msgspec.UNSET for default in shape.__struct_defaults__)

    def decode(self, data: Buffer) -> Any:
        """Return the one value that `data` is.

        Raises:
            InvalidInput: malformed, another shape, bytes behind it, or a key that stands twice.
        """
        try:
            value = self._decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            # msgspec quotes unknown keys as they came: newlines, escape sequences, megabytes.
            raise InvalidInput(f"{self._what}: {ascii(str(exc))[1:-1][:200]}") from exc
        if self._fields is not None:
            # No key is unknown and none needed is missing: a doubled one shows in the number.
            keys = sum(getattr(value, field) is not msgspec.UNSET for field in self._fields)
            require(_map_length(data) == keys, f"{self._what}: a key stands twice")
        return value


def _map_length(data: Buffer) -> int:
    view = memoryview(data)
    first = view[0]
    if first & 0xF0 == 0x80:
        return first & 0x0F
    width = 2 if first == 0xDE else 4
    return int.from_bytes(view[1 : 1 + width], "big")
