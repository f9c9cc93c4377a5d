"""Clients, tokens, enrolment, jobs and events, as the catalog keeps them."""

from __future__ import annotations

import pytest

from holdfast_contract.errors import Conflict, NotAuthenticated, NotFound
from holdfast_contract.ids import ClientName
from holdfast_contract.protocol.control import Counts, JobState
from holdfast_contract.protocol.http import ErrorRow
from holdfast_server.catalog import clients, domains, enrolment, events, jobs, state, tokens
from holdfast_server.catalog.connection import Catalog
from holdfast_server.catalog.jobs import JobRecord
from tests.support.samples import ids, noise
from tests.support.uploads import START_NS, Served

WEB = ClientName("shop/web-0")
DB = ClientName("shop/db-0")


@pytest.fixture
def catalog(served: Served) -> Catalog:
    return served.catalog


# --- clients


def test_what_an_agent_tells_of_itself_is_kept(served: Served) -> None:
    served.pod(WEB)
    clients.seen(
        served.catalog,
        WEB,
        version="1.2",
        roots=[b"/data", b"/\xff"],
        restore="alternate",
        restore_roots=[b"/restore"],
        browse="content",
    )
    found = clients.get(served.catalog, WEB)
    assert (found.version, found.restore, found.browse) == ("1.2", "alternate", "content")
    assert (found.roots, found.restore_roots) == ([b"/data", b"/\xff"], [b"/restore"])
    assert found.seen_ns is not None and found.seen_ns > found.enrolled_ns > START_NS
    clients.touched(served.catalog, WEB)
    assert (clients.get(served.catalog, WEB).seen_ns or 0) > found.seen_ns


def test_limits_are_set_one_by_one(served: Served) -> None:
    served.pod(WEB)
    clients.set_limits(served.catalog, WEB, upload=5, download=7)
    clients.set_limits(served.catalog, WEB, download=0)
    found = clients.set_limits(served.catalog, WEB)
    assert (found.limit_upload, found.limit_download) == (5, 0)


def test_clients_are_listed_by_name_in_pages(served: Served) -> None:
    for name in ("shop/c", "shop/a", "shop/b"):
        served.pod(name)
    names = [client.name for client in clients.listed(served.catalog, limit=2)]
    assert names == ["shop/a", "shop/b"]
    rest = clients.listed(served.catalog, after=names[-1])
    assert [client.name for client in rest] == ["shop/c"]
    assert clients.count(served.catalog) == 3


def test_a_client_is_revoked_once(served: Served) -> None:
    served.pod(WEB)
    first = clients.revoke(served.catalog, WEB).revoked_ns
    assert first is not None
    assert clients.revoke(served.catalog, WEB).revoked_ns == first
    assert clients.reinstate(served.catalog, WEB).revoked_ns is None


def test_an_unknown_client_is_not_found(catalog: Catalog) -> None:
    for ask in (clients.get, clients.revoke, clients.forget, clients.accept, clients.touched):
        with pytest.raises(NotFound):
            ask(catalog, WEB)


def test_a_client_with_snapshots_is_not_forgotten(served: Served) -> None:
    served.pod(WEB).backup(ids(1))
    with pytest.raises(Conflict):
        clients.forget(served.catalog, WEB)
    assert clients.get(served.catalog, WEB).head_seq == 1


def test_a_forgotten_client_leaves_its_key_unused(served: Served) -> None:
    pod = served.pod(WEB)
    pod.send(ids(2), pod.open())
    key = clients.get(served.catalog, WEB).key
    clients.forget(served.catalog, WEB)
    with pytest.raises(NotFound):
        clients.get(served.catalog, WEB)
    served.pod(DB)
    assert clients.get(served.catalog, DB).key > key


def test_an_accepted_head_is_the_one_that_stood(served: Served) -> None:
    pod = served.pod(WEB)
    first = pod.backup(ids(1))
    clients.accept(served.catalog, WEB)
    pod.backup(ids(1))
    assert clients.get(served.catalog, WEB).accepted == first


# --- domains


