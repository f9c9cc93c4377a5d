"""Opening stored data here, with a key file, through the server's API."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from holdfast_agent.crypto.keys import DomainKeys, parse_key_file
from holdfast_agent.ports import ChunkSource, FetchedChunk
from holdfast_agent.transport.downloads import HttpChunks, people_routes
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import NoRepeat
from holdfast_cli.api import Api
from holdfast_contract.clock import SystemClock
from holdfast_contract.errors import Cancelled


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


def read_keys(text: str) -> DomainKeys:
    """Return the keys of a key file's text.

    Raises:
        InvalidInput: it is not one.
    """
    return DomainKeys(parse_key_file(text))


class SnapshotsSource:
    """A ChunkSource over several snapshots: the API gives chunks of one snapshot at a time.

    Manifests and identity records go by their own ids; chunks are asked for under the snapshot
    that was asked for last, then under the others.
    """

    def __init__(
        self, api: Api, snapshots: Sequence[str], cancel: Interrupt, rate: int = 0
    ) -> None:
        limit = RateLimit(SystemClock(), rate)
        self._sources = [
            HttpChunks(
                api.http, people_routes(one), cancel=cancel, limit=limit, repeating=NoRepeat()
            )
            for one in dict.fromkeys(snapshots)
        ]

    def fetch(self, ids: Sequence[bytes]) -> Iterator[FetchedChunk]:
        """Yield every asked chunk once, in order."""
        yield from self._found(list(ids), 0)

    def _found(self, ids: list[bytes], index: int) -> Iterator[FetchedChunk]:
        last = index == len(self._sources) - 1
        for chunk in self._sources[index].fetch(ids):
            if chunk.status == 1 and not last:
                yield from self._found([chunk.id], index + 1)
            else:
                yield chunk

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        """Tell the server that this copy does not open."""
        self._sources[0].report(chunk, object, offset, reason)

    def manifest(self, snapshot: bytes) -> bytes:
        """Return the stored manifest; the caller checks it."""
        return self._sources[0].manifest(snapshot)

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        """Return the stored identity record; the caller checks it."""
        return self._sources[0].identity(hash)

    def damaged(self) -> Iterator[bytes]:
        """Yield nothing: only a backup asks."""
        return iter(())


def source_of(api: Api, snapshots: Sequence[str], cancel: Interrupt, rate: int = 0) -> ChunkSource:
    """Return the chunks of `snapshots` (64 hex digits each)."""
    return SnapshotsSource(api, snapshots, cancel, rate)
