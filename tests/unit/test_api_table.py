"""Routes, OpenAPI document and error table: three views of one thing that cannot differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_contract.errors import (
    HoldfastError,
    InternalError,
    Refused,
    TooLarge,
    error_classes,
)
from holdfast_server.api.openapi import openapi_document
from holdfast_server.api.problems import problem_of
from holdfast_server.api.rights import Right, check_right, role_for
from holdfast_server.api.routes import Audience, ListingOf, RawAnswer, Route
from holdfast_server.api.table import ROUTES

TOP = Path(__file__).resolve().parents[2]
PROTOCOL = (TOP / "docs" / "protocol.md").read_text()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document(ROUTES, "9.9.9")


def operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }


def test_the_document_lists_exactly_the_routes(document: dict[str, Any]) -> None:
    assert operations(document) == {(route.method, route.path) for route in ROUTES}
    assert len(operations(document)) == len(ROUTES)
    assert document["info"]["version"] == "9.9.9"


def test_every_reference_of_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    known = document["components"]["schemas"]
    found = set(re.findall(r"#/components/schemas/([\w.]+)", repr(document)))
    assert found
    assert found <= known.keys()


def test_operations_have_names_of_their_own_and_say_what_they_do(document: dict[str, Any]) -> None:
    every = [operation for methods in document["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in every]
    assert len(set(names)) == len(names)
    assert all(operation["summary"] for operation in every)


def test_the_document_says_who_may_call(document: dict[str, Any]) -> None:
    is_open = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if not operation["security"]
    }
    assert is_open == {
        ("GET", "/healthz"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/agent/v1/control"),
    }
    assert {route.audience for route in ROUTES if route.path.startswith("/v1/")} == {
        Audience.PEOPLE,
        Audience.OPEN,
    }


def test_request_and_answer_types_of_the_table_stand_in_the_document(
    document: dict[str, Any],
) -> None:
    post = document["paths"]["/v1/jobs"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert {"JobCreateBackup", "JobCreateRestore", "JobCreateVerify"} <= set(
        re.findall(r"schemas/(\w+)", repr(body))
    )
    assert "JobsCreated" in repr(post["responses"]["201"])
    get = document["paths"]["/v1/jobs"]["get"]
    assert "JobRow" in repr(get["responses"]["200"])
    assert [parameter["name"] for parameter in get["parameters"]] == [
        "client",
        "state",
        "limit",
        "after",
    ]


def documented_routes() -> set[tuple[str, str]]:
    """Return every (method, path) that the tables of docs/protocol.md name."""
    return {route for routes, _ in documented_rows() for route in routes}


def documented_rows() -> Iterator[tuple[list[tuple[str, str]], list[str]]]:
    """Yield the routes of each row of the tables, and the words of its second column."""
    rows = r"^\| (`(?:GET|POST|PUT|PATCH|DELETE) .*?) \| ?(.*?) ?\|"
    for row, second in re.findall(rows, PROTOCOL, re.MULTILINE):
        found = []
        path = ""
        for text in re.findall(r"`([^`]+)`", row):
            method, _, rest = text.partition(" ")
            if method.startswith("/"):
                # `POST /a/revoke`, `/accept`: the same method, the last part exchanged.
                path = path.rsplit("/", 1)[0] + method
                found.append(("POST", path))
                continue
            path = rest.partition("?")[0] or path
            found.append((method, path))
        yield found, second.split(", ")


def canonical(method: str, path: str) -> tuple[str, str]:
    return method, re.sub(r"{\w+}", "{}", path)


def test_the_routes_are_those_of_the_protocol_page() -> None:
    documented = {canonical(*route) for route in documented_routes()}
    beside = {
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/v1/openapi.json"),
        ("GET", "/agent/v1/control"),
    }
    assert {canonical(route.method, route.path) for route in ROUTES} == documented | beside


def test_the_roles_of_the_protocol_page_are_those_of_the_routes() -> None:
    documented = {
        canonical(*route): role
        for routes, roles in documented_rows()
        if routes[0][1].startswith("/v1")
        for route, role in zip(routes, roles, strict=True)
    }
    assert documented == {
        canonical(route.method, route.path): role_for(route.right) + "*" * route.is_of_server
        for route in ROUTES
        if route.right is not None and route.path.startswith("/v1")
    }


def test_the_document_says_which_role_a_route_takes(document: dict[str, Any]) -> None:
    told = document["paths"]["/v1/jobs"]["post"]["description"]
    assert told == "Needs a token of the role operator or higher, good for the domain."
    assert "not limited to domains" in document["paths"]["/v1/tokens"]["get"]["description"]
    for methods in document["paths"].values():
        for operation in methods.values():
            is_for_people = operation["security"] == [{"token": []}]
            assert ("description" in operation) is is_for_people


@pytest.mark.parametrize("role", ["", "emperor", "Admin", "admin "])
def test_a_role_that_is_not_known_may_do_nothing(role: str) -> None:
    for right in Right:
        with pytest.raises(Refused):
            check_right(role, right)


def test_the_error_table_of_the_protocol_page_is_that_of_the_classes() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\d+) \| (\d+) \| (\w+) \|", PROTOCOL, flags=re.MULTILINE
    )
    documented = {code: (int(http), int(leave), retry) for code, http, leave, retry in rows}
    assert len(rows) == len(documented)
    assert documented == {
        code: (error.http_status, error.exit_code, error.retry.value)
        for code, error in error_classes().items()
    }


@pytest.mark.parametrize("code", sorted(error_classes()))
def test_a_problem_document_tells_all_of_an_error(code: str) -> None:
    error: HoldfastError = error_classes()[code]("what", hint="do", object="packs/x")
    problem = problem_of(error, "R")
    assert (problem.code, problem.exit) == (code, error.exit_code)
    assert (problem.status, problem.request_id) == (error.http_status, "R")
    assert (problem.detail, problem.hint, problem.details) == ("what", "do", {"object": "packs/x"})
    assert problem.type.endswith(code)
    assert problem.title


def test_a_status_that_http_knows_better_replaces_that_of_the_class() -> None:
    assert problem_of(TooLarge("x"), "R").status == 413
    assert problem_of(InternalError("x"), "R", 405).status == 405


async def nothing(call: object) -> None:
    """Do nothing."""


def test_a_planted_route_shows_in_the_document() -> None:
    from holdfast_contract.protocol.http import ClientRow

    planted = Route(
        "GET",
        "/v1/planted",
        Audience.PEOPLE,
        nothing,
        answer=ListingOf(ClientRow),
        right=Right.READ,
    )
    raw = Route("GET", "/v1/raw", Audience.OPEN, nothing, answer=RawAnswer("text/plain"))
    document = openapi_document([planted, raw], "1")
    assert operations(document) == {("GET", "/v1/planted"), ("GET", "/v1/raw")}
    assert "ClientRow" in document["components"]["schemas"]
    answer = document["paths"]["/v1/raw"]["get"]["responses"]["200"]
    assert list(answer["content"]) == ["text/plain"]
