"""Chunks, manifests and records of one grant, fetched over HTTP."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast_agent.ports import Cancel, ChunkStatus, FetchedChunk
from holdfast_agent.transport.http import Body, HttpClient, Stream
from holdfast_agent.transport.limiter import RateLimit
from holdfast_agent.transport.retry import Repeating, call
from holdfast_contract import limits
from holdfast_contract.errors import HoldfastError, InvalidInput
from holdfast_contract.format.layout import Room
from holdfast_contract.protocol.http import DamageReport

_HEAD_BYTES = 32 + 1 + 2 + 4 + 4
_OBJECT_NAME_BYTES_MAX = 512
_STATUSES = frozenset(ChunkStatus)


@dataclass(frozen=True)
class Routes:
    """Where this grant's things are: agents and people have routes of their own."""

    chunks: str
    damage: str
    manifest: str
    """Prefix; the snapshot id and `/manifest` follow."""
    identity: str
    """Prefix; the hash follows."""
    damaged: str = ""
    """Empty: the grant has no list of damaged chunks."""


def agent_routes(grant: str) -> Routes:
    """Return the routes of a running job or open query."""
    return Routes(
        chunks=f"/agent/v1/grants/{grant}/chunks",
        damage=f"/agent/v1/grants/{grant}/damage",
        manifest="/agent/v1/snapshots/",
        identity="/agent/v1/identities/",
        damaged=f"/agent/v1/jobs/{grant}/damaged",
    )


def people_routes(snapshot: str) -> Routes:
    """Return the routes by which a token reads `snapshot` (64 hex digits)."""
    return Routes(
        chunks=f"/v1/snapshots/{snapshot}/chunks",
        damage=f"/v1/snapshots/{snapshot}/damage",
        manifest="/v1/snapshots/",
        identity="/v1/identities/",
    )


class HttpChunks:
    """A ChunkSource over HTTP. Thread-safe."""

    def __init__(
        self,
        client: HttpClient,
        routes: Routes,
        *,
        cancel: Cancel,
        limit: RateLimit,
        repeating: Repeating,
    ) -> None:
        self._client = client
        self._routes = routes
        self._cancel = cancel
        self._limit = limit
        self._repeating = repeating

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        """Yield every asked chunk once, in order; a broken answer goes on where it broke."""
        for start in range(0, len(ids), limits.FETCH_IDS_MAX):
            waiting = deque(ids[start : start + limits.FETCH_IDS_MAX])
            attempts = self._repeating.begin()
            while waiting:
                before = len(waiting)
                try:
                    yield from self._stream(waiting, room)
                except HoldfastError as error:
                    if len(waiting) < before:
                        attempts = self._repeating.begin()
                    attempts.failed(error)

    def _stream(self, waiting: deque[bytes], room: Room) -> Iterator[FetchedChunk]:
        body = Body.of(b"".join(waiting))
        with self._client.stream("POST", self._routes.chunks, body=body) as stream:
            while waiting:
                chunk = self._read_one(stream, waiting[0], room)
                waiting.popleft()
                if not waiting:
                    stream.finish()
                yield chunk

    def _read_one(self, stream: Stream, chunk_id: bytes, room: Room) -> FetchedChunk:
        head = stream.read_exactly(_HEAD_BYTES)
        name_length = int.from_bytes(head[33:35], "little")
        offset = int.from_bytes(head[35:39], "little")
        length = int.from_bytes(head[39:43], "little")
        if head[:32] != chunk_id or head[32] not in _STATUSES:
            raise InvalidInput("the server answered with another chunk than asked")
        if name_length > _OBJECT_NAME_BYTES_MAX or length > limits.SEALED_BYTES_MAX:
            raise InvalidInput("the server sent a chunk beyond the limits")
        name = stream.read_exactly(name_length).decode("ascii", "replace")
        self._limit.take(length, self._cancel)
        sealed = memoryview(room(length))
        stream.read_exactly_into(sealed)
        return FetchedChunk(chunk_id, ChunkStatus(head[32]), name, offset, sealed)

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        """Tell the server that this copy does not open."""
        body = Body.json(
            DamageReport(chunk=chunk.hex(), object=object, offset=offset, reason=reason)
        )
        call(self._repeating, lambda: self._client.call("POST", self._routes.damage, body=body))

    def manifest(self, snapshot: bytes) -> bytes:
        """Return the stored manifest of `snapshot`; the caller checks it."""
        path = f"{self._routes.manifest}{snapshot.hex()}/manifest"
        return self._get(path, limits.MANIFEST_BYTES_MAX)

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        """Return the stored identity record; the caller checks it."""
        return self._get(f"{self._routes.identity}{hash.hex()}", limits.IDENTITY_BYTES_MAX)

    def damaged(self) -> Iterator[bytes]:
        """Yield the ids of damaged chunks of the job's parent and references, ascending.

        At most AVOIDED_IDS_MAX: a server could go on for ever.
        """
        if not self._routes.damaged:
            return
        after, left = b"", limits.AVOIDED_IDS_MAX
        while left:
            data = self._get(f"{self._routes.damaged}?after={after.hex()}", left * 32)
            if len(data) % 32:
                raise InvalidInput("the server's list of damaged chunks is torn")
            if not data:
                return
            for start in range(0, len(data), 32):
                chunk = data[start : start + 32]
                if chunk <= after:
                    raise InvalidInput("the server's list of damaged chunks is not in order")
                yield chunk
                after = chunk
            left -= len(data) // 32

    def _get(self, path: str, bytes_max: int) -> bytes:
        return call(
            self._repeating,
            lambda: self._client.call("GET", path, reply_bytes_max=bytes_max).body,
        )
