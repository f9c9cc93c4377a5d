"""What a backup sends: packs while they stream, refs, manifest, and the commit."""

from __future__ import annotations

import asyncio
import tempfile
from typing import BinaryIO, cast

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput, NotFound, TooLarge
from holdfast_contract.ids import is_ulid
from holdfast_contract.protocol.http import (
    CommitAnswer,
    CommitRequest,
    MissingAnswer,
    NamesAnswer,
    SessionAnswer,
)
from holdfast_server.api.bodies import declared_length, pieces
from holdfast_server.api.calls import Call
from holdfast_server.api.filling import fill
from holdfast_server.stores.failures import translated

HASH_BYTES = 32
SPOOL_MEMORY_BYTES = 4 * limits.MIB
"""Refs up to this size are kept in memory until they are checked."""
EPOCH_MAX = (1 << 32) - 1


async def open_session(call: Call) -> SessionAnswer:
    """Open the upload session of a job, or return the one that is open."""
    job = call.ulid("job")
    await call.services.grants.snapshots(job, call.agent)
    found = await call.run(call.services.repository.open_session, call.agent.client, job)
    return SessionAnswer(
        session=found.id, packs=found.packs, refs=found.refs, manifest=found.manifest
    )


async def more_names(call: Call) -> NamesAnswer:
    """Reserve more names of objects in a session."""
    kind = call.text("kind") or "packs"
    count = call.number("count", 1, least=1, most=limits.RESERVED_NAMES_MAX)
    session = call.ulid("session")
    names = await call.run(
        call.services.repository.more_names, call.agent.client, session, kind, count
    )
    return NamesAnswer(names=names)


async def have(call: Call) -> bytes:
    """Tell for each chunk id whether it is live in this domain: one byte an id."""
    ids: bytes = call.body
    if len(ids) % HASH_BYTES:
        raise InvalidInput(f"ids of {HASH_BYTES} bytes each are expected")
    epoch_min = call.number("epoch_min", 1, least=1, most=EPOCH_MAX)
    return await call.run(
        call.services.repository.have, call.agent.client, call.ulid("session"), ids, epoch_min
    )


async def put_pack(call: Call) -> None:
    """Take a pack while it arrives; durable and indexed when this answers."""
    length = declared_length(call.request)
    if length > limits.PACK_BYTES_MAX:
        raise TooLarge(f"a pack of {length} bytes; at most {limits.PACK_BYTES_MAX}")
    repository, agent = call.services.repository, call.agent
    upload = await call.run(
        repository.begin_pack, agent.client, call.ulid("session"), call.ulid("ulid"), length
    )
    is_over = False
    try:
        await fill(call.request, upload, length, call.services.metrics.received)
        await call.run(upload.commit)
        is_over = True
    finally:
        if not is_over:
            # Shielded: a cancelled request must not leave a half-written file open.
            await asyncio.shield(call.run(upload.abort))


async def put_refs(call: Call) -> None:
    """Take a refs object; durable when this answers."""
    length = declared_length(call.request)
    if length > limits.REFS_BYTES_MAX:
        raise TooLarge(f"refs of {length} bytes; at most {limits.REFS_BYTES_MAX}")
    with call.agent.share.alone("refs object"):
        await _spooled_refs(call, length)


async def _spooled_refs(call: Call, length: int) -> None:
    spool = await call.run(_spool)
    try:
        async for piece in pieces(call.request, length, call.services.metrics.received):
            await call.run(_keep, spool, piece)
        await call.run(spool.seek, 0)
        await call.run(
            call.services.repository.put_refs,
            call.agent.client,
            call.ulid("session"),
            call.ulid("ulid"),
            spool,
            length,
        )
    finally:
        await asyncio.shield(call.run(spool.close))


def _spool() -> BinaryIO:
    # The handler closes it: opening and closing it are calls in threads, not one block.
    return cast("BinaryIO", tempfile.SpooledTemporaryFile(SPOOL_MEMORY_BYTES))


def _keep(spool: BinaryIO, piece: bytes) -> None:
    with translated("keep", "refs on their way"):
        spool.write(piece)


async def put_manifest(call: Call) -> None:
    """Take a manifest; durable when this answers."""
    await call.run(
        call.services.repository.put_manifest,
        call.agent.client,
        call.ulid("session"),
        call.ulid("ulid"),
        call.body,
    )


async def commit(call: Call) -> CommitAnswer:
    """Make a snapshot stand: the one atomic point of a backup."""
    body: CommitRequest = call.body
    if not (is_ulid(body.manifest) and is_ulid(body.refs)):
        raise NotFound("no such object in this session")
    done = await call.run(
        call.services.repository.commit,
        call.agent.client,
        call.ulid("session"),
        manifest=body.manifest,
        refs=body.refs,
        seq=body.seq,
    )
    return CommitAnswer(snapshot=done.snapshot.hex(), time_ns=done.time_ns)


async def missing(call: Call) -> MissingAnswer:
    """Return a further page of what the last refused commit lacked."""
    found = await call.run(
        call.services.repository.missing_page,
        call.agent.client,
        call.ulid("session"),
        call.hash_after(),
    )
    return MissingAnswer(
        missing=[chunk.hex() for chunk in found.missing],
        damaged=[chunk.hex() for chunk in found.damaged],
        next=found.next.hex(),
    )
