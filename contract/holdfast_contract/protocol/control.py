"""Messages of the control channel: a closed vocabulary, MessagePack, one message a binary frame.

The server can say: back up, restore, verify, answer a query, cancel, new settings. It cannot say
a command line, a URL or a path outside the roots: no message has room for the first two, and the
agent checks every path against its own configuration.

Life of a connection (`GET /agent/v1/control`, upgraded to a WebSocket):

    server  Challenge(nonce)
    agent   Hello(signature over the nonce, what the pod allows, jobs it still has)
    server  Welcome(connection token for the data routes, settings) | Refuse
    ...     jobs, queries, progress, until either side closes;
            a newer proof of the same identity: Refuse(fenced)

Times are nanoseconds, sizes bytes, rates bytes a second (0: no limit), ids raw bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput
from holdfast_contract.ids import ULID_PATTERN

PROTOCOL_VERSION = 1
"""This program speaks this version and the one before (if any)."""

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
PathBytes = Annotated[bytes, Meta(max_length=1 << 16)]
Ulid = Annotated[str, Meta(min_length=26, max_length=26, pattern=ULID_PATTERN)]
"""Names files of the agent's state and parts of paths: nothing but a ULID's own characters."""
Token = Annotated[str, Meta(pattern=r"^[!-~]{1,512}\Z")]
"""Stands in a header."""
Count = Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)]
Text = Annotated[str, Meta(max_length=4096)]
Paths = Annotated[list[PathBytes], Meta(max_length=limits.PATHS_MAX)]
Told = dict[Annotated[str, Meta(max_length=64)], int | float | Text | None]
"""What an agent tells of a job in numbers."""
Patterns = Annotated[list[Text], Meta(max_length=limits.PATHS_MAX)]


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="t"):
    """Base of all messages; `t` names the kind."""


class Mode(StrEnum):
    """Where a pod lets a restore write (HOLDFAST_RESTORE)."""

    IN_PLACE = "in-place"
    ALTERNATE = "alternate"
    NEVER = "never"


class Browse(StrEnum):
    """What a pod shows through the server (HOLDFAST_BROWSE)."""

    NAMES = "names"
    CONTENT = "content"
    NEVER = "never"


class Overwrite(StrEnum):
    """What a restore does with a file that exists."""

    ALWAYS = "always"
    IF_CHANGED = "if-changed"
    IF_NEWER = "if-newer"
    NEVER = "never"


class JobState(StrEnum):
    """State machine of a job; the last four are final."""

    QUEUED = "Queued"
    DISPATCHED = "Dispatched"
    RUNNING = "Running"
    FINALIZING = "Finalizing"
    COMPLETED = "Completed"
    COMPLETED_WITH_SKIPS = "CompletedWithSkips"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def is_final(self) -> bool:
        """Tell whether the job is over."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {JobState.COMPLETED, JobState.COMPLETED_WITH_SKIPS, JobState.FAILED, JobState.CANCELLED}
)


# --- server to agent, at the start
class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """First message: sign this."""

    nonce: Hash
    protocol_min: int
    protocol_max: int
    server_version: Text


class AgentSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server may set for a client, also while a job runs."""

    limit_upload: Count = 0
    limit_download: Count = 0


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The proof was right: use this bearer token on the data routes until the connection ends."""

    client: Text
    token: Token
    settings: AgentSettings
    heartbeat_seconds: float


class Refuse(Message, frozen=True, kw_only=True, tag="refuse"):
    """The connection ends; `code` is an error's code."""

    code: Text
    message: Text


class NewSettings(Message, frozen=True, kw_only=True, tag="settings"):
    """New limits, at once."""

    settings: AgentSettings


# --- jobs
class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot whose tree the agent may read during the job."""

    snapshot: Hash
    client: Text
    refs_object: Text = ""
    """ULID of its refs object: the next one may be written as a difference to it (empty: not)."""


class Backup(Message, frozen=True, kw_only=True, tag="backup"):
    """Back up `paths` (empty: all roots).

    `head_seq`, `head` are the newest standing or pruned snapshot of the client's history (0 and
    zero bytes: none). `references` are snapshots of relatives (same workload) whose small files
    may be reused. `damaged` counts damaged chunks of parent and references; fetch them by
    `GET /agent/v1/jobs/{job}/damaged`.
    """

    job: Ulid
    paths: Paths
    excludes: Patterns
    tags: Annotated[list[Text], Meta(max_length=limits.TAGS_MAX)]
    head_seq: Count
    head: Hash
    parent: Reference | None
    references: list[Reference]
    damaged: Count
    epoch_min: Count
    limit_upload: Count
    """0: the client's setting."""
    dry_run: bool = False
    accepted: bool = False
    """An administrator accepted the server's history although the agent remembers a newer one: the
    agent starts a new lineage that names both heads (docs/format.md, Identity record)."""


class RestoreItem(Struct, frozen=True, forbid_unknown_fields=True):
    """Part of one snapshot: `path` is absolute, b"/" means all of it."""

    snapshot: Hash
    client: Text
    path: PathBytes


