"""What a client's name says of its workload."""

from __future__ import annotations

import pytest

from holdfast_contract.ids import ClientName


@pytest.mark.parametrize(
    ("name", "workload", "ordinal"),
    [
        ("shop/web-0", "shop/web", 0),
        ("shop/web-12", "shop/web", 12),
        ("shop/web-a-3", "shop/web-a", 3),
        ("shop/web-1-2", "shop/web-1", 2),
        ("shop/web", "shop/web", -1),
        ("shop/web-01", "shop/web-01", -1),
        ("shop/web-", "shop/web-", -1),
        ("shop/7", "shop/7", -1),
        ("a-1/b", "a-1/b", -1),
        ("a-1/b-2", "a-1/b", 2),
    ],
)
def test_a_replica_is_its_workload_and_an_ordinal(name: str, workload: str, ordinal: int) -> None:
    found = ClientName(name)
    assert (found.workload, found.ordinal) == (workload, ordinal)


def test_relatives_are_other_replicas_of_the_same_workload_in_the_same_domain() -> None:
    web = ClientName("shop/web-0")
    names = ("shop/web-0", "shop/web", "shop/web-1-0", "shop/db-1", "bank/web-1", "shop/webs-1")
    assert ClientName("shop/web-1").is_relative_of(web)
    assert web.is_relative_of(ClientName("shop/web-10"))
    for name in names:
        assert not ClientName(name).is_relative_of(web)
        assert not web.is_relative_of(ClientName(name))
    assert not ClientName("shop/web").is_relative_of(ClientName("shop/web"))
