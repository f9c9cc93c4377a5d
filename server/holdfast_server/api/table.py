"""Every route there is. The application and the OpenAPI document are both made from this table."""

from __future__ import annotations

from typing import Any, Final

from holdfast_contract import limits
from holdfast_contract.protocol import http
from holdfast_server.api import (
    agent_enrol,
    agent_jobs,
    agent_upload,
    clients,
    document,
    domains,
    events,
    jobs,
    metrics,
    queries,
    snapshots,
    status,
    tokens,
)
from holdfast_server.api.chunks import HASH_BYTES, DamageState
from holdfast_server.api.rights import Right
from holdfast_server.api.routes import (
    LIMIT,
    PAGED,
    Audience,
    Handler,
    ListingOf,
    Parameter,
    RawAnswer,
    RawBody,
    Route,
    StreamedBody,
)

_RAW = RawAnswer()
_STREAM = RawAnswer(is_streamed=True)
_FETCH = RawBody(limits.FETCH_IDS_MAX * HASH_BYTES)
_HAVE = RawBody(limits.HAVE_IDS_MAX * HASH_BYTES)
_MANIFEST = RawBody(limits.MANIFEST_BYTES_MAX)
_RESULT = StreamedBody("application/json")

_CLIENT = Parameter("client", "only of this client: DOMAIN/NAME")
_NUMBER_AFTER = Parameter("after", "`next` of the page before, or the last number seen", "integer")
_WAIT = Parameter("wait", "seconds to wait for a change, at most 60", "integer")
_HEX_AFTER = Parameter("after", "`next` of the page before: 64 hex digits")
_EVENTS = ListingOf(http.EventRow)


def _open(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, path, Audience.OPEN, handler, **more)


def _reader(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, path, Audience.PEOPLE, handler, right=Right.READ, **more)


def _operator(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, path, Audience.PEOPLE, handler, right=Right.RUN, **more)


def _admin(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, path, Audience.PEOPLE, handler, right=Right.ADMINISTER, **more)


def _newcomer(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, f"/agent/v1{path}", Audience.NEWCOMER, handler, **more)


def _agent(method: str, path: str, handler: Handler, **more: Any) -> Route:
    return Route(method, f"/agent/v1{path}", Audience.AGENT, handler, **more)


_SERVER: Final = (
    _open("GET", "/healthz", status.healthz, answer=status.Health),
    _open("GET", "/v1/openapi.json", document.openapi, answer=RawAnswer("application/json")),
    _reader("GET", "/metrics", status.metrics, is_of_server=True, answer=RawAnswer(metrics.MEDIA)),
    _reader("GET", "/v1/status", status.status, answer=http.StatusRow),
    _reader(
        "GET", "/v1/doctor", status.doctor, is_of_server=True, answer=ListingOf(http.DoctorRow)
    ),
    _reader(
        "GET",
        "/v1/events",
        events.list_events,
        answer=_EVENTS,
        query=(_CLIENT, LIMIT, _NUMBER_AFTER, _WAIT),
    ),
)

_DOMAINS: Final = (
    _reader(
        "GET",
        "/v1/domains",
        domains.list_domains,
        answer=ListingOf(http.DomainRow),
        query=PAGED,
    ),
    _admin(
        "POST",
        "/v1/domains",
        domains.create_domain,
        is_of_server=True,
        request=http.DomainCreate,
        answer=http.DomainRow,
        status=201,
    ),
    _reader("GET", "/v1/domains/{name}", domains.show_domain, answer=http.DomainRow),
    _reader("GET", "/v1/domains/{name}/record", domains.get_domain_record, answer=_RAW),
    _admin(
        "PUT",
        "/v1/domains/{name}/record",
        domains.put_domain_record,
        request=http.DomainRecordPut,
        answer=http.DomainRow,
    ),
)

