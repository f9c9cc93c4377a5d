"""Domains and identities: which record counts, and what never replaces it."""

from __future__ import annotations

import pytest

from holdfast_contract.errors import (
    Conflict,
    Damaged,
    HoldfastError,
    InvalidInput,
    NoSpace,
    NotFound,
)
from holdfast_contract.ids import ClientName, ObjectName
from holdfast_server.catalog import clients, events
from tests.support.samples import ids, noise
from tests.support.uploads import Served, domain_record

CLIENT = ClientName("shop/db-0")


@pytest.fixture
def served(empty: Served) -> Served:
    return empty


def names(served: Served, folder: str) -> list[ObjectName]:
    return [name for name in served.memory.objects if name.startswith(folder)]


def spoil(served: Served, folder: str) -> ObjectName:
    (name,) = names(served, folder)
    data = bytearray(served.memory.objects[name])
    data[40] ^= 1
    served.memory.objects[name] = bytes(data)
    return name


# --- domains


def test_a_domain_is_created_once_and_the_same_again_changes_nothing(served: Served) -> None:
    first = served.repository.create_domain("shop", domain_record("shop"))
    before = dict(served.memory.objects)
    assert served.repository.create_domain("shop", domain_record("shop")) == first
    assert served.memory.objects == before
    assert served.repository.domain_record("shop") == domain_record("shop")


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("attic", {}, InvalidInput),
        ("shop", {"revision": 2}, InvalidInput),
        ("shop", {"created_ns": 5}, Conflict),
    ],
)
def test_another_first_record_is_refused(
    served: Served, name: str, changes: dict[str, object], error: type[HoldfastError]
) -> None:
    served.domain()
    with pytest.raises(error):
        served.repository.create_domain(name, domain_record("shop", **changes))
    with pytest.raises(InvalidInput):
        served.repository.create_domain("shop", b"no record")


def test_a_domain_id_is_not_taken_twice(served: Served) -> None:
    served.domain("shop")
    taken = domain_record("shop", name="other")
    with pytest.raises(Conflict):
        served.repository.create_domain("other", taken)
    assert len(names(served, "domains/")) == 1


def test_revisions_follow_one_by_one(served: Served) -> None:
    served.domain()
    second = domain_record("shop", revision=2, share_references=False)
    for _ in range(2):
        found = served.repository.put_domain_record("shop", second)
        assert (found.revision, found.share_references) == (2, False)
    assert served.repository.domain_record("shop") == second
    for revision in (2, 4):
        with pytest.raises(Conflict):
            served.repository.put_domain_record("shop", domain_record("shop", revision=revision))
    with pytest.raises(InvalidInput):
        served.repository.put_domain_record("shop", domain_record("attic", revision=3))
    with pytest.raises(NotFound):
        served.repository.put_domain_record("attic", domain_record("attic", revision=2))


def test_a_spoiled_domain_record_is_damage(served: Served) -> None:
    served.domain()
    name = spoil(served, "domains/")
    with pytest.raises(Damaged) as caught:
        served.repository.domain_record("shop")
    assert caught.value.details["object"] == name


def test_a_domain_whose_journal_record_waits_is_not_known(served: Served) -> None:
    def full(verb: str, name: str) -> None:
        if name.startswith("journal/"):
            raise NoSpace("no")

    served.memory.before = full
    with pytest.raises(NoSpace):
        served.domain()
    with pytest.raises(NotFound):
        served.repository.domain_record("shop")
    served.memory.before = lambda verb, name: None
    served.domain()
    assert served.repository.domain_record("shop") == domain_record("shop")


# --- identities


def test_a_client_is_known_once_its_record_counts(served: Served) -> None:
    served.domain()
    with pytest.raises(NotFound):
        clients.get(served.catalog, CLIENT)
    assert served.repository.current_identity(CLIENT) is None
    pod = served.pod()
    found = served.repository.current_identity(CLIENT)
    assert found is not None
    assert (found.identity, found.sign_key) == (pod.identity, pod.identity_key.sign_public)
    assert found.record == pod.identity_record()
    assert served.repository.identity_record("shop", pod.identity) == pod.identity_record()
    assert events.listed(served.catalog) == []


