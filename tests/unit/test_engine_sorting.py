"""Records sorted outside memory."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.sorting import RecordSorter, only_in_first
from tests.support.samples import ids

records = st.lists(st.binary(min_size=3, max_size=3))


@given(batches=st.lists(records), run=st.integers(1, 20))
def test_records_come_back_distinct_and_ascending(batches: list[list[bytes]], run: int) -> None:
    sorter = RecordSorter(3, run_records=run)
    for batch in batches:
        sorter.add(batch)
    wanted = sorted({record for batch in batches for record in batch})
    assert list(sorter.sorted()) == wanted
    assert list(sorter.sorted()) == wanted
    sorter.close()


def test_joined_records_are_taken_apart() -> None:
    sorter = RecordSorter(32)
    sorter.add_joined(b"".join(reversed(ids(10))))
    assert list(sorter.sorted()) == ids(10)


def test_runs_go_to_the_spool_and_leave_it_with_it() -> None:
    spools: list[io.BytesIO] = []

    def open_spool() -> io.BytesIO:
        spools.append(io.BytesIO())
        return spools[-1]

    sorter = RecordSorter(32, open_spool, run_records=100)
    for start in range(0, 5000, 50):
        sorter.add(ids(5000)[start : start + 50])
    (spool,) = spools
    assert spool.seek(0, 2) >= 32 * 4900
    assert list(sorter.sorted()) == ids(5000)
    sorter.close()
    assert spool.closed


@given(first=records, second=records)
def test_difference_of_sorted_records(first: list[bytes], second: list[bytes]) -> None:
    one, two = sorted(set(first)), sorted(set(second))
    assert list(only_in_first(one, two)) == sorted(set(one) - set(two))
