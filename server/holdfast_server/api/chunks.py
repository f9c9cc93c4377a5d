"""Sealed chunks on their way out, for agents with a grant and for people with a token."""

from __future__ import annotations

import struct
from collections import deque

from aiohttp import web

from holdfast_contract import limits
from holdfast_contract.errors import HoldfastError, InvalidInput
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol.http import DamageReport, Row
from holdfast_server.api.calls import Call, Person
from holdfast_server.repository.reading import Grant, Place

HASH_BYTES = 32
PIECE_BYTES = 4 * limits.MIB
"""About so much is read in one go of a worker thread: the longest chunk, or many small ones."""
WRITE_BYTES = 256 * limits.KIB
"""So much is encrypted and sent in one go, while it is in the core's cache."""
HEAD = struct.Struct("<32sBHII")
"""chunk id, status, length of the object's name, offset in it, length of the sealed chunk."""

_log = get_logger(__name__)


class DamageState(Row, kw_only=True):
    """What the server found when it read a copy again: `damaged`, or only `reported`."""

    state: str


def asked_ids(body: bytes, ids_max: int = limits.FETCH_IDS_MAX) -> list[bytes]:
    """Return the chunk ids of a request's body.

    Raises:
        InvalidInput: not whole ids, none, or more than `ids_max`.
    """
    count, rest = divmod(len(body), HASH_BYTES)
    if rest or not 1 <= count <= ids_max:
        raise InvalidInput(f"1 to {ids_max} chunk ids of {HASH_BYTES} bytes each are expected")
    return [body[at : at + HASH_BYTES] for at in range(0, len(body), HASH_BYTES)]


class Answer:
    """Heads and sealed chunks on their way out, a piece at a time."""

    def __init__(self, grant: Grant, ids: list[bytes]) -> None:
        self._grant = grant
        self._places = deque(grant.places(ids))
        self.bytes_left = sum(map(_bytes_of, self._places))
        """What is not in any piece yet."""
        self._memory = bytearray(min(self.bytes_left, PIECE_BYTES))

    def next(self) -> memoryview:
        """Return what is to be sent next, about PIECE_BYTES; empty at the end.

        It may lie in the memory of the piece before, where nobody holds on to that.

        Raises:
            NotFound, Damaged, StoreFailed: what was to be sent cannot be read.
        """
        places = [self._places.popleft()] if self._places else []
        length = sum(map(_bytes_of, places))
        while self._places and length + _bytes_of(self._places[0]) <= PIECE_BYTES:
            length += _bytes_of(self._places[0])
            places.append(self._places.popleft())
        if length > len(self._memory) or not _is_free(self._memory):
            self._memory = bytearray(max(length, min(self.bytes_left, PIECE_BYTES)))
        piece = memoryview(self._memory)[:length]
        self._grant.read(places, _with_heads(places, piece))
        self.bytes_left -= length
        return piece


def _bytes_of(place: Place) -> int:
    return HEAD.size + len(place.object) + place.length


def _is_free(memory: bytearray) -> bool:
    """Tell whether nobody holds a view of `memory`: such a one cannot change its length."""
    try:
        memory.append(0)
    except BufferError:
        return False
    memory.pop()
    return True


def _with_heads(places: list[Place], piece: memoryview) -> list[memoryview]:
    """Write every head into `piece`; return for each the room of the sealed chunk behind it."""
    rooms, at = [], 0
    for place in places:
        name = place.object.encode()
        HEAD.pack_into(
            piece, at, place.chunk_id, place.status, len(name), place.offset, place.length
        )
        at += HEAD.size + len(name)
        piece[at - len(name) : at] = name
        rooms.append(piece[at : at + place.length])
        at += place.length
    return rooms


async def stream_chunks(call: Call, grant: Grant) -> web.StreamResponse:
    """Send the asked chunks in order; a failure in the middle breaks the connection."""
    answer = await call.run(Answer, grant, asked_ids(call.body))
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    response.content_length = answer.bytes_left
    piece = await call.run(answer.next)
    await response.prepare(call.request)
    try:
        while piece:
            for at in range(0, len(piece), WRITE_BYTES):
                await response.write(piece[at : at + WRITE_BYTES])
            piece.release()
            piece = await call.run(answer.next)
        await response.write_eof()
    except HoldfastError as error:
        _log.warning("a stream of chunks broke", error=error)
        cut(call.request)
    except ConnectionError:
        cut(call.request)
    return response


def cut(request: web.Request) -> None:
    """Break the connection: whoever reads must not take what came for the whole answer."""
    if request.transport is not None:
        request.transport.abort()


async def report_damage(
    call: Call, domain: str, reporter: str, report: DamageReport
) -> DamageState:
    """Have the server read a copy again that could not be opened; say what it found."""
    state = await call.run(
        call.services.repository.report_damage,
        domain,
        reporter,
        chunk=bytes.fromhex(report.chunk),
        object_name=report.object,
        offset=report.offset,
        reason=report.reason,
        is_administrator=isinstance(call.caller, Person) and call.caller.role == "admin",
    )
    return DamageState(state=state)