_TOKENS: Final = (
    _admin(
        "GET",
        "/v1/tokens",
        tokens.list_tokens,
        is_of_server=True,
        answer=ListingOf(http.TokenRow),
        query=PAGED,
    ),
    _admin(
        "POST",
        "/v1/tokens",
        tokens.create_token,
        is_of_server=True,
        request=http.TokenCreate,
        answer=http.TokenRow,
        status=201,
    ),
    _admin("DELETE", "/v1/tokens/{id}", tokens.revoke_token, is_of_server=True),
    _admin(
        "GET",
        "/v1/enrol-tokens",
        tokens.list_enrol_tokens,
        answer=ListingOf(http.TokenRow),
        query=PAGED,
    ),
    _admin(
        "POST",
        "/v1/enrol-tokens",
        tokens.create_enrol_token,
        request=http.EnrolTokenCreate,
        answer=http.TokenRow,
        status=201,
    ),
    _admin("DELETE", "/v1/enrol-tokens/{id}", tokens.revoke_enrol_token),
)

_ONE_CLIENT: Final = "/v1/clients/{domain}/{name}"
_CLIENTS: Final = (
    _reader(
        "GET",
        "/v1/clients",
        clients.list_clients,
        answer=ListingOf(http.ClientRow),
        query=PAGED,
    ),
    _reader("GET", _ONE_CLIENT, clients.show_client, answer=http.ClientRow),
    _admin(
        "PATCH",
        _ONE_CLIENT,
        clients.set_client,
        request=http.ClientSet,
        answer=http.ClientRow,
    ),
    _admin("DELETE", _ONE_CLIENT, clients.forget_client),
    _admin("POST", f"{_ONE_CLIENT}/revoke", clients.revoke_client, answer=http.ClientRow),
    _admin("POST", f"{_ONE_CLIENT}/accept", clients.accept_client, answer=http.ClientRow),
)

_JOBS: Final = (
    _reader(
        "GET",
        "/v1/jobs",
        jobs.list_jobs,
        answer=ListingOf(http.JobRow),
        query=(_CLIENT, Parameter("state", "only in this state"), *PAGED),
    ),
    _operator(
        "POST",
        "/v1/jobs",
        jobs.create_jobs,
        request=http.JobCreate,
        answer=http.JobsCreated,
        status=201,
    ),
    _reader("GET", "/v1/jobs/{id}", jobs.show_job, answer=http.JobRow, query=(_WAIT,)),
    _operator("POST", "/v1/jobs/{id}/cancel", jobs.cancel_job, answer=http.JobRow),
    _reader(
        "GET",
        "/v1/jobs/{id}/log",
        jobs.job_log,
        answer=_EVENTS,
        query=(LIMIT, _NUMBER_AFTER),
    ),
)

_SNAPSHOTS: Final = (
    _reader(
        "GET",
        "/v1/snapshots",
        snapshots.list_snapshots,
        answer=ListingOf(http.SnapshotRow),
        query=(
            _CLIENT,
            Parameter("since", "received then or later: RFC 3339, or a date (UTC)"),
            Parameter("until", "received then or before: RFC 3339, or a date (UTC)"),
            Parameter("tag", "only with this tag"),
            Parameter("latest", "only so many of the newest of each client", "integer"),
            LIMIT,
            _NUMBER_AFTER,
        ),
    ),
    _reader("GET", "/v1/snapshots/{ref}", snapshots.show_snapshot, answer=http.SnapshotRow),
    _reader("GET", "/v1/snapshots/{id}/manifest", snapshots.get_snapshot_manifest, answer=_RAW),
    _reader("GET", "/v1/identities/{hash}", snapshots.get_identity, answer=_RAW),
    _reader(
        "POST",
        "/v1/snapshots/{id}/chunks",
        snapshots.fetch_snapshot_chunks,
        request=_FETCH,
        answer=_STREAM,
    ),
    _reader(
        "POST",
        "/v1/snapshots/{id}/damage",
        snapshots.report_snapshot_chunk,
        request=http.DamageReport,
        answer=DamageState,
    ),
    _reader(
        "POST",
        "/v1/queries",
        queries.ask,
        request=http.QueryCreate,
        answer=RawAnswer(queries.NDJSON, is_streamed=True),
    ),
)

