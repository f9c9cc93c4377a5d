"""How lists and maps are kept in one column: MessagePack, decoded to the type they went in as."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from holdfast_contract.errors import InternalError

_T = TypeVar("_T")


def _plain(value: Any) -> str:
    """Return a small type of text (a client's name) as text."""
    if isinstance(value, str):
        return str(value)
    raise InternalError(f"not for a column: {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


def pack(value: Any) -> bytes:
    """Return `value` as bytes for a column."""
    return _encoder.encode(value)


def unpack(kind: type[_T], data: bytes) -> _T:
    """Return what `pack` was given.

    Raises:
        InternalError: the column holds something else.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InternalError(f"the catalog holds something that cannot be read: {exc}") from exc
