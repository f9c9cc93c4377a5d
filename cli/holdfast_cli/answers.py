"""Streamed answers: rows of JSON with a mark at their end, or a file's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec

from holdfast_cli.api import Api
from holdfast_contract.errors import InvalidInput, error_from
from holdfast_contract.protocol.http import QueryCreate

LINE_BYTES_MAX = 1 << 20
COPY_BYTES = 1 << 18
_END = {"type": "end"}


def asked_rows(api: Api, query: QueryCreate) -> Iterator[dict[str, Any]]:
    """Yield the rows that a connected agent answers.

    Raises:
        HoldfastError: nobody may show it, or the answer broke.
    """
    return parsed(_lines(api, query))


def asked_bytes(api: Api, query: QueryCreate) -> Iterator[bytes]:
    """Yield the bytes that a connected agent answers."""
    with api.ask(query) as stream:
        while piece := stream.read(COPY_BYTES):
            yield piece


class _Named(msgspec.Struct):
    """What is needed of a row where only names are shown."""

    type: str = ""
    path: str = ""
    path_b64: str | None = None
    code: str | None = None


def asked_names(api: Api, query: QueryCreate) -> Iterator[tuple[str, str | None]]:
    """Yield path, and its bytes in base64 where they are not UTF-8, of the rows of an answer.

    Cost: half of `asked_rows`.

    Raises:
        HoldfastError: nobody may show it, or the answer broke.
    """
    decode = msgspec.json.Decoder(_Named).decode
    lines = _lines(api, query)
    line = b""
    for line in lines:
        try:
            row = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            break
        if row.type == "end" or row.code is not None:
            break
        yield row.path, row.path_b64
    # The end, an error, or no row at all: `parsed` tells them apart.
    for rest in parsed(chain((line,), lines)):
        yield str(rest.get("path", "")), rest.get("path_b64")


def _lines(api: Api, query: QueryCreate) -> Iterator[bytes]:
    """Yield the lines of an answer; one beyond the limit comes in parts, which are no rows."""
    rest = b""
    with api.ask(query) as stream:
        while piece := stream.read_some(COPY_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
            if len(rest) > LINE_BYTES_MAX:
                yield rest
                rest = b""
    yield rest


def parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield rows up to the end mark; a piece may be several whole lines.

    Raises:
        HoldfastError: the answer broke in the middle, or ends without its mark.
    """
    torn: InvalidInput | None = None
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for line in filter(bytes.strip, chain.from_iterable(piece.split(b"\n") for piece in lines)):
        try:
            row = decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            # Where an answer broke inside a row, the next line says why.
            torn = InvalidInput("the answer is malformed", hint=str(exc))
            continue
        if row.get("type") == "error" and "code" in row:
            # Whatever stands there: it comes from a pod, through a server.
            code, message, hint = (str(row.get(name, "")) for name in ("code", "message", "hint"))
            raise error_from(code, message or "the answer broke", hint=hint)
        if torn is not None:
            raise torn
        if row == _END:
            return
        yield row
    raise torn or InvalidInput("the answer is not complete")