def test_domains_are_found_listed_and_counted(served: Served) -> None:
    served.domain("attic")
    served.pod(WEB).backup(ids(1))
    found = domains.get(served.catalog, "shop")
    assert domains.by_id(served.catalog, found.domain) == found
    assert [domain.name for domain in domains.listed(served.catalog)] == ["attic", "shop"]
    assert [domain.name for domain in domains.listed(served.catalog, after="attic")] == ["shop"]
    assert domains.counts(served.catalog, found.key) == (1, 1)
    assert domains.count(served.catalog) == 2
    assert found.epochs == [1, 2] and found.recipients == [noise("recipient")]
    with pytest.raises(NotFound):
        domains.get(served.catalog, "nowhere")


# --- tokens


def test_a_token_is_found_by_its_hash_until_and_after_it_is_revoked(catalog: Catalog) -> None:
    made = tokens.create(
        catalog, token_hash=noise("t"), role="admin", domains=["shop"], label="l", expires_ns=9
    )
    assert tokens.find(catalog, noise("t")) == made
    assert tokens.find(catalog, noise("other")) is None
    tokens.revoke(catalog, made.id)
    revoked = tokens.find(catalog, noise("t"))
    assert revoked is not None and revoked.revoked_ns is not None
    tokens.revoke(catalog, made.id)
    assert tokens.find(catalog, noise("t")) == revoked
    assert tokens.listed(catalog) == [revoked]
    assert tokens.listed(catalog, after=made.id) == []
    with pytest.raises(NotFound):
        tokens.revoke(catalog, "nothing")


# --- enrolment

SOON = START_NS + 10**15


def enrol_token(catalog: Catalog, client: ClientName | None = None, expires_ns: int = SOON) -> str:
    made = enrolment.create(
        catalog, token_hash=noise("e"), domain="shop", client=client, expires_ns=expires_ns
    )
    return made.id


def use(catalog: Catalog, client: str = WEB, key: str = "key", token: str = "e") -> None:
    name = ClientName(client)
    found = enrolment.consume(catalog, noise(token), client=name, sign_key=noise(key))
    assert (found.used_client, found.used_key) == (name, noise(key))


def test_an_enrolment_token_works_again_for_the_same_key_and_no_other(catalog: Catalog) -> None:
    enrol_token(catalog)
    use(catalog)
    use(catalog)
    for other in ({"key": "other"}, {"client": DB}):
        with pytest.raises(NotAuthenticated):
            use(catalog, **other)
    found = enrolment.find(catalog, noise("e"))
    assert found is not None and found.used_client == WEB
    assert enrolment.listed(catalog) == [found]


@pytest.mark.parametrize(
    ("client", "expires_ns", "asked"),
    [
        (DB, SOON, {}),
        (None, START_NS, {}),
        (None, SOON, {"client": "other/web-0"}),
        (None, SOON, {"token": "unknown"}),
    ],
)
def test_an_enrolment_token_that_does_not_fit_is_refused(
    catalog: Catalog, client: ClientName | None, expires_ns: int, asked: dict[str, str]
) -> None:
    enrol_token(catalog, client, expires_ns)
    with pytest.raises(NotAuthenticated):
        use(catalog, **asked)


def test_a_revoked_enrolment_token_is_refused(catalog: Catalog) -> None:
    enrolment.revoke(catalog, enrol_token(catalog))
    with pytest.raises(NotAuthenticated):
        use(catalog)
    with pytest.raises(NotFound):
        enrolment.revoke(catalog, "nothing")


# --- jobs


def job(name: str, client: ClientName = WEB, **more: object) -> JobRecord:
    values = {"kind": "backup", "state": JobState.QUEUED, "created_ns": 5, "spec": b"spec"}
    return JobRecord(id=name, client=client, **(values | more))  # type: ignore[arg-type]


def heads(catalog: Catalog) -> list[str]:
    return [found.id for found in jobs.queued_heads(catalog)]


def test_a_job_comes_back_as_it_went_in(catalog: Catalog) -> None:
    whole = job(
        "A",
        started_ns=6,
        finished_ns=7,
        counts=Counts(files=1, bytes=2, bytes_sent=3, files_total=4, bytes_total=5),
        error=ErrorRow(code="damaged", message="m", hint="h", exit=13, details={"object": "o"}),
        snapshot=noise("s"),
        summary={"files": 1, "seconds": 0.5, "parent": None},
        skipped_count=2,
        not_exact_count=3,
        not_exact_sealed=b"sealed",
    )
    jobs.create(catalog, [whole, job("B")])
    assert jobs.get(catalog, "A") == whole
    assert jobs.get(catalog, "B") == job("B")
    with pytest.raises(NotFound):
        jobs.get(catalog, "C")


