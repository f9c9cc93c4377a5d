r"""Records of the HTTP API: what bodies of requests and answers say.

JSON, except where a route says MessagePack or raw bytes (docs/protocol.md lists the routes).
Unknown fields of requests are refused; readers of answers ignore fields they do not know.
Ids are hex text, times RFC 3339 UTC, sizes bytes, rates bytes a second. A path is text where it is
UTF-8; otherwise `path` shows it with `\xNN` and `path_b64` has its bytes.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from holdfast_contract import limits
from holdfast_contract.errors import InvalidInput
from holdfast_contract.protocol.control import JobState, Overwrite, Ulid

Name = Annotated[str, Meta(min_length=1, max_length=201)]
Text = Annotated[str, Meta(max_length=4096)]
PathTexts = Annotated[list[Text], Meta(max_length=limits.PATHS_MAX)]
HexHash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Rate = Annotated[int, Meta(ge=0, le=1 << 50)]
Seconds = Annotated[int, Meta(ge=1, le=10 * 365 * 86_400)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies."""


class Row(Struct, kw_only=True):
    """Base of answers; fields may be added, never renamed."""


# --- problem documents (RFC 9457)
class Problem(Row, kw_only=True):
    """Every error answer, `application/problem+json`; `code` is stable, `exit` for the command."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str = ""
    exit: int = 1
    details: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""


class Listing(Row, kw_only=True):
    """One page of a list; `next` goes into `?after=`, empty at the end."""

    items: list[Any]
    next: str = ""


# --- domains, tokens, enrolment
class DomainCreate(Request, frozen=True, kw_only=True):
    """`record` is the domain record (docs/format.md), base64."""

    name: Name
    record: bytes


class DomainRecordPut(Request, frozen=True, kw_only=True):
    """A newer revision of the domain record."""

    record: bytes


class DomainRow(Row, kw_only=True):
    """A domain."""

    name: str
    domain: str
    created: str
    revision: int
    recipients: list[str]
    clients: int
    snapshots: int
    share_references: bool = True
    """Whether replicas of one workload look for small files in each other's snapshots."""


ROLES = ("admin", "operator", "viewer")
"""What a token may be for: all; jobs and restores; reading."""


class TokenCreate(Request, frozen=True, kw_only=True):
    """A token for people and programs; no `domains`: it is good for all, and for the server."""

    role: Annotated[str, Meta(pattern=f"^({'|'.join(ROLES)})$")]
    domains: Annotated[list[Name], Meta(max_length=limits.TOKEN_DOMAINS_MAX)] = field(
        default_factory=list
    )
    ttl_seconds: Seconds | None = None
    label: Text = ""


class EnrolTokenCreate(Request, frozen=True, kw_only=True):
    """A one-time token with which one client of `domain` becomes known."""

    domain: Name
    client: Name | None = None
    ttl_seconds: Seconds = 3600


class TokenRow(Row, kw_only=True):
    """A token without its secret; `token` is filled once, in the answer to its creation."""

    id: str
    kind: str
    role: str = ""
    domain: str = ""
    client: str = ""
    label: str = ""
    created: str
    expires: str | None = None
    used: str | None = None
    revoked: str | None = None
    token: str | None = None


class EnrolBegin(Request, frozen=True, kw_only=True):
    """The agent proposes a name (ignored where the token is for one client)."""

    client: Name | None = None
    sign_key: Annotated[bytes, Meta(min_length=32, max_length=32)]


class EnrolOffer(Row, kw_only=True):
    """What the agent needs for its identity record; hashes raw, base64 in JSON."""

    client: str
    domain: bytes
    domain_record: bytes
    identity: bytes | None
    """The current identity record of the client, if it was known before."""
    head_seq: int = 0
    head: bytes | None = None


class EnrolFinish(Request, frozen=True, kw_only=True):
    """The signed-up identity record."""

    client: Name
    record: bytes


class IdentityAnswer(Row, kw_only=True):
    """The identity record counts now; `identity` is its hash."""

    client: str
    identity: bytes


