"""What the authorisation matrix is made of: callers, targets, requests, and what was observed.

The matrix is every route x every caller x every place where the thing asked for may lie. What is
expected stands in the tests, row by row; here it is only asked and noted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event

from holdfast_contract import logs
from holdfast_contract.ids import new_ulid
from holdfast_contract.protocol.control import Counts, JobState, Query
from holdfast_server.api.routes import Route
from holdfast_server.api.table import ROUTES
from holdfast_server.auth.tokens import TokenKind, hash_token, new_token
from holdfast_server.catalog import clients, enrolment, jobs, tokens
from holdfast_server.catalog.connection import Catalog
from holdfast_server.control.orders import BackupSpec, encode_spec
from tests.support.apiworld import ActedAgent, ApiWorld
from tests.support.samples import noise
from tests.support.uploads import Pod, Served

OWN, SIBLING, FOREIGN, ABSENT, DELETED = "own", "sibling", "foreign", "absent", "deleted"
HOUR_NS = 3_600 * 10**9
ROWS = b'{"path": "/data/a"}\n{"type": "end"}\n'


def title(route: Route) -> str:
    return f"{route.method} {route.path}"


def titles(prefix: str) -> set[str]:
    """Return every route whose path begins so."""
    return {title(route) for route in ROUTES if route.path.startswith(prefix)}


@dataclass(frozen=True)
class Asked:
    """A request: the path behind the server's address, and what goes with it."""

    path: str
    params: dict[str, str] = field(default_factory=dict)
    json: Any = None
    data: bytes | None = None

    def options(self) -> dict[str, Any]:
        told = {"params": self.params, "json": self.json, "data": self.data}
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True)
class Observed:
    """An answer, with what was asked for replaced, and the statements by which it was found."""

    status: int
    code: str
    body: bytes
    reads: tuple[str, ...]
    raw: bytes = field(compare=False, default=b"")
    request: str = field(compare=False, default="")
    """The request's id."""


class Statements:
    """What requests made the catalog's readers run, by the request's id."""

    def __init__(self, catalog: Catalog) -> None:
        self._of: defaultdict[object, list[str]] = defaultdict(list)
        event.listen(catalog._readers, "before_cursor_execute", self._note)

    def _note(self, connection: Any, cursor: Any, statement: str, *rest: object) -> None:
        bound = logs._bound.get({})
        self._of[bound.get("request_id")].append(statement)

    def of(self, request_id: str) -> tuple[str, ...]:
        return tuple(self._of.pop(request_id, ()))


def plain(body: bytes, names: Iterable[str | bytes]) -> bytes:
    """Return a body without the request's id, and with `names` exchanged for a word."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and "request_id" in document:
        body = json.dumps(document | {"request_id": ""}, sort_keys=True).encode()
    given = {name.encode() if isinstance(name, str) else name for name in names}
    for name in sorted(given - {b""}, key=len, reverse=True):
        body = body.replace(name, b"<it>")
    return body


async def observe(
    world: ApiWorld,
    statements: Statements,
    method: str,
    asked: Asked,
    token: str,
    names: Iterable[str | bytes],
) -> Observed:
    """Send a request and return what came."""
    request = world.request(method, asked.path, token=token, **asked.options())
    async with await request as response:
        raw = await response.read()
        request_id = response.headers.get("Request-Id", "")
        reads = statements.of(request_id)
        code = ""
        if response.content_type == "application/problem+json":
            code = json.loads(raw)["code"]
        return Observed(response.status, code, plain(raw, names), reads, raw, request_id)


# --- what may be asked for
@dataclass(frozen=True)
class Thing:
    """What requests of one case name; all of one place."""

    where: str
    domain: str
    client: str = "shop/none"
    job: str = ""
    snapshot: str = ""
    identity: str = ""
    enrol_token: str = ""
    token: str = ""
    chunk: bytes = bytes(32)
    object: str = ""
    offset: int = 0

    @property
    def live(self) -> str:
        """The client of the same domain whose agent is connected."""
        return self.client.replace("/db-0", "/pod-0")

    def names(self) -> list[str | bytes]:
        """Return everything by which an answer may call it."""
        name = self.client.partition("/")[2]
        found = [self.domain, self.client, self.live, name, self.job, self.identity]
        found += [self.snapshot, self.snapshot[:12]]
        return [*found, self.enrol_token, self.token, self.object, self.chunk, self.chunk.hex()]


def api_token(
    served: Served, role: str, *domains: str, expired: bool = False, revoked: bool = False
) -> str:
    """Return a new token's secret."""
    secret = new_token(TokenKind.API)
    now = served.clock.now_ns()
    made = tokens.create(
        served.catalog,
        token_hash=hash_token(secret),
        role=role,
        domains=list(domains),
        expires_ns=now if expired else now + HOUR_NS,
    )
    if revoked:
        tokens.revoke(served.catalog, made.id)
    return secret


