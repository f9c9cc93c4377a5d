"""Every table of the catalog.

The catalog is an index of the store: what is needed to restore lies there too. Times are signed
nanoseconds since 1970. Integer keys stand for domains, clients, objects and sessions, so that a row
of `chunks` stays near 120 bytes. Numbers of the logs only grow and are never used again.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)


class Bytes(LargeBinary):
    """Bytes as the driver takes and gives them.

    SQLAlchemy would wrap each value on its way in and copy it on its way out: a third of a look-up
    of many ids.
    """

    cache_ok = True

    def bind_processor(self, dialect: Any) -> None:
        """Hand values to the driver as they are."""

    def result_processor(self, dialect: Any, coltype: Any) -> None:
        """Take values from the driver as they are."""


metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class ObjectKind(IntEnum):
    """What an object is; its name begins accordingly."""

    DOMAIN = 1
    IDENTITY = 2
    PACK = 3
    REFS = 4
    MANIFEST = 5


class ObjectState(IntEnum):
    """Life of an object's name. A fenced one never counts again, whatever arrives late."""

    REGISTERED = 1
    """Bytes may lie under it or be on their way."""
    STORED = 2
    """Durable and checked."""
    FENCED = 3
    """About to be deleted."""
    DELETED = 4


class CopyState(IntEnum):
    """State of one sealed copy of a chunk."""

    LIVE = 1
    CONDEMNED = 2
    """No snapshot needed it when marked; still readable."""
    DELETING = 3
    DAMAGED = 4
    SPARE = 5
    """A later copy of a chunk that has a live one: kept until its pack is compacted."""


class SnapshotState(IntEnum):
    """Whether a snapshot is shown."""

    STANDING = 1
    TRASHED = 2
    PURGED = 3


def _key() -> Column[int]:
    return Column(
        "key", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )


server_state: Final = Table(
    "server_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store_id", Bytes(16)),
    Column("leader_epoch", BigInteger, nullable=False),
    Column("clock_high_ns", BigInteger, nullable=False),
    Column("record_last", BigInteger, nullable=False),
    Column("record_durable", BigInteger, nullable=False),
    Column("journal_number", BigInteger, nullable=False),
    Column("journal_hash", Bytes(32), nullable=False),
    Column("packs", BigInteger, nullable=False),
    Column("chunks", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
)
"""One row. `record_last`: last record number given out; `record_durable`: last one that lies in the
store; `journal_number`, `journal_hash`: the last journal object; counters for statistics only."""

outbox: Final = Table(
    "outbox",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Bytes, nullable=False),
)
"""Journal records that are true and not yet known to lie in the store."""

