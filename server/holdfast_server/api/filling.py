"""Large bodies that go straight into the memory that waits for them.

While such a body arrives another protocol stands in the place of the connection's own: what TLS
decrypts lands where it is to lie, and nobody wakes up for each piece. The framework's way costs
2.6 s of CPU a GB, this one 1.0. Then the connection gets its own protocol back, and zeros in place
of what it has not seen: they count as the body's bytes, and nobody reads them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from aiohttp import web

from holdfast_contract.limits import KIB
from holdfast_server.api.bodies import IDLE_SECONDS, check_length, pieces, translated_body

_ZEROS: Final = bytes(256 * KIB)
_LOOK_SECONDS: Final = 0.5
"""How often it is looked whether the framework has given the request up, as at the server's end."""


class Sink(Protocol):
    """Memory that waits for a body of known length."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; may refuse the body."""

    def room(self) -> memoryview:
        """Return what is not filled yet; whoever fills it from its start on tells `advance`."""

    def advance(self, count: int) -> None:
        """Take `count` bytes that stand in the room now; may refuse the body."""


async def fill(
    request: web.Request,
    sink: Sink,
    length: int,
    counted: Callable[[int], None],
    *,
    idle_seconds: float = IDLE_SECONDS,
) -> None:
    """Return when the body's `length` bytes are in `sink`; `counted` is told of every arrival.

    Raises:
        TooLarge: it says that it is longer.
        Unreachable: nothing arrived for `idle_seconds`, or the connection broke.
        Whatever the sink raises: the rest of the body is left to the framework.
    """
    check_length(request, length)
    if not hasattr(request.transport, "set_protocol"):
        # What only stands in for a connection hands out pieces.
        async for piece in pieces(request, length, counted, idle_seconds=idle_seconds):
            sink.write(piece)
        return
    async with translated_body():
        # Nothing is awaited between the last of what has come and the change of protocols.
        while piece := request.content.read_nowait():
            length -= len(piece)
            counted(len(piece))
            sink.write(piece)
        if length > 0:
            filling = _Filling(request, sink, counted)
            try:
                await filling.over(idle_seconds)
            finally:
                filling.hand_back()


class _Filling(asyncio.BufferedProtocol):
    """A connection's protocol as long as the rest of one body arrives."""

    def __init__(
        self,
        request: web.Request,
        sink: Sink,
        counted: Callable[[int], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._content = request.content
        self._connection = request.protocol
        self._sink = sink
        self._counted = counted
        self._room = sink.room()
        self._filled = 0
        self._arrived = self._now()
        self._is_over: asyncio.Future[None] = loop.create_future()
        self._failure: Exception | None = None
        if not self._room:
            # Its place was taken since the last write, and it says so.
            sink.advance(0)
        self._transport = cast("Any", request.transport)
        """None once the connection has its own protocol again, or is lost."""
        self._transport.set_protocol(self)

    async def over(self, idle_seconds: float) -> None:
        """Return when the room is full.

        Raises:
            TimeoutError: nothing arrived for so long.
            ConnectionError: the connection broke, or the server ends. Whatever the sink raised.
        """
        while not self._is_over.done():
            left = self._arrived + idle_seconds - self._now()
            if left <= 0:
                raise TimeoutError
            await asyncio.wait((self._is_over,), timeout=min(left, _LOOK_SECONDS))
            if self._content.exception() is not None:
                raise ConnectionResetError("the request was given up")
        if self._failure is not None:
            raise self._failure

    def hand_back(self) -> None:
        """Let the connection read for itself again; harmless when it does."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.set_protocol(self._connection)
        # asyncio's TLS remembers the last protocol with a buffer as long as the connection lasts.
        self._room = memoryview(b"")
        unseen = self._filled
        while unseen > 0:
            self._connection.data_received(_ZEROS[:unseen])
            self._content.read_nowait()
            unseen -= len(_ZEROS)

    def _end(self, failure: Exception | None) -> None:
        if not self._is_over.done():
            self._failure = failure
            self._is_over.set_result(None)

    # --- called by the event loop
    def get_buffer(self, sizehint: int) -> memoryview:
        """Return what is not filled; never more, so that the next request stays out of it."""
        del sizehint
        return self._room[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived; at the end, or when it is refused, hand the connection back."""
        self._filled += nbytes
        self._arrived = self._now()
        is_full = self._filled == len(self._room)
        try:
            self._counted(nbytes)
            self._sink.advance(nbytes)
        except Exception as exc:  # noqa: BLE001 - raised where the body is awaited
            self._end(exc)
        if is_full:
            self._end(None)
        if self._is_over.done():
            self.hand_back()

    def eof_received(self) -> bool | None:
        """Learn that nothing more comes."""
        self._end(ConnectionResetError("the body ended early"))
        self.hand_back()
        self._connection.eof_received()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that the connection is gone."""
        self._transport, self._room = None, memoryview(b"")
        self._end(exc or ConnectionResetError("the connection was closed"))
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on that the peer does not read."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that it does again."""
        self._connection.resume_writing()
