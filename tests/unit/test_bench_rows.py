"""The table of `make bench` compares what can be compared."""

from __future__ import annotations

from typing import Any

from tests.bench.rows import ROWS, Row, costs_of, line_of

ROW = Row(2, "first", "D2", ("first",), "tar|zstd")


def result(contender: str, cpu: float, **changes: Any) -> dict[str, Any]:
    return {
        "set": "D2",
        "step": "first",
        "contender": contender,
        "client_cpu": cpu / 2,
        "server_cpu": cpu / 2,
        "wall": cpu / 2,
        "sync": 0.0,
        "lo_bytes": 1_000_000,
        "rejected": False,
        "rc": 0,
    } | changes


def test_the_best_peers_and_the_limit_stand_beside_ours() -> None:
    results = [
        result("holdfast", 4),
        result("restic:tls", 16),
        result("rustic:tls", 8),
        result("rustic:local", 3),
        result("bupstash:local", 2),
        result("machine", 1, step="tar|zstd"),
        result("machine", 9, step="cat"),
    ]
    assert line_of(ROW, costs_of(ROW, results)) == (
        "| 2 | first | 4.00 / 2.00 | 1.00 | rustic 8.00 / 4.00 | 0.50 / 0.50 "
        "| bupstash 2.00 / 1.00 | 2.00 / 2.00 | 1.00 / 0.50 | 4.00 / 4.00 |"
    )


def test_rounds_that_were_disturbed_or_failed_and_other_work_do_not_count() -> None:
    results = [
        result("holdfast", 4),
        result("holdfast", 6),
        result("holdfast", 1, rejected=True),
        result("holdfast", 1, rc=1),
        result("holdfast", 1, step="unchanged"),
        result("holdfast", 1, set="D1"),
    ]
    assert [(cost.name, cost.cpu) for cost in costs_of(ROW, results)] == [("holdfast", 5)]


def test_what_a_peer_left_to_be_written_is_in_its_wall() -> None:
    (cost,) = costs_of(ROW, [result("restic:local", 4, sync=3.0)])
    assert (cost.cpu, cost.wall) == (4, 5)


def test_a_row_without_peers_or_without_us_says_so() -> None:
    assert "not measured" in line_of(ROW, costs_of(ROW, [result("restic:tls", 4)]))
    assert line_of(ROW, costs_of(ROW, [result("holdfast", 4)])).count("|") == 11


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row.work for row in ROWS}) == len(ROWS)