# --- clients
class ClientRow(Row, kw_only=True):
    """A row of `clients`."""

    name: str
    domain: str
    state: str
    """connected, offline or revoked."""
    last_seen: str | None
    version: str
    roots: list[str]
    last_snapshot: str | None
    restore: str = ""
    restore_roots: list[str] = field(default_factory=list)
    browse: str = ""
    limit_upload: int = 0
    limit_download: int = 0
    identity: str = ""
    sign_key: str = ""
    box_key: str = ""
    enrolled: str | None = None


class ClientSet(Request, frozen=True, kw_only=True):
    """Settings of a client; null leaves one as it is, 0 removes the limit."""

    limit_upload: Rate | None = None
    limit_download: Rate | None = None


class ClientAccept(Request, frozen=True, kw_only=True):
    """Accept the server's history: the agent starts a new lineage that names both heads."""


# --- jobs
class JobCreateBackup(Request, frozen=True, kw_only=True, tag_field="kind", tag="backup"):
    """Start backups, one job for each client."""

    clients: Annotated[list[Name], Meta(min_length=1, max_length=1000)]
    paths: PathTexts = field(default_factory=list)
    paths_b64: list[bytes] = field(default_factory=list)
    excludes: PathTexts = field(default_factory=list)
    tags: Annotated[list[Text], Meta(max_length=limits.TAGS_MAX)] = field(default_factory=list)
    limit_upload: Rate = 0
    dry_run: bool = False


class SnapshotPath(Request, frozen=True, kw_only=True):
    """A part of a snapshot; `path` / `path_b64` absolute, `/` for all."""

    snapshot: HexHash
    path: Text = "/"
    path_b64: bytes | None = None

    def path_bytes(self) -> bytes:
        """Return the path as bytes."""
        return self.path_b64 if self.path_b64 is not None else self.path.encode()


class JobCreateRestore(Request, frozen=True, kw_only=True, tag_field="kind", tag="restore"):
    """Start restores, one job for each target client (`to` empty: the snapshot's own)."""

    items: Annotated[list[SnapshotPath], Meta(min_length=1, max_length=limits.PATHS_MAX)]
    to: list[Name] = field(default_factory=list)
    target: Text = ""
    """Empty: in place."""
    target_b64: bytes | None = None
    include: PathTexts = field(default_factory=list)
    exclude: PathTexts = field(default_factory=list)
    strip: bool = False
    overwrite: Overwrite = Overwrite.IF_CHANGED
    delete: bool = False
    special: bool = False
    dry_run: bool = False
    verify: bool = False
    limit_download: Rate = 0


class JobCreateVerify(Request, frozen=True, kw_only=True, tag_field="kind", tag="verify"):
    """Have an agent open every chunk of a snapshot (`to` empty: the snapshot's own client)."""

    snapshot: HexHash
    to: Name | None = None


JobCreate = JobCreateBackup | JobCreateRestore | JobCreateVerify


class ProgressRow(Row, kw_only=True):
    """How far a job is; a total is null while unknown."""

    files: int = 0
    bytes: int = 0
    bytes_sent: int = 0
    files_total: int | None = None
    bytes_total: int | None = None


class ErrorRow(Row, kw_only=True):
    """Why a job failed."""

    code: str
    message: str
    hint: str = ""
    exit: int = 1
    details: dict[str, Any] = field(default_factory=dict)


class JobRow(Row, kw_only=True):
    """A row of `jobs`; `snapshot` and `result` where one job is shown."""

    id: str
    kind: str
    client: str
    state: JobState
    created: str
    started: str | None
    finished: str | None
    progress: ProgressRow
    error: ErrorRow | None
    snapshot: str | None = None
    result: dict[str, Any] | None = None
    """The summary; lists are null once their names are forgotten (`skipped_count` and
    `not_exact_count` remain)."""
    current: str | None = None
    """Path at work now, from memory."""
    not_exact_sealed: bytes | None = None
    """The sealed not_exact list of a restore, for who holds the key."""


class JobsCreated(Row, kw_only=True):
    """Answer to POST /v1/jobs."""

    jobs: list[JobRow]


class JobResult(Request, frozen=True, kw_only=True):
    """What an agent relays before Finished: names, kept in memory for ten minutes.

    Each list holds at most `limits.REPORTED_NAMES_MAX` rows: `{path, path_b64?, reason, message}`;
    `plan` rows `{action, path, path_b64?, type, bytes}`. `not_exact_sealed` is stored as it is.
    """

    skipped: list[dict[str, Any]] = field(default_factory=list)
    not_exact: list[dict[str, Any]] = field(default_factory=list)
    plan: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    """Files that damaged chunks touch: `{path, path_b64?, object, chunk}`."""
    not_exact_sealed: bytes | None = None


