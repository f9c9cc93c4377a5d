"""The authorisation matrix of the agents' routes: route x token x whose the thing asked for is.

An agent asks for what is its own, a sibling's, another domain's, over, and for what there never
was. Only its own is answered; the rest in the same words and by the same statements.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from holdfast_server.catalog.schema import ObjectKind
from holdfast_server.repository.names import object_name
from tests.support.apiworld import made
from tests.support.authorisation import ABSENT, FOREIGN, OWN, SIBLING, titles
from tests.support.authorisation_agents import ENDED, STRANGERS, Case, Holding, Matrix, case
from tests.support.samples import noise
from tests.support.uploads import domain_keys, full_refs, pack_of

RESULT = b'{"skipped": []}'
NDJSON = b'{"type": "end"}\n'


def domain_of(there: Holding) -> Any:
    return domain_keys(there.client.partition("/")[0]).domain_id


def finish(own: Holding, there: Holding) -> dict[str, str]:
    return {"client": there.client, "record": base64.b64encode(b"no record").decode()}


def report(own: Holding, there: Holding) -> dict[str, Any]:
    copy = {"object": there.object, "offset": there.offset}
    return {"chunk": there.chunk.hex(), "reason": "does not open", **copy}


def renamed_report(own: Holding, there: Holding) -> dict[str, Any]:
    """A report of a copy whose object is given a name in the caller's own domain."""
    ulid = there.object.rpartition("/")[2]
    name = object_name(ObjectKind.PACK, domain_of(own), ulid)
    return report(own, there) | {"object": name}


def own_report(own: Holding, there: Holding) -> dict[str, Any]:
    """A report of a copy that lies under the caller's own names or under another's."""
    return report(own, own)


def commit_of(there: Holding) -> dict[str, Any]:
    return {"manifest": there.manifest, "refs": there.refs, "seq": 2}


def own_pack(own: Holding, there: Holding) -> bytes:
    return pack_of(domain_of(own), [noise("new chunk")])


def own_refs(own: Holding, there: Holding) -> bytes:
    return full_refs(domain_of(own), [own.chunk])


