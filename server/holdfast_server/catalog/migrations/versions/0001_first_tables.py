"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table of the first version."""
    _make_domains()
    _make_tokens()
    _make_jobs()
    _make_journal()
    _make_clients()
    _make_identities()
    _make_sessions()
    _make_objects()
    _make_chunks()
    _make_damage_and_refs()
    _make_snapshots()


def _make_domains() -> None:
    op.create_table(
        "domains",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("domain_id", sa.LargeBinary(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("object_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("record", sa.BigInteger(), nullable=False),
        sa.Column("recipients", sa.LargeBinary(), nullable=False),
        sa.Column("epochs", sa.LargeBinary(), nullable=False),
        sa.Column("share_references", sa.Boolean(), nullable=False),
        sa.Column("commit_last", sa.BigInteger(), nullable=False),
        sa.Column("leave_last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_domains"),
        sa.UniqueConstraint("domain_id", name="uq_domains_domain_id"),
        sa.UniqueConstraint("name", name="uq_domains_name"),
    )


def _make_tokens() -> None:
    op.create_table(
        "enrol_tokens",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.Column("used_ns", sa.BigInteger(), nullable=True),
        sa.Column("used_client", sa.Text(), nullable=True),
        sa.Column("used_key", sa.LargeBinary(length=32), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_enrol_tokens"),
        sa.UniqueConstraint("hash", name="uq_enrol_tokens_hash"),
        sa.UniqueConstraint("token", name="uq_enrol_tokens_token"),
    )
    op.create_table(
        "tokens",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("domains", sa.LargeBinary(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
        sa.UniqueConstraint("token", name="uq_tokens_token"),
    )


def _make_jobs() -> None:
    op.create_table(
        "events",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("time_ns", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_events"),
    )
    op.create_index("ix_events_client_key", "events", ["client", "key"], unique=False)
    op.create_index("ix_events_job_key", "events", ["job", "key"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("started_ns", sa.BigInteger(), nullable=True),
        sa.Column("finished_ns", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("snapshot", sa.LargeBinary(length=32), nullable=True),
        sa.Column("summary", sa.LargeBinary(), nullable=True),
        sa.Column("skipped_count", sa.BigInteger(), nullable=False),
        sa.Column("not_exact_count", sa.BigInteger(), nullable=False),
        sa.Column("not_exact_sealed", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_jobs"),
        sa.UniqueConstraint("job", name="uq_jobs_job"),
    )
    op.create_index("ix_jobs_client_state", "jobs", ["client", "state"], unique=False)
    op.create_index("ix_jobs_state", "jobs", ["state"], unique=False)


def _make_journal() -> None:
    op.create_table(
        "outbox",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_outbox"),
    )
    op.create_table(
        "server_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("store_id", sa.LargeBinary(length=16), nullable=True),
        sa.Column("leader_epoch", sa.BigInteger(), nullable=False),
        sa.Column("clock_high_ns", sa.BigInteger(), nullable=False),
        sa.Column("record_last", sa.BigInteger(), nullable=False),
        sa.Column("record_durable", sa.BigInteger(), nullable=False),
        sa.Column("journal_number", sa.BigInteger(), nullable=False),
        sa.Column("journal_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("packs", sa.BigInteger(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_server_state"),
    )


def _make_clients() -> None:
    op.create_table(
        "clients",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("domain_key", _KEY, nullable=False),
        sa.Column("identity", sa.LargeBinary(length=32), nullable=False),
        sa.Column("enrolled_ns", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ns", sa.BigInteger(), nullable=True),
        sa.Column("seen_ns", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("roots", sa.LargeBinary(), nullable=False),
        sa.Column("restore", sa.Text(), nullable=False),
        sa.Column("restore_roots", sa.LargeBinary(), nullable=False),
        sa.Column("browse", sa.Text(), nullable=False),
        sa.Column("limit_upload", sa.BigInteger(), nullable=False),
        sa.Column("limit_download", sa.BigInteger(), nullable=False),
        sa.Column("head_seq", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(length=32), nullable=False),
        sa.Column("accepted", sa.LargeBinary(length=32), nullable=True),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_clients_domain_key"),
        sa.PrimaryKeyConstraint("key", name="pk_clients"),
        sa.UniqueConstraint("name", name="uq_clients_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_clients_domain_key", "clients", ["domain_key"], unique=False)


def _make_identities() -> None:
    op.create_table(
        "identities",
        sa.Column("identity", sa.LargeBinary(length=32), nullable=False),
        sa.Column("domain_key", _KEY, nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("lineage", sa.LargeBinary(length=16), nullable=False),
        sa.Column("sign_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("box_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("previous", sa.LargeBinary(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("added_ns", sa.BigInteger(), nullable=False),
        sa.Column("record", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_identities_domain_key"),
        sa.PrimaryKeyConstraint("identity", name="pk_identities"),
    )
    op.create_index("ix_identities_domain_key", "identities", ["domain_key"], unique=False)


def _make_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("client_key", sa.BigInteger(), nullable=False),
        sa.Column("domain_key", _KEY, nullable=False),
        sa.Column("opened_ns", sa.BigInteger(), nullable=False),
        sa.Column("closed_ns", sa.BigInteger(), nullable=True),
        sa.Column("refused_refs", sa.Text(), nullable=True),
        sa.Column("refused_manifest", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_sessions_domain_key"),
        sa.PrimaryKeyConstraint("key", name="pk_sessions"),
        sa.UniqueConstraint("job", name="uq_sessions_job"),
        sa.UniqueConstraint("session", name="uq_sessions_session"),
    )
    op.create_table(
        "session_ids",
        sa.Column("session_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_key"], ["sessions.key"], name="fk_session_ids_session_key"
        ),
        sa.PrimaryKeyConstraint("session_key", "chunk_id", name="pk_session_ids"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "leave_log",
        sa.Column("domain_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_leave_log_domain_key"),
        sa.PrimaryKeyConstraint("domain_key", "number", name="pk_leave_log"),
        sqlite_with_rowid=False,
    )


def _make_objects() -> None:
    op.create_table(
        "objects",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("ulid", sa.Text(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("domain_key", _KEY, nullable=True),
        sa.Column("session_key", _KEY, nullable=True),
        sa.Column("registered_ns", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=True),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_objects_domain_key"),
        sa.ForeignKeyConstraint(["session_key"], ["sessions.key"], name="fk_objects_session_key"),
        sa.PrimaryKeyConstraint("key", name="pk_objects"),
        sa.UniqueConstraint("ulid", name="uq_objects_ulid"),
    )
    op.create_index("ix_objects_session_key", "objects", ["session_key"], unique=False)


def _make_chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column("domain_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("object_key", _KEY, nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("storage_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("client_key", sa.BigInteger(), nullable=False),
        sa.Column("session_key", _KEY, nullable=False),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_chunks_domain_key"),
        sa.ForeignKeyConstraint(["object_key"], ["objects.key"], name="fk_chunks_object_key"),
        sa.ForeignKeyConstraint(["session_key"], ["sessions.key"], name="fk_chunks_session_key"),
        sa.PrimaryKeyConstraint("domain_key", "chunk_id", "generation", name="pk_chunks"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_chunks_damaged",
        "chunks",
        ["domain_key", "chunk_id"],
        unique=False,
        sqlite_where=sa.text("state = 4"),
        postgresql_where=sa.text("state = 4"),
    )
    op.create_index("ix_chunks_object_key", "chunks", ["object_key"], unique=False)


def _make_damage_and_refs() -> None:
    op.create_table(
        "damage_reports",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("domain_key", _KEY, nullable=False),
        sa.Column("chunk_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("object_key", _KEY, nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reported_ns", sa.BigInteger(), nullable=False),
        sa.Column("confirmed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain_key"], ["domains.key"], name="fk_damage_reports_domain_key"
        ),
        sa.ForeignKeyConstraint(
            ["object_key"], ["objects.key"], name="fk_damage_reports_object_key"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_damage_reports"),
    )
    op.create_index(
        "uq_damage_reports_copy_reporter",
        "damage_reports",
        ["domain_key", "chunk_id", "object_key", "offset", "reporter"],
        unique=True,
    )
    op.create_table(
        "refs_objects",
        sa.Column("object_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("refs_set", sa.LargeBinary(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("base_key", _KEY, nullable=True),
        sa.Column("depth", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["base_key"], ["refs_objects.object_key"], name="fk_refs_objects_base_key"
        ),
        sa.ForeignKeyConstraint(["object_key"], ["objects.key"], name="fk_refs_objects_object_key"),
        sa.PrimaryKeyConstraint("object_key", name="pk_refs_objects"),
    )
    op.create_index("ix_refs_objects_base_key", "refs_objects", ["base_key"], unique=False)


def _make_snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("key", _KEY, autoincrement=True, nullable=False),
        sa.Column("snapshot", sa.LargeBinary(length=32), nullable=False),
        sa.Column("domain_key", _KEY, nullable=False),
        sa.Column("client_key", _KEY, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("prev", sa.LargeBinary(length=32), nullable=False),
        sa.Column("parent", sa.LargeBinary(length=32), nullable=False),
        sa.Column("dataset", sa.LargeBinary(length=16), nullable=False),
        sa.Column("lineage", sa.LargeBinary(length=16), nullable=False),
        sa.Column("identity", sa.LargeBinary(length=32), nullable=False),
        sa.Column("manifest_key", _KEY, nullable=False),
        sa.Column("refs_key", _KEY, nullable=False),
        sa.Column("record", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("state_ns", sa.BigInteger(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("time_ns", sa.BigInteger(), nullable=False),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("consistency", sa.Text(), nullable=False),
        sa.Column("epoch_min", sa.BigInteger(), nullable=False),
        sa.Column("epoch_new", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("dirs", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("bytes_new", sa.BigInteger(), nullable=False),
        sa.Column("chunks", sa.BigInteger(), nullable=False),
        sa.Column("refs_set", sa.LargeBinary(length=32), nullable=False),
        sa.Column("paths", sa.LargeBinary(), nullable=False),
        sa.Column("tags", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["client_key"], ["clients.key"], name="fk_snapshots_client_key"),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_snapshots_domain_key"),
        sa.ForeignKeyConstraint(
            ["manifest_key"], ["objects.key"], name="fk_snapshots_manifest_key"
        ),
        sa.ForeignKeyConstraint(["refs_key"], ["objects.key"], name="fk_snapshots_refs_key"),
        sa.PrimaryKeyConstraint("key", name="pk_snapshots"),
        sa.UniqueConstraint("snapshot", name="uq_snapshots_snapshot"),
    )
    op.create_index("ix_snapshots_domain_key", "snapshots", ["domain_key"], unique=False)
    op.create_index("ix_snapshots_record", "snapshots", ["record"], unique=False)
    op.create_index("uq_snapshots_client_key_seq", "snapshots", ["client_key", "seq"], unique=True)
    op.create_table(
        "commit_log",
        sa.Column("domain_key", _KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("snapshot_key", _KEY, nullable=False),
        sa.Column("refs_key", _KEY, nullable=False),
        sa.ForeignKeyConstraint(["domain_key"], ["domains.key"], name="fk_commit_log_domain_key"),
        sa.ForeignKeyConstraint(["refs_key"], ["objects.key"], name="fk_commit_log_refs_key"),
        sa.ForeignKeyConstraint(
            ["snapshot_key"], ["snapshots.key"], name="fk_commit_log_snapshot_key"
        ),
        sa.PrimaryKeyConstraint("domain_key", "number", name="pk_commit_log"),
        sqlite_with_rowid=False,
    )