# --- snapshots, queries, events
class SnapshotRow(Row, kw_only=True):
    """A row of `snapshots`, newest last."""

    id: str
    client: str
    domain: str
    seq: int
    time: str
    started: str
    state: str
    consistency: str
    files: int
    bytes: int
    bytes_new: int
    tags: list[str]
    paths: list[str]
    pinned: bool
    parent: str | None = None
    prev: str | None = None
    dirs: int = 0
    identity: str = ""
    manifest_object: str = ""
    refs_object: str = ""
    chunks: int = 0


class QueryCreate(Request, frozen=True, kw_only=True):
    """Ask a connected agent; the answer streams as NDJSON (dump: raw bytes).

    `client` is needed for `browse`; otherwise any connected agent of the snapshots' domain is
    asked, their own client first.
    """

    kind: Annotated[str, Meta(pattern="^(browse|ls|find|diff|dump|report)$")]
    client: Name | None = None
    path: Text = ""
    path_b64: bytes | None = None
    items: Annotated[list[SnapshotPath], Meta(max_length=limits.PATHS_MAX)] = field(
        default_factory=list
    )
    pattern: Text = ""
    recursive: bool = False
    job: str = ""
    """report: the restore job whose sealed not_exact list is to be opened."""


class EventRow(Row, kw_only=True):
    """Something an administrator may want to know."""

    id: int
    time: str
    kind: str
    client: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    link: str = ""
    """Hash over this event and the link of the one before it, of whichever domain; hex."""


class StatusRow(Row, kw_only=True):
    """`holdfast status`; what is stored is null for a token that is limited to domains."""

    version: str
    started: str
    clients_connected: int
    clients: int
    domains: int
    snapshots: int
    jobs_running: int
    jobs_queued: int
    chunks: int | None = None
    packs: int | None = None
    stored_bytes: int | None = None
    damaged_chunks: int | None = None
    store_free_bytes: int | None = None
    store_reserve_bytes: int | None = None


class DoctorRow(Row, kw_only=True):
    """One finding of `holdfast doctor`."""

    check: str
    state: str
    """ok, warn or fail."""
    message: str
    hint: str = ""


# --- agent's data routes
class SessionAnswer(Row, kw_only=True):
    """An upload session with reserved object names (ULIDs)."""

    session: Ulid
    packs: list[Ulid]
    refs: Ulid
    manifest: Ulid


class NamesAnswer(Row, kw_only=True):
    """More reserved names."""

    names: Annotated[list[Ulid], Meta(min_length=1)]


class CommitRequest(Request, frozen=True, kw_only=True):
    """Commit the manifest and refs uploaded under these names."""

    manifest: str
    refs: str
    seq: Annotated[int, Meta(ge=1, le=limits.COUNT_MAX)]


class CommitAnswer(Row, kw_only=True):
    """The snapshot stands, in store, catalog and journal; a repeated commit answers the same."""

    snapshot: HexHash
    time_ns: int


class MissingAnswer(Row, kw_only=True):
    """Answer 409 to a commit: page of ids to avoid (hex); `?after=next` until `next` is empty."""

    missing: list[HexHash]
    damaged: list[HexHash]
    next: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$", max_length=64)] = ""


class DamageReport(Request, frozen=True, kw_only=True):
    """An agent could not open this copy of a chunk."""

    chunk: HexHash
    object: Text
    offset: Annotated[int, Meta(ge=0, le=limits.PACK_BYTES_MAX)]
    reason: Text


def path_fields(path: bytes) -> dict[str, str]:
    """Return `{path}` or, where the bytes are not UTF-8, `{path, path_b64}`."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        text = path.decode("utf-8", "backslashreplace")
        return {"path": text, "path_b64": base64.b64encode(path).decode()}


_T = TypeVar("_T")


def decode_json(kind: type[_T], body: bytes) -> _T:
    """Return `body` as a `kind`.

    Raises:
        InvalidInput: not JSON of that form.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"request body: {error}") from error
