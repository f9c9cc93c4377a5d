"""Refusals: all are counted, few are written, and nobody's hide behind anybody else's."""

from __future__ import annotations

from holdfast_server.control.refusals import (
    ALL_OTHERS,
    CALLERS_MAX,
    ROWS_OF_CALLER_MAX,
    WINDOW_SECONDS,
    Refusal,
    Refusals,
)


def refusal(caller: str = "", route: str = "GET /a") -> Refusal:
    return Refusal(caller, "", "refused", route, "refused")


def test_the_first_is_written_and_those_like_it_are_told_once_with_their_count() -> None:
    refusals = Refusals()
    assert [refusals.note(refusal("T"), now) for now in range(5)] == [True] + [False] * 4
    assert not refusals.is_due(WINDOW_SECONDS - 1)
    assert refusals.is_due(WINDOW_SECONDS)
    assert refusals.close_window() == [(refusal("T"), 4)]
    assert refusals.close_window() == []
    assert refusals.note(refusal("T"), 700.0)


def test_a_window_begins_with_its_first_refusal() -> None:
    refusals = Refusals()
    assert not refusals.is_due(1e9)
    refusals.note(refusal(), 5.0)
    assert not refusals.is_due(4.0 + WINDOW_SECONDS)
    assert refusals.is_due(5.0 + WINDOW_SECONDS)


def test_a_flood_of_strangers_writes_few_rows_and_hides_no_caller() -> None:
    refusals = Refusals()
    written = [refusals.note(refusal("", f"GET /{number}"), 0.0) for number in range(10_000)]
    assert sum(written) == ROWS_OF_CALLER_MAX + 1
    assert refusals.note(refusal("T"), 0.0)
    told = refusals.close_window()
    assert len(told) == 1
    assert sum(written) + told[0][1] == 10_000


def test_many_callers_with_many_kinds_are_bounded_and_none_is_lost() -> None:
    refusals = Refusals()
    total = [
        refusals.note(refusal(f"T{caller}", f"GET /{route}"), 0.0)
        for caller in range(200)
        for route in range(50)
    ]
    told = refusals.close_window()
    rows_max = (CALLERS_MAX + 1) * (ROWS_OF_CALLER_MAX + 1)
    assert sum(total) <= rows_max
    assert len(told) <= rows_max
    assert sum(total) + sum(count for _, count in told) == len(total)
    assert ALL_OTHERS in {found.caller for found, _ in told}