_AGENT_SELF: Final = (
    Route(
        "GET",
        "/agent/v1/control",
        Audience.PROOF,
        agent_enrol.open_control,
        answer=RawAnswer(is_streamed=True),
        status=101,
    ),
    _newcomer(
        "POST",
        "/enrol/begin",
        agent_enrol.begin_enrolment,
        request=http.EnrolBegin,
        answer=http.EnrolOffer,
    ),
    _newcomer(
        "POST",
        "/enrol/finish",
        agent_enrol.finish_enrolment,
        request=http.EnrolFinish,
        answer=http.IdentityAnswer,
    ),
    _agent(
        "PUT",
        "/identity",
        agent_enrol.put_identity,
        request=http.EnrolFinish,
        answer=http.IdentityAnswer,
    ),
    _agent("GET", "/domain", agent_enrol.get_own_domain, answer=_RAW),
    _agent("GET", "/identities/{hash}", agent_enrol.get_domain_identity, answer=_RAW),
)

_SESSION: Final = "/sessions/{session}"
_AGENT_UPLOAD: Final = (
    _agent("POST", "/jobs/{job}/session", agent_upload.open_session, answer=http.SessionAnswer),
    _agent(
        "POST",
        f"{_SESSION}/names",
        agent_upload.more_names,
        answer=http.NamesAnswer,
        query=(
            Parameter("kind", "packs, refs or manifests"),
            Parameter("count", "how many, at most 64", "integer"),
        ),
    ),
    _agent(
        "POST",
        f"{_SESSION}/have",
        agent_upload.have,
        request=_HAVE,
        answer=_RAW,
        query=(Parameter("epoch_min", "lowest epoch that counts", "integer"),),
    ),
    _agent("PUT", f"{_SESSION}/packs/{{ulid}}", agent_upload.put_pack, request=StreamedBody()),
    _agent("PUT", f"{_SESSION}/refs/{{ulid}}", agent_upload.put_refs, request=StreamedBody()),
    _agent("PUT", f"{_SESSION}/manifest/{{ulid}}", agent_upload.put_manifest, request=_MANIFEST),
    _agent(
        "POST",
        f"{_SESSION}/commit",
        agent_upload.commit,
        request=http.CommitRequest,
        answer=http.CommitAnswer,
    ),
    _agent(
        "GET",
        f"{_SESSION}/missing",
        agent_upload.missing,
        answer=http.MissingAnswer,
        query=(_HEX_AFTER,),
    ),
)

_AGENT_READ: Final = (
    _agent("GET", "/snapshots/{id}/manifest", agent_jobs.get_manifest, answer=_RAW),
    _agent("GET", "/jobs/{job}/damaged", agent_jobs.list_damaged, answer=_RAW, query=(_HEX_AFTER,)),
    _agent(
        "POST",
        "/grants/{grant}/chunks",
        agent_jobs.fetch_chunks,
        request=_FETCH,
        answer=_STREAM,
    ),
    _agent(
        "POST",
        "/grants/{grant}/damage",
        agent_jobs.report_chunk,
        request=http.DamageReport,
        answer=DamageState,
    ),
    _agent("PUT", "/jobs/{job}/result", agent_jobs.put_result, request=_RESULT),
    _agent(
        "POST", "/answers/{query}", agent_jobs.answer_query, request=StreamedBody(queries.NDJSON)
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    *_SERVER,
    *_DOMAINS,
    *_TOKENS,
    *_CLIENTS,
    *_JOBS,
    *_SNAPSHOTS,
    *_AGENT_SELF,
    *_AGENT_UPLOAD,
    *_AGENT_READ,
)
