"""The API as a whole: every route asks who calls, and every error is a problem document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from holdfast_server.api.routes import Audience, Route
from holdfast_server.api.table import ROUTES
from holdfast_server.auth.tokens import TokenKind, new_token
from tests.support.apiworld import ApiWorld, expired_enrol_token, made
from tests.support.uploads import Served

PARTS = {
    "hash": "ab" * 32,
    "id": "ab" * 32,
    "ref": "shop%2Fdb-0@latest",
    "domain": "shop",
    "name": "db-0",
}
ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
CLOSED = [route for route in ROUTES if route.audience not in (Audience.OPEN, Audience.PROOF)]


def path_of(route: Route) -> str:
    """Return a path that the route's pattern fits."""
    return re.sub(r"{(\w+)}", lambda found: PARTS.get(found[1], ULID), route.path)


def title(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Served, str]]:
    served, token = made(tmp_path)
    yield served, token
    served.stop()


async def test_no_route_but_the_open_ones_answers_without_a_token(world: ApiWorld) -> None:
    for route in CLOSED:
        problem = await world.refused(route.method, path_of(route), token="", data=b"{}")
        assert (title(route), problem["code"]) == (title(route), "not-authenticated")
        assert problem["exit"] == 12


async def test_a_token_opens_only_the_routes_that_it_is_for(world: ApiWorld) -> None:
    await world.domain()
    agent = await world.agent()
    good = {
        Audience.PEOPLE: world.token,
        Audience.NEWCOMER: await world.enrol_token(),
        Audience.AGENT: agent.token,
    }
    for route in CLOSED:
        for audience, token in good.items():
            if audience is route.audience:
                continue
            problem = await world.refused(route.method, path_of(route), token=token, data=b"{}")
            assert (title(route), problem["code"]) == (title(route), "not-authenticated")


@pytest.mark.parametrize("kind", list(TokenKind))
async def test_an_unknown_token_of_the_right_form_opens_nothing(
    world: ApiWorld, kind: TokenKind
) -> None:
    token = new_token(kind)
    for route in CLOSED:
        problem = await world.refused(route.method, path_of(route), token=token, data=b"{}")
        assert (title(route), problem["code"]) == (title(route), "not-authenticated")


async def test_an_expired_enrolment_token_and_a_revoked_token_are_worthless(
    world: ApiWorld,
) -> None:
    late = await world.run(expired_enrol_token, world.served)
    body = {"client": "db-0", "sign_key": "A" * 43 + "="}
    problem = await world.refused("POST", "/agent/v1/enrol/begin", token=late, json=body)
    assert problem["code"] == "not-authenticated"
    row = await world.call("POST", "/v1/tokens", json={"role": "admin", "label": "laptop"})
    assert await world.call("GET", "/v1/status", token=row["token"])
    await world.call("DELETE", f"/v1/tokens/{row['id']}")
    problem = await world.refused("GET", "/v1/status", token=row["token"])
    assert problem["code"] == "not-authenticated"


async def test_the_open_routes_need_no_token(world: ApiWorld) -> None:
    assert (await world.call("GET", "/healthz", token=""))["status"] == "ok"
    document = await world.call("GET", "/v1/openapi.json", token="")
    assert document["openapi"].startswith("3.1")


async def test_a_server_that_cannot_serve_says_so(world: ApiWorld) -> None:
    def broken() -> None:
        from holdfast_contract.errors import StoreFailed

        raise StoreFailed("the disk is gone")

    world.served.store.space = broken  # type: ignore[method-assign, assignment]
    async with await world.request("GET", "/healthz", token="") as response:
        assert response.status == 503
        assert (await response.json())["code"] == "store-failed"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/", 404, "not-found"),
        ("PUT", "/v1/status", 405, "usage"),
        ("GET", "/v1/jobs/nonsense", 404, "not-found"),
        ("GET", f"/v1/jobs/{ULID}", 404, "not-found"),
        ("GET", "/v1/domains/nothing", 404, "not-found"),
        ("GET", "/v1/clients/shop/nobody", 404, "not-found"),
        ("GET", "/v1/clients/SHOP/nobody", 400, "invalid"),
        ("GET", "/v1/snapshots/abcdef", 404, "not-found"),
        ("GET", "/v1/snapshots/nonsense", 400, "invalid"),
        ("GET", "/v1/jobs?limit=0", 400, "usage"),
        ("GET", "/v1/jobs?limit=1001", 400, "usage"),
        ("GET", "/v1/jobs?limit=many", 400, "usage"),
        ("GET", "/v1/jobs?state=Nowhere", 400, "usage"),
        ("GET", "/v1/events?after=x", 400, "usage"),
        ("GET", "/v1/snapshots?since=yesterday", 400, "invalid"),
    ],
)
async def test_errors_are_problem_documents_with_a_request_id(
    world: ApiWorld, method: str, path: str, status: int, code: str
) -> None:
    async with await world.request(method, path) as response:
        problem = await response.json(content_type=None)
        assert response.content_type == "application/problem+json"
        assert (response.status, problem["status"], problem["code"]) == (status, status, code)
        assert problem["request_id"] == response.headers["Request-Id"]
        assert "allow" not in response.headers or status == 405


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid"),
        (b"{", "invalid"),
        (b"[]", "invalid"),
        (b'{"kind": "backup"}', "invalid"),
        (b'{"kind": "format-disk", "clients": ["shop/db-0"]}', "invalid"),
        (b'{"kind": "backup", "clients": ["shop/db-0"], "extra": 1}', "invalid"),
        (b'{"kind": "backup", "clients": ["\xff"]}', "invalid"),
        (b"[" * 50_000, "invalid"),
        (b" " * ((1 << 20) + 1), "too-large"),
    ],
)
async def test_a_body_that_is_no_such_request_is_refused(
    world: ApiWorld, body: bytes, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    problem = await world.refused("POST", "/v1/jobs", data=body, headers=headers)
    assert problem["code"] == code


async def test_a_body_is_not_read_for_who_has_no_token(world: ApiWorld) -> None:
    """The answer comes although the body never does."""
    reader, writer = await _raw(world)
    writer.write(
        b"PUT /agent/v1/jobs/%s/result HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        % ULID.encode()
    )
    line = await reader.readline()
    assert b"401" in line
    writer.close()


async def test_a_body_that_says_it_is_too_long_is_refused_before_it_comes(
    world: ApiWorld,
) -> None:
    reader, writer = await _raw(world)
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 99999999\r\n\r\n"
    )
    writer.write(head.encode())
    assert b"413" in await reader.readline()
    writer.close()


