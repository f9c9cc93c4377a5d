"""A quick look at whether the repository is sound; what takes long is `verify` and scrub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from holdfast_contract.clock import rfc3339
from holdfast_contract.errors import HoldfastError, NotFound
from holdfast_server.catalog import chunks, clock_jumps, outbox, snapshots, state
from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.catalog.snapshots import Filter, SnapshotRecord
from holdfast_server.catalog.state import ServerState
from holdfast_server.repository.journal_object import decode_journal, journal_hash
from holdfast_server.repository.names import journal_name, object_name
from holdfast_server.repository.parts import Parts

SNAPSHOTS_LOOKED_AT: Final = 100
"""Newest snapshots whose objects are looked for."""
JOURNAL_LOOKED_AT: Final = 1000
"""Newest journal objects that are read; each names the one before it by its hash."""


CLOCK_SECONDS: Final = 7 * 86_400
"""How long a jump of the clock is shown as a warning."""


class Finding(NamedTuple):
    """What one check found; `state` is ok, warn or fail."""

    check: str
    state: str
    message: str
    hint: str = ""


class Statistics(NamedTuple):
    """How much is stored; `stored_bytes` of packs."""

    chunks: int
    packs: int
    stored_bytes: int
    damaged_chunks: int
    store_free_bytes: int
    store_reserve_bytes: int


def statistics(parts: Parts) -> Statistics:
    """Return how much is stored and how much room is left.

    Raises:
        StoreFailed: store or catalog do not answer.
    """
    with parts.catalog.read() as tx:
        now = state.load(tx)
        damaged = chunks.damaged_count(tx)
    room = parts.store.space()
    return Statistics(
        now.chunks, now.packs, now.stored_bytes, damaged, room.free_bytes, room.reserve_bytes
    )


def check(parts: Parts) -> Iterator[Finding]:
    """Yield what was found, one line a check."""
    for name, look in (
        ("store", _store),
        ("journal", _journal),
        ("snapshots", _snapshots),
        ("damage", _damage),
        ("clock", _clock),
    ):
        try:
            yield look(parts)
        except HoldfastError as exc:
            yield Finding(name, "fail", exc.message, exc.hint)


def _store(parts: Parts) -> Finding:
    room = parts.store.space()
    if room.total_bytes and room.free_bytes <= room.reserve_bytes:
        return Finding(
            "store",
            "fail",
            f"full: {room.free_bytes} bytes are free, {room.reserve_bytes} are kept in reserve",
            "free room, or make the store's file system larger",
        )
    if room.total_bytes and room.free_bytes <= 2 * room.reserve_bytes:
        return Finding("store", "warn", f"nearly full: {room.free_bytes} bytes are free")
    return Finding("store", "ok", f"{room.free_bytes} bytes are free")


def _journal(parts: Parts) -> Finding:
    if parts.refusal:
        hint = "bring back the catalog that belongs to this store; restores still work"
        return Finding("journal", "fail", f"nothing can be stored: {parts.refusal}", hint)
    with parts.catalog.read() as tx:
        now = state.load(tx)
        waiting = len(outbox.pending(tx, 1))
    wrong = _wrong_journal(parts, now)
    if wrong:
        hint = "bring that object back from a copy of the store; restores still work"
        return Finding("journal", "fail", f"{wrong} is not what was stored", hint)
    if waiting:
        return Finding("journal", "warn", "records wait to be written", "look at it again")
    return Finding("journal", "ok", f"{now.record_durable} records in {now.journal_number} objects")


def _wrong_journal(parts: Parts, now: ServerState) -> str:
    """Return the name of the newest journal object that is gone or changed, "" where there is none.

    Nothing before it can be judged: the chain of hashes is broken there.
    """
    expected = now.journal_hash
    oldest = max(now.journal_number - JOURNAL_LOOKED_AT, 0)
    for number in range(now.journal_number, oldest, -1):
        name = journal_name(number)
        try:
            data = parts.store.get(name)
        except NotFound:
            return name
        if journal_hash(data) != expected:
            return name
        expected = decode_journal(data).previous
    return ""


def _snapshots(parts: Parts) -> Finding:
    with parts.catalog.read() as tx:
        newest = snapshots.listed(tx, Filter(latest=1), limit=SNAPSHOTS_LOOKED_AT)
    wrong = [name for snapshot in newest for name in _wrong_objects(parts, snapshot)]
    if wrong:
        message = f"gone or of another length: {', '.join(wrong[:5])}"
        return Finding("snapshots", "fail", message, "holdfast verify tells what is affected")
    return Finding("snapshots", "ok", f"newest snapshots of {len(newest)} clients looked at")


def _wrong_objects(parts: Parts, snapshot: SnapshotRecord) -> Iterator[str]:
    for kind, ulid, length in (
        (ObjectKind.MANIFEST, snapshot.manifest, snapshot.manifest_bytes),
        (ObjectKind.REFS, snapshot.refs, snapshot.refs_bytes),
    ):
        name = object_name(kind, snapshot.domain, ulid)
        try:
            is_right = parts.store.size(name) == length
        except HoldfastError:
            is_right = False
        if not is_right:
            yield name


def _damage(parts: Parts) -> Finding:
    with parts.catalog.read() as tx:
        count = chunks.damaged_count(tx)
    if count:
        hint = "the next backups send them again where the files still have them"
        return Finding("damage", "warn", f"{count} damaged chunks", hint)
    return Finding("damage", "ok", "no damaged chunks are known")


def _clock(parts: Parts) -> Finding:
    with parts.catalog.read() as tx:
        jump = clock_jumps.newest(tx)
    if jump is None:
        return Finding("clock", "ok", "no jumps are known")
    message = f"jumped {jump.text} to {rfc3339(jump.time_ns)}"
    age = parts.clock.now_ns() - jump.time_ns
    if 0 <= age < CLOCK_SECONDS * clock_jumps.SECOND_NS:
        hint = "see that this machine's clock is right; tokens with a time to live depend on it"
        return Finding("clock", "warn", message, hint)
    return Finding("clock", "ok", message)