SESSION = "/sessions/{t.session}"
MINE = "/sessions/{own.session}"
DOMAINS_OWN = (OWN, SIBLING)
WITHOUT_ENDED = (OWN, SIBLING, FOREIGN, ABSENT)
MATRIX: dict[str, list[Case]] = {
    "PUT /agent/v1/identity": [
        case("/identity", 400, hidden=400, json=finish, wheres=(SIBLING, FOREIGN, ABSENT))
    ],
    "GET /agent/v1/domain": [case("/domain", wheres=(OWN,))],
    "GET /agent/v1/identities/{hash}": [
        case("/identities/{t.identity}", known=DOMAINS_OWN, wheres=WITHOUT_ENDED)
    ],
    "GET /agent/v1/snapshots/{id}/manifest": [
        case("/snapshots/{t.snapshot}/manifest", wheres=WITHOUT_ENDED)
    ],
    "POST /agent/v1/jobs/{job}/session": [case("/jobs/{t.job}/session")],
    "POST /agent/v1/sessions/{session}/names": [
        case(f"{SESSION}/names", params=lambda own, t: {"kind": "packs", "count": "1"})
    ],
    "POST /agent/v1/sessions/{session}/have": [
        case(f"{SESSION}/have", data=lambda own, t: t.chunk),
        # What is live in another domain is as unknown as what there never was.
        case(
            f"{MINE}/have",
            hidden=200,
            known=DOMAINS_OWN,
            wheres=WITHOUT_ENDED,
            data=lambda own, t: t.chunk,
        ),
    ],
    "PUT /agent/v1/sessions/{session}/packs/{ulid}": [
        case(f"{SESSION}/packs/{{t.pack}}", 204, data=own_pack, is_last=True),
        case(f"{MINE}/packs/{{t.pack}}", 204, data=own_pack, is_last=True, wheres=WITHOUT_ENDED),
    ],
    "PUT /agent/v1/sessions/{session}/refs/{ulid}": [
        case(f"{SESSION}/refs/{{t.refs}}", 204, data=own_refs),
        case(f"{MINE}/refs/{{t.refs}}", 204, data=own_refs, wheres=WITHOUT_ENDED),
    ],
    "PUT /agent/v1/sessions/{session}/manifest/{ulid}": [
        case(f"{SESSION}/manifest/{{t.manifest}}", 204, data=lambda own, t: b"no manifest"),
        case(
            f"{MINE}/manifest/{{t.manifest}}",
            204,
            data=lambda own, t: b"no manifest",
            wheres=WITHOUT_ENDED,
        ),
    ],
    "POST /agent/v1/sessions/{session}/commit": [
        # A commit may be repeated when its session is over: that says what became of it.
        case(f"{SESSION}/commit", 400, json=lambda own, t: commit_of(t), wheres=WITHOUT_ENDED),
        case(f"{MINE}/commit", 400, json=lambda own, t: commit_of(t), wheres=WITHOUT_ENDED),
    ],
    "GET /agent/v1/sessions/{session}/missing": [
        case(f"{SESSION}/missing", wheres=(SIBLING, FOREIGN, ABSENT))
    ],
    "GET /agent/v1/jobs/{job}/damaged": [case("/jobs/{t.job}/damaged")],
    "POST /agent/v1/grants/{grant}/chunks": [
        case("/grants/{t.job}/chunks", data=lambda own, t: t.chunk),
        case("/grants/{t.query}/chunks", data=lambda own, t: t.chunk, wheres=WITHOUT_ENDED),
        case(
            "/grants/{own.job}/chunks",
            hidden=200,
            known=DOMAINS_OWN,  # `have` said yes to it above, in the session of this job
            data=lambda own, t: t.chunk,
            wheres=WITHOUT_ENDED,
        ),
        case(
            "/grants/{own.query}/chunks",
            hidden=200,
            data=lambda own, t: t.chunk,
            wheres=WITHOUT_ENDED,
        ),
    ],
    "POST /agent/v1/grants/{grant}/damage": [
        case("/grants/{t.job}/damage", json=own_report),
        case("/grants/{own.job}/damage", json=report, wheres=(OWN, FOREIGN, ABSENT)),
        case("/grants/{own.job}/damage", json=renamed_report, wheres=(OWN, FOREIGN, ABSENT)),
    ],
    "PUT /agent/v1/jobs/{job}/result": [
        case("/jobs/{t.job}/result", 204, data=lambda own, t: RESULT)
    ],
    "POST /agent/v1/answers/{query}": [
        case(
            "/answers/{t.query}",
            204,
            data=lambda own, t: NDJSON,
            is_last=True,
            wheres=WITHOUT_ENDED,
        )
    ],
}
OTHERS = {
    "GET /agent/v1/control",
    "POST /agent/v1/enrol/begin",
    "POST /agent/v1/enrol/finish",
}
"""Rows of their own below: they take no connection token."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    found = Matrix(*made(tmp_path_factory.mktemp("matrix")), MATRIX)
    asyncio.run(found.ask_all())
    found.served.stop()
    return found


ROW_IDS = [(route, number) for route, cases in MATRIX.items() for number in range(len(cases))]
each_row = pytest.mark.parametrize(
    ("route", "number"), ROW_IDS, ids=[f"{route} {number}" for route, number in ROW_IDS]
)


def test_every_agents_route_has_a_row_and_every_row_a_route() -> None:
    assert set(MATRIX) | OTHERS == titles("/agent/")


@each_row
def test_an_agent_gets_its_own_and_nothing_else(matrix: Matrix, route: str, number: int) -> None:
    each = MATRIX[route][number]
    for where in each.wheres:
        found = matrix.observed[route, number, "agent", where]
        wanted = each.good if where in each.known else each.hidden
        assert (where, found.status) == (where, wanted), found
        if wanted == 404:
            assert found.code == "not-found"


@each_row
def test_siblings_foreign_ended_and_absent_are_answered_alike_and_by_the_same_statements(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    hidden = {
        where: matrix.observed[route, number, "agent", where]
        for where in each.wheres
        if where not in each.known
    }
    told = {(found.status, found.code, found.body) for found in hidden.values()}
    assert len(told) <= 1, hidden
    # What was the caller's own may be looked at once more: it tells the caller nothing new.
    hidden.pop(ENDED, None)
    assert len({found.reads for found in hidden.values()}) <= 1, hidden


@each_row
def test_other_tokens_and_those_of_connections_that_are_over_open_nothing(
    matrix: Matrix, route: str, number: int
) -> None:
    each = MATRIX[route][number]
    found = {
        (caller, where): matrix.observed[route, number, caller, where]
        for caller in STRANGERS
        for where in each.wheres
    }
    assert {(one.status, one.code) for one in found.values()} == {(401, "not-authenticated")}
    assert {one.reads for one in found.values()} == {()}
    with_token = {one.body for (caller, _), one in found.items() if caller != "none"}
    assert len(with_token) == 1


def test_have_says_no_for_what_is_live_in_another_domain(matrix: Matrix) -> None:
    row = "POST /agent/v1/sessions/{session}/have"
    answers = {where: matrix.observed[row, 1, "agent", where].raw for where in WITHOUT_ENDED}
    assert answers == {OWN: b"\1", SIBLING: b"\1", FOREIGN: b"\0", ABSENT: b"\0"}


@pytest.mark.parametrize(("number", "sibling"), [(2, 0), (3, 1)])
def test_a_grant_serves_what_its_snapshots_need_and_what_its_session_confirmed(
    matrix: Matrix, number: int, sibling: int
) -> None:
    row = "POST /agent/v1/grants/{grant}/chunks"
    found = {where: matrix.observed[row, number, "agent", where].raw[32] for where in WITHOUT_ENDED}
    assert found == {OWN: 0, SIBLING: sibling, FOREIGN: 1, ABSENT: 1}


def test_an_enrolment_token_that_does_not_count_is_refused_always_alike(matrix: Matrix) -> None:
    offers, finishes = matrix.offers, matrix.finishes
    assert offers["fresh"].status == 200
    for found in (offers, finishes):
        bad = {name: one for name, one in found.items() if name != "fresh" and "mart" not in name}
        assert {(one.status, one.code) for one in bad.values()} == {(401, "not-authenticated")}, bad
        alike = {found[name] for name in ("expired", "revoked", "unknown")}
        assert len(alike) == 1, alike


def test_a_token_of_another_domain_does_not_tell_whether_a_name_is_taken(matrix: Matrix) -> None:
    taken, free = (matrix.offers[f"of mart: {name}"] for name in ("shop/db-0", "shop/none-0"))
    assert (taken.status, taken.code) == (409, "conflict")
    assert taken == free


def test_every_wrong_hello_is_refused_in_the_same_words(matrix: Matrix) -> None:
    assert len(matrix.refusals) == 8
    assert len(set(matrix.refusals.values())) == 1, matrix.refusals
    assert matrix.refusals["revoked"][0] == "not-authenticated"
