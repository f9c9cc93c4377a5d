"""What a backup sends: packs while they stream, refs, manifest, and the commit."""

from __future__ import annotations

import tempfile
from pathlib import Path

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput, TooLarge, UsageError
from holdfast_contract.protocol.http import (
    CommitAnswer,
    CommitRequest,
    MissingAnswer,
    NamesAnswer,
    SessionAnswer,
)
from holdfast_server.api.bodies import declared_length, pieces
from holdfast_server.api.calls import Call

HASH_BYTES = 32
NAME_KINDS = ("packs", "refs", "manifests")


async def open_session(call: Call) -> SessionAnswer:
    """Open the upload session of a job, or return the one that is open."""
    job = call.ulid("job")
    await call.services.grants.snapshots(job, call.agent)
    found = await call.run(call.services.repository.open_session, call.agent.client, job)
    return SessionAnswer(
        session=found.id, packs=found.packs, refs=found.refs, manifest=found.manifest
    )
