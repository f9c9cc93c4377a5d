"""Sealed chunks on their way out, for agents with a grant and for people with a token."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from aiohttp import web

from holdfast_contract import limits
from holdfast_contract.errors import HoldfastError, InvalidInput
from holdfast_contract.logs import get_logger
from holdfast_contract.protocol.http import DamageReport, Row
from holdfast_server.api.calls import Call, Person
from holdfast_server.repository.reading import FetchedChunk, Grant

HASH_BYTES = 32
BATCH_BYTES = limits.MIB
"""About so much is read in one go of a worker thread: a few chunks, or many small ones."""
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


def encode_chunk(chunk: FetchedChunk) -> list[bytes | memoryview]:
    """Return one chunk as it goes over the wire."""
    name = chunk.object.encode()
    head = HEAD.pack(chunk.chunk_id, chunk.status, len(name), chunk.offset, len(chunk.data))
    return [head, name, chunk.data]


def next_batch(chunks: Iterator[FetchedChunk]) -> bytes:
    """Return what is to be sent next, about BATCH_BYTES; empty at the end."""
    parts: list[bytes | memoryview] = []
    size = 0
    for chunk in chunks:
        parts += encode_chunk(chunk)
        size += HEAD.size + len(chunk.data)
        if size >= BATCH_BYTES:
            break
    return b"".join(parts)


async def stream_chunks(call: Call, grant: Grant) -> web.StreamResponse:
    """Send the asked chunks in order; a failure in the middle breaks the connection."""
    chunks = iter(await call.run(grant.fetch, asked_ids(call.body)))
    batch = await call.run(next_batch, chunks)
    response = web.StreamResponse()
    response.content_type = "application/octet-stream"
    await response.prepare(call.request)
    try:
        while batch:
            await response.write(batch)
            batch = await call.run(next_batch, chunks)
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
