"""The authorisation matrix of the routes for people: route x token x place of the thing asked for.

A row for each route says which role it takes and what it answers; a route without a row fails here.
What a caller may not know of is answered in the same words, by the same statements of the catalog,
as what there never was.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from holdfast_server.catalog import events
from holdfast_server.catalog.events import EventRecord, Trail
from tests.support.apiworld import ActedAgent, ApiWorld, made, serving
from tests.support.authorisation import (
    ABSENT,
    DELETED,
    FOREIGN,
    OWN,
    Asked,
    Observed,
    Requests,
    Statements,
    Thing,
    Things,
    absent_thing,
    answering,
    api_token,
    enrol_token,
    observe,
    titles,
)
from tests.support.samples import noise
from tests.support.uploads import Pod, Served, domain_keys, domain_record

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
RANK = {VIEWER: 1, OPERATOR: 2, ADMIN: 3}


@dataclass(frozen=True)
class Case:
    """How a route is asked, the least role that may, and the status of a good answer."""

    role: str
    ask: Requests
    good: int = 200
    hidden: int = 404
    """Status where the thing is not for the caller; 200 where a list is empty then."""
    takes_all_domains: bool = False
    is_changing: bool = False
    """Asking once spoils the thing: each caller gets one of its own."""
    wheres: tuple[str, ...] = (OWN, FOREIGN, ABSENT)


def case(role: str, ask: Requests, good: int = 200, **more: Any) -> Case:
    return Case(role, ask, good, **more)


def of_server(role: str, path: str, good: int = 200, **asked: Any) -> Case:
    """A route that concerns the whole server: there is nothing to be foreign."""
    wheres = (OWN,)
    return Case(role, lambda t: Asked(path, **asked), good, wheres=wheres, takes_all_domains=True)


def client_path(thing: Thing, rest: str = "") -> str:
    return f"/v1/clients/{thing.client}{rest}"


def item(thing: Thing) -> dict[str, str]:
    return {"snapshot": thing.snapshot, "path": "/data"}


def damage(thing: Thing) -> dict[str, Any]:
    place = {"object": thing.object, "offset": thing.offset}
    return {"chunk": thing.chunk.hex(), "reason": "does not open", **place}


def change(ask: Requests, good: int = 200, role: str = ADMIN, **more: Any) -> Case:
    return Case(role, ask, good, is_changing=True, **more)


BY_CLIENT = (OWN, FOREIGN, ABSENT, DELETED)
EMPTY = {"hidden": 200}
MATRIX: dict[str, list[Case]] = {
    "GET /metrics": [of_server(VIEWER, "/metrics")],
    "GET /v1/doctor": [of_server(VIEWER, "/v1/doctor")],
    "GET /v1/status": [case(VIEWER, lambda t: Asked("/v1/status"), wheres=(OWN,))],
    "GET /v1/events": [
        case(VIEWER, lambda t: Asked("/v1/events"), wheres=(OWN,)),
        case(VIEWER, lambda t: Asked("/v1/events", {"client": t.client}), **EMPTY),
    ],
    "GET /v1/domains": [case(VIEWER, lambda t: Asked("/v1/domains"), wheres=(OWN,))],
    "POST /v1/domains": [
        of_server(ADMIN, "/v1/domains", 400, json={"name": "shop", "record": "AAAA"})
    ],
    "GET /v1/domains/{name}": [case(VIEWER, lambda t: Asked(f"/v1/domains/{t.domain}"))],
    "GET /v1/domains/{name}/record": [
        case(VIEWER, lambda t: Asked(f"/v1/domains/{t.domain}/record"))
    ],
    "PUT /v1/domains/{name}/record": [
        case(ADMIN, lambda t: Asked(f"/v1/domains/{t.domain}/record", json={"record": "AAAA"}), 400)
    ],
    "GET /v1/tokens": [of_server(ADMIN, "/v1/tokens")],
    "POST /v1/tokens": [of_server(ADMIN, "/v1/tokens", 201, json={"role": "viewer"})],
    "DELETE /v1/tokens/{id}": [
        change(
            lambda t: Asked(f"/v1/tokens/{t.token}"),
            204,
            wheres=(OWN, ABSENT),
            takes_all_domains=True,
        )
    ],
    "GET /v1/enrol-tokens": [case(ADMIN, lambda t: Asked("/v1/enrol-tokens"), wheres=(OWN,))],
    "POST /v1/enrol-tokens": [
        case(ADMIN, lambda t: Asked("/v1/enrol-tokens", json={"domain": t.domain}), 201)
    ],
    "DELETE /v1/enrol-tokens/{id}": [
        change(lambda t: Asked(f"/v1/enrol-tokens/{t.enrol_token}"), 204)
    ],
    "GET /v1/clients": [case(VIEWER, lambda t: Asked("/v1/clients"), wheres=(OWN,))],
    "GET /v1/clients/{domain}/{name}": [
        case(VIEWER, lambda t: Asked(client_path(t))),
        change(lambda t: Asked(client_path(t)), role=VIEWER, wheres=BY_CLIENT),
    ],
    "PATCH /v1/clients/{domain}/{name}": [
        change(lambda t: Asked(client_path(t), json={"limit_upload": 5}), wheres=BY_CLIENT)
    ],
    "DELETE /v1/clients/{domain}/{name}": [
        change(lambda t: Asked(client_path(t)), 204, wheres=BY_CLIENT)
    ],
    "POST /v1/clients/{domain}/{name}/revoke": [
        change(lambda t: Asked(client_path(t, "/revoke")), wheres=BY_CLIENT)
    ],
    "POST /v1/clients/{domain}/{name}/accept": [
        change(lambda t: Asked(client_path(t, "/accept")), wheres=BY_CLIENT)
    ],
    "GET /v1/jobs": [
        case(VIEWER, lambda t: Asked("/v1/jobs"), wheres=(OWN,)),
        case(VIEWER, lambda t: Asked("/v1/jobs", {"client": t.client}), **EMPTY),
        case(VIEWER, lambda t: Asked("/v1/jobs", {"after": t.job}), **EMPTY),
    ],
    "POST /v1/jobs": [
        change(
            lambda t: Asked("/v1/jobs", json={"kind": "backup", "clients": [t.client]}),
            201,
            role=OPERATOR,
            wheres=BY_CLIENT,
        ),
        case(
            OPERATOR,
            lambda t: Asked("/v1/jobs", json={"kind": "restore", "items": [item(t)]}),
            201,
        ),
        case(
            OPERATOR,
            lambda t: Asked("/v1/jobs", json={"kind": "verify", "snapshot": t.snapshot}),
            201,
        ),
    ],
    "GET /v1/jobs/{id}": [
        case(VIEWER, lambda t: Asked(f"/v1/jobs/{t.job}")),
        case(VIEWER, lambda t: Asked(f"/v1/jobs/{t.job}", {"wait": "0"})),
    ],
    "POST /v1/jobs/{id}/cancel": [
        change(lambda t: Asked(f"/v1/jobs/{t.job}/cancel"), role=OPERATOR)
    ],
    "GET /v1/jobs/{id}/log": [case(VIEWER, lambda t: Asked(f"/v1/jobs/{t.job}/log"))],
    "GET /v1/snapshots": [
        case(VIEWER, lambda t: Asked("/v1/snapshots"), wheres=(OWN,)),
        case(VIEWER, lambda t: Asked("/v1/snapshots", {"latest": "1"}), wheres=(OWN,)),
        case(VIEWER, lambda t: Asked("/v1/snapshots", {"tag": "nightly"}), wheres=(OWN,)),
        case(VIEWER, lambda t: Asked("/v1/snapshots", {"client": t.client}), **EMPTY),
    ],
    "GET /v1/snapshots/{ref}": [
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.snapshot}")),
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.snapshot[:12]}")),
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.client.replace('/', '%2F')}@latest")),
    ],
    "GET /v1/snapshots/{id}/manifest": [
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.snapshot}/manifest"))
    ],
    "GET /v1/identities/{hash}": [case(VIEWER, lambda t: Asked(f"/v1/identities/{t.identity}"))],
    "POST /v1/snapshots/{id}/chunks": [
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.snapshot}/chunks", data=t.chunk))
    ],
    "POST /v1/snapshots/{id}/damage": [
        case(VIEWER, lambda t: Asked(f"/v1/snapshots/{t.snapshot}/damage", json=damage(t)))
    ],
    "POST /v1/queries": [
        case(
            VIEWER,
            lambda t: Asked("/v1/queries", json={"kind": "browse", "client": t.live}),
        ),
        case(VIEWER, lambda t: Asked("/v1/queries", json={"kind": "ls", "items": [item(t)]})),
        case(VIEWER, lambda t: Asked("/v1/queries", json={"kind": "report", "job": t.job}), 400),
        case(
            OPERATOR, lambda t: Asked("/v1/queries", json={"kind": "dump", "items": [item(t)]}), 403
        ),
    ],
}
OPEN = {"GET /healthz", "GET /v1/openapi.json"}


@dataclass(frozen=True)
class Holder:
    """Somebody with a token."""

    name: str
    role: str = ""
    """Empty: no token that counts for people."""
    domains: tuple[str, ...] = ()

    @property
    def is_limited(self) -> bool:
        return bool(self.domains)

    def may(self, needed: str) -> bool:
        return RANK[self.role] >= RANK[needed]

    def knows(self, where: str) -> bool:
        return where == OWN or (where == FOREIGN and not self.is_limited)


KNOWN = [
    Holder("admin", ADMIN),
    Holder("admin of the domain", ADMIN, ("shop",)),
    Holder("operator", OPERATOR, ("shop",)),
    Holder("operator of all", OPERATOR),
    Holder("viewer", VIEWER, ("shop",)),
    Holder("viewer of all", VIEWER),
]
STRANGERS = [
    Holder("none"),
    Holder("unknown"),
    Holder("expired"),
    Holder("revoked"),
    Holder("role of a later version"),
    Holder("agent"),
    Holder("newcomer"),
]
HOLDERS = KNOWN + STRANGERS
Key = tuple[str, int, str, str]
"""Route, number of the case, holder, where."""


class Matrix:
    """Asks everything once, and keeps what was answered."""

    def __init__(self, served: Served, token: str) -> None:
        self.served, self.token = served, token
        self.statements = Statements(served.catalog)
        self.things = Things(served)
        self.lasting: dict[str, Thing] = {}
        self.marks: set[bytes] = set()
        """By these an answer would tell of the foreign domain."""
        self.observed: dict[Key, Observed] = {}
        self.asked: dict[Key, Asked] = {}
        self.events: list[EventRecord] = []
        self.trail = Trail(0, None)

    def prepare(self) -> dict[str, Pod]:
        pods = {}
        for where, domain in ((OWN, "shop"), (FOREIGN, "mart")):
            self.served.repository.create_domain(domain, domain_record(domain))
            chunks = sorted(noise(f"{domain} {number}") for number in range(3))
            # The agent's client answers queries; the other one's jobs stay queued.
            pods[where] = self.served.pod(f"{domain}/pod-0")
            quiet = self.served.pod(f"{domain}/db-0")
            self.lasting[where] = self.things.lasting(quiet, where, chunks)
        self.lasting[ABSENT] = absent_thing(self.served)
        self.lasting[DELETED] = Thing(DELETED, "shop")
        far = self.lasting[FOREIGN]
        names = [far.client, far.job, far.snapshot, far.identity, far.enrol_token, far.object]
        names += ["mart", domain_keys("mart").domain_id.hex()]
        self.marks = {name.encode() for name in names}
        return pods

    async def ask_all(self) -> None:
        pods = await asyncio.to_thread(self.prepare)
        async with serving(self.served, self.token) as world:
            agents = [await world.connect(pod) for pod in pods.values()]
            tokens = await asyncio.to_thread(self.secrets, agents[0])
            async with answering(*agents):
                for route, cases in MATRIX.items():
                    for number, each in enumerate(cases):
                        for holder in HOLDERS:
                            await self.ask(world, (route, number), each, holder, tokens)
            await world.services.events.sum_up(is_last=True)
            self.events = await asyncio.to_thread(events.listed, self.served.catalog, limit=10_000)
            self.trail = await asyncio.to_thread(events.trail, self.served.catalog)

    def secrets(self, agent: ActedAgent) -> dict[str, str]:
        served = self.served
        found = {each.name: api_token(served, each.role, *each.domains) for each in KNOWN}
        return found | {
            "none": "",
            "unknown": "hfa_" + "A" * 43,
            "expired": api_token(served, ADMIN, expired=True),
            "revoked": api_token(served, ADMIN, revoked=True),
            "role of a later version": api_token(served, "emperor"),
            "agent": agent.token,
            "newcomer": enrol_token(served, "shop")[0],
        }

    async def ask(
        self,
        world: ApiWorld,
        row: tuple[str, int],
        each: Case,
        holder: Holder,
        tokens: dict[str, str],
    ) -> None:
        method = row[0].partition(" ")[0]
        for where in each.wheres:
            thing = self.lasting[where]
            if each.is_changing:
                thing = await asyncio.to_thread(self.things.fresh, thing)
            key = (*row, holder.name, where)
            asked = self.asked[key] = each.ask(thing)
            self.observed[key] = await observe(
                world, self.statements, method, asked, tokens[holder.name], thing.names()
            )


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    served, token = made(tmp_path_factory.mktemp("matrix"))
    found = Matrix(served, token)
    asyncio.run(found.ask_all())
    served.stop()
    return found


ROW_IDS = [(route, number) for route, cases in MATRIX.items() for number in range(len(cases))]
each_row = pytest.mark.parametrize(
    ("route", "number"), ROW_IDS, ids=[f"{route} {number}" for route, number in ROW_IDS]
)


def test_every_route_for_people_has_a_row_and_every_row_a_route() -> None:
    everywhere = titles("/") - titles("/agent/")
    assert set(MATRIX) | OPEN == everywhere


@each_row
def test_a_token_gets_what_its_role_and_its_domains_allow(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    for holder in KNOWN:
        for where in each.wheres:
            found = matrix.observed[route, number, holder.name, where]
            wanted = (each.good, "")
            if not holder.may(each.role) or (each.takes_all_domains and holder.is_limited):
                wanted = (403, "refused")
            elif not holder.knows(where):
                wanted = (each.hidden, "" if each.hidden == 200 else "not-found")
            elif each.good >= 400:
                wanted = (each.good, found.code)
                assert found.code not in ("refused", "not-found")
            assert (holder.name, where, found.status, found.code) == (holder.name, where, *wanted)


@each_row
def test_without_a_token_that_counts_every_answer_is_the_same(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    for holder in STRANGERS:
        found = {matrix.observed[route, number, holder.name, where] for where in each.wheres}
        assert len(found) == 1, holder
        one = found.pop()
        wanted = (403, "refused") if holder.name.startswith("role") else (401, "not-authenticated")
        assert (holder.name, one.status, one.code) == (holder.name, *wanted)
    told = [matrix.observed[route, number, name, OWN] for name in ("unknown", "expired", "revoked")]
    assert len(set(told)) == 1


@each_row
def test_foreign_absent_and_forbidden_are_answered_alike_and_by_the_same_statements(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    for holder in KNOWN:
        is_shut_out = not holder.may(each.role) or (each.takes_all_domains and holder.is_limited)
        hidden = [where for where in each.wheres if is_shut_out or not holder.knows(where)]
        found = {where: matrix.observed[route, number, holder.name, where] for where in hidden}
        assert len(set(found.values())) <= 1, (holder.name, found)


@each_row
def test_no_answer_tells_of_a_domain_for_which_the_token_is_not_good(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    for holder in HOLDERS:
        if holder.role and not holder.is_limited:
            continue
        for where in each.wheres:
            key = (route, number, holder.name, where)
            asked = str(matrix.asked[key]).replace("%2F", "/").encode()
            marks = {mark for mark in matrix.marks if mark not in asked}
            if where == FOREIGN:
                marks.discard(b"mart")
            raw = matrix.observed[key].raw
            assert [mark for mark in marks if mark in raw] == [], key


LISTS = [
    ("GET /v1/events", 0),
    ("GET /v1/domains", 0),
    ("GET /v1/enrol-tokens", 0),
    ("GET /v1/clients", 0),
    ("GET /v1/jobs", 0),
    ("GET /v1/snapshots", 0),
    ("GET /v1/snapshots", 1),
]


@pytest.mark.parametrize(("route", "number"), LISTS)
def test_a_list_shows_its_own_domains_rows_to_all_and_every_row_to_who_is_not_limited(
    matrix: Matrix, route: str, number: int
) -> None:
    for holder in KNOWN:
        if not holder.may(MATRIX[route][number].role):
            continue
        raw = matrix.observed[route, number, holder.name, OWN].raw
        assert b"shop" in raw, holder
        assert (b"mart" in raw) is not holder.is_limited, holder


# --- the trail
ACTS = [
    route
    for route, cases in MATRIX.items()
    if not route.startswith("GET") and min(RANK[each.role] for each in cases) > RANK[VIEWER]
]


def test_every_act_that_was_done_is_one_event_with_who_and_with_which_request(
    matrix: Matrix,
) -> None:
    told = [event for event in matrix.events if event.details.get("outcome") == "done"]
    by_request = {event.details["request"]: event for event in told}
    assert len(by_request) == len(told)
    done = {
        found.request: (key[2], found)
        for key, found in matrix.observed.items()
        if key[0] in ACTS and found.status < 300
    }
    assert len(done) > 40
    assert by_request.keys() >= done.keys()
    roles = {holder.name: holder.role for holder in KNOWN}
    for request, (name, _) in done.items():
        details = by_request[request].details
        assert (details["role"], len(details["by"])) == (roles[name], 26)
    assert matrix.trail == (len(matrix.events), None)


def test_every_refused_or_failed_act_is_counted_and_few_rows_tell_of_them(matrix: Matrix) -> None:
    unheard = [
        found
        for key, found in matrix.observed.items()
        if found.status in (401, 403) or (key[0] in ACTS and found.status >= 400)
    ]
    first = [event for event in matrix.events if event.kind in ("refused", "act-failed")]
    again = [event for event in matrix.events if event.kind == "refused-again"]
    assert len(unheard) == len(first) + sum(event.details["count"] for event in again)
    callers = {event.details.get("by", "") for event in first}
    assert len(callers) == 8, "nobody, the role of a later version, and all known"
    assert max(len(first), len(again)) <= 9 * len(callers)


def test_no_secret_of_a_token_stands_in_the_trail(matrix: Matrix) -> None:
    assert "hfa_" not in str(matrix.events)
    assert "hfe_" not in str(matrix.events)