def test_jobs_are_listed_newest_first_in_pages(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A"), job("B", DB), job("C"), job("D")])
    assert [found.id for found in jobs.listed(catalog, limit=2)] == ["D", "C"]
    assert [found.id for found in jobs.listed(catalog, after="C")] == ["B", "A"]
    assert [found.id for found in jobs.listed(catalog, client=DB)] == ["B"]
    jobs.move(catalog, "A", [JobState.QUEUED], JobState.FAILED)
    assert [found.id for found in jobs.listed(catalog, state="Failed")] == ["A"]


def test_each_client_has_one_head_of_its_queue_and_none_while_it_is_busy(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A"), job("B"), job("C", DB)])
    assert heads(catalog) == ["A", "C"]
    assert jobs.move(catalog, "A", [JobState.QUEUED], JobState.DISPATCHED, started_ns=8)
    assert heads(catalog) == ["C"]
    assert [found.id for found in jobs.active(catalog)] == ["A"]
    assert jobs.move(catalog, "A", [JobState.DISPATCHED], JobState.COMPLETED)
    assert heads(catalog) == ["B", "C"]
    assert jobs.count_by_state(catalog) == {JobState.QUEUED: 2, JobState.COMPLETED: 1}


def test_a_client_never_gets_a_second_active_job(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A"), job("B")])
    assert jobs.move(catalog, "A", [JobState.QUEUED], JobState.DISPATCHED)
    assert not jobs.move(catalog, "B", [JobState.QUEUED], JobState.DISPATCHED)
    assert jobs.move(catalog, "A", [JobState.DISPATCHED], JobState.RUNNING)
    assert jobs.get(catalog, "B").state is JobState.QUEUED


def test_a_move_from_another_state_changes_nothing(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A")])
    assert not jobs.move(catalog, "A", [JobState.RUNNING], JobState.COMPLETED, finished_ns=9)
    assert not jobs.move(catalog, "Z", [JobState.QUEUED], JobState.RUNNING)
    assert jobs.get(catalog, "A") == job("A")


def test_a_move_sets_fields(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A")])
    error = ErrorRow(code="stalled", message="m")
    counts = Counts(files=3)
    assert jobs.move(catalog, "A", [JobState.QUEUED], JobState.FAILED, error=error, counts=counts)
    found = jobs.get(catalog, "A")
    assert (found.state, found.error, found.counts) == (JobState.FAILED, error, counts)


def test_a_job_that_is_over_keeps_its_last_counts(catalog: Catalog) -> None:
    jobs.create(catalog, [job("A"), job("B", DB)])
    jobs.move(catalog, "A", [JobState.QUEUED], JobState.RUNNING)
    jobs.move(catalog, "B", [JobState.QUEUED], JobState.CANCELLED)
    jobs.set_counts(catalog, [("A", Counts(files=1)), ("B", Counts(files=2))])
    assert jobs.get(catalog, "A").counts.files == 1
    assert jobs.get(catalog, "B").counts.files == 0


# --- events and the clock


def test_events_are_listed_oldest_first_by_client_and_job(catalog: Catalog) -> None:
    first = events.add(catalog, "a", "one", client=WEB, job="J", details={"client": WEB})
    second = events.add(catalog, "b", "two", client=DB)
    assert [event.id for event in events.listed(catalog)] == [first, second]
    assert [event.id for event in events.listed(catalog, client=DB)] == [second]
    found = events.listed(catalog, job="J")
    assert [event.id for event in found] == [first]
    assert found[0].details == {"client": WEB}
    assert events.listed(catalog, after=second) == []
    assert [event.id for event in events.listed(catalog, limit=1)] == [first]


def test_receive_times_never_go_back(served: Served) -> None:
    later = served.catalog.write(lambda tx: state.receive_time(tx, served.clock))
    served.clock.now -= 10**12
    assert served.catalog.write(lambda tx: state.receive_time(tx, served.clock)) == later
