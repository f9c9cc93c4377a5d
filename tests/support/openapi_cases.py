"""Requests made from the OpenAPI document, sent to a real server, and answers held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from requests.auth import AuthBase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from holdfast_contract.errors import error_classes
from tests.support.api_process import Known

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CODES = frozenset(error_classes())
KEPT = frozenset({("DELETE", "/v1/tokens/{id}"), ("DELETE", "/v1/enrol-tokens/{id}")})
"""Not with an id that is known: the token that the others need might be hit."""


@schemathesis.serializer("application/x-ndjson")
def rows(context: Any, value: Any) -> bytes:
    """Send what was made for NDJSON as it is."""
    return value if isinstance(value, bytes) else str(value).encode()


class Bearer(AuthBase):
    """Sends a token (empty: none), whatever a case says of it."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


@dataclass
class Sender:
    """Sends cases to one server and counts the answers by status."""

    known: Known
    session: requests.Session = field(default_factory=requests.Session)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.known.port}"

    def operations(self) -> Iterator[Any]:
        """Yield every operation of the server's own document."""
        document = self.session.get(f"{self.base}/v1/openapi.json", timeout=60).json()
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            assert isinstance(found, Ok), found
            yield found.ok()

    def token_of(self, path: str) -> str:
        """Return the token that the routes of this path are for."""
        if path.startswith("/agent/v1/enrol"):
            return self.known.tokens["newcomer"]
        return self.known.tokens["agent" if path.startswith("/agent") else "people"]

    def parts_of(self, path: str) -> dict[str, str]:
        """Return values of the path's parts that lead to something."""
        if path.startswith("/agent"):
            return self.known.agents
        parts = dict(self.known.people)
        if path.startswith("/v1/snapshots/{id}"):
            parts["id"] = parts["snapshot"]
        if path.startswith("/v1/domains/{name}"):
            parts["name"] = parts["domain"]
        return parts

    def send(self, case: Any, *, token: str) -> None:
        """Send one case and hold the answer against the document.

        Raises:
            AssertionError, FailureGroup: a 5xx, or an answer outside the document.
        """
        # An answer that may wait for a minute says nothing more.
        case.query = {name: value for name, value in case.query.items() if name != "wait"}
        # Wrong in everything but the token: otherwise nothing behind it is reached.
        self.session.auth = Bearer(token)
        answer = case.call(base_url=self.base, session=self.session, timeout=60)
        self.statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and case.method != "HEAD":
            problem = answer.json()
            self.codes[problem["code"]] += 1
            assert problem["code"] in CODES, problem
            assert problem["status"] == answer.status_code, problem
            assert problem["request_id"], problem


def run_cases(sender: Sender, each: int, number: int = 0) -> None:
    """Send `each` cases three times for every operation: right, wrong, and wrong without a token.

    The same `number` makes the same cases.
    """
    for operation in sender.operations():
        token = sender.token_of(operation.path)
        # Where nothing can be put wrongly, the right request has to do.
        wrong = GenerationMode.NEGATIVE if _takes_anything(operation) else GenerationMode.POSITIVE
        for mode, bearer in (
            (GenerationMode.POSITIVE, token),
            (wrong, token),
            (wrong, ""),
        ):
            _run(sender, operation, mode, bearer, each, number)


def aimed(body: Any, parts: dict[str, str]) -> Any:
    """Return a body of which some fields name what there is."""
    if not isinstance(body, dict):
        return body
    there: dict[str, Any] = {"domain": "shop", "client": "shop/db-0", "clients": ["shop/db-1"]}
    there |= {"paths": ["/data"], "path": "/data"}
    there |= {name: parts[name] for name in ("snapshot", "refs", "manifest") if name in parts}
    found = {name: there.get(name, value) for name, value in body.items()}
    if isinstance(items := body.get("items"), list):
        found["items"] = [aimed(item, parts) for item in items[:2]]
    return found


def _takes_anything(operation: Any) -> bool:
    return bool(operation.path_parameters or operation.query or operation.body)


def _run(
    sender: Sender, operation: Any, mode: GenerationMode, token: str, each: int, number: int
) -> None:
    parts = sender.parts_of(operation.path)
    may_hit = (operation.method.upper(), operation.path) not in KEPT

    # No shrinking: the server goes on from request to request, and the first failure is the one.
    @seed(number)
    @settings(
        max_examples=each,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode), hits=st.sets(st.sampled_from("abc")))
    def one(case: Any, hits: set[str]) -> None:
        # Most made names lead nowhere: two of three cases get one that leads further.
        if hits and may_hit:
            case.path_parameters = {
                name: parts.get(name, value) for name, value in case.path_parameters.items()
            }
            case.body = aimed(case.body, parts)
        sender.send(case, token=token)

    one()
