"""What engine, restore and snapshot reader ask of the outside: cancel, progress, chunks, uploads.

Protocols only: the runtime supplies objects that fit. Everything here is synchronous and called
from job threads; implementations are thread-safe unless a method says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Protocol

from holdfast_contract.format.layout import Room


class Cancel(Protocol):
    """Whether somebody asked for the end of the job; looked at after at most 250 ms of work."""

    def check(self) -> None:
        """Return, or raise Cancelled when the job was cancelled."""

    def is_set(self) -> bool:
        """Tell whether the job was cancelled."""

    def wait(self, timeout_seconds: float) -> bool:
        """Block until cancelled or for `timeout_seconds`; tell whether cancelled."""


class Progress(Protocol):
    """How far a job is; cheap enough for every file, read by the shell once a second."""

    def add(self, *, files: int = 0, bytes: int = 0, moved: int = 0) -> None:  # noqa: A002
        """Count `files` entries and `bytes` logical bytes as done; `moved` grows with any work."""

    def current(self, path: bytes) -> None:
        """Say which path is worked on."""

    def totals(self, files: int, bytes: int) -> None:  # noqa: A002
        """Say how much there is in all, once that is known."""

    def phase(self, name: str) -> None:
        """Say `running` or `finalizing`."""


class ChunkStatus(IntEnum):
    """Status byte of the chunk stream (docs/protocol.md)."""

    HERE = 0
    NOT_THERE = 1
    """Not granted, or not there: the server answers both alike."""
    DAMAGED = 2
    """Every copy is known to be damaged."""


@dataclass(frozen=True, slots=True)
class FetchedChunk:
    """One chunk of a fetch, as the server sent it: nothing of it is checked yet."""

    id: bytes
    status: ChunkStatus
    object: str
    """Name of the pack that held this copy, e.g. `packs/DOMAIN/ULID`; empty unless HERE."""
    offset: int
    """Of the sealed chunk in the pack, in bytes."""
    sealed: memoryview | bytes
    """Empty unless HERE."""


class ChunkSource(Protocol):
    """Stored chunks and manifests of one grant (a running job or an open query)."""

    def fetch(self, ids: Sequence[bytes], room: Room = bytearray) -> Iterator[FetchedChunk]:
        """Yield every asked chunk once, in the order of `ids` (any number; batches inside).

        A chunk may lie in what `room` returns when it is asked for so many bytes, after the chunk
        before was taken.
        """

    def report(self, chunk: bytes, object: str, offset: int, reason: str) -> None:  # noqa: A002
        """Tell the server that this copy does not open; the next fetch brings another, if any."""

    def manifest(self, snapshot: bytes) -> bytes:
        """Return the stored manifest whose BLAKE3 is `snapshot` (the caller checks it)."""

    def identity(self, hash: bytes) -> bytes:  # noqa: A002
        """Return the stored identity record whose BLAKE3 is `hash` (the caller checks it)."""

    def damaged(self) -> Iterator[bytes]:
        """Yield the ids of damaged chunks of the job's parent and references, ascending."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The snapshot stands."""

    snapshot: bytes
    time_ns: int
    """The server's receive time."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The commit was refused: these chunks are not live, or damaged where that was not said."""

    missing: frozenset[bytes]
    damaged: frozenset[bytes]


class Uploads(Protocol):
    """The upload session of one job: retries by error class inside, every wait ends on cancel."""

    @property
    def bytes_sent(self) -> int:
        """Bodies of packs, refs and manifests sent so far, retries included."""

    def have(self, ids: Sequence[bytes], epoch_min: int) -> list[bool]:
        """Tell for each id (any number) whether a live copy of at least that epoch is stored."""

    def put_pack(self, buffers: Sequence[bytes | memoryview], length: int) -> None:
        """Send one pack; return when it is durable.

        Called by two threads at once. Raises NoSpace after at most 60 s of retries.
        """

    def put_refs(self, body: BinaryIO, length: int) -> None:
        """Send the refs object: `length` bytes from the start of `body`, seekable, for retries.

        Called again (after missing chunks) it sends the new list: what was put last counts.
        """

    def put_manifest(self, data: bytes) -> None:
        """Send the manifest; called again, the last one counts."""

    def commit(self, seq: int) -> Committed | Missing:
        """Commit what was put; repeats itself where the answer is lost."""