def test_the_same_record_again_changes_nothing(served: Served) -> None:
    served.domain()
    pod = served.pod()
    before = dict(served.memory.objects)
    assert pod.enrol() == pod.identity
    assert served.memory.objects == before


def test_a_new_record_follows_on_the_old_one_and_is_told(served: Served) -> None:
    served.domain()
    pod = served.pod()
    old = pod.identity_record()
    second = pod.enrol(previous=pod.identity, reason="key lost", sign_key=noise("new key"))
    found = served.repository.current_identity(CLIENT)
    assert found is not None and found.identity == second
    assert served.repository.identity_record("shop", pod.identity) == old
    (event,) = events.listed(served.catalog)
    assert (event.kind, event.client) == ("identity-changed", CLIENT)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"previous": noise("other"), "reason": "key lost"}, Conflict),
        ({"sign_key": noise("another")}, Conflict),
        ({"client": "shop/db-1"}, InvalidInput),
        ({"heads": (noise("h"), noise("k")), "reason": "history accepted"}, Conflict),
    ],
    ids=["previous", "taken", "client", "heads"],
)
def test_a_record_that_does_not_follow_is_refused(
    served: Served, changes: dict[str, object], error: type[HoldfastError]
) -> None:
    served.domain()
    pod = served.pod()
    if "heads" in changes:
        changes["previous"] = pod.identity
    with pytest.raises(error):
        pod.enrol(**changes)
    found = served.repository.current_identity(CLIENT)
    assert found is not None and found.identity == pod.identity


def test_an_old_record_does_not_come_back(served: Served) -> None:
    served.domain()
    pod = served.pod()
    pod.enrol(previous=pod.identity, reason="key lost")
    with pytest.raises(Conflict):
        pod.enrol()


def test_a_record_of_another_key_or_domain_is_refused(served: Served) -> None:
    served.domain()
    served.domain("attic")
    pod = served.pod()
    other = served.pod("attic/db-0")
    with pytest.raises(InvalidInput):
        served.repository.enrol(CLIENT, pod.identity_record(), noise("another key"))
    with pytest.raises(InvalidInput):
        served.repository.enrol(CLIENT, other.identity_record(), other.identity_key.sign_public)
    with pytest.raises(InvalidInput):
        served.repository.enrol(CLIENT, pod.identity_record(sign_key=bytes(32)), bytes(32))
    with pytest.raises(NotFound):
        served.repository.enrol(ClientName("nowhere/a"), b"", pod.identity_key.sign_public)


def test_another_domains_identities_are_not_found(served: Served) -> None:
    served.domain()
    served.domain("attic")
    pod = served.pod()
    with pytest.raises(NotFound):
        served.repository.identity_record("attic", pod.identity)
    with pytest.raises(NotFound):
        served.repository.identity_record("shop", noise("none"))


def test_a_spoiled_identity_record_is_damage(served: Served) -> None:
    served.domain()
    pod = served.pod()
    name = spoil(served, "identities/")
    with pytest.raises(Damaged) as caught:
        served.repository.identity_record("shop", pod.identity)
    assert caught.value.details["object"] == name


def test_an_accepted_history_begins_a_lineage_from_the_head(served: Served) -> None:
    served.domain()
    pod = served.pod()
    head = pod.backup(ids(1))
    clients.accept(served.catalog, CLIENT)
    lineage = noise("new lineage", 16)
    pod.identity = pod.enrol(
        previous=pod.identity,
        lineage=lineage,
        heads=(head, noise("remembered")),
        reason="history accepted",
    )
    assert clients.get(served.catalog, CLIENT).accepted is None
    second = pod.backup(ids(1), lineage=lineage)
    found = served.repository.history.get(second)
    assert (found.seq, found.prev, found.lineage) == (2, head, lineage)
