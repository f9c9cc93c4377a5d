"""Snapshots: which there are, and their bytes for who holds the key."""

from __future__ import annotations

from aiohttp import web

from holdfast_contract.clock import rfc3339
from holdfast_contract.ids import ZERO_HASH, ClientName
from holdfast_contract.protocol.http import Listing, SnapshotRow
from holdfast_server.api.calls import Call
from holdfast_server.api.chunks import DamageState, report_damage, stream_chunks
from holdfast_server.api.replies import listing
from holdfast_server.api.rows import path_text
from holdfast_server.catalog.damage import PERSON_REPORTER
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.repository.snapshot_references import parse_moment

LATEST_MAX = 1 << 31


def snapshot_row(record: SnapshotRecord) -> SnapshotRow:
    """Return a snapshot."""
    return SnapshotRow(
        id=record.id.hex(),
        client=record.client,
        domain=record.domain_name,
        seq=record.seq,
        time=rfc3339(record.time_ns),
        started=rfc3339(record.started_ns),
        state=record.result,
        consistency=record.consistency,
        files=record.files,
        bytes=record.bytes,
        bytes_new=record.bytes_new,
        tags=record.tags,
        paths=[path_text(path) for path in record.paths],
        pinned=record.pinned,
        parent=_hash_or_none(record.parent),
        prev=_hash_or_none(record.prev),
        dirs=record.dirs,
        identity=record.identity.hex(),
        manifest_object=record.manifest,
        refs_object=record.refs,
        chunks=record.chunks,
    )


def _hash_or_none(value: bytes) -> str | None:
    return None if value == ZERO_HASH else value.hex()


async def list_snapshots(call: Call) -> Listing:
    """Return snapshots, oldest first."""
    page, after = call.page(), call.number_after()
    client, since, until = call.text("client"), call.text("since"), call.text("until")
    wanted = Filter(
        client=ClientName.parse(client) if client else None,
        since_ns=parse_moment(since).first_ns if since else None,
        until_ns=parse_moment(until).last_ns if until else None,
        latest=call.number("latest", 0, most=LATEST_MAX) or None,
        scope=call.scope,
    )
    repository, tag = call.services.repository, call.text("tag")
    found = await call.run(repository.snapshots, wanted, tag=tag, after=after, limit=page.limit)
    rows = [snapshot_row(record) for record in found]
    return listing(rows, page.limit, str(found[-1].number) if found else "")


async def show_snapshot(call: Call) -> SnapshotRow:
    """Return the one snapshot that a reference names."""
    found = await call.run(call.services.repository.resolve, call.part("ref"), call.scope)
    return snapshot_row(found)


async def get_snapshot_manifest(call: Call) -> bytes:
    """Return a manifest as it was stored."""
    return await call.run(call.services.repository.manifest, call.hash("id"), call.scope)


async def fetch_snapshot_chunks(call: Call) -> web.StreamResponse:
    """Return sealed chunks of a snapshot, for who holds the key."""
    record = await _named(call)
    grant = await call.services.grants.open_snapshots(record.domain_name, [record.id])
    return await stream_chunks(call, grant)


async def report_snapshot_chunk(call: Call) -> DamageState:
    """Take the word of a reader that a copy of a chunk does not open."""
    record = await _named(call)
    reporter = f"{PERSON_REPORTER}{call.by}"
    return await report_damage(call, record.domain_name, reporter, call.body)


async def _named(call: Call) -> SnapshotRecord:
    return await call.run(call.services.repository.resolve, call.hash("id").hex(), call.scope)


async def get_identity(call: Call) -> bytes:
    """Return an identity record as it was stored, of whichever domain the token is good for."""
    return await call.run(call.services.repository.identity_within, call.scope, call.hash("hash"))