async def _raw(world: ApiWorld) -> Any:
    import asyncio

    return await asyncio.open_connection("127.0.0.1", world.port)


async def test_a_failure_inside_tells_nothing_and_the_request_id(
    world: ApiWorld, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("secret detail")

    world.served.store.space = broken  # type: ignore[method-assign, assignment]
    async with await world.request("GET", "/v1/status") as response:
        problem = await response.json(content_type=None)
    assert (response.status, problem["code"]) == (500, "internal")
    assert "secret detail" not in str(problem)
    failed = [record for record in caplog.records if record.exc_info]
    assert len(failed) == 1
    assert problem["request_id"] in str(failed[0].__dict__["holdfast_fields"])


async def test_metrics_count_requests_bytes_jobs_and_agents(world: ApiWorld) -> None:
    await world.domain()
    await world.agent()
    await world.call("POST", "/v1/tokens", json={"role": "admin"})
    text = (await world.call("GET", "/metrics")).decode()
    assert 'holdfast_jobs{state="Queued"} 0.0' in text
    assert "holdfast_agents_connected 1.0" in text
    assert 'holdfast_request_seconds_count{method="POST",route="/v1/tokens",status="201"} 1' in text
    received = re.search(r"^holdfast_received_bytes_total (\S+)", text, re.MULTILINE)
    assert received is not None
    assert float(received[1]) >= len('{"role": "admin"}')
    for name in ("chunks", "packs", "stored_bytes", "damaged_chunks"):
        assert f"holdfast_{name} 0.0" in text


async def test_status_and_doctor_tell_of_the_server(world: ApiWorld) -> None:
    await world.domain()
    await world.agent()
    await world.pod("shop/db-1")
    status = await world.call("GET", "/v1/status")
    counted = {name: status[name] for name in ("clients", "clients_connected", "domains")}
    assert counted == {"clients": 2, "clients_connected": 1, "domains": 1}
    found = await world.call("GET", "/v1/doctor")
    states = {row["check"]: row["state"] for row in found["items"]}
    assert states["agents"] == "warn"
    assert states["journal"] == "ok"


async def test_refused_acts_are_recorded_and_a_flood_of_them_is_not(world: ApiWorld) -> None:
    for _ in range(100):
        await world.refused("GET", "/v1/status", token=new_token(TokenKind.API))
    kinds = await world.event_kinds()
    assert 0 < kinds.count("refused") <= 60


WEIRD = ("%00", "%FF", "%ED%A0%80", "%2e%2e", "%0a", "\u202e", "%F0%9F%92%A9", "a" * 300, "%")


@pytest.mark.parametrize("weird", WEIRD)
async def test_no_name_in_a_path_or_query_breaks_the_server(world: ApiWorld, weird: str) -> None:
    await world.domain()
    agent = await world.agent()
    tokens = {Audience.PEOPLE: world.token, Audience.AGENT: agent.token}
    for route in CLOSED:
        if route.audience not in tokens:
            continue
        paths = [re.sub(r"{\w+}", weird, route.path)]
        paths += [f"{path_of(route)}?{parameter.name}={weird}" for parameter in route.query]
        for path in paths:
            url = URL(f"http://127.0.0.1:{world.port}{path}", encoded=True)
            token = tokens[route.audience]
            async with await world.request(
                route.method,
                url,
                token=token,
                data=b"{}",
            ) as response:
                assert (path, response.status < 500) == (path, True)


async def test_two_thousand_path_bytes_in_a_reference_are_no_failure(world: ApiWorld) -> None:
    problem = await world.refused("GET", "/v1/snapshots/" + "a%2F" * 600)
    assert problem["code"] == "invalid"