class Restore(Message, frozen=True, kw_only=True, tag="restore"):
    """Restore `items` in place (`target` empty) or under `target`."""

    job: Ulid
    items: Annotated[list[RestoreItem], Meta(min_length=1, max_length=limits.PATHS_MAX)]
    target: PathBytes
    include: Patterns
    exclude: Patterns
    strip: bool
    overwrite: Overwrite
    delete: bool
    special: bool
    dry_run: bool
    verify: bool
    limit_download: Count


class Verify(Message, frozen=True, kw_only=True, tag="verify"):
    """Open every chunk of a snapshot and compare ids, content ids and refs."""

    job: Ulid
    item: RestoreItem


class Cancel(Message, frozen=True, kw_only=True, tag="cancel"):
    """End this job; answered by Finished."""

    job: Ulid


class FinishedSeen(Message, frozen=True, kw_only=True, tag="finished-seen"):
    """The end of the job is durable in the catalog: forget its journal."""

    job: Ulid


class Query(Message, frozen=True, kw_only=True, tag="query"):
    """Answer by streaming a body to `POST /agent/v1/answers/{query}`.

    kind      arguments                          answer
    browse    path (of the live pod)             rows as `browse --json`
    ls        items[0], recursive                rows as `ls --json`
    find      items (path: where), pattern       rows of ls with `snapshot` and `client`
    diff      items[0], items[1]                 rows `{change, path, type, ...}`
    dump      items[0]                           the file's bytes
    report    items[0], blob (or empty)          rows `{path, reason, message}` of the snapshot's
                                                 report, or of the sealed blob
    """

    query: Ulid
    kind: Annotated[str, Meta(pattern="^(browse|ls|find|diff|dump|report)$")]
    path: PathBytes = b""
    items: list[RestoreItem] = field(default_factory=list)
    pattern: Text = ""
    recursive: bool = False
    blob: bytes = b""


class CancelQuery(Message, frozen=True, kw_only=True, tag="cancel-query"):
    """Nobody waits for the answer any more."""

    query: Ulid


# --- agent to server
class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """Proof and state of the agent.

    `signature` = Ed25519 over `hello_proof(nonce, identity, client)`.
    """

    protocol: int
    agent_version: Text
    client: Text
    identity: Hash
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    roots: Paths
    restore: Mode
    restore_roots: Paths
    browse: Browse
    jobs: Annotated[list[Ulid], Meta(max_length=1024)]
    """Jobs in the agent's journal: for those that are over or unknown the server says FinishedSeen,
    the others go on."""


class Accepted(Message, frozen=True, kw_only=True, tag="accepted"):
    """The job has begun (or goes on)."""

    job: Ulid


class Counts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a job is; totals 0 while unknown."""

    files: Count = 0
    bytes: Count = 0
    bytes_sent: Count = 0
    files_total: Count = 0
    bytes_total: Count = 0


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """At least once a second while a job runs; `current` is relayed, never stored or logged."""

    job: Ulid
    phase: Annotated[str, Meta(pattern="^(running|finalizing)$")]
    counts: Counts
    current: PathBytes = b""
    moved: Count = 0
    """Grows whenever anything was done: a job whose `moved` stands still is stalled."""


class Failure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a job failed."""

    code: Text
    message: Text
    hint: Text = ""
    details: dict[str, object] = field(default_factory=dict)


class Finished(Message, frozen=True, kw_only=True, tag="finished"):
    """The job is over on this side; repeated at every connect until FinishedSeen.

    Names (skipped, not_exact, plan) go before it by `PUT /agent/v1/jobs/{job}/result`.
    """

    job: Ulid
    state: JobState
    snapshot: Hash | None = None
    counts: Counts = Counts()
    summary: Annotated[Told, Meta(max_length=limits.SUMMARY_FIELDS_MAX)] = field(
        default_factory=dict
    )
    """The numeric fields of the summary of interface.md, without names."""
    skipped_count: Count = 0
    not_exact_count: Count = 0
    error: Failure | None = None


ToAgent = (
    Challenge | Welcome | Refuse | NewSettings | Backup | Restore | Verify | Cancel
    | FinishedSeen | Query | CancelQuery
)  # fmt: skip
ToServer = Hello | Accepted | Progress | Finished

_T = TypeVar("_T")
_encoder = msgspec.msgpack.Encoder()
_to_agent = msgspec.msgpack.Decoder(ToAgent)
_to_server = msgspec.msgpack.Decoder(ToServer)


def encode(message: Message) -> bytes:
    """Return the frame of `message`."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[_T], frame: bytes) -> _T:
    if len(frame) > limits.MESSAGE_BYTES_MAX:
        raise InvalidInput(f"control message of {len(frame)} bytes")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("control message outside the vocabulary") from error


def decode_to_agent(frame: bytes) -> ToAgent:
    """Return the message that the server sent.

    Raises:
        InvalidInput: not in the vocabulary.
    """
    message: ToAgent = _decode(_to_agent, frame)
    return message


def decode_to_server(frame: bytes) -> ToServer:
    """Return the message that an agent sent.

    Raises:
        InvalidInput: not in the vocabulary.
    """
    message: ToServer = _decode(_to_server, frame)
    return message


def hello_proof(nonce: bytes, identity: bytes, client: str) -> bytes:
    """Return the bytes that Hello's signature covers."""
    name = client.encode()
    return b"holdfast/1/hello" + nonce + identity + len(name).to_bytes(4, "little") + name
