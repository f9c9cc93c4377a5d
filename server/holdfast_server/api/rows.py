"""Records of the catalog as rows of the API: ids hex, times RFC 3339, paths as text."""

from __future__ import annotations

from holdfast_contract.clock import rfc3339
from holdfast_contract.protocol.control import Counts
from holdfast_contract.protocol.http import (
    ClientRow,
    DomainRow,
    EventRow,
    ProgressRow,
    TokenRow,
    path_fields,
)
from holdfast_server.catalog.clients import ClientRecord
from holdfast_server.catalog.domains import DomainCounts, DomainRecord
from holdfast_server.catalog.enrolment import EnrolTokenRecord
from holdfast_server.catalog.events import EventRecord
from holdfast_server.catalog.tokens import TokenRecord
from holdfast_server.control.hub import AgentConnection


def time_or_none(time_ns: int | None) -> str | None:
    """Return a time, None where there is none."""
    return None if time_ns is None else rfc3339(time_ns)


def path_text(path: bytes) -> str:
    r"""Return a path for people; bytes that are not UTF-8 as `\\xNN`."""
    return path_fields(path)["path"]


def domain_row(record: DomainRecord, counts: DomainCounts) -> DomainRow:
    """Return a domain."""
    return DomainRow(
        name=record.name,
        domain=record.hex,
        created=rfc3339(record.created_ns),
        revision=record.revision,
        recipients=[recipient.hex() for recipient in record.recipients],
        clients=counts.clients,
        snapshots=counts.snapshots,
        share_references=record.share_references,
    )


def token_row(record: TokenRecord, token: str | None = None) -> TokenRow:
    """Return a token for people; `token` is the secret, shown once."""
    return TokenRow(
        id=record.id,
        kind="api",
        role=record.role,
        domain=", ".join(record.domains),
        label=record.label,
        created=rfc3339(record.created_ns),
        expires=time_or_none(record.expires_ns),
        revoked=time_or_none(record.revoked_ns),
        token=token,
    )


def enrol_token_row(record: EnrolTokenRecord, token: str | None = None) -> TokenRow:
    """Return an enrolment token; `token` is the secret, shown once."""
    return TokenRow(
        id=record.id,
        kind="enrol",
        domain=record.domain,
        client=record.client or record.used_client or "",
        created=rfc3339(record.created_ns),
        expires=rfc3339(record.expires_ns),
        used=time_or_none(record.used_ns),
        revoked=time_or_none(record.revoked_ns),
        token=token,
    )


def client_state(record: ClientRecord, connection: AgentConnection | None) -> str:
    """Return connected, offline or revoked."""
    if record.revoked_ns is not None:
        return "revoked"
    return "offline" if connection is None else "connected"


def client_row(
    record: ClientRecord, connection: AgentConnection | None, last_snapshot: bytes | None
) -> ClientRow:
    """Return a client; what is known of its keys is added where one client is shown."""
    seen_ns = record.seen_ns if connection is None else connection.last_seen_ns
    return ClientRow(
        name=record.name,
        domain=record.name.domain,
        state=client_state(record, connection),
        last_seen=time_or_none(seen_ns),
        version=record.version,
        roots=[path_text(path) for path in record.roots],
        last_snapshot=last_snapshot.hex() if last_snapshot else None,
        restore=record.restore,
        restore_roots=[path_text(path) for path in record.restore_roots],
        browse=record.browse,
        limit_upload=record.limit_upload,
        limit_download=record.limit_download,
        identity=record.identity.hex(),
        enrolled=rfc3339(record.enrolled_ns),
    )


def progress_row(counts: Counts) -> ProgressRow:
    """Return how far a job is; totals that are not known are null."""
    return ProgressRow(
        files=counts.files,
        bytes=counts.bytes,
        bytes_sent=counts.bytes_sent,
        files_total=counts.files_total or None,
        bytes_total=counts.bytes_total or None,
    )


def event_row(record: EventRecord) -> EventRow:
    """Return an event; its job, if it concerns one, stands in the details."""
    details = record.details | ({"job": record.job} if record.job else {})
    return EventRow(
        id=record.id,
        time=rfc3339(record.time_ns),
        kind=record.kind,
        client=record.client,
        message=record.message,
        details=details,
        link=record.link.hex(),
    )
