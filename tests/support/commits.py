"""Commits as tests make them, and what they leave in the journal."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast_contract.errors import (
    HoldfastError,
    MissingChunks,
)
from holdfast_server.catalog import chunks, domains, liveness
from holdfast_server.catalog.schema import CopyState
from holdfast_server.repository.journal_object import decode_journal
from holdfast_server.repository.journal_records import JournalRecord, decode_record
from holdfast_server.repository.sessions import Session
from tests.support.uploads import Pod, Served


def records(served: Served) -> list[JournalRecord]:
    """Return every record of the journal, in order."""
    names = sorted(name for name in served.memory.objects if name.startswith("journal/"))
    return [
        decode_record(body)
        for name in names
        for body in decode_journal(served.memory.objects[name]).records
    ]


def mark(pod: Pod, chunk_id: bytes, after: CopyState, *, is_logged: bool = True) -> None:
    """Let the live copy of a chunk become something else, as a scrub or a collection would."""
    catalog = pod.served.catalog
    key = domains.get(catalog, pod.name.domain).key

    def work(tx: Any) -> None:
        copy = chunks.copies(tx, key, [chunk_id])[chunk_id][0]
        assert chunks.set_state(tx, key, copy, before=[CopyState.LIVE], after=after)
        if is_logged:
            liveness.log_left(tx, key, [chunk_id])

    catalog.write(work)


def sent(pod: Pod, wanted: list[bytes]) -> Session:
    """Return a session to which these chunks were sent."""
    session = pod.open()
    pod.send(wanted, session)
    return session


def refused(pod: Pod, wanted: list[bytes], **changes: Any) -> HoldfastError:
    """Return the error of a commit with `changes`."""
    with pytest.raises(HoldfastError) as caught:
        pod.finish(sent(pod, wanted), wanted, **changes)
    return caught.value


def from_hex(texts: object) -> list[bytes]:
    """Return what an error tells as texts."""
    assert isinstance(texts, list)
    return [bytes.fromhex(text) for text in texts]


def missing(pod: Pod, session: Session, wanted: list[bytes], **changes: Any) -> MissingChunks:
    """Return the error of a commit that lacks chunks."""
    with pytest.raises(MissingChunks) as caught:
        pod.finish(session, wanted, **changes)
    return caught.value