domains: Final = Table(
    "domains",
    metadata,
    _key(),
    Column("domain_id", Bytes(16), nullable=False, unique=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("object", Text, nullable=False),
    Column("object_hash", Bytes(32), nullable=False),
    Column("record", BigInteger, nullable=False),
    Column("recipients", Bytes, nullable=False),
    Column("epochs", Bytes, nullable=False),
    Column("share_references", Boolean, nullable=False),
    Column("commit_last", BigInteger, nullable=False),
    Column("leave_last", BigInteger, nullable=False),
)
"""`commit_last`, `leave_last`: last numbers of the domain's two logs."""

clients: Final = Table(
    "clients",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    Column("domain_key", ForeignKey("domains.key"), nullable=False, index=True),
    Column("identity", Bytes(32), nullable=False),
    Column("enrolled_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
    Column("seen_ns", BigInteger),
    Column("version", Text, nullable=False),
    Column("roots", Bytes, nullable=False),
    Column("restore", Text, nullable=False),
    Column("restore_roots", Bytes, nullable=False),
    Column("browse", Text, nullable=False),
    Column("limit_upload", BigInteger, nullable=False),
    Column("limit_download", BigInteger, nullable=False),
    Column("head_seq", BigInteger, nullable=False),
    Column("head", Bytes(32), nullable=False),
    Column("accepted", Bytes(32)),
    sqlite_autoincrement=True,
)
"""`head`: the newest snapshot ever committed, standing or not; `accepted`: the head from which an
administrator let the client go on although it may remember a newer one. A client that never
committed can be forgotten while chunks and sessions still name its key: no key is used again."""

identities: Final = Table(
    "identities",
    metadata,
    Column("identity", Bytes(32), primary_key=True),
    Column("domain_key", ForeignKey("domains.key"), nullable=False, index=True),
    Column("client", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("lineage", Bytes(16), nullable=False),
    Column("sign_key", Bytes(32), nullable=False),
    Column("box_key", Bytes(32), nullable=False),
    Column("previous", Bytes(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("added_ns", BigInteger, nullable=False),
    Column("record", BigInteger, nullable=False),
)

objects: Final = Table(
    "objects",
    metadata,
    _key(),
    Column("ulid", Text, nullable=False, unique=True),
    Column("kind", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("domain_key", ForeignKey("domains.key")),
    Column("session_key", ForeignKey("sessions.key"), index=True),
    Column("registered_ns", BigInteger, nullable=False),
    Column("length", BigInteger),
    Column("digest", Bytes(32)),
)
"""Names first: no byte lies under a name that is not registered here, except the journal's. The
name follows from kind, domain and ULID. `domain_key` is empty for the first record of a domain.
`digest`: BLAKE3 of the whole object once it is stored; of a pack, the hash in its trailer."""

chunks: Final = Table(
    "chunks",
    metadata,
    Column("domain_key", ForeignKey("domains.key"), primary_key=True, autoincrement=False),
    Column("chunk_id", Bytes(32), primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("object_key", ForeignKey("objects.key"), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("storage_hash", Bytes(32), nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("client_key", BigInteger, nullable=False),
    Column("session_key", ForeignKey("sessions.key"), nullable=False),
    Index("ix_chunks_object_key", "object_key"),
    Index(
        "ix_chunks_damaged",
        "domain_key",
        "chunk_id",
        sqlite_where=text("state = 4"),
        postgresql_where=text("state = 4"),
    ),
    sqlite_with_rowid=False,
)
"""Every copy of every chunk: at most one live one for an epoch."""

sessions: Final = Table(
    "sessions",
    metadata,
    _key(),
    Column("session", Text, nullable=False, unique=True),
    Column("job", Text, nullable=False, unique=True),
    Column("client_key", BigInteger, nullable=False),
    Column("domain_key", ForeignKey("domains.key"), nullable=False),
    Column("opened_ns", BigInteger, nullable=False),
    Column("closed_ns", BigInteger),
    Column("refused_refs", Text),
    Column("refused_manifest", Text),
)
"""`refused_*`: objects of the last commit that was answered with missing chunks."""

session_ids: Final = Table(
    "session_ids",
    metadata,
    Column("session_key", ForeignKey("sessions.key"), primary_key=True, autoincrement=False),
    Column("chunk_id", Bytes(32), primary_key=True),
    sqlite_with_rowid=False,
)
"""What `have` said yes to in an open session: roots while its job runs."""

refs_objects: Final = Table(
    "refs_objects",
    metadata,
    Column("object_key", ForeignKey("objects.key"), primary_key=True, autoincrement=False),
    Column("refs_set", Bytes(32), nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("base_key", ForeignKey("refs_objects.object_key"), index=True),
    Column("depth", SmallInteger, nullable=False),
)
"""Refs of committed snapshots; a base stays while something decodes through it."""

snapshots: Final = Table(
    "snapshots",
    metadata,
    _key(),
    Column("snapshot", Bytes(32), nullable=False, unique=True),
    Column("domain_key", ForeignKey("domains.key"), nullable=False, index=True),
    Column("client_key", ForeignKey("clients.key"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("prev", Bytes(32), nullable=False),
    Column("parent", Bytes(32), nullable=False),
    Column("dataset", Bytes(16), nullable=False),
    Column("lineage", Bytes(16), nullable=False),
    Column("identity", Bytes(32), nullable=False),
    Column("manifest_key", ForeignKey("objects.key"), nullable=False),
    Column("refs_key", ForeignKey("objects.key"), nullable=False),
    Column("record", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("state_ns", BigInteger, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger, nullable=False),
    Column("result", Text, nullable=False),
    Column("consistency", Text, nullable=False),
    Column("epoch_min", BigInteger, nullable=False),
    Column("epoch_new", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    Column("dirs", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("bytes_new", BigInteger, nullable=False),
    Column("chunks", BigInteger, nullable=False),
    Column("refs_set", Bytes(32), nullable=False),
    Column("paths", Bytes, nullable=False),
    Column("tags", Bytes, nullable=False),
    Index("uq_snapshots_client_key_seq", "client_key", "seq", unique=True),
    Index("ix_snapshots_record", "record"),
)
"""One row a snapshot; shown only when its journal record is durable."""

commit_log: Final = Table(
    "commit_log",
    metadata,
    Column("domain_key", ForeignKey("domains.key"), primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("snapshot_key", ForeignKey("snapshots.key"), nullable=False),
    Column("refs_key", ForeignKey("objects.key"), nullable=False),
    sqlite_with_rowid=False,
)
"""What a mark that was made outside a transaction has to look at before it condemns."""

leave_log: Final = Table(
    "leave_log",
    metadata,
    Column("domain_key", ForeignKey("domains.key"), primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("chunk_id", Bytes(32), nullable=False),
    sqlite_with_rowid=False,
)
"""Ids that stopped being live: what a commit that was checked outside has to look at again."""

damage_reports: Final = Table(
    "damage_reports",
    metadata,
    _key(),
    Column("domain_key", ForeignKey("domains.key"), nullable=False),
    Column("chunk_id", Bytes(32), nullable=False),
    Column("object_key", ForeignKey("objects.key"), nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("reporter", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reported_ns", BigInteger, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Index(
        "uq_damage_reports_copy_reporter",
        *("domain_key", "chunk_id", "object_key", "offset", "reporter"),
        unique=True,
    ),
)
"""Who could not open which copy; `confirmed`: the server read other bytes than were stored."""

tokens: Final = Table(
    "tokens",
    metadata,
    _key(),
    Column("token", Text, nullable=False, unique=True),
    Column("hash", Bytes(32), nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("domains", Bytes, nullable=False),
    Column("label", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)

enrol_tokens: Final = Table(
    "enrol_tokens",
    metadata,
    _key(),
    Column("token", Text, nullable=False, unique=True),
    Column("hash", Bytes(32), nullable=False, unique=True),
    Column("domain", Text, nullable=False),
    Column("client", Text),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("revoked_ns", BigInteger),
    Column("used_ns", BigInteger),
    Column("used_client", Text),
    Column("used_key", Bytes(32)),
)

jobs: Final = Table(
    "jobs",
    metadata,
    _key(),
    Column("job", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("started_ns", BigInteger),
    Column("finished_ns", BigInteger),
    Column("spec", Bytes, nullable=False),
    Column("counts", Bytes, nullable=False),
    Column("error", Bytes),
    Column("snapshot", Bytes(32)),
    Column("summary", Bytes),
    Column("skipped_count", BigInteger, nullable=False),
    Column("not_exact_count", BigInteger, nullable=False),
    Column("not_exact_sealed", Bytes),
    Index("ix_jobs_client_state", "client", "state"),
    Index("ix_jobs_state", "state"),
)

events: Final = Table(
    "events",
    metadata,
    _key(),
    Column("time_ns", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("details", Bytes, nullable=False),
    Column("link", Bytes(32), nullable=False),
    Index("ix_events_client_key", "client", "key"),
    Index("ix_events_job_key", "job", "key"),
)

event_head: Final = Table(
    "event_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("link", Bytes(32), nullable=False),
)
"""One row: the last event's id and link."""
