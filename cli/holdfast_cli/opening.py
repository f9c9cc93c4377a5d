"""Opening stored data here, with a key file, through the server's API.

Imports ciphers: commands import this module where they open something, not before.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

from holdfast_agent.crypto.keys import DomainKeys, parse_key_file
from holdfast_agent.jobs.queries import answer_query
from holdfast_agent.ports import ChunkSource, ChunkStatus, FetchedChunk
from holdfast_agent.snapshots.chunks import ChunkReader
from holdfast_agent.snapshots.snapshot import Snapshot
from holdfast_agent.sources.roots import normal_path
from holdfast_agent.transport.downloads import HttpChunks, people_routes
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import Backoff
from holdfast_cli.api import Api
from holdfast_contract.clock import Clock, SystemClock
from holdfast_contract.errors import Cancelled, HoldfastError, StoreFailed, TooMany, Unreachable
from holdfast_contract.format.layout import Room
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol.control import Browse, Query, RestoreItem
from holdfast_contract.text import printable

AWAY_SECONDS = 120.0
"""How long a server that went away is waited for: a restart takes seconds."""
_PASSING = (Unreachable, TooMany, StoreFailed)


class Interrupt:
    """Fits ports.Cancel: set by Ctrl-C."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def check(self) -> None:
        """Return, or raise Cancelled."""
        if self._event.is_set():
            raise Cancelled("interrupted")

    def is_set(self) -> bool:
        """Tell whether somebody asked."""
        return self._event.is_set()

    def wait(self, timeout_seconds: float) -> bool:
        """Block until asked or for `timeout_seconds`."""
        return self._event.wait(timeout_seconds)


class Patience:
    """Repeats a call while the server is away, but not for ever. Fits retry.Repeating."""

    def __init__(self, cancel: Interrupt, clock: Clock) -> None:
        self._cancel = cancel
        self._clock = clock

    def begin(self) -> _Attempts:
        """Return the bookkeeping of a new call."""
        self._cancel.check()
        return _Attempts(self._cancel, self._clock)


class _Attempts:
    def __init__(self, cancel: Interrupt, clock: Clock) -> None:
        self._cancel = cancel
        self._clock = clock
        self._backoff = Backoff(secrets.SystemRandom().uniform)
        self._since: float | None = None

    def failed(self, error: HoldfastError) -> None:
        """Return when the call may be repeated, or raise."""
        self._cancel.check()
        now = self._clock.monotonic()
        self._since = now if self._since is None else self._since
        if not isinstance(error, _PASSING) or now - self._since > AWAY_SECONDS:
            raise error
        self._cancel.wait(self._backoff.next())
        self._cancel.check()


def read_keys(text: str) -> DomainKeys:
    """Return the keys of a key file's text.

    Raises:
        InvalidInput: it is not one.
    """
    return DomainKeys(parse_key_file(text))


class SnapshotsSource:
    """A ChunkSource over several snapshots: the API gives chunks of one snapshot at a time.

    Manifests and identity records go by their own ids. Chunks are asked for under the snapshot
    whose manifest was read last or that had the last chunk, and those it lacks under the others.
    """

    def __init__(self, sources: Sequence[tuple[bytes, ChunkSource]]) -> None:
        self._sources = dict(sources)
        self._latest = next(iter(self._sources))

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        """Yield every asked chunk once, in order."""
        snapshots = [self._latest, *(one for one in self._sources if one != self._latest)]
        # Where a chunk is looked for in another snapshot the one behind it has come already: that
        # must not lie in memory of which the caller thinks that it is full.
        yield from self._found(list(ids), snapshots, room if len(snapshots) == 1 else bytearray)

    def _found(
        self, ids: list[bytes], snapshots: list[bytes], room: Room
    ) -> Iterator[FetchedChunk]:
        snapshot, others = snapshots[0], snapshots[1:]
        lacking: list[bytes] = []
        for chunk in self._sources[snapshot].fetch(ids, room):
            if chunk.status is ChunkStatus.NOT_THERE and others:
                lacking.append(chunk.id)
                continue
            if lacking:
                yield from self._found(lacking, others, room)
                lacking = []
            elif chunk.status is not ChunkStatus.NOT_THERE:
                self._latest = snapshot
            yield chunk
        if lacking:
            yield from self._found(lacking, others, room)

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        """Tell the server that this copy does not open."""
        self._sources[self._latest].report(chunk, object, offset, reason)

    def manifest(self, snapshot: bytes) -> bytes:
        """Return the stored manifest; the caller checks it."""
        self._latest = snapshot
        return self._sources[snapshot].manifest(snapshot)

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        """Return the stored identity record; the caller checks it."""
        return self._sources[self._latest].identity(hash)

    def damaged(self) -> Iterator[bytes]:
        """Yield nothing: only a backup asks."""
        return iter(())


def source_of(
    api: Api, snapshots: Sequence[str], cancel: Interrupt, rate: int = 0
) -> SnapshotsSource:
    """Return the chunks of `snapshots` (64 hex digits each), at most `rate` bytes a second."""
    clock = SystemClock()
    limit = RateLimit(clock, rate)
    patience = Patience(cancel, clock)
    return SnapshotsSource(
        [
            (
                bytes.fromhex(one),
                HttpChunks(
                    api.http, people_routes(one), cancel=cancel, limit=limit, repeating=patience
                ),
            )
            for one in snapshots
        ]
    )


def names_here(api: Api, key_text: str, item: RestoreItem) -> Iterator[str]:
    """Yield every path below that of `item`, parents first, safe to print.

    Ten times faster than rows: of most pages only the stat part is decoded.

    Raises:
        WrongKey, NotFound, Damaged, InvalidInput: as `answer_here`.
    """
    keys = read_keys(key_text)
    source = source_of(api, [item.snapshot.hex()], Interrupt())
    with closing(ChunkReader(keys, source)) as reader:
        snapshot = Snapshot(item.snapshot, keys=keys, source=source, chunks=reader)
        for paths in snapshot.paths(snapshot.find(normal_path(item.path))):
            yield from map(printable, map(os.fsdecode, paths))


def answer_here(
    api: Api,
    key_text: str,
    kind: str,
    items: list[RestoreItem],
    *,
    recursive: bool = False,
    pattern: str = "",
    blob: bytes = b"",
) -> Iterator[bytes]:
    """Return what an agent would answer to a query, opened here with the key file's text.

    Raises:
        WrongKey, NotFound, Damaged, InvalidInput: as jobs.queries.answer_query.
    """
    cancel = Interrupt()
    query = Query(
        query=new_ulid(), kind=kind, items=items, recursive=recursive, pattern=pattern, blob=blob
    )
    return answer_query(
        query,
        keys=read_keys(key_text),
        source=source_of(api, [item.snapshot.hex() for item in items], cancel) if items else None,
        roots=None,
        browse=Browse.CONTENT,
        cancel=cancel,
    )