def enrol_token(served: Served, domain: str, **changes: Any) -> tuple[str, str]:
    """Return a new enrolment token: its secret, and its id."""
    secret = new_token(TokenKind.ENROL)
    is_expired, is_revoked = changes.get("expired", False), changes.get("revoked", False)
    now = served.clock.now_ns()
    made = enrolment.create(
        served.catalog,
        token_hash=hash_token(secret),
        domain=domain,
        client=None,
        expires_ns=now if is_expired else now + HOUR_NS,
    )
    if is_revoked:
        enrolment.revoke(served.catalog, made.id)
    return secret, made.id


def queued_job(pod: Pod) -> str:
    """Return a new job of a client, which is queued and stays so: nobody is connected."""
    spec = BackupSpec(paths=[], excludes=[], tags=[])
    catalog = pod.served.catalog
    record = jobs.JobRecord(
        id=new_ulid(catalog.clock),
        kind="backup",
        client=pod.name,
        state=JobState.QUEUED,
        created_ns=catalog.clock.now_ns(),
        spec=encode_spec(spec),
        counts=Counts(),
    )
    jobs.create(catalog, [record])
    return record.id


class Things:
    """Makes things to ask for; each is new unless it cannot be changed by asking."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._count = 0

    def lasting(self, pod: Pod, where: str, chunks: list[bytes]) -> Thing:
        """Return a client that stays, with a snapshot of `chunks`."""
        repository, served = self._served.repository, self._served
        domain = pod.name.domain
        snapshot = pod.backup(chunks, tags=("nightly",))
        [copy] = repository.open_grant(domain, [snapshot]).places(chunks[:1])
        return Thing(
            where,
            domain,
            client=str(pod.name),
            job=queued_job(pod),
            snapshot=snapshot.hex(),
            identity=pod.identity.hex(),
            enrol_token=enrol_token(served, domain)[1],
            token=new_ulid(served.clock),
            chunk=chunks[0],
            object=copy.object,
            offset=copy.offset,
        )

    def fresh(self, like: Thing) -> Thing:
        """Return a thing of the same place that nobody has touched."""
        self._count += 1
        changes: dict[str, Any] = {}
        if like.where == ABSENT:
            return absent_thing(self._served, self._count)
        name = f"{like.domain}/fresh-{self._count}"
        pod = self._served.pod(name)
        changes = {"client": name, "job": queued_job(pod)}
        changes["enrol_token"] = enrol_token(self._served, like.domain)[1]
        secret = api_token(self._served, "viewer")
        found = tokens.find(self._served.catalog, hash_token(secret))
        assert found is not None
        if like.where == DELETED:
            clients.forget(self._served.catalog, pod.name)
        return Thing(**{**like.__dict__, **changes, "token": found.id})


def absent_thing(served: Served, number: int = 0) -> Thing:
    """Return the names of what there never was."""
    some = [noise(f"absent {kind} {number}") for kind in range(4)]
    return Thing(
        ABSENT,
        f"nowhere-{number}",
        client=f"shop/none-{number}",
        job=new_ulid(served.clock),
        snapshot=some[0].hex(),
        identity=some[1].hex(),
        enrol_token=new_ulid(served.clock),
        token=new_ulid(served.clock),
        chunk=some[2],
        object=f"packs/{some[3][:16].hex()}/{new_ulid(served.clock)}",
    )


async def answer_all(agent: ActedAgent) -> None:
    """Answer every query, until cancelled."""
    count = 1
    while True:
        query = await agent.until(Query, count)
        await agent.call("POST", f"/answers/{query.query}", data=ROWS)
        count += 1


@contextlib.asynccontextmanager
async def answering(*agents: ActedAgent) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(answer_all(agent)) for agent in agents]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Requests = Callable[[Thing], Asked]
