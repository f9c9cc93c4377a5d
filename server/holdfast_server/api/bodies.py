"""Bodies of requests: bounded before anything is read, and given up when nothing arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import ClientPayloadError, web

from holdfast_contract.errors import TooLarge, Unreachable, UsageError

IDLE_SECONDS = 60.0
"""Longest silence inside a body: a throttled agent sends something every second."""
SMALL_BODY_SECONDS = 60.0
"""Longest time that a whole small body may take, however steadily it drips."""


def declared_length(request: web.Request) -> int:
    """Return the body's length.

    Raises:
        UsageError: the request does not tell it.
    """
    if request.content_length is None:
        raise UsageError("this route needs a Content-Length")
    return request.content_length


def check_length(request: web.Request, bytes_max: int) -> None:
    """Refuse a body that says it is too long, before a byte of it is read.

    Raises:
        TooLarge: it is longer than `bytes_max`.
    """
    if (request.content_length or 0) > bytes_max:
        raise TooLarge(f"a body of {request.content_length} bytes; at most {bytes_max}")


@asynccontextmanager
async def translated_body() -> AsyncIterator[None]:
    """Turn what can happen to a body on its way into our errors."""
    try:
        yield
    except TimeoutError as exc:
        raise Unreachable("the body of the request does not arrive") from exc
    except (ConnectionError, ClientPayloadError) as exc:
        raise Unreachable("the connection broke inside the body of the request") from exc


def nothing(count: int) -> None:
    """Count nothing."""


async def read_body(
    request: web.Request,
    bytes_max: int,
    seconds: float = SMALL_BODY_SECONDS,
    *,
    arrived: Callable[[int], None] = nothing,
) -> bytes:
    """Return the whole body; `arrived` is told of every piece, and may raise.

    Raises:
        TooLarge: it is longer than `bytes_max`.
        Unreachable: it did not arrive within `seconds`.
    """
    check_length(request, bytes_max)
    parts: list[bytes] = []
    length = 0
    async with translated_body(), asyncio.timeout(seconds):
        while piece := await request.content.readany():
            length += len(piece)
            if length > bytes_max:
                raise TooLarge(f"the body is longer than {bytes_max} bytes")
            arrived(len(piece))
            parts.append(piece)
    return b"".join(parts)


async def pieces(
    request: web.Request,
    bytes_max: int,
    counted: Callable[[int], None],
    *,
    idle_seconds: float = IDLE_SECONDS,
) -> AsyncIterator[bytes]:
    """Yield the body as it arrives, a TLS record or some of them at a time.

    `counted` is told of every arrival.

    Raises:
        TooLarge: it is longer than `bytes_max`.
        Unreachable: nothing arrived for `idle_seconds`, or the connection broke.
    """
    check_length(request, bytes_max)
    now = asyncio.get_running_loop().time
    total = 0
    # One timer for the whole body: a new one for each piece costs as much as decrypting it.
    async with translated_body(), asyncio.timeout(None) as silence:
        while True:
            silence.reschedule(now() + idle_seconds)
            piece = await request.content.readany()
            silence.reschedule(None)
            if not piece:
                return
            total += len(piece)
            if total > bytes_max:
                raise TooLarge(f"the body is longer than {bytes_max} bytes")
            counted(len(piece))
            yield piece
