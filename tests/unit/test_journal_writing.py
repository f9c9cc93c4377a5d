"""From the outbox into the store: in order, batched, and the same after every lost answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from holdfast_contract.errors import NoSpace, StoreFailed
from holdfast_contract.ids import ObjectName
from holdfast_contract.limits import JOURNAL_RECORDS_MAX
from holdfast_server.catalog import outbox, state
from holdfast_server.catalog.state import ServerState
from holdfast_server.repository.journal import Journal, JournalDiverged
from holdfast_server.repository.journal_object import (
    JournalObject,
    decode_journal,
    encode_journal,
    journal_hash,
)
from holdfast_server.repository.journal_records import Deletion, Pin, encode_record
from holdfast_server.repository.names import journal_name
from tests.support.samples import noise
from tests.support.uploads import Served


@pytest.fixture
def served(empty: Served) -> Served:
    return empty


@pytest.fixture
def journal(served: Served) -> Journal:
    return Journal(served.catalog, served.store)


def pin(number: int) -> bytes:
    return encode_record(
        Pin(time_ns=number, domain=noise("d", 16), snapshot=noise(f"snapshot {number}"))
    )


def add(served: Served, *bodies: bytes) -> int:
    """Put records into the outbox, each in the transaction that would make it true."""
    return [served.catalog.write(partial(outbox.append, body=body)) for body in bodies][-1]


def objects(served: Served) -> list[JournalObject]:
    names = sorted(name for name in served.memory.objects if name.startswith("journal/"))
    found = [decode_journal(served.memory.objects[name]) for name in names]
    assert [journal_name(each.number) for each in found] == names
    return found


def now(served: Served) -> ServerState:
    with served.catalog.read() as tx:
        return state.load(tx)


def waiting(served: Served) -> int:
    with served.catalog.read() as tx:
        return len(outbox.pending(tx, 10_000))


def check_chain(served: Served) -> None:
    """Numbers and hashes run through, and the catalog knows the end."""
    found = objects(served)
    record = 1
    for before, each in zip([None, *found], found, strict=False):
        assert each.first == record
        record = each.last + 1
        if before is not None:
            assert each.previous == journal_hash(served.memory.objects[journal_name(before.number)])
    last = served.memory.objects[journal_name(found[-1].number)]
    assert (now(served).journal_number, now(served).journal_hash) == (
        found[-1].number,
        journal_hash(last),
    )
    assert now(served).record_durable == record - 1


def test_a_new_store_begins_with_its_own_record(served: Served) -> None:
    (first,) = objects(served)
    assert (first.number, first.first, len(first.records)) == (1, 1, 1)
    assert now(served).store_id == first.store_id
    check_chain(served)


def test_what_waits_together_goes_into_one_object(served: Served, journal: Journal) -> None:
    last = add(served, pin(1), pin(2), pin(3))
    journal.flush(last)
    assert objects(served)[1].records == [pin(1), pin(2), pin(3)]
    assert waiting(served) == 0
    check_chain(served)


def test_a_record_that_is_durable_needs_no_object(served: Served, journal: Journal) -> None:
    last = add(served, pin(1))
    journal.flush(last)
    journal.flush(last)
    journal.flush(1)
    journal.flush_all()
    assert len(objects(served)) == 2


def test_callers_that_wait_share_the_next_object(served: Served, journal: Journal) -> None:
    entered, go = threading.Event(), threading.Event()

    def hold(verb: str, name: str) -> None:
        if verb == "commit":
            entered.set()
            assert go.wait(10)

    served.memory.before = hold
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(journal.flush, add(served, pin(0)))
        assert entered.wait(10)
        rest = [pool.submit(journal.flush, add(served, pin(i))) for i in range(1, 5)]
        go.set()
        for each in (first, *rest):
            each.result(10)
    assert [len(each.records) for each in objects(served)] == [1, 1, 4]
    check_chain(served)


@pytest.mark.parametrize("verb", ["begin", "write", "commit"])
@pytest.mark.parametrize("error", [NoSpace, StoreFailed])
def test_a_store_that_fails_leaves_the_record_waiting(
    served: Served, journal: Journal, verb: str, error: type[Exception]
) -> None:
    def fail(step: str, name: str) -> None:
        if step == verb:
            raise error("no")

    last = add(served, pin(1))
    served.memory.before = fail
    with pytest.raises(error):
        journal.flush(last)
    served.memory.before = lambda step, name: None
    assert waiting(served) == 1
    journal.flush(last)
    check_chain(served)


def lost_answer(served: Served, journal: Journal, *bodies: bytes) -> int:
    """Flush, and lose the answer of the put: the object is there, the catalog does not know."""
    last = add(served, *bodies)
    put = served.memory.finish

    def lose(name: ObjectName, content: bytes) -> None:
        put(name, content)
        raise StoreFailed("the answer is lost")

    served.memory.finish = lose  # type: ignore[method-assign]
    with pytest.raises(StoreFailed):
        journal.flush(last)
    served.memory.finish = put  # type: ignore[method-assign]
    return last


def test_an_object_whose_answer_was_lost_is_adopted(served: Served, journal: Journal) -> None:
    last = lost_answer(served, journal, pin(1), pin(2))
    journal.flush(last)
    assert [len(each.records) for each in objects(served)] == [1, 2]
    check_chain(served)


def test_records_that_came_later_follow_behind_the_adopted_ones(
    served: Served, journal: Journal
) -> None:
    lost_answer(served, journal, pin(1), pin(2))
    journal.flush(add(served, pin(3)))
    assert [each.records for each in objects(served)[1:]] == [[pin(1), pin(2)], [pin(3)]]
    check_chain(served)


def test_at_start_a_lost_answer_is_found_out(served: Served, journal: Journal) -> None:
    lost_answer(served, journal, pin(1), pin(2))
    add(served, pin(3))
    served.restart()
    assert served.repository.refusal == ""
    assert [each.records for each in objects(served)[1:]] == [[pin(1), pin(2)], [pin(3)]]
    check_chain(served)


def test_an_adopted_object_is_made_durable_before_it_counts(
    served: Served, journal: Journal
) -> None:
    last = lost_answer(served, journal, pin(1))
    seen: list[tuple[str, int]] = []
    served.memory.before = lambda verb, name: seen.append((verb, waiting(served)))
    journal.flush(last)
    assert ("settle", 1) in seen


def test_at_start_too_a_found_object_is_made_durable_before_it_counts(
    served: Served, journal: Journal
) -> None:
    lost_answer(served, journal, pin(1))
    served.stop()
    seen: list[str] = []
    served.memory.before = lambda verb, name: seen.append(f"{verb} {name}")
    served.start()
    assert f"settle {journal_name(2)}" in seen
    check_chain(served)


def foreign(served: Served, **changes: Any) -> bytes:
    """Return what another writer could have put behind the last object."""
    known = now(served)
    assert known.store_id is not None
    made = JournalObject(
        known.store_id,
        known.journal_number + 1,
        known.record_durable + 1,
        known.journal_hash,
        [pin(99)],
    )
    return encode_journal(made._replace(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"records": [pin(1)], "number": 3, "first": 3},
        {"records": [pin(1)], "previous": noise("other")},
        {"records": [pin(1)], "store_id": noise("other", 16)},
        {"records": [pin(1)], "first": 3},
    ],
    ids=["record", "number", "chain", "store", "first"],
)
def test_anothers_object_in_the_way_stops_the_writer(
    served: Served, journal: Journal, changes: dict[str, Any]
) -> None:
    last = add(served, pin(1))
    served.memory.objects[journal_name(2)] = foreign(served, **changes)
    with pytest.raises(JournalDiverged):
        journal.flush(last)
    assert waiting(served) == 1


def test_damage_of_an_object_in_the_way_is_not_adopted(served: Served, journal: Journal) -> None:
    last = lost_answer(served, journal, pin(1))
    name = journal_name(2)
    data = bytearray(served.memory.objects[name])
    data[100] ^= 1
    served.memory.objects[name] = bytes(data)
    with pytest.raises(JournalDiverged):
        journal.flush(last)


def test_more_records_than_an_object_holds_go_into_several(
    served: Served, journal: Journal
) -> None:
    count = JOURNAL_RECORDS_MAX + 5
    last = served.catalog.write(lambda tx: [outbox.append(tx, pin(i)) for i in range(count)][-1])
    journal.flush(last)
    assert [len(each.records) for each in objects(served)[1:]] == [JOURNAL_RECORDS_MAX, 5]
    check_chain(served)


def test_large_records_go_into_several_objects(served: Served, journal: Journal) -> None:
    name = "packs/" + "0" * 32 + "/" + "0" * 26
    large = encode_record(Deletion(time_ns=1, objects=(name,) * 50_000))
    journal.flush(add(served, large, large, large))
    assert [len(each.records) for each in objects(served)[1:]] == [2, 1]
    check_chain(served)


def test_a_full_store_still_takes_journal_objects(served: Served, journal: Journal) -> None:
    used = sum(map(len, served.memory.objects.values()))
    served.memory.capacity = used + 100_000
    assert served.memory.space().free_bytes < served.memory.space().reserve_bytes
    journal.flush(add(served, pin(1)))
    check_chain(served)
